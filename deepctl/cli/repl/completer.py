"""What Tab, `/` and `@` offer while a line is edited: commands, what they are about, and files of the workspace.

`found` says what fits what has been typed so far. It knows no terminal, bounds what it offers, and offers nothing that
cannot be shown as it is. `completer` wraps it for the line editor: what has to be looked up is looked up in a thread of
its own, so that typing never waits for a disk.
"""

from __future__ import annotations

import heapq
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol
from unicodedata import normalize

from deepctl.cli.repl.clusters import drawn
from deepctl.errors import DeepctlError
from deepctl.files.paths_beneath import Tree
from deepctl.files.temporary_files import is_temporary
from deepctl.output.text import printable
from deepctl.unicode import folded

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

MOST = 200
"""Offers at a time."""
_LOOKED_AT_SECONDS = 0.25
"""How long a directory is read: one of 100,000 files takes a fifth of that."""
_MEANING = 80
_AT_ONCE = 4
"""Lookups under way, most of which nobody waits for any more."""


class Offer(NamedTuple):
    """One completion and its description."""

    text: str
    meaning: str = ""


class Command(NamedTuple):
    """A slash command: `/rewind`, `[REF]`, what it does, and what its first argument is.

    `arguments` is `reference`, `session`, `model`, `path`, `choice:a,b,c`, or empty where nothing is offered.
    """

    name: str
    usage: str
    help: str
    arguments: str = ""


class Offers(Protocol):
    """What there is to choose from. Asked from another thread, as late as possible."""

    @property
    def commands(self) -> Sequence[Command]:
        """The slash commands there are."""
        ...

    def references(self) -> Iterable[Offer]:
        """Checkpoints of the session at hand."""
        ...

    def sessions(self) -> Iterable[Offer]:
        """Sessions of the profile."""
        ...

    def models(self) -> Iterable[Offer]:
        """Models worth offering."""
        ...

    def paths(self, prefix: str) -> Iterable[Offer]:
        """What in the workspace begins with `prefix`; directories end in a slash."""
        ...


class Found(NamedTuple):
    """An offer that fits: it replaces the last `length` characters before the cursor by `text`."""

    length: int
    text: str
    shown: str
    meaning: str


class _Wanted(NamedTuple):
    """What is being typed: its kind, what there is of it, and how it is to be written."""

    kind: str
    prefix: str
    length: int
    """How many characters before the cursor it takes, with the sign and the quote before it."""
    sign: str = ""
    quoted: bool = False


_MENTION = re.compile(r"""(?:^|(?<=[\s(\[{,;:'"]))@(?:"(?P<quoted>[^"\n]*)|(?P<plain>[^\s"]*))$""")
_QUOTED_WORD = re.compile(r'\s"(?P<quoted>[^"\n]*)$')
_PLAIN = re.compile(r"[\w./+=:%~-]*\Z")


def wanted(text: str, commands: Sequence[Command]) -> _Wanted | None:
    """What the text before the cursor ends with that can be completed."""
    line = text[text.rfind("\n") + 1 :]
    mention = _MENTION.search(line)
    if mention is not None:
        quoted = mention["quoted"] is not None
        prefix = mention["quoted"] if quoted else mention["plain"]
        return _Wanted("path", prefix, len(mention[0]), "@", quoted)
    if not text.startswith("/") or "\n" in text:
        return None
    name, *words = text.split(" ")
    if not words:
        return _Wanted("command", name, len(name))
    known = next((command for command in commands if command.name == name), None)
    if known is None or not known.arguments:
        return None
    if known.arguments == "path" and (word := _QUOTED_WORD.search(text)) is not None:
        return _Wanted("path", word["quoted"], len(word["quoted"]) + 1, "", True)
    *before, last = words
    if last.startswith("-") or any(word and not word.startswith("-") for word in before):
        return None
    return _Wanted(known.arguments, last, len(last))


def found(text: str, offers: Offers) -> Iterator[Found]:
    """What fits the text before the cursor, `MOST` at most. Raises what the lookup raises."""
    want = wanted(text, offers.commands)
    if want is None:
        return
    if want.kind == "command":
        for command in offers.commands:
            if command.name.startswith(want.prefix.lower()):
                space = " " if command.usage else ""
                shown = f"{command.name} {command.usage}".rstrip()
                yield Found(want.length, command.name + space, shown, command.help)
        return
    for offer in islice(_fitting(want, offers), MOST):
        if not offer.text.isprintable():
            continue
        meaning = printable(offer.meaning)
        meaning = meaning if len(meaning) <= _MEANING else meaning[: _MEANING - 1] + "…"
        if want.kind == "path":
            shown = offer.text[offer.text.rstrip("/").rfind("/") + 1 :]
            yield Found(want.length, _written(offer.text, want), shown, meaning)
        else:
            yield Found(want.length, offer.text, offer.text, meaning)


def _fitting(want: _Wanted, offers: Offers) -> Iterator[Offer]:
    match want.kind.partition(":"):
        case "path", _, _:
            yield from offers.paths(want.prefix)
            return
        case "choice", _, choices:
            some: Iterable[Offer] = [Offer(choice) for choice in choices.split(",")]
        case "reference", _, _:
            some = offers.references()
        case "session", _, _:
            some = offers.sessions()
        case "model", _, _:
            some = offers.models()
        case _:
            return
    prefix = folded(want.prefix)
    yield from (offer for offer in some if folded(offer.text).startswith(prefix))


def _written(path: str, want: _Wanted) -> str:
    """A path as it stands in the text: quoted where it has to be; the quote stays open while it is a directory."""
    if not want.quoted and _PLAIN.match(path):
        return want.sign + path
    return f'{want.sign}"{path}' + ("" if path.endswith("/") else '"')


def workspace_paths(root: str, prefix: str) -> Iterator[Offer]:
    """What in the workspace `root` begins with `prefix`, sorted, `MOST` at most; directories end in a slash.

    Only regular files and directories, reached through no link and never outside. Names that cannot be shown as they
    are, or not be quoted, are left out, and hidden ones unless asked for; deepctl's own `.deep` always is. Of a
    directory too large to be read in a moment, what was read by then. What is not there, or not to be read, offers
    nothing.
    """
    directory, slash, begun = prefix.rpartition("/")
    parts = [part for part in directory.split("/") if part not in ("", ".")]
    if prefix.startswith("/") or ".." in parts or "\0" in prefix or parts[:1] == [".deep"]:
        return
    try:
        names = _names("/".join(parts), root, begun)
    except OSError:
        return
    for name in names:
        if parts or name != ".deep/":
            yield Offer(directory + slash + name)


def _names(directory: str, root: str, begun: str) -> list[str]:
    tree = Tree(root, follow=False)
    with tree.opened(directory) as (place, is_directory):
        if not is_directory:
            return []
        # What `opened` gives may be good for walking on only, not for reading.
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    try:
        return heapq.nsmallest(MOST, _read(readable, begun))
    finally:
        os.close(readable)


def _read(directory: int, begun: str) -> Iterator[str]:
    exact = begun != begun.lower()
    wanted = normalize("NFC", begun) if exact else folded(begun)
    end = time.monotonic() + _LOOKED_AT_SECONDS
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number % 256 == 255 and time.monotonic() > end:
                return
            name = entry.name
            if not (normalize("NFC", name) if exact else folded(name)).startswith(wanted):
                continue
            if (name.startswith(".") and not begun.startswith(".")) or not name.isprintable() or '"' in name:
                continue
            if is_temporary(name):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield name + "/"
                elif entry.is_file(follow_symlinks=False):
                    yield name
            except OSError:
                continue


def completer(offers: Offers) -> Completer:
    """The completions of the line editor. What cannot be looked up offers nothing."""
    from prompt_toolkit.completion import Completer, Completion

    def made(text: str) -> list[Completion]:
        try:
            return [
                Completion(one.text, -one.length, display=drawn(one.shown), display_meta=drawn(one.meaning))
                for one in found(text, offers)
            ]
        except (DeepctlError, OSError):
            return []

    class Offered(Completer):
        def __init__(self) -> None:
            self._threads: list[threading.Thread] = []

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            return made(document.text_before_cursor)

        async def get_completions_async(
            self, document: Document, complete_event: CompleteEvent
        ) -> AsyncGenerator[Completion, None]:
            text = document.text_before_cursor
            want = wanted(text, offers.commands)
            if want is None:
                return
            if want.kind == "command":
                for one in made(text):
                    yield one
                return
            for one in await self._looked_up(text):
                yield one

        async def _looked_up(self, text: str) -> list[Completion]:
            # Not an executor: at its end the loop would wait for a lookup that hangs, and so would the line just sent.
            import asyncio

            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= _AT_ONCE:
                return []
            loop = asyncio.get_running_loop()
            future: asyncio.Future[list[Completion]] = loop.create_future()

            def settle(result: list[Completion]) -> None:
                if not future.done():
                    future.set_result(result)

            def look() -> None:
                result: list[Completion] = []
                try:
                    result = made(text)
                finally:
                    try:
                        loop.call_soon_threadsafe(settle, result)
                    except RuntimeError:
                        pass  # the line was sent meanwhile, and its loop is closed

            thread = threading.Thread(target=look, name="completion", daemon=True)
            self._threads.append(thread)
            thread.start()
            return await future

    return Offered()
