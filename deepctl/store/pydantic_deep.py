"""Checkpoints as pydantic-deep's `FileCheckpointStore` writes them: one `<id>.json` each, in a directory.

Source of the format: pydantic-deep 0.3.50, `features/checkpointing/store.py`.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any, NamedTuple

from deepctl.errors import Damaged, DeepctlError, Refused
from deepctl.files import atomic
from deepctl.unicode import whole_value

_SUFFIX = ".json"


class Header(NamedTuple):
    """What a checkpoint is, without its messages. `created_at` is RFC 3339."""

    id: str
    label: str
    turn: int
    created_at: str


class ForeignCheckpoint(NamedTuple):
    """One checkpoint: `messages` are pydantic-ai's JSON."""

    header: Header
    messages: list[dict[str, Any]]
    metadata: dict[str, Any]


def find(directory: str) -> dict[str, str]:
    """The paths of the checkpoints in a directory by their file names, which are their ids."""
    try:
        found = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name.removesuffix(_SUFFIX): os.path.join(directory, name) for name in found if name.endswith(_SUFFIX)}


def headers(directory: str) -> list[Header]:
    """Those in a directory that can be read."""
    found = []
    for path in find(directory).values():
        try:
            found.append(read(path).header)
        except (DeepctlError, OSError):
            continue
    return found


def read(path: str) -> ForeignCheckpoint:
    """One checkpoint. Raises `Damaged` if the file is not a checkpoint, or cannot be read."""
    try:
        raw = atomic.read_file(path)
    except Refused as error:  # its hint is about files of deepctl's own
        raise Damaged(error.message) from None
    except OSError as error:
        if atomic.is_of_machine(error):
            raise
        raise Damaged(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    try:
        value = whole_value(json.loads(raw))
        datetime.fromisoformat(value["created_at"])
        match value:
            case {
                "id": str(identity),
                "label": str(label),
                "turn": int(turn),
                "messages": list(messages),
                "created_at": str(at),
            } if all(_is_message(message) for message in messages):
                metadata = value.get("metadata")
                name = os.path.basename(path).removesuffix(_SUFFIX)
                if identity != name or not identity.isprintable() or len(identity) > 200:
                    raise Damaged(f"{path} holds checkpoint {identity!r}.")
                in_utc(at)
                return ForeignCheckpoint(
                    Header(identity, label, turn, at), messages, metadata if isinstance(metadata, dict) else {}
                )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(f"{path} is no checkpoint of pydantic-deep: {error}.") from None
    raise Damaged(f"{path} is no checkpoint of pydantic-deep.")


def in_utc(at: str) -> str:
    """A time of theirs as RFC 3339 in UTC; one without a zone is taken for UTC."""
    found = datetime.fromisoformat(at)
    if found.tzinfo is not None:
        found = found.astimezone(timezone.utc)
    return found.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("kind") in ("request", "response")
        and isinstance(value.get("parts"), list)
    )
