"""Checkpoints for applications: `FileCheckpointStore`, `InMemoryCheckpointStore` and the capability that fills them.

The methods are those of pydantic-deep's classes of the same names, and a directory of its `FileCheckpointStore` (one
`<id>.json` per checkpoint) can be read. The engine is that of the command line, `deepctl.store.repository`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic_ai.messages import ModelMessage

from deepctl.errors import BadSetting
from deepctl.store.lookup import CheckpointNotFound

CheckpointFrequency = Literal["every_turn", "every_tool", "manual_only"]

_IN_MEMORY = "this store keeps no files"


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
        metadata: Any JSON values.
        has_files: Whether the store has the files of that time; the store sets this and the following.
        no_files_reason: The reason why it has none.
        project_dir: The directory of the project whose files it has.
    """

    id: str
    label: str
    turn: int
    messages: list[ModelMessage]
    message_count: int
    created_at: datetime
    metadata: dict[str, Any] = field(default_factory=dict)
    has_files: bool = False
    no_files_reason: str = ""
    project_dir: str | None = None


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


_GENERATED = re.compile(r"turn-\d+|tool-\d+-.+|auto-\d+|")
_BEFORE = "before-"


def is_labelled(label: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a person, the agent or the application chose the label of a checkpoint; retention removes no such one.

    The other labels are generated: `turn-3`, `tool-3-ls`, `before-ls` of a run, and `auto-3` of pydantic-deep.
    """
    if _GENERATED.fullmatch(label):
        return False
    is_before_tool = metadata.get("kind") == "tool" and "last_tool" not in metadata
    name = metadata.get("next_tool", label.removeprefix(_BEFORE))  # 0.1 did not record the tool
    return not (is_before_tool and label == f"{_BEFORE}{name}")


def before_tool(name: str, metadata: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The label and the metadata of a checkpoint before a tool call."""
    return f"{_BEFORE}{name}", {**metadata, "kind": "tool", "next_tool": name}


def check_keep(keep: int) -> int:
    """A number of checkpoints that stay. Raises `BadSetting`."""
    if keep < 1:
        raise BadSetting(f"{keep} checkpoints cannot be kept.", "Keep at least one.")
    return keep


class _Missing(CheckpointNotFound, ValueError):
    """For applications that expect the `ValueError` of pydantic-deep."""


async def fork_from_checkpoint(store: CheckpointStore, checkpoint_id: str) -> list[ModelMessage]:
    """The conversation of a checkpoint, for the `message_history` of another conversation.

    Raises `CheckpointNotFound`, which is a `ValueError` here.
    """
    checkpoint = await store.get(checkpoint_id)
    if checkpoint is None:
        raise _Missing(f"Checkpoint {checkpoint_id!r} was not found.")
    return list(checkpoint.messages)


async def prune(store: CheckpointStore, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the labelled ones.

    A store of another class has no method for that, so all its checkpoints are read.
    """
    if isinstance(store, _Prunable):
        await store.prune(keep)
        return
    for checkpoint in (await store.list_all())[: -check_keep(keep)]:
        if not is_labelled(checkpoint.label, checkpoint.metadata):
            await store.remove(checkpoint.id)


@runtime_checkable
class _Prunable(Protocol):
    async def prune(self, keep: int) -> list[str]: ...


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
        stored = replace(_copied(checkpoint), has_files=False, no_files_reason=_IN_MEMORY, project_dir=None)
        self._checkpoints.pop(checkpoint.id, None)
        self._checkpoints[checkpoint.id] = stored

    async def label(self, checkpoint_id: str, label: str) -> None:
        """Give a checkpoint another label; its place among the others stays. Raises `CheckpointNotFound`."""
        checkpoint = self._checkpoints.get(checkpoint_id)
        if checkpoint is None:
            raise CheckpointNotFound(f"There is no checkpoint {checkpoint_id!r}.")
        self._checkpoints[checkpoint_id] = replace(checkpoint, label=label)

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

    async def newest(self) -> Checkpoint | None:
        """The checkpoint that was saved last."""
        latest = next(reversed(self._checkpoints.values()), None)
        return _copied(latest) if latest is not None else None

    async def prune(self, keep: int) -> list[str]:
        """Remove all checkpoints but the newest `keep` and the labelled ones; returns their ids."""
        oldest_first = sorted(self._checkpoints.values(), key=lambda checkpoint: checkpoint.created_at)
        removed = [
            checkpoint.id
            for checkpoint in oldest_first[: -check_keep(keep)]
            if not is_labelled(checkpoint.label, checkpoint.metadata)
        ]
        for identity in removed:
            del self._checkpoints[identity]
        return removed

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
