"""A text that is looked for, in whatever may hold it: contents, messages, names."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from deepctl import unicode
from deepctl.errors import Damaged, Refused
from deepctl.notebook_text import folded
from deepctl.store.object_store import ObjectReader


class TextMatcher(NamedTuple):
    """The bytes of a text within one line, and whether upper and lower case are the same.

    What `deepctl.notebook_text` takes for a line that holds it, this takes for a content that does.
    """

    text: bytes
    ignore_case: bool = False

    @property
    def is_nowhere(self) -> bool:
        """Whether no line can hold it: it is empty, or goes over the end of one."""
        return not self.text or self.text.splitlines() != [self.text]

    def is_in(self, pieces: Iterable[bytes]) -> bool:
        """Whether a content that comes in pieces holds it. All of it is read, so that it is also checked."""
        exact, any_case = _Exact(self.text), _AnyCase(self.text) if self.ignore_case else None
        for piece in pieces:
            exact.take(piece)
            if any_case is not None:
                any_case.take(piece)
        if any_case is not None:
            any_case.take(b"", final=True)
        return not self.is_nowhere and (exact.is_found or (any_case is not None and any_case.is_found))

    def is_in_text(self, text: str) -> bool:
        """Whether a string holds it."""
        if self.is_nowhere:
            return False
        needle = self.text.decode("utf-8", "surrogateescape")
        return needle in text or (self.ignore_case and unicode.folded(needle) in unicode.folded(text))

    def is_in_json(self, value: Any) -> bool:
        """Whether a string anywhere in a JSON value holds it, also one in JSON that is itself a string."""
        return any(self.is_in_text(text) for text in _strings(value))

    def is_in_damaged(self, raw: bytes) -> bool:
        """Whether bytes that should be JSON hold it, as it is or with JSON's escapes."""
        written = (
            json.dumps(self.text.decode("utf-8", "surrogateescape"), ensure_ascii=ascii_only)
            for ascii_only in (True, False)
        )
        forms = [self.text, *(text[1:-1].encode("utf-8", "surrogateescape") for text in written)]
        return any(self._replace(text=form).is_in([raw]) for form in forms)


class _Exact:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._tail = b""
        self.is_found = False

    def take(self, piece: bytes) -> None:
        if not self.is_found:
            window = self._tail + piece
            self.is_found = self._text in window
            self._tail = window[max(0, len(window) - len(self._text) + 1) :]


_UNFOLDED = 8
"""More characters than are folded to one where there is a point to it."""


class _AnyCase:
    def __init__(self, text: bytes) -> None:
        self._text = folded(text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._tail = ""
        self.is_found = False

    def take(self, piece: bytes, *, final: bool = False) -> None:
        if not self.is_found:
            window = self._tail + self._decoder.decode(piece, final)
            self.is_found = self._text in unicode.folded(window)
            # Unfolded, for what folds to one character may have begun in this piece and end in the next.
            self._tail = window[max(0, len(window) - _UNFOLDED * len(self._text) - _UNFOLDED) :]


def _strings(root: Any) -> Iterator[str]:
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
            if "\\" in value and value.lstrip()[:1] in ("{", "["):
                # The arguments of a tool call, as a model wrote them: only decoded, every text in them looks as it is.
                try:
                    pending.append(json.loads(value))
                except (ValueError, RecursionError):
                    continue
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value


class Contents:
    """Which objects hold the text; each is read once. `unread` are those that cannot be.

    `report` is told how many contents have been looked into.
    """

    def __init__(
        self, objects: ObjectReader, matcher: TextMatcher, report: Callable[[int], None] | None = None
    ) -> None:
        self._objects = objects
        self._report = report
        self._looked = 0
        self._known: dict[bytes, bool] = {}
        self.matcher = matcher
        self.unread: set[bytes] = set()

    def go_on(self, objects: ObjectReader, report: Callable[[int], None] | None) -> None:
        """Keep what is known, and read what is not from the same objects, opened again."""
        self._objects, self._report = objects, report

    def hold(self, digest: bytes) -> bool:
        """Whether an object holds the text; one that cannot be read does not, and is in `unread` then."""
        if digest not in self._known:
            try:
                self._known[digest] = self.matcher.is_in(self._objects.chunks(digest))
            except (Damaged, Refused, FileNotFoundError):
                self._known[digest] = False
                self.unread.add(digest)
            self.looked()
        return self._known[digest]

    def looked(self) -> None:
        """One more content has been looked into, an object or a file."""
        self._looked += 1
        if self._report is not None:
            self._report(self._looked)
