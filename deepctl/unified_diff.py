"""The unified diff of two contents, as exact bytes for `patch -p1`: only a newline ends a line, whatever is in it."""

from __future__ import annotations

import difflib
import os
from typing import NamedTuple

from deepctl.notebook_text import MANY_LINES, split


class Unified(NamedTuple):
    """How many lines came and went, and the diff."""

    added: int
    removed: int
    diff: bytes


def unified(path: str, before: bytes | None, after: bytes | None) -> Unified | None:
    """The diff of what was at `path`, `None` for nothing; `None` where there are too many lines to compare."""
    old, new = split(before or b""), split(after or b"")
    if len(old) + len(new) > MANY_LINES:
        return None
    labels = (_label(f"a/{path}") if before is not None else b"/dev/null", _label(f"b/{path}"))
    if after is None:
        labels = labels[0], b"/dev/null"
    pieces: list[bytes] = []
    added = removed = 0
    for number, line in enumerate(difflib.diff_bytes(difflib.unified_diff, old, new, *labels)):
        if number > 1:
            added += line.startswith(b"+")
            removed += line.startswith(b"-")
        pieces.append(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n")
    return Unified(added, removed, b"".join(pieces))


def _label(path: str) -> bytes:
    """A path in the heading of a diff, quoted as `patch` and `git apply` read it."""
    raw = os.fsencode(path)
    if path.isascii() and path.isprintable() and '"' not in path and "\\" not in path:
        return raw + b"\t" if b" " in raw else raw
    quoted = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in raw)
    return f'"{quoted}"'.encode()
