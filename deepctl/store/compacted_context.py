"""What the model sees of a conversation: all of it, or, where it was compacted, a summary and what was kept.

A compaction takes nothing out of a log. It is a message like any other, the summary, which says how many of the
messages before it stay in sight. So whoever reads a conversation has all of it, and the log up to an earlier offset,
which is what a checkpoint names, is the conversation before it was compacted.
"""

from __future__ import annotations

from typing import NamedTuple

from deepctl.store import session_log
from deepctl.store.session_log import MessageList


class CompactedContext(NamedTuple):
    """The places of the messages that the model sees, in the order in which it sees them.

    `begins` is the place from which on it sees all that was said. Of what is before, it sees the summary (`summary` is
    the place of that, `None` where there is none), and the prompt of the turn in the middle of which that was written.
    """

    places: list[int]
    begins: int = 0
    summary: int | None = None


def of(conversation: MessageList) -> CompactedContext:
    """What the model sees of a conversation; of several compactions the last one counts."""
    messages = conversation.messages
    if not conversation.compactions:
        return CompactedContext(list(range(len(messages))))
    summary, keeps = conversation.compactions[-1]
    summaries = {compaction.place for compaction in conversation.compactions}
    begins = max(summary - keeps, 0)
    kept = [place for place in range(begins, summary) if place not in summaries]
    goes_on = bool(kept) and messages[kept[-1]].message["kind"] == "request"
    asked = _asked(conversation, kept[0], messages[summary].turn) if goes_on else []
    return CompactedContext([summary, *asked, *kept, *range(summary + 1, len(messages))], begins, summary)


def _asked(conversation: MessageList, place: int, turn: int) -> list[int]:
    """The place of a turn's prompt, if the message at `place` is of that turn and comes after it."""
    messages = conversation.messages
    first = place
    while messages[place].turn == turn and first and messages[first - 1].turn == turn:
        first -= 1
    return [one for one in range(first, place) if session_log.prompt(messages[one].message) is not None][:1]
