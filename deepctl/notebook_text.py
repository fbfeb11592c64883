r"""The text of a notebook, line by line: which lines hold a text, what is left without them, what a note makes of it.

New text in a notebook is UTF-8. A notebook that is not, as an editor or a command may have left it, can be used all the
same: the agent sees U+FFFD for what is not UTF-8 (`as_text`), and what it writes keeps the bytes of every such line
that it leaves as it saw it (`as_bytes`).

A notebook is bytes, not text: line ends of any kind (`\n`, `\r\n`, `\r`), a last line without one, and what is not
UTF-8 stay as they are. A line includes its end, and is numbered from 1.
"""

from __future__ import annotations

import difflib
import os
from difflib import SequenceMatcher
from typing import NamedTuple

from deepctl import unicode

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
    return unicode.folded(text.decode("utf-8", "surrogateescape"))


def as_text(content: bytes) -> str:
    """A notebook as text, with U+FFFD for what is not UTF-8."""
    return content.decode("utf-8", "replace")


def as_bytes(text: str, before: bytes) -> bytes:
    """`text` as a notebook that was `before`, of which `text` was made: lines that look as they did keep their bytes.

    White space at the end of a line may have changed.
    """
    kept: dict[str, list[bytes]] = {}
    for line in before.split(b"\n"):
        if _is_odd(line):
            kept.setdefault(as_text(line).rstrip(), []).append(line)
    if not kept:
        return text.encode()
    lines = []
    for shown in text.split("\n"):
        known = kept.get(shown.rstrip())
        if known:
            # The last of them stands for all further ones: a line may have been copied.
            raw = known.pop(0) if len(known) > 1 else known[0]
            lines.append(raw.rstrip() + shown[len(shown.rstrip()) :].encode())
        else:
            lines.append(shown.encode())
    return b"\n".join(lines)


def odd_lines(content: bytes, before: bytes = b"") -> list[int]:
    """The numbers, from 1, of the lines that are not UTF-8, but for those that `before` has as well."""
    if not _is_odd(content):
        return []
    known = {line.rstrip() for line in before.split(b"\n")}
    return [
        number for number, line in enumerate(content.split(b"\n"), 1) if _is_odd(line) and line.rstrip() not in known
    ]


def _is_odd(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


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
