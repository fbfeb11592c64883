r"""Unicode rules for text: validity, visibility, and equality for a reader.

Text from a model, a server or a file may contain lone surrogates: halves of a character that JSON can write as `\ud83d`
and that UTF-8 cannot encode. They are replaced where text enters (`whole`, `whole_value`, `PieceDecoder`), because
every encoder would raise an error later. File names that are not UTF-8 are not text: in deepctl's own documents their
bytes stay surrogate escapes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from operator import is_
from typing import Any, TypeVar

_T = TypeVar("_T")

REPLACEMENT = "\ufffd"

# fmt: off
IGNORABLE = (
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# fmt: on
"""Invisible characters, as the inside of a regular expression's brackets: Default_Ignorable_Code_Point.

Source: Unicode 16.0, DerivedCoreProperties.txt. Direction marks, joiners, variation selectors and tags are among them.
"""

_HIGH = re.compile("[\ud800-\udbff]\\Z")
_ESCAPES = (
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # both halves
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # one half
    r"|\\."  # any other escape, whose backslash is no start of an escape
)
_IN_TEXT = re.compile(_ESCAPES, re.DOTALL)
_IN_BYTES = re.compile(_ESCAPES.encode(), re.DOTALL)


def whole(text: str) -> str:
    """`text` as valid Unicode: the two halves of a character are joined, and every lone surrogate becomes U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def as_text(content: bytes) -> str:
    """A content as text, with U+FFFD for bytes that are not UTF-8."""
    return content.decode("utf-8", "replace")


def one_line(name: str) -> str:
    """A name on one line, with escapes for characters that are not printable."""
    plain = name.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)


def whole_json(text: str) -> str:
    """The same for a JSON document: its escapes of lone surrogates become escapes of U+FFFD too."""
    text = whole(text)
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _IN_TEXT.sub(lambda match: "\\ufffd" if match[1] else match[0], text)


def whole_json_bytes(raw: bytes) -> bytes:
    """The same for JSON documents in UTF-8, whose length does not change."""
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return raw
    return _IN_BYTES.sub(lambda match: b"\\ufffd" if match[1] else match[0], raw)


def whole_value(value: _T, *, key: str = "") -> _T:
    """The same for every text in `value`: a JSON value, or a message of dataclasses. Keys of objects are texts too.

    A valid value is returned itself, not a copy. A text under the key or in the field `args`, where messages store the
    arguments of a tool call, is a JSON document.
    """
    source: Any = value
    kind: Any = type(value)
    if kind is str:
        return whole_json(source) if key == "args" else whole(source)  # type: ignore[return-value]
    if kind is dict:
        return _whole_items(source)  # type: ignore[return-value]
    if kind is list or kind is tuple:
        items = [item if _is_plain(item) else whole_value(item) for item in source]
        return value if all(map(is_, items, source)) else kind(items)  # type: ignore[return-value]
    if hasattr(kind, "__dataclass_fields__") and hasattr(value, "__dict__"):
        changes = {
            name: new
            for name, old in vars(value).items()
            if not _is_plain(old) and (new := whole_value(old, key=name)) is not old
        }
        if changes:
            # Not `dataclasses.replace`, because some fields are not in the constructor.
            value = copy.copy(value)
            for name, new in changes.items():
                object.__setattr__(value, name, new)
    return value


def _is_plain(value: Any) -> bool:
    """A fast check whether a value needs no change; histories have thousands of values."""
    return (
        value is None
        or value is True
        or value is False
        or (type(value) is str and value.isascii() and "\\u" not in value)
    )


def _whole_items(value: dict[Any, Any]) -> dict[Any, Any]:
    is_changed = False
    items = {}
    for name, item in value.items():
        new_name = whole(name) if type(name) is str else name
        new = item if _is_plain(item) else whole_value(item, key=name if type(name) is str else "")
        is_changed = is_changed or new is not item or new_name is not name
        items[new_name] = new
    return items if is_changed else value


class PieceDecoder:
    """A text that arrives in pieces, each of which may end in the first half of a character."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, piece: str) -> str:
        """`piece` as valid Unicode, with the half that was held back before, and without a half at its end."""
        if not self._half and piece.isascii():
            return piece
        text = self._half + piece
        half = _HIGH.search(text)
        self._half = half[0] if half else ""
        return whole(text[: half.start()] if half else text)

    def finish(self) -> str:
        """The text has ended: returns the replacement for a half that is still held back, if there is one."""
        half, self._half = self._half, ""
        return REPLACEMENT if half else ""


def fold(text: str) -> str:
    """The form of `text` for comparison in searches: case and the encoding of accents make no difference.

    It is Unicode's full case folding in form NFC, without the dot of `İ`, which Turkish writes and other languages do
    not.
    """
    if text.isascii():
        return text.lower()
    from unicodedata import normalize

    return normalize("NFC", normalize("NFC", text).casefold()).replace("i\u0307", "i")


def spans(text: str, words: list[str]) -> list[tuple[int, int]]:
    """The positions of the folded `words` in `text`: start and end (exclusive), in order, without overlaps."""
    visible_text, starts, ends = _traced(text)
    matches = []
    for word in words:
        at = visible_text.find(word)
        while at >= 0:
            matches.append((starts[at], ends[at + len(word) - 1]))
            at = visible_text.find(word, at + len(word))
    return merge(matches)


def merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order; adjacent spans are merged."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        elif end > start:
            spans.append((start, end))
    return spans


def _traced(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """`text` folded, and for each folded character the start and end of its origin in `text`."""
    if text.isascii():
        return fold(text), range(len(text)), range(1, len(text) + 1)
    pieces, starts, ends = [], [], []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and _composes(text[start:end], text[end]):
            end += 1
        piece = fold(text[start:end])
        pieces.append(piece)
        starts += [start] * len(piece)
        ends += [end] * len(piece)
        start = end
    return "".join(pieces), starts, ends


def _composes(before: str, character: str) -> bool:
    """Whether a character combines with the characters before it."""
    if character.isascii():
        return False
    from unicodedata import combining, normalize

    if combining(character):
        return True
    return normalize("NFC", before + character) != normalize("NFC", before) + normalize("NFC", character)


# One cell each in every terminal: Latin letters, dashes, quotation marks, the ellipsis. Not the soft hyphen.
_NARROW = re.compile("[ -~\xa0-\xac\xae-\u02ff\u2010-\u2027]*")


def cells(text: str) -> int:
    """The number of terminal cells of `text`, without control characters: the one measure for all drawing.

    A grapheme cluster takes the cells of one character: 2 for a flag or a family.
    """
    if _NARROW.fullmatch(text):
        return len(text)
    # The import takes as long as a small command, and nearly all text consists of the characters above.
    from wcwidth import wcswidth, wcwidth

    count = wcswidth(text)
    return count if count >= 0 else sum(max(wcwidth(character), 0) for character in text)


def clip(text: str, room: int, *, from_end: bool = False) -> str:
    """The whole grapheme clusters of `text` that fit into `room` cells: the first ones, or the last."""
    if text.isascii():
        return text[max(len(text) - room, 0) :] if from_end else text[: max(room, 0)]
    from wcwidth import iter_graphemes, iter_graphemes_reverse

    width = length = 0
    for grapheme in iter_graphemes_reverse(text) if from_end else iter_graphemes(text):
        width += cells(grapheme)
        if width > room:
            break
        length += len(grapheme)
    return text[len(text) - length :] if from_end else text[:length]
