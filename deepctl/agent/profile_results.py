"""What an `OpenProfile` returns: values of an application, which any JSON encoder of data classes accepts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic_ai.messages import ModelMessage

from deepctl.agent.turn import TokenUsage
from deepctl.store.lookup import CheckpointInfo
from deepctl.store.rewind import RewindResult
from deepctl.store.session_catalogue import SessionSummary

OutputT = TypeVar("OutputT")


@dataclass(frozen=True)
class ProfileResult(Generic[OutputT]):
    """A finished turn of a profile.

    Attributes:
        output: The answer, of the output type of the agent.
        session: The name of the session.
        checkpoint: The id of the checkpoint at the end of the turn, `None` if the setting `checkpoints` makes none.
        usage: Tokens and requests of the whole turn, with the parts that the agent rewound.
        cost: The cost in USD, `None` if no price is known.
        messages: The messages of this turn, from the prompt to the answer; `history` returns those of the session.
        notices: Sentences for the user, such as files that no checkpoint contains.
    """

    output: OutputT
    session: str
    checkpoint: str | None
    usage: TokenUsage
    cost: float | None
    messages: list[ModelMessage] = field(repr=False)
    notices: list[str]


@dataclass(frozen=True)
class ProfileCheckpoint:
    """A checkpoint of a profile, as `deepctl checkpoints list --json` has it.

    Attributes:
        id: The id, for `rewind`.
        label: Its label, or `None`.
        kind: `turn`, `tool`, `manual` or `rewind`.
        session: The name of its session.
        turn: The number of turns of the conversation.
        created_at: The time, RFC 3339 in UTC.
        message_count: The number of messages of the conversation.
        files: The number of files.
        bytes: Their size.
        prompt: The beginning of the last prompt.
    """

    id: str
    label: str | None
    kind: str
    session: str
    turn: int
    created_at: str
    message_count: int
    files: int
    bytes: int
    prompt: str

    @classmethod
    def of(cls, info: CheckpointInfo) -> ProfileCheckpoint:
        """The same in the form for applications."""
        record = info.record
        return cls(
            record.id,
            info.label,
            record.kind,
            info.session,
            record.turn,
            record.created_at,
            record.message_count,
            record.files,
            record.bytes,
            record.prompt,
        )


@dataclass(frozen=True)
class ProfileRewind:
    """A finished rewind of a profile.

    Attributes:
        session: The name of the session.
        rewound_to: The id of the checkpoint.
        safety: The id of the checkpoint with the state before the rewind; `None` if there was nothing to rewind.
        messages_removed: The number of messages that left the conversation.
        restored_paths: The restored files.
        deleted_paths: The deleted files.
        kept_paths: The files that differ from the checkpoint and stay, because another author changed them.
    """

    session: str
    rewound_to: str
    safety: str | None
    messages_removed: int
    restored_paths: list[str]
    deleted_paths: list[str]
    kept_paths: list[str]

    @classmethod
    def of(cls, session: str, result: RewindResult) -> ProfileRewind:
        """The same in the form for applications."""
        workspace = result.plan.workspace

        def names(paths: list[bytes]) -> list[str]:
            return sorted(os.fsdecode(workspace.shown(path)) for path in paths)

        kept_paths = {*result.plan.kept_paths, *(path for path, _ in result.in_the_way)}
        return cls(
            session,
            result.plan.request.to.id,
            result.safety.id if result.safety is not None else None,
            result.plan.messages_removed,
            names(result.restored_paths),
            names(result.deleted_paths),
            names(list(kept_paths)),
        )


@dataclass(frozen=True)
class ProfileSession:
    """A session of a profile, as `deepctl sessions list --json` has it.

    Attributes:
        name: Its name.
        created_at: The time of its beginning, RFC 3339 in UTC; `None` if it cannot be read.
        updated_at: The time of its last message.
        turns: The number of turns.
        message_count: The number of messages.
        head: The id of its latest checkpoint.
        title: The beginning of its first prompt.
        problem: The reason if it cannot be read.
    """

    name: str
    created_at: str | None
    updated_at: str | None
    turns: int
    message_count: int
    head: str | None
    title: str
    problem: str | None

    @classmethod
    def of(cls, summary: SessionSummary) -> ProfileSession:
        """The same in the form for applications."""
        return cls(
            summary.name,
            summary.created_at,
            summary.updated_at,
            summary.turns,
            summary.message_count,
            summary.head,
            summary.title,
            summary.problem,
        )
