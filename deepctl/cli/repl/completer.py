"""Completion in the line editor (Tab, `/`, `@`): slash commands, their arguments, and files of the workspace.

`matches` returns the candidates for the text before the cursor. It does not depend on a terminal, bounds the number of
candidates, and leaves out names that cannot be shown unchanged. `completer` wraps it for prompt_toolkit and runs
lookups in threads, so that typing never waits for a disk.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol
from unicodedata import normalize

from deepctl.cli.chat_session import ProfileChat
from deepctl.cli.repl.clusters import with_stand_ins
from deepctl.cli.repl.command_catalogue import SlashCommand
from deepctl.cli.repl.state import ReplState
from deepctl.domain import mention_syntax, providers, settings
from deepctl.errors import DeepctlError
from deepctl.files.atomic import is_temporary
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.output.render import ago, printable
from deepctl.quantities import counted
from deepctl.sandbox.policy import PROFILE_MOUNT
from deepctl.store import session_catalogue
from deepctl.store.records import Record
from deepctl.unicode import fold

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

MAX_CANDIDATES = 200
"""Maximum number of candidates."""
REMOVE = "--remove"
"""The option of a command about files that takes them back."""
_PATHS = ("mention", "files", "attached")
"""Kinds of words that are paths."""
_MAX_CHECKPOINTS = _MAX_SESSIONS = 50
_SCAN_SECONDS = 0.25
"""Seconds for reading a directory. A directory of 100,000 files takes a fifth of that."""
_MAX_DESCRIPTION = 80
_MAX_LOOKUPS = 4
"""Lookups that run at the same time. Most of them are obsolete when they end."""


class Candidate(NamedTuple):
    """One completion and its description."""

    text: str
    description: str = ""


class CandidateSource(Protocol):
    """The sources of candidates. They are called in other threads, as late as possible."""

    @property
    def commands(self) -> Sequence[SlashCommand]:
        """The slash commands."""
        ...

    def references(self) -> Iterable[Candidate]:
        """Checkpoints of the current session."""
        ...

    def sessions(self) -> Iterable[Candidate]:
        """Sessions of the profile."""
        ...

    def models(self) -> Iterable[Candidate]:
        """Models."""
        ...

    def mentions(self, prefix: str) -> Iterable[Candidate]:
        """Paths that a prompt can name and that begin with `prefix`; directories end in a slash."""
        ...

    def attached(self) -> Iterable[Candidate]:
        """Files that go with the next prompt."""
        ...


class ConversationCandidates:
    """The candidates of a chat, looked up without the lock of the profile."""

    def __init__(self, state: ReplState) -> None:
        self._state = state

    @property
    def commands(self) -> Sequence[SlashCommand]:
        """The slash commands of the conversation."""
        return self._state.catalogue.available(is_ephemeral=not self._is_kept())

    def references(self) -> Iterator[Candidate]:
        """`~N` with the prompt that the rewind would undo, then labels and ids, newest first."""
        session = self._state.current_session_if_any() if self._is_kept() else None
        if session is None:
            return
        ledger = session_catalogue.read_ledger(self._state.profile())
        line = ledger.line_of(ledger.head(session))
        turns = session_catalogue.read(session).last_turn
        prompts = {record.turn: record.prompt for record in reversed(line) if record.kind != "tool"}
        times = {record.turn: record.created_at for record in reversed(line) if record.kind != "tool"}
        for distance, turn in enumerate(range(turns, max(0, turns - _MAX_CHECKPOINTS), -1), 1):
            yield Candidate(f"~{distance}", f"{ago(times[turn])}, before {prompts[turn]}" if prompts.get(turn) else "")
        newest = [record for record in line if record.kind != "tool"][:_MAX_CHECKPOINTS]
        for record in newest:
            if label := ledger.labels.get(record.id):
                yield Candidate(label, _description(record))
        for record in newest:
            yield Candidate(record.id[:8], _description(record))

    def sessions(self) -> Iterator[Candidate]:
        """Sessions, the most recently written first."""
        if self._is_kept():
            paths = self._state.profile()
            for name in session_catalogue.newest_first(paths)[:_MAX_SESSIONS]:
                summary = session_catalogue.summary(paths, name)
                yield Candidate(name, f"{counted(summary.turns, 'turn')}, {ago(summary.updated_at)}  {summary.title}")

    def models(self) -> Iterable[Candidate]:
        """Known models, and those that `/models` has found; no provider is contacted."""
        paths = self._state.profile() if self._is_kept() else None
        now = self._state.chat.facts(None).model
        offers = providers.known_models(os.environ, settings.load(os.environ, paths), now=now)
        names = {offer.name for offer in offers}
        found_names = providers.remembered_names(paths.model_names) if paths is not None else []
        return [
            *(Candidate(*offer) for offer in offers),
            *(Candidate(name, "listed by /models") for name in found_names if name not in names),
        ]

    def mentions(self, prefix: str) -> Iterable[Candidate]:
        """Paths in the workspace, and elsewhere for an absolute prefix or one below `~`."""
        project = self._state.project() if self._is_kept() else None
        if project is not None and prefix.startswith(f"{PROFILE_MOUNT}/"):
            inside = workspace_paths(self._state.profile().workspace, prefix.removeprefix(f"{PROFILE_MOUNT}/"))
            return (Candidate(f"{PROFILE_MOUNT}/{candidate.text}") for candidate in inside)
        if prefix.startswith(("~", "/")):
            return user_paths(prefix)
        return workspace_paths(project or self._state.profile().workspace, prefix) if self._is_kept() else ()

    def attached(self) -> Iterable[Candidate]:
        """Files that go with the next prompt."""
        return [Candidate(path) for path in self._state.files]

    def _is_kept(self) -> bool:
        return isinstance(self._state.chat, ProfileChat)


def _description(record: Record) -> str:
    kind = "" if record.kind == "turn" else f"{record.kind}, "
    return f"{kind}{ago(record.created_at)}, after {record.prompt}" if record.prompt else f"{kind}the beginning"


class CompletionMatch(NamedTuple):
    """A candidate that fits: `text` replaces the last `length` characters before the cursor."""

    length: int
    text: str
    display: str
    description: str


class CompletionContext(NamedTuple):
    """The word that is being typed: its kind, its prefix, and the quoting of a path."""

    kind: str
    """`command`, `mention`, `attached`, or a `SlashCommand.argument`."""
    prefix: str
    length: int
    """The number of characters before the cursor that belong to it, with the sign and the quote before it."""
    sign: str = ""
    is_quoted: bool = False


_ARGUMENT = re.compile(r"""\s(?:"(?P<quoted>[^"\n]*)|(?P<plain>(?:\\.|[^\s"'\\])*)\\?)$""")
"""The word of a command's arguments that is being typed, as a shell would read it."""


def context(text: str, commands: Sequence[SlashCommand]) -> CompletionContext | None:
    """The word at the end of the text before the cursor; `None` if it cannot be completed."""
    mention = mention_syntax.typed(text[text.rfind("\n") + 1 :])
    if mention is not None:
        return CompletionContext("mention", mention.path, mention.length, "@", mention.is_quoted)
    if not text.startswith("/") or "\n" in text:
        return None
    name, *words = text.split(" ")
    if not words:
        return CompletionContext("command", name, len(name))
    command = next((command for command in commands if command.name.lower() == name.lower()), None)
    if command is None or not command.argument:
        return None
    if command.argument == "files":
        return _file_context(text, words)
    *before, last = words
    if last.startswith("-") or any(word and not word.startswith("-") for word in before):
        return None
    return CompletionContext(command.argument, last, len(last))


def _file_context(text: str, words: Sequence[str]) -> CompletionContext | None:
    """The file that is being typed, one of any number; after `--remove`, one of those that are attached."""
    match = _ARGUMENT.search(text)
    if match is None:
        return None
    kind = "attached" if REMOVE in words[:-1] else "files"
    if match["quoted"] is not None:
        return CompletionContext(kind, match["quoted"], len(match["quoted"]) + 1, "", True)
    if match["plain"].startswith("-"):
        return CompletionContext(f"choice:{REMOVE}", match["plain"], len(match["plain"]))
    return CompletionContext(kind, mention_syntax.unescaped(match["plain"]), len(match[0]) - 1)


def matches(text: str, source: CandidateSource) -> Iterator[CompletionMatch]:
    """The candidates for the text before the cursor, at most `MAX_CANDIDATES`. Raises the errors of the lookup."""
    word = context(text, source.commands)
    if word is None:
        return
    if word.kind == "command":
        for command in source.commands:
            if command.name.lower().startswith(word.prefix.lower()):
                space = " " if command.usage else ""
                display = f"{command.name} {command.usage}".rstrip()
                yield CompletionMatch(word.length, command.name + space, display, _shortened(command.description))
        return
    for candidate in islice(_candidates(word, source), MAX_CANDIDATES):
        if not candidate.text.isprintable():
            continue
        description = _shortened(printable(candidate.description))
        if word.kind in _PATHS:
            if not (word.is_quoted and '"' in candidate.text):
                name = candidate.text[candidate.text.rstrip("/").rfind("/") + 1 :]
                yield CompletionMatch(word.length, _path_text(candidate.text, word), name, description)
        else:
            yield CompletionMatch(word.length, candidate.text, candidate.text, description)


def _shortened(description: str) -> str:
    return description if len(description) <= _MAX_DESCRIPTION else description[: _MAX_DESCRIPTION - 1] + "…"


def _candidates(word: CompletionContext, source: CandidateSource) -> Iterator[Candidate]:
    match word.kind.partition(":"):
        case "mention", _, _:
            yield from source.mentions(word.prefix)
            return
        case "files", _, _:
            yield from user_paths(word.prefix)
            return
        case "attached", _, _:
            candidates: Iterable[Candidate] = source.attached()
        case "choice", _, choices:
            candidates = [Candidate(choice) for choice in choices.split(",")]
        case "reference", _, _:
            candidates = source.references()
        case "session", _, _:
            candidates = source.sessions()
        case "model", _, _:
            candidates = source.models()
        case _:
            return
    prefix = fold(word.prefix)
    yield from (candidate for candidate in candidates if fold(candidate.text).startswith(prefix))


def _path_text(path: str, word: CompletionContext) -> str:
    """A path as it is inserted: in the quotes that were typed, else with backslashes before blanks and quotes.

    The quote stays open after a directory.
    """
    if not word.is_quoted:
        return word.sign + mention_syntax.escaped(path)
    return f'{word.sign}"{path}' + ("" if path.endswith("/") else '"')


def user_paths(prefix: str) -> Iterator[Candidate]:
    """Paths of the user that begin with `prefix`, as in a shell: relative to the current directory, or below `~`.

    The same names are left out as in `workspace_paths`, except links, which are followed.
    """
    if "\0" in prefix:
        return
    if prefix == "~":
        yield Candidate("~/")
        return
    directory, slash, name_prefix = prefix.rpartition("/")
    try:
        descriptor = os.open(os.path.expanduser(directory + slash) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        names = heapq.nsmallest(MAX_CANDIDATES, _scan(descriptor, name_prefix, follow=True))
    finally:
        os.close(descriptor)
    for name in names:
        yield Candidate(directory + slash + name)


def workspace_paths(root: str, prefix: str) -> Iterator[Candidate]:
    """Paths in the workspace `root` that begin with `prefix`, sorted; directories end in a slash.

    Only regular files and directories inside the workspace are listed, and no link is followed. Left out are names that
    cannot be shown unchanged, hidden names unless the prefix is hidden, and deepctl's own `.deep`. At most
    `MAX_CANDIDATES` names are returned. Reading a large directory stops after `_SCAN_SECONDS`. A missing or unreadable
    directory has no names.
    """
    directory, slash, name_prefix = prefix.rpartition("/")
    parts = [part for part in directory.split("/") if part not in ("", ".")]
    if prefix.startswith("/") or ".." in parts or "\0" in prefix or parts[:1] == [".deep"]:
        return
    try:
        names = _names("/".join(parts), root, name_prefix)
    except OSError:
        return
    for name in names:
        if parts or name != ".deep/":
            yield Candidate(directory + slash + name)


def _names(directory: str, root: str, prefix: str) -> list[str]:
    tree = DirectoryTree(root, follow=False)
    with tree.opened(directory) as (place, is_directory):
        if not is_directory:
            return []
        # The descriptor of `opened` may allow only walking, not reading.
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    try:
        return heapq.nsmallest(MAX_CANDIDATES, _scan(readable, prefix, follow=False))
    finally:
        os.close(readable)


def _scan(directory: int, prefix: str, *, follow: bool) -> Iterator[str]:
    is_exact = prefix != prefix.lower()
    normal_prefix = normalize("NFC", prefix) if is_exact else fold(prefix)
    end = time.monotonic() + _SCAN_SECONDS
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number % 256 == 255 and time.monotonic() > end:
                return
            name = entry.name
            if not (normalize("NFC", name) if is_exact else fold(name)).startswith(normal_prefix):
                continue
            if (name.startswith(".") and not prefix.startswith(".")) or not name.isprintable():
                continue
            if is_temporary(name):
                continue
            try:
                if entry.is_dir(follow_symlinks=follow):
                    yield name + "/"
                elif entry.is_file(follow_symlinks=follow):
                    yield name
            except OSError:
                continue


def completer(source: CandidateSource) -> Completer:
    """The completer of the line editor. A failed lookup gives no candidates."""
    from prompt_toolkit.completion import Completer, Completion

    def look_up(text: str) -> list[Completion]:
        try:
            return [
                Completion(
                    match.text,
                    -match.length,
                    display=with_stand_ins(match.display),
                    display_meta=with_stand_ins(match.description),
                )
                for match in matches(text, source)
            ]
        except (DeepctlError, OSError):
            return []

    class BackgroundCompleter(Completer):
        def __init__(self) -> None:
            self._threads: list[threading.Thread] = []

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            return look_up(document.text_before_cursor)

        async def get_completions_async(
            self, document: Document, complete_event: CompleteEvent
        ) -> AsyncGenerator[Completion, None]:
            text = document.text_before_cursor
            word = context(text, source.commands)
            if word is None:
                return
            completions = look_up(text) if word.kind == "command" else await self._look_up_in_thread(text)
            for completion in completions:
                yield completion

        async def _look_up_in_thread(self, text: str) -> list[Completion]:
            # Not an executor: the event loop waits for an executor at its end, so a hanging lookup would delay the
            # entry.
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= _MAX_LOOKUPS:
                return []
            loop = asyncio.get_running_loop()
            future: asyncio.Future[list[Completion]] = loop.create_future()

            def settle(completions: list[Completion]) -> None:
                if not future.done():
                    future.set_result(completions)

            def run() -> None:
                completions: list[Completion] = []
                try:
                    completions = look_up(text)
                finally:
                    try:
                        loop.call_soon_threadsafe(settle, completions)
                    except RuntimeError:
                        pass  # the entry was sent in the meantime, and its loop is closed

            thread = threading.Thread(target=run, name="completion", daemon=True)
            self._threads.append(thread)
            thread.start()
            return await future

    return BackgroundCompleter()
