"""Which checkpoint a person means: an id, a label, a prefix of an id, or `~N`."""

from __future__ import annotations

import re

from deepctl.errors import NotFound, UsageError
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record

_TURNS_BACK = re.compile(r"~([0-9]{1,9})")
_PREFIX = re.compile(r"[0-9a-f-]{4,36}")
_SHOWN = 8


class CheckpointNotFound(NotFound):
    code = "checkpoint_not_found"


def resolve(ledger: Ledger, reference: str, head: str | None, turns: int) -> Record:
    """The checkpoint that `reference` means: an id, then a label, then a prefix of at least 4 digits.

    `~N` is the state before the last N turns of the session that stands at the checkpoint `head` and has `turns` turns
    now. Raises `CheckpointNotFound`, or `UsageError` if a prefix fits several.
    """
    if match := _TURNS_BACK.fullmatch(reference):
        return _back(ledger, head, int(match[1]), turns)
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


def _back(ledger: Ledger, head: str | None, count: int, turns: int) -> Record:
    wanted = turns - count
    if wanted < 0:
        raise CheckpointNotFound(
            f"The session has {turns} turn{'' if turns == 1 else 's'}, so none is {count} back.",
            "`deepctl checkpoints list` shows what there is.",
        )
    # Of several with as many turns, the latest is the state in which the next turn began. Where there is none yet, what
    # was kept before a rewind is not meant.
    passed = ("tool",) if count else ("tool", "rewind")
    line = [one for one in ledger.line_with_removed(head) if one[0].kind not in passed]
    back = [one for one in line if one[0].turn <= wanted]
    there = next((record for record, is_there in back if is_there), None)
    if back and back[0][0].turn == wanted:
        began = back[0][0]
        if there is not None and _is_same(there, began):
            return there
        what = f"The checkpoint {count} turn{'' if count == 1 else 's'} back has been removed."
    else:
        what = f"No checkpoint was kept {count} turn{'' if count == 1 else 's'} back."
    later = [record for record, is_there in line if is_there and record.turn > wanted]
    nearest = [f"before it is {there.id}"] if there is not None else []
    nearest += [f"after it is {later[-1].id}"] if later else []
    raise CheckpointNotFound(
        f"{what} The nearest {', the nearest '.join(nearest)}." if nearest else what,
        "`deepctl checkpoints list` shows what there is.",
    )


def _is_same(there: Record, began: Record) -> bool:
    """Whether a checkpoint is the state of another one, which may have been removed."""
    return (there.tree, there.turn, there.log, there.offset) == (began.tree, began.turn, began.log, began.offset)


def _missing(reference: str) -> CheckpointNotFound:
    if reference.startswith("/"):
        return CheckpointNotFound(
            f"There is no checkpoint {reference!r}.", "Where the shell makes a path of ~N, quote it: '~1'."
        )
    return CheckpointNotFound(
        f"There is no checkpoint {reference!r}.",
        "A reference is an id, 4 or more digits it begins with, a label, or ~N for N turns back.",
    )
