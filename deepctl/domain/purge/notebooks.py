"""Notebooks without the lines that contain a text: in the workspace, in trees, and in the ledger that names the trees.

A tree is changed only below `.deep/memory`: the selected notebooks lose the lines, and files of the memory store beside
them (receipts with hashes of notebooks, and leftover files) are removed. So every tree above changes too.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from deepctl import layout, unicode
from deepctl.domain.memory.directory import Memory, folded_text, lines_with, without_lines
from deepctl.errors import Damaged, Refused
from deepctl.files import sealed_lines
from deepctl.files.paths_beneath import DirectoryEntry, DirectoryTree, OutsideTree
from deepctl.layout import ProfilePaths
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.trees import DIRECTORY, FILE, TreeEntry, decode, encode

_BESIDE = (b".memory-operations.json", b".memory-store.sqlite3", b".memory-tmp-")
"""Prefixes of the files that the harness' memory store keeps beside the notebooks: receipts, an old journal, unfinished
files.
"""


def is_beside(name: bytes) -> bool:
    """Whether a file in `.deep/memory` itself is the memory store's own."""
    return name.startswith(_BESIDE)


class PurgeSelector(NamedTuple):
    """The lines that contain a text: in all notebooks of an agent, or only in `file` (with its `.md`)."""

    matcher: TextMatcher
    agent: str = layout.AGENT
    file: str | None = None

    def covers(self, path: str) -> bool:
        """Whether the file at a path of the workspace is rewritten or removed."""
        above, _, name = path.rpartition("/")
        if above == layout.MEMORY_DIRECTORY and is_beside(os.fsencode(name)):
            return True
        directory = f"{layout.MEMORY_DIRECTORY}/{self.agent}"
        return path.startswith(f"{directory}/") if self.file is None else path == f"{directory}/{self.file}"

    def means(self, name: bytes) -> bool:
        """Whether the entry `name` in the agent's directory is selected."""
        return self.file is None or name == os.fsencode(self.file)


class LostLines(NamedTuple):
    """The removed lines of a notebook in the workspace: its name, and each line with its number from 1.

    A notebook in a subdirectory is named with it: `trips/lisbon.md`.
    """

    file: str
    lines: list[tuple[int, bytes]]


def memory_changed() -> Refused:
    """The error for removed lines that the user has not confirmed."""
    return Refused(
        "Another author changed the notebooks in the meantime, so nothing was done.",
        "Run the command again to see what it would remove now.",
        code="memory_changed",
    )


class WorkspaceNotebooks:
    """The notebooks in the workspace: every regular file in an agent's directory, and in its subdirectories."""

    def __init__(self, paths: ProfilePaths, selector: PurgeSelector) -> None:
        self._tree = DirectoryTree(paths.workspace, follow=False)
        self._memory = Memory(paths, selector.agent)
        self._selector = selector

    def look(self) -> list[LostLines]:
        """The lines to be removed. Raises `Refused` for a link, and for files that are too large or too deep."""
        try:
            lines = [LostLines(file, self._lines(self._read(file))) for file in self._files()]
        except OSError as error:
            if not isinstance(error, OutsideTree) and error.errno not in (errno.EFBIG, errno.ENAMETOOLONG):
                raise
            raise Refused(
                f"Memory cannot be read: {error.filename}: {error.strerror}.",
                "deepctl follows no links in a workspace. Find out what created it."
                if isinstance(error, OutsideTree)
                else "Remove it by hand; `deepctl wipe --only memory` removes the whole memory.",
                code="memory_refused",
            ) from None
        return [notebook for notebook in lines if notebook.lines]

    def intact(self, digest: bytes) -> bytes | None:
        """The content of this hash, if a notebook has it: damaged data of a checkpoint may be intact here."""
        contents = (self._read(file) for file in self._files())
        return next((content for content in contents if hashlib.sha256(content).digest() == digest), None)

    def forget(self, expected_lines: list[LostLines]) -> None:
        """Remove the lines, and the files of the memory store beside them. Synced when it returns.

        Raises `Refused`, before any change, if other lines would be removed than expected.
        """
        if self.look() != expected_lines:
            raise memory_changed()
        for file, _ in expected_lines:
            before = self._read(file)
            after = without_lines(before, self._selector.matcher.text, ignore_case=self._selector.matcher.ignore_case)
            if "/" in file or not file.endswith(".md") or file.startswith("."):
                self._tree.write(self._memory.path(file), after)
            else:
                self._memory.write(file, after, expected_content=before)
        copies = [entry.name for entry in self._entries(layout.MEMORY_DIRECTORY) if _is_file_beside(entry)]
        for name in copies:
            self._tree.remove(f"{layout.MEMORY_DIRECTORY}/{name}")
        if expected_lines or copies:
            os.sync()

    def _read(self, file: str) -> bytes:
        return self._tree.read(self._memory.path(file))

    def _lines(self, content: bytes) -> list[tuple[int, bytes]]:
        return lines_with(content, self._selector.matcher.text, ignore_case=self._selector.matcher.ignore_case)

    def _files(self, below: str = "") -> Iterator[str]:
        for entry in self._entries(self._memory.path(below) if below else self._memory.directory):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_directory and self._selector.file is None:
                yield from self._files(name)
            elif entry.size is not None and self._selector.means(os.fsencode(name)):
                yield name

    def _entries(self, directory: str) -> list[DirectoryEntry]:
        try:
            return self._tree.entries(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _is_file_beside(entry: DirectoryEntry) -> bool:
    return entry.size is not None and is_beside(os.fsencode(entry.name))


_MEMORY = tuple(part.encode() for part in layout.MEMORY_DIRECTORY.split("/"))


class RewrittenTree(NamedTuple):
    """The new form of a tree: its hash, the number of removed files and bytes, whether notebooks lost lines."""

    tree: bytes
    files: int = 0
    bytes: int = 0
    is_purged: bool = False


class Rewriter:
    """Rewrites trees, each distinct object once; new objects go into `sink`.

    `intact` finds the content of a damaged notebook elsewhere.

    `gone` are contents that must no longer be stored, `replaced` the trees with a new form, and `notebooks` the number
    of distinct contents of notebooks that lost lines.
    """

    def __init__(
        self,
        objects: ObjectReader,
        sink: ObjectWriter,
        contents: Contents,
        selector: PurgeSelector,
        intact: Callable[[bytes], bytes | None],
    ) -> None:
        self._intact = intact
        self._objects = objects
        self._sink = sink
        self._contents = contents
        self._selector = selector
        self._above: dict[tuple[int, bytes], RewrittenTree] = {}
        self._below: dict[bytes, RewrittenTree] = {}
        self._contents_of: dict[bytes, tuple[bytes, int]] = {}
        self._lines: dict[tuple[str, bytes], None] = {}
        self.gone: set[bytes] = set()
        self.replaced: set[bytes] = set()

    @property
    def notebooks(self) -> int:
        """The number of distinct contents of notebooks that lost lines."""
        return sum(before != after for before, (after, _) in self._contents_of.items())

    @property
    def lines(self) -> list[tuple[str, bytes]]:
        """The distinct removed lines, each with the name of its notebook."""
        return list(self._lines)

    def rewrite(self, root: bytes) -> RewrittenTree:
        """The tree of a workspace without the lines. Raises `Damaged`."""
        return self._on_the_way(root, 0)

    def _on_the_way(self, tree: bytes, depth: int) -> RewrittenTree:
        result = self._above.get((depth, tree))
        if result is None:
            entries = [self._entry_on_the_way(entry, depth) for entry in decode(self._objects.read(tree))]
            result = self._above[depth, tree] = self._put(tree, entries)
        return result

    def _entry_on_the_way(self, entry: TreeEntry, depth: int) -> tuple[TreeEntry | None, RewrittenTree]:
        unchanged = entry, RewrittenTree(entry.digest)
        if depth < len(_MEMORY):
            is_next = entry.kind == DIRECTORY and entry.name == _MEMORY[depth]
            return self._moved(entry, self._on_the_way(entry.digest, depth + 1)) if is_next else unchanged
        if entry.kind == FILE and is_beside(entry.name):
            self.gone.add(entry.digest)
            return None, RewrittenTree(b"", 1, entry.size)
        if entry.kind == DIRECTORY and entry.name == self._selector.agent.encode():
            return self._moved(entry, self._inside(entry.digest))
        return unchanged

    def _moved(self, entry: TreeEntry, to: RewrittenTree) -> tuple[TreeEntry, RewrittenTree]:
        return entry._replace(digest=to.tree), to

    def _inside(self, tree: bytes) -> RewrittenTree:
        """A directory with notebooks, all of it."""
        result = self._below.get(tree)
        if result is None:
            entries = [self._entry_inside(entry) for entry in decode(self._objects.read(tree))]
            result = self._below[tree] = self._put(tree, entries)
        return result

    def _entry_inside(self, entry: TreeEntry) -> tuple[TreeEntry, RewrittenTree]:
        if entry.kind == DIRECTORY and self._selector.file is None:
            return self._moved(entry, self._inside(entry.digest))
        if entry.kind != FILE or not self._selector.means(entry.name):
            return entry, RewrittenTree(entry.digest)
        digest, size = self._notebook(entry)
        rewritten = entry._replace(digest=digest, size=size)
        return rewritten, RewrittenTree(digest, 0, entry.size - size, digest != entry.digest)

    def _notebook(self, entry: TreeEntry) -> tuple[bytes, int]:
        before = entry.digest
        if before not in self._contents_of:
            content = self._held(entry)
            after = before, entry.size
            if content is not None:
                text, ignore_case = self._selector.matcher
                new_content = without_lines(content, text, ignore_case=ignore_case)
                name = os.fsdecode(entry.name)
                self._lines |= {(name, line): None for _, line in lines_with(content, text, ignore_case=ignore_case)}
                after = self._sink.add(new_content), len(new_content)
                self.gone.add(before)
            self._contents_of[before] = after
        return self._contents_of[before]

    def _held(self, entry: TreeEntry) -> bytes | None:
        """The content of a notebook that contains the text, or `None`. Raises `Damaged` if that is unknown."""
        if self._contents.hold(entry.digest):
            return self._objects.read(entry.digest)
        if entry.digest not in self._contents.unread:
            return None
        content = self._intact(entry.digest)
        if content is None:
            raise Damaged(f"A notebook ({os.fsdecode(entry.name)}, object {entry.digest.hex()[:16]}) cannot be read.")
        return content if self._selector.matcher.is_in([content]) else None

    def _put(self, tree: bytes, entries: Sequence[tuple[TreeEntry | None, RewrittenTree]]) -> RewrittenTree:
        files = sum(result.files for _, result in entries)
        is_purged = any(result.is_purged for _, result in entries)
        if not files and not is_purged:
            return RewrittenTree(tree)
        self.replaced.add(tree)
        after = self._sink.add(encode([entry for entry, _ in entries if entry is not None]))
        return RewrittenTree(after, files, sum(result.bytes for _, result in entries), is_purged)


def ledger_with(raw: bytes, trees: Mapping[str, RewrittenTree], old_packs: list[str], pack: str) -> bytes:
    """The bytes of a ledger with the new trees, and with a new pack in the place of `old_packs`.

    A line that names none of the trees stays byte for byte the same, damaged lines included.
    """
    parts = []
    start = 0
    for line in sealed_lines.parse(raw):
        original = raw[start : line.end]
        start = line.end
        parts.append(original if line.value is None else _line_with(line.value, original, trees))
    parts.append(
        sealed_lines.seal(
            {"v": layout.LEDGER_FORMAT.current, "removed": [], "merged": {}, "gone": old_packs, "pack": pack}
        )
    )
    return b"".join(parts)


def _line_with(entry: dict[str, Any], original: bytes, trees: Mapping[str, RewrittenTree]) -> bytes:
    is_changed = False
    try:
        layout.bring_up(layout.LEDGER_FORMAT, entry, "the ledger")
    except layout.BadVersion:
        return original  # damaged, however whole it is
    for key in ("record", "rewind"):
        if isinstance(fields := entry.get(key), dict):
            is_changed |= _replace(fields, trees)
    return sealed_lines.seal(entry) if is_changed else original


def _replace(fields: dict[str, Any], trees: Mapping[str, RewrittenTree]) -> bool:
    tree = fields.get("tree")
    to = trees.get(tree) if isinstance(tree, str) else None
    if to is None or to.tree.hex() == tree:
        return False
    fields["tree"] = to.tree.hex()
    for key, fewer in (("files", to.files), ("bytes", to.bytes)):
        if isinstance(count := fields.get(key), int):
            fields[key] = count - fewer
    return True


class TextMatcher(NamedTuple):
    """The bytes of a text within one line, and whether case is ignored.

    A content matches if `deepctl.domain.memory.directory` finds a matching line in it.
    """

    text: bytes
    ignore_case: bool = False

    @property
    def is_nowhere(self) -> bool:
        """Whether no line can contain it: it is empty, or contains a line end."""
        return not self.text or self.text.splitlines() != [self.text]

    def is_in(self, pieces: Iterable[bytes]) -> bool:
        """Whether a content in pieces contains it. All of it is read, so that it is also checked."""
        exact, any_case = _ExactMatcher(self.text), _CaselessMatcher(self.text) if self.ignore_case else None
        for piece in pieces:
            exact.take(piece)
            if any_case is not None:
                any_case.take(piece)
        if any_case is not None:
            any_case.take(b"", final=True)
        return not self.is_nowhere and (exact.is_found or (any_case is not None and any_case.is_found))

    def is_in_text(self, text: str) -> bool:
        """Whether a string contains it."""
        if self.is_nowhere:
            return False
        needle = self.text.decode("utf-8", "surrogateescape")
        return needle in text or (self.ignore_case and unicode.fold(needle) in unicode.fold(text))

    def is_in_json(self, value: Any) -> bool:
        """Whether a string anywhere in a JSON value contains it, also inside JSON in a string."""
        return any(self.is_in_text(text) for text in _strings(value))

    def is_in_damaged(self, raw: bytes) -> bool:
        """Whether bytes that should be JSON contain it, plain or with JSON's escapes."""
        spellings = (
            json.dumps(self.text.decode("utf-8", "surrogateescape"), ensure_ascii=ascii_only)
            for ascii_only in (True, False)
        )
        forms = [self.text, *(text[1:-1].encode("utf-8", "surrogateescape") for text in spellings)]
        return any(self._replace(text=form).is_in([raw]) for form in forms)


class _ExactMatcher:
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
"""An upper bound for the characters that are folded to one."""


class _CaselessMatcher:
    def __init__(self, text: bytes) -> None:
        self._text = folded_text(text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._tail = ""
        self.is_found = False

    def take(self, piece: bytes, *, final: bool = False) -> None:
        if not self.is_found:
            window = self._tail + self._decoder.decode(piece, final)
            self.is_found = self._text in unicode.fold(window)
            # Unfolded, because a sequence that folds to one character may start in this piece and end in the next.
            self._tail = window[max(0, len(window) - _UNFOLDED * len(self._text) - _UNFOLDED) :]


def _strings(root: Any) -> Iterator[str]:
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
            if "\\" in value and value.lstrip()[:1] in ("{", "["):
                # The arguments of a tool call, as a model wrote them: after decoding, every text in them is plain.
                try:
                    pending.append(json.loads(value))
                except (ValueError, RecursionError):
                    continue
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value


class Contents:
    """The objects that contain the text; each is read once. `unread` are the unreadable ones.

    `report` receives the number of read contents.
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
        """Keep the known results, and read the rest from the same objects, opened again."""
        self._objects, self._report = objects, report

    def hold(self, digest: bytes) -> bool:
        """Whether an object contains the text; an unreadable one does not, and is in `unread` then."""
        if digest not in self._known:
            try:
                self._known[digest] = self.matcher.is_in(self._objects.chunks(digest))
            except (Damaged, Refused, FileNotFoundError):
                self._known[digest] = False
                self.unread.add(digest)
            self.looked()
        return self._known[digest]

    def looked(self) -> None:
        """Count one more content, an object or a file."""
        self._looked += 1
        if self._report is not None:
            self._report(self._looked)
