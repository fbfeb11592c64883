"""Notebooks of memory: what one took down is taken back, and what others wrote meanwhile stays."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher


def take_back(before: bytes, after: bytes, now: bytes) -> bytes | None:
    """`now` without the change from `before` to `after`, line by line; `None` where both changed the same lines.

    A three-way merge with `after` as the base. The usual ones (diff3, merge3) take changes that merely touch for a
    conflict, and a note added below the agent's last one touches it; here only lines that both changed collide.
    """
    base = after.splitlines(keepends=True)
    edits = sorted({*_edits(base, before), *_edits(base, now)})
    merged: list[bytes] = []
    position = 0
    for start, end, lines in edits:
        if start < position:
            return None
        merged += base[position:start]
        merged += lines
        position = end
    merged += base[position:]
    # A last line without its newline may have others behind it now.
    ended = [line if line.endswith((b"\n", b"\r")) else line + b"\n" for line in merged[:-1]]
    return b"".join(ended + merged[-1:])


def _edits(base: list[bytes], to: bytes) -> Iterator[tuple[int, int, tuple[bytes, ...]]]:
    """The ranges of lines in `base` that differ, and the lines that are there instead."""
    lines = to.splitlines(keepends=True)
    for tag, start, end, first, last in SequenceMatcher(None, base, lines, autojunk=False).get_opcodes():
        if tag != "equal":
            yield start, end, tuple(lines[first:last])
