"""Taking the changes of one author back from a file that others have changed too, line by line.

A three-way merge whose base is the file after the author's change. Usual merges (diff3, merge3) report a conflict for
changes to neighbouring lines, such as a note below the agent's last one. Here only changes of the same lines collide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher

MERGED_UP_TO = 1 << 18
"""Maximum size in bytes of a text that is merged by line."""
_MAX_PAIRS = 1_000_000
"""The maximum of pairs of equal lines in two texts: with more, the comparison can take several seconds."""


def take_back_lines(before: bytes, after: bytes, now: bytes, *, is_ordered: bool = False) -> bytes | None:
    """`now` without the change from `before` to `after`, line by line; `None` if both authors changed the same lines.

    With `is_ordered`, lines of both authors at the same place collide too, because their order matters.
    """
    base = after.splitlines(keepends=True)
    changes = [_edits(base, text.splitlines(keepends=True)) for text in (before, now)]
    if changes[0] is None or changes[1] is None:
        return None
    result_lines: list[bytes] = []
    position, is_insertion = 0, False
    for start, end, lines in sorted({*changes[0], *changes[1]}):
        if start < position or (is_ordered and is_insertion and start == position == end):
            return None
        result_lines += base[position:start]
        result_lines += lines
        position, is_insertion = end, start == end
    result_lines += base[position:]
    # Other lines may now follow a former last line without a newline.
    ending = b"\r\n" if base and base[0].endswith(b"\r\n") else b"\n"
    whole_lines = [line if line.endswith((b"\n", b"\r")) else line + ending for line in result_lines[:-1]]
    return b"".join(whole_lines + result_lines[-1:])


_Edit = tuple[int, int, tuple[bytes, ...]]


def _edits(base: list[bytes], lines: list[bytes]) -> list[_Edit] | None:
    """The ranges of lines in `base` that differ, and the lines that replace them; `None` if this takes too long."""
    start = 0
    while start < min(len(base), len(lines)) and base[start] == lines[start]:
        start += 1
    rest = min(len(base), len(lines)) - start
    tail = 0
    while tail < rest and base[-1 - tail] == lines[-1 - tail]:
        tail += 1
    old, new = base[start : len(base) - tail], lines[start : len(lines) - tail]
    counts = Counter(old)
    if sum(counts[line] for line in new) > _MAX_PAIRS:
        return None
    return list(_differences(old, new, start))


def _differences(old: list[bytes], new: list[bytes], offset: int) -> Iterator[_Edit]:
    for tag, start, end, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            yield start + offset, end + offset, tuple(new[first:last])


def is_text(content: bytes) -> bool:
    """Whether a content can be merged by line: a text of a reasonable size."""
    return len(content) <= MERGED_UP_TO and b"\0" not in content
