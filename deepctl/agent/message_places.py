"""What a model is sent of a conversation that is kept, and where in the conversation each message of it is.

A history is the conversation's context (`deepctl.store.compacted_context`) as pydantic-ai's messages, repaired where a
turn was killed. Repairing puts messages together, and a compaction in the middle of a turn replaces them, so where in
the conversation a message is does not follow from where in the history: it is kept beside it, by identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse, repair_messages
from pydantic_ai.models import Model
from pydantic_ai.usage import RequestUsage

from deepctl.agent import message_filters
from deepctl.agent.limits import bounded
from deepctl.store import compacted_context, session_log


class History(NamedTuple):
    """What a model is sent. `places` are those of messages that are one of the conversation as it is, by their `id`.

    `begins` is the place from which on nothing is left out, `total` how many messages the conversation has,
    `unreadable` how many of those that should be here could not be understood, and `left_out` how many files by address
    are not in them.
    """

    messages: list[ModelMessage]
    places: Mapping[int, int] = {}
    begins: int = 0
    total: int = 0
    unreadable: int = 0
    left_out: int = 0


def of(conversation: session_log.MessageList, model: Model | None = None) -> History:
    """The history that a conversation goes on with, as `model` may be sent it.

    Wherever a conversation came from, this is where its messages are checked: see `deepctl.agent.message_filters`.
    """
    seen = compacted_context.of(conversation)
    found: list[tuple[int, ModelMessage]] = []
    unreadable = left_out = 0
    for place in seen.places:
        try:
            (message,) = ModelMessagesTypeAdapter.validate_python([conversation.messages[place].message])
        except ValidationError:
            unreadable += 1
            continue
        message, count = message_filters.without(message, model)
        left_out += count
        before = seen.summary is not None and place < seen.summary
        message = _bounded(message)
        found.append((place, uncounted(message) if before else message))
    messages = repair_messages([message for _, message in found])
    there = {id(message) for message in messages}
    places = {
        id(message): place
        for place, message in found
        if id(message) in there and place >= seen.begins and place != seen.summary
    }
    return History(messages, places, seen.begins, len(conversation.messages), unreadable, left_out)


def uncounted(message: ModelMessage) -> ModelMessage:
    """The same without the tokens that its provider counted: those were of a request with more before it."""
    return replace(message, usage=RequestUsage()) if isinstance(message, ModelResponse) else message


def _bounded(message: ModelMessage) -> ModelMessage:
    # What is in the log may have been written before usage was bounded, or come from elsewhere; a history that names
    # another workspace would not be continued in this one.
    if not isinstance(message, ModelResponse):
        return message
    return replace(message, usage=bounded(message.usage), workspace_ref=None)


def is_prompt(message: ModelMessage) -> bool:
    """Whether a message has something that the user typed."""
    return session_log.prompt(ModelMessagesTypeAdapter.dump_python([message], mode="json")[0]) is not None


class Places:
    """Where in the conversation the messages of a turn are, while it goes on.

    A message is held as long as its place is known, so no other can have its `id`.
    """

    def __init__(self, history: History) -> None:
        self._places = {
            id(message): (message, history.places[id(message)])
            for message in history.messages
            if id(message) in history.places
        }
        self._first = history.total
        self._asked: list[ModelMessage] = []
        self.begins = history.begins
        self.total = history.total

    def add(self, message: ModelMessage) -> None:
        """One more message has been recorded."""
        if not self._asked:
            self._asked = [message]
        self._places[id(message)] = (message, self.total)
        self.total += 1

    def compacted(self, begins: int, before: Sequence[ModelMessage], kept: Sequence[ModelMessage]) -> None:
        """What was before place `begins` is out of sight; `kept` are now what the last of `before` were."""
        places = [self._place(message) for message in before[len(before) - len(kept) :]]
        self._places = {id(one): (one, place) for one, place in zip(kept, places, strict=True) if place is not None}
        self.begins = begins

    def summarized(self) -> None:
        """The summary has been recorded; nothing can begin there."""
        self.total += 1

    def prompt_before(self, begins: int) -> list[ModelMessage]:
        """The prompt of the turn, if it is before place `begins`."""
        return self._asked if begins > self._first else []

    def begin_of(self, messages: Sequence[ModelMessage], cut: int) -> int | None:
        """The place in the conversation at which the messages from `cut` on begin; `None` if nobody can tell."""
        for index in range(cut, -1, -1):
            place = self._place(messages[index])
            if place is not None:
                # Requests are put together with requests, so what is before them is the answer they follow; and what
                # has not been recorded yet comes behind all that has.
                return place if index == cut else place + 1
        return None

    def _place(self, message: ModelMessage) -> int | None:
        found = self._places.get(id(message))
        return found[1] if found is not None else None
