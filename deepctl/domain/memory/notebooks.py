r"""The text of a notebook, line by line: which lines hold a text, what is left without them, what a note makes of it.

A notebook is bytes, not text: line ends of any kind (`\n`, `\r\n`, `\r`), a last line without one, and what is not
UTF-8 stay as they are. A line includes its end, and is numbered from 1.
"""

from __future__ import annotations

from difflib import SequenceMatcher

MANY_LINES = 20_000
"""Two notebooks with more lines than this together are not compared line by line: it would take too long."""


def lines_with(content: bytes, text: bytes, *, ignore_case: bool) -> list[tuple[int, bytes]]:
    """The lines of `content` that hold the literal `text`: their number and the whole line, its end included.

    A `text` that is empty or goes over a line end is in no line.
    """
    lines = content.splitlines(keepends=True)
    return [(number, line) for number, line in enumerate(lines, 1) if _holds(line, text, ignore_case)]


def without(content: bytes, text: bytes, *, ignore_case: bool) -> bytes:
    """`content` without the lines that hold `text`, and otherwise byte for byte the same."""
    return b"".join(line for line in content.splitlines(keepends=True) if not _holds(line, text, ignore_case))


def _holds(line: bytes, text: bytes, ignore_case: bool) -> bool:
    if not text or text.splitlines() != [text]:
        return False
    return text in line or (ignore_case and folded(text) in folded(line))


def folded(text: bytes) -> str:
    """`text` for comparing without regard to case; bytes that are not UTF-8 equal themselves only."""
    return text.decode("utf-8", "surrogateescape").casefold()


def appended(content: bytes, note: bytes) -> bytes:
    """`content` with `note` as its last line or lines, each ended by a newline."""
    end = b"" if not content or content.endswith(b"\n") else b"\n"
    return content + end + (note if note.endswith(b"\n") else note + b"\n")


def counts(before: bytes, after: bytes) -> tuple[int, int] | None:
    """How many lines came and how many went; `None` where there are too many to tell."""
    old, new = split(before), split(after)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    if not old or not new:
        return len(new), len(old)
    if len(old) + len(new) > MANY_LINES:
        return None
    added = removed = 0
    for tag, i, j, k, m in SequenceMatcher(None, old, new).get_opcodes():
        if tag != "equal":
            removed += j - i
            added += m - k
    return added, removed


def split(content: bytes) -> list[bytes]:
    """The lines as `diff` and `patch` know them: only a newline ends one."""
    lines = content.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])
