"""Which checkpoint a person means: an id, a label, a prefix of an id, or `~N`."""

from __future__ import annotations

import re

from deepctl.domain.checkpoints.ledger import Ledger, Record
from deepctl.errors import NotFound, UsageError

_TURNS_BACK = re.compile(r"~([0-9]{1,9})")
_PREFIX = re.compile(r"[0-9a-f]{4,16}")
_SHOWN = 8


class CheckpointNotFound(NotFound):
    code = "checkpoint_not_found"


def resolve(ledger: Ledger, reference: str, session: str, turns: int) -> Record:
    """The checkpoint that `reference` means: an id, then a label, then a prefix of at least 4 digits.

    `~N` is the state before the last N turns of the session with id `session`, which has `turns` turns now: the
    latest checkpoint on the way to where it stands that has no more than `turns - N`.
    Raises `CheckpointNotFound`, or `UsageError` if a prefix fits several.
    """
    if match := _TURNS_BACK.fullmatch(reference):
        wanted = turns - int(match[1])
        line = ledger.line_of(session)
        back = next((record for record in line if record.turn <= wanted), None)
        if wanted < 0 or back is None:
            raise CheckpointNotFound(
                f"No checkpoint of this session is {match[1]} turns back.", "`deepctl checkpoints list` shows them."
            )
        return back
    found = ledger.records.get(reference) or ledger.labelled(reference)
    if found is not None:
        return found
    if not _PREFIX.fullmatch(reference):
        raise _missing(reference)
    fitting = [record for record in ledger.records.values() if record.id.startswith(reference)]
    if len(fitting) > 1:
        shown = ", ".join(record.id for record in fitting[:_SHOWN])
        more = f" and {len(fitting) - _SHOWN} more" if len(fitting) > _SHOWN else ""
        raise UsageError(
            f"{reference!r} is the beginning of {len(fitting)} checkpoints: {shown}{more}.",
            "Give more digits.",
            code="ambiguous_checkpoint",
        )
    if not fitting:
        raise _missing(reference)
    return fitting[0]


def _missing(reference: str) -> CheckpointNotFound:
    return CheckpointNotFound(
        f"There is no checkpoint {reference!r}.",
        "A reference is an id, 4 or more digits it begins with, a label, or ~N for N turns back.",
    )
