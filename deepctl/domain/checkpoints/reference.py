"""Which checkpoint a person means: an id, a label, a prefix of an id, or `~N`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepctl.domain.checkpoints.ledger import Ledger
from deepctl.domain.checkpoints.records import Record
from deepctl.errors import NotFound, UsageError

_TURNS_BACK = re.compile(r"~([0-9]{1,9})")
_PREFIX = re.compile(r"[0-9a-f-]{4,36}")
_SHOWN = 8


class CheckpointNotFound(NotFound):
    code = "checkpoint_not_found"


def resolve(ledger: Ledger, reference: str, line: Sequence[Record], turns: int) -> Record:
    """The checkpoint that `reference` means: an id, then a label, then a prefix of at least 4 digits.

    `~N` is the state before the last N turns of the session whose checkpoints are `line`, the latest first, and which
    has `turns` turns now. Raises `CheckpointNotFound`, or `UsageError` if a prefix fits several.
    """
    if match := _TURNS_BACK.fullmatch(reference):
        return _back(line, int(match[1]), turns)
    found = ledger.records.get(reference) or ledger.labelled(reference)
    if found is not None:
        return found
    reference = reference.lower()
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


def _back(line: Sequence[Record], count: int, turns: int) -> Record:
    wanted = turns - count
    if wanted < 0:
        raise CheckpointNotFound(
            f"The session has {turns} turn{'' if turns == 1 else 's'}, so none is {count} back.",
            "`deepctl checkpoints list` shows what there is.",
        )
    # Of several with as many turns, the latest is the state in which the next turn began. Where there is none yet, what
    # was kept before a rewind is not meant.
    passed = ("tool",) if count else ("tool", "rewind")
    found = next((record for record in line if record.turn <= wanted and record.kind not in passed), None)
    if found is None or found.turn != wanted:
        nearest = f" The nearest before it is {found.id}." if found is not None else ""
        raise CheckpointNotFound(
            f"No checkpoint was kept {count} turn{'' if count == 1 else 's'} back.{nearest}",
            "`deepctl checkpoints list` shows what there is.",
        )
    return found


def _missing(reference: str) -> CheckpointNotFound:
    if reference.startswith("/"):
        return CheckpointNotFound(
            f"There is no checkpoint {reference!r}.", "Where the shell makes a path of ~N, quote it: '~1'."
        )
    return CheckpointNotFound(
        f"There is no checkpoint {reference!r}.",
        "A reference is an id, 4 or more digits it begins with, a label, or ~N for N turns back.",
    )
