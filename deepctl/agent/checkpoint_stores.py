"""Checkpoints for applications: `FileCheckpointStore`, `InMemoryCheckpointStore` and the capability that fills them.

The methods are those of pydantic-deep's classes of the same names, and a directory of its `FileCheckpointStore` (one
`<id>.json` per checkpoint) can be read. The engine is that of the command line, `deepctl.store.repository`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic_ai.messages import ModelMessage

T = TypeVar("T")

CheckpointFrequency = Literal["every_turn", "every_tool", "manual_only"]

_SESSION = "library"
_NO_DIRECTORY = "the backend has no directory on this machine"


@dataclass
class Checkpoint:
    """A conversation at one point in time.

    Attributes:
        id: Unique; a random UUID unless the application chooses.
        label: A name, which need not be unique.
        turn: The number of turns.
        messages: The conversation; a store returns a new list.
        message_count: The number of messages.
        created_at: The time of its creation, with a time zone.
        metadata: Any JSON values. The store sets `workspace`: whether the files were stored, or why not, and
            `project_dir` if files of a project were.
    """

    id: str
    label: str
    turn: int
    messages: list[ModelMessage]
    message_count: int
    created_at: datetime
    metadata: dict[str, Any] = field(default_factory=dict)


def new_checkpoint(
    label: str, turn: int, conversation: Sequence[ModelMessage], metadata: dict[str, Any] | None = None
) -> Checkpoint:
    """A checkpoint of a conversation as it is now."""
    return Checkpoint(
        str(uuid.uuid4()),
        label,
        turn,
        list(conversation),
        len(conversation),
        datetime.now(timezone.utc),
        metadata or {},
    )


@runtime_checkable
class CheckpointStore(Protocol):
    """A store of checkpoints. One per user, because a store gives access to everything in it."""

    async def save(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint; one of the same id is replaced."""
        ...

    async def get(self, checkpoint_id: str) -> Checkpoint | None:
        """The checkpoint of that id."""
        ...

    async def get_by_label(self, label: str) -> Checkpoint | None:
        """The oldest checkpoint of that label."""
        ...

    async def list_all(self) -> list[Checkpoint]:
        """All checkpoints, oldest first."""
        ...

    async def remove(self, checkpoint_id: str) -> bool:
        """Remove a checkpoint; returns whether it existed."""
        ...

    async def remove_oldest(self) -> bool:
        """Remove the oldest; returns whether there was one."""
        ...

    async def count(self) -> int:
        """The number of checkpoints."""
        ...

    async def clear(self) -> None:
        """Remove all."""
        ...


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, messages=list(checkpoint.messages), metadata=dict(checkpoint.metadata))


class InMemoryCheckpointStore:
    """Checkpoints that last as long as this object: conversations only, no files."""

    def __init__(self) -> None:
        self._checkpoints: dict[str, Checkpoint] = {}

    async def save(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint; one of the same id is replaced."""
        metadata = {**checkpoint.metadata, "workspace": "this store keeps no files"}
        self._checkpoints[checkpoint.id] = replace(checkpoint, messages=list(checkpoint.messages), metadata=metadata)

    async def get(self, checkpoint_id: str) -> Checkpoint | None:
        """The checkpoint of that id."""
        checkpoint = self._checkpoints.get(checkpoint_id)
        return _copied(checkpoint) if checkpoint is not None else None

    async def get_by_label(self, label: str) -> Checkpoint | None:
        """The oldest checkpoint of that label."""
        return next((matches for matches in await self.list_all() if matches.label == label), None)

    async def list_all(self) -> list[Checkpoint]:
        """All checkpoints, oldest first."""
        checkpoints = sorted(self._checkpoints.values(), key=lambda checkpoint: checkpoint.created_at)
        return [_copied(checkpoint) for checkpoint in checkpoints]

    async def remove(self, checkpoint_id: str) -> bool:
        """Remove a checkpoint; returns whether it existed."""
        return self._checkpoints.pop(checkpoint_id, None) is not None

    async def remove_oldest(self) -> bool:
        """Remove the oldest; returns whether there was one."""
        checkpoints = await self.list_all()
        return bool(checkpoints) and await self.remove(checkpoints[0].id)

    async def count(self) -> int:
        """The number of checkpoints."""
        return len(self._checkpoints)

    async def clear(self) -> None:
        """Remove all."""
        self._checkpoints.clear()
