"""Exporting: a whole profile as one archive, without its lock, and so also while a chat is running.

What is appended to only is read up to where it was when it was opened, and in an order in which what points comes
before what it points at: the ledger, then packs, then logs, then the workspace. In the end the ledger must have grown
by nothing but new checkpoints and names; otherwise what was read may not fit together, and the export fails, to be
tried again. The workspace is read as it is found; a file that changes meanwhile may be in it or not.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import BinaryIO, NamedTuple, Self

from deepctl import quantities
from deepctl.domain.transfer import archive, archive_reader
from deepctl.domain.transfer.archive import ArchiveEntry, ArchiveHeader, Kind, OmittedPath, Totals
from deepctl.errors import Locked
from deepctl.files import atomic, ownership, sealed_lines
from deepctl.layout import (
    COMMANDS,
    LOST_AND_FOUND,
    OWN_DIRECTORIES,
    PROJECTS,
    SHARED,
    SKILLS,
    UNTRUSTED,
    UNTRUSTED_FILES,
    USAGE,
    ProfilePaths,
)
from deepctl.store import ledger, log_file, projects
from deepctl.store.trees import NO_CONTENT

_LEVEL = 1
"""Packs are compressed already; of the rest, speed is worth more than the last tenth."""
_CHUNK = 1 << 20

Report = Callable[[int], None]
"""Is told how many bytes of content have been written."""


class ProfileArchive(NamedTuple):
    """What is in an archive, and what of the profile is not."""

    totals: Totals
    left_out: list[OmittedPath]
    projects: list[str] = []
    """The directories whose files are in its checkpoints, as far as they are known."""


class ExportLedger(NamedTuple):
    """The ledger as it was when the export began: its bytes, up to its last whole line, and the packs that count."""

    raw: bytes
    packs: frozenset[str] | None
    """`None` where lines are lost, so that it is unknown."""
    size: bytes = b""
    """What is said of its length."""


class Export:
    """One export of a profile: `measure`, then `write`."""

    def __init__(self, paths: ProfilePaths, version: str) -> None:
        self._paths = paths
        self._version = version
        self._ledger = _read_ledger(paths)
        self._declared = Totals(0, 0, 0)

    def _walk(self) -> ExportWalk:
        return ExportWalk(self._paths.directory, self._ledger.packs)

    def measure(self) -> Totals:
        """Look at everything, so that the archive can say in its beginning how much there is."""
        ownership.regain(self._paths.workspace, OWN_DIRECTORIES)
        totals = Totals(0, 0, 0)
        with self._walk() as walk:
            for item in walk.everything():
                size = item.size if item.path != _LEDGER_PATH else len(self._ledger.raw)
                totals = totals.with_(item.kind, size)
        self._declared = totals
        return totals

    def write(self, file: BinaryIO, report: Report = lambda count: None) -> ProfileArchive:
        """Write the archive. Raises `Locked` (`changed_while_read`) where the profile changed too much, and `OSError`.

        What is in `file` then is no archive.
        """
        with gzip.GzipFile("", "wb", _LEVEL, file, 0) as archive_file, self._walk() as walk:
            writer = _ArchiveWriter(archive_file, self._ledger, archive.allowance(self._declared), report)
            writer.header(self._header())
            for item in walk.everything():
                writer.add(walk, item)
            self._check_unchanged()
            writer.manifest()
        return ProfileArchive(writer.totals, sorted(walk.left_out), self._projects())

    def _projects(self) -> list[str]:
        checkpoint_ledger = ledger.parse(self._ledger.raw, os.path.join(self._paths.checkpoints, ledger.LEDGER))
        identities = {record.project for record in checkpoint_ledger.records.values() if record.project}
        paths_by_id = {project.id: project.path for project in projects.read(self._paths)} if identities else {}
        return sorted(paths_by_id.get(identity, f"project {identity}") for identity in identities)

    def _header(self) -> ArchiveHeader:
        entries, files, size = self._declared
        return ArchiveHeader(self._version, self._paths.name, quantities.now_in_seconds(), files, size, entries)

    def _check_unchanged(self) -> None:
        """Raises `Locked` unless the ledger has only grown, by checkpoints and names for them."""
        try:
            now = atomic.read_file(os.path.join(self._paths.checkpoints, ledger.LEDGER))
        except FileNotFoundError:
            now = b""
        before = self._ledger.raw
        if not now.startswith(before):
            raise profile_changed("its checkpoints were rewritten")
        tail = now[len(before) :]
        for line in sealed_lines.parse(tail):
            # What the line cut short at the end was to become, if a process is writing it, points at nothing old.
            if line.value is None and line.problem == "cut short":
                continue
            if line.value is None or "rewind" in line.value or not line.value.keys() & {"record", "label", "tied"}:
                raise profile_changed("a rewind or a removal of checkpoints ran in between")


_NOT_EXPORTED = {
    SHARED: "names of other profiles of this machine",
    UNTRUSTED: "imported settings that are not trusted",
    UNTRUSTED_FILES: "imported skills and commands that are not trusted",
    PROJECTS: "directories of this machine; the imported sessions work in the workspace",
}
_LEDGER_PATH = f"checkpoints/{ledger.LEDGER}"
_SIZE_PATH = f"checkpoints/{log_file.LEDGER_SIZE}"


def profile_changed(reason: str) -> Locked:
    """The profile changed while it was read, in a way that an archive cannot tell of."""
    return Locked(
        f"The profile changed while it was read: {reason}.",
        "No archive was written. Try again when the other command has finished.",
        code="changed_while_read",
    )


def _read_ledger(paths: ProfilePaths) -> ExportLedger:
    path = os.path.join(paths.checkpoints, ledger.LEDGER)
    try:
        descriptor = atomic.open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return ExportLedger(b"", None)
    with open(descriptor, "rb") as file:
        raw = file.read(sealed_lines.end_of_whole_lines(descriptor))
    checkpoint_ledger = ledger.parse(raw, path)
    # A pack without a line is one whose line comes later; but if lines are lost, all packs may count.
    is_short = ledger.read(paths.checkpoints).is_short
    size = log_file.ledger_size_line(log_file.start_of_last_line(raw), is_short=is_short)
    return ExportLedger(
        raw, frozenset(checkpoint_ledger.packs) if not checkpoint_ledger.damage and not is_short else None, size
    )


class _ArchiveWriter:
    """An archive that is being written."""

    def __init__(self, file: gzip.GzipFile, before: ExportLedger, most: Totals, report: Report) -> None:
        self._file = file
        self._ledger = before
        self._most = most
        self._report = report
        self._done = 0
        # Lines for very many entries: compressed, each takes a few dozen bytes.
        self._packer = zlib.compressobj(_LEVEL)
        self._lines = bytearray()
        self._lines_size = 0
        self.totals = Totals(0, 0, 0)

    def header(self, header: ArchiveHeader) -> None:
        """Write the first member."""
        line = archive.header_line(header)
        at = datetime.fromisoformat(header.created_at)
        self._member(ArchiveEntry(archive.HEADER, "file", 0o600, len(line), int(at.timestamp()) * 10**9), line)

    def _member(self, entry: ArchiveEntry, content: bytes) -> None:
        self._file.write(archive_reader.encode(entry))
        self._file.write(content + bytes(archive_reader.padding(len(content))))

    def add(self, walk: ExportWalk, item: ExportEntry) -> None:
        """Write one entry of a walk, unless it has vanished or cannot be read."""
        mode = stat.S_IMODE(item.status.st_mode)
        entry = ArchiveEntry(item.path, item.kind, mode, item.size, item.status.st_mtime_ns)
        if item.kind == "directory":
            self._file.write(archive_reader.encode(entry._replace(size=0)))
            self._count(entry._replace(size=0), None)
        elif item.kind == "link":
            target = archive.raw(item.target)
            entry = entry._replace(mode=0o777, size=len(target), target=item.target)
            self._file.write(archive_reader.encode(entry))
            self._count(entry, hashlib.sha256(target).hexdigest())
        elif item.path == _LEDGER_PATH:
            self._small(entry, self._ledger.raw)
        elif item.path == _SIZE_PATH:
            # In the state that belongs to the ledger in the archive.
            self._small(entry, self._ledger.size)
        else:
            with walk.opened(item) as descriptor:
                if descriptor is not None:
                    self._file_content(entry, descriptor)

    def _file_content(self, entry: ArchiveEntry, descriptor: int) -> None:
        status = os.fstat(descriptor)
        size = status.st_size
        if _is_own(entry.path) and entry.path.endswith(".jsonl"):
            size = sealed_lines.end_of_whole_lines(descriptor)  # not the line that is being written now
            os.lseek(descriptor, 0, os.SEEK_SET)
        entry = entry._replace(mode=stat.S_IMODE(status.st_mode), size=size, modified=status.st_mtime_ns)
        if size <= _CHUNK:
            self._small(entry, b"".join(pieces(descriptor, size)))
            return
        self._file.write(archive_reader.encode(entry))
        hasher = hashlib.sha256()
        for piece in pieces(descriptor, size):
            hasher.update(piece)
            self._file.write(piece)
            size -= len(piece)
            self._report(self._done + entry.size - size)
        if size:
            raise profile_changed(f"{entry.path!a} was cut short")
        self._file.write(bytes(archive_reader.padding(entry.size)))
        self._count(entry, hasher.hexdigest())

    def _small(self, entry: ArchiveEntry, content: bytes) -> None:
        entry = entry._replace(size=len(content))
        self._member(entry, content)
        self._count(entry, hashlib.sha256(content).hexdigest())

    def _count(self, entry: ArchiveEntry, digest: str | None) -> None:
        self._line(archive.manifest_line(entry, digest))
        self.totals = self.totals.with_(entry.kind, entry.size)
        if any(have > most for have, most in zip(self.totals, self._most, strict=True)):
            raise profile_changed("its workspace grew by more than an eighth")
        self._done = self.totals.bytes
        self._report(self._done)

    def _line(self, line: bytes) -> None:
        self._lines += self._packer.compress(line)
        self._lines_size += len(line)

    def manifest(self) -> None:
        """Write the last member, and the end."""
        self._line(archive.manifest_end(self.totals))
        self._lines += self._packer.flush()
        self._file.write(archive_reader.encode(ArchiveEntry(archive.MANIFEST, "file", 0o600, self._lines_size, 0)))
        unpacker = zlib.decompressobj()
        pending = bytes(self._lines)
        while pending:
            self._file.write(unpacker.decompress(pending, _CHUNK))
            pending = unpacker.unconsumed_tail
        self._file.write(unpacker.flush() + bytes(archive_reader.padding(self._lines_size)) + archive_reader.END)


def _is_own(path: str) -> bool:
    """Whether a path is deepctl's own data, and not a file of the user or of the agent."""
    return not path.startswith(("workspace/", f"{SKILLS}/", f"{COMMANDS}/"))


def pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """Up to `size` bytes of an open file, in pieces of at most a mebibyte."""
    while size and (piece := os.read(descriptor, min(size, _CHUNK))):
        size -= len(piece)
        yield piece


_FIRST = ("profile.toml", "prompt_history", "ledger.jsonl", "packs", "session.json", "checkpoints", "sessions")
"""Names in one of deepctl's own directories that come first, in this order; `workspace` comes last."""
_PASSED_OVER = ("cache", USAGE)
"""Names in a profile that are left out silently: the cache, and the requests, which were paid for on this machine."""
_UNREADABLE = (errno.EACCES, errno.EPERM)


class ExportEntry(NamedTuple):
    """One entry for the archive; `parent` and `name` open it, until the next entry."""

    path: str
    kind: Kind
    status: os.stat_result
    parent: int
    name: bytes
    target: str = ""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.status.st_size if self.kind == "file" else len(archive.raw(self.target))


class ExportWalk:
    """One walk over the profile in `directory`; a context manager. `packs` are those that count, `None` for all.
    Paths that `selects` refuses are passed over, with everything below them.

    Raises `Locked` if deepctl's own data vanishes during the walk, and `OSError` if it cannot be read.
    """

    def __init__(
        self, directory: str, packs: frozenset[str] | None, selects: Callable[[str], bool] = lambda path: True
    ) -> None:
        self._directory = directory
        self._selects = selects
        self._packs = packs
        self._descriptor = -1
        self.left_out: list[OmittedPath] = []

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._directory, atomic.OPEN_DIRECTORY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def everything(self) -> Iterator[ExportEntry]:
        """Everything for the archive, a directory right before its contents."""
        for name in _ordered(self._names(self._descriptor, "")):
            if not name.startswith(b".") and name.decode("utf-8", "replace") not in _PASSED_OVER:
                yield from self._at(self._descriptor, name, archive.text(name))

    def _names(self, descriptor: int, path: str) -> list[bytes]:
        with os.scandir(descriptor) as entries:
            return [os.fsencode(entry.name) for entry in entries]

    def _at(self, parent: int, name: bytes, path: str) -> Iterator[ExportEntry]:
        is_own = _is_own(path)
        if not self._selects(path):
            return
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            self._missing(path, is_own, error)
            return
        kind = _kind(status.st_mode)
        if kind is None:
            self.left_out.append(OmittedPath(path, _reason(status.st_mode)))
        elif not archive.is_of_a_profile(path, kind):
            reason = _NOT_EXPORTED.get(path, "not part of a profile")
            self.left_out.append(OmittedPath(path, reason))
        elif kind == "directory":
            yield from self._below(parent, name, path, status, is_own)
        elif kind == "link":
            try:
                target = archive.text(os.readlink(name, dir_fd=parent))
            except OSError as error:
                self._missing(path, is_own, error)
                return
            if archive.leads_out(path, target):
                self.left_out.append(
                    OmittedPath(path, f"a link that leads, or may lead, out of the workspace: {target}")
                )
            else:
                yield ExportEntry(path, kind, status, parent, name, target)
        else:
            yield ExportEntry(path, kind, status, parent, name)

    def _below(
        self, parent: int, name: bytes, path: str, status: os.stat_result, is_own: bool
    ) -> Iterator[ExportEntry]:
        if path.count("/") > archive.MAX_DEPTH:
            self.left_out.append(OmittedPath(path, f"more than {archive.MAX_DEPTH} nested directories"))
            return
        try:
            descriptor = os.open(name, atomic.OPEN_DIRECTORY, dir_fd=parent)
        except OSError as error:
            self._missing(path, is_own, error)
            return
        try:
            names = self._names(descriptor, path)
            yield ExportEntry(path, "directory", status, parent, name)
            in_workspace = path == "workspace" or not is_own
            for inner in sorted(names) if in_workspace else _ordered(names):
                if in_workspace or self._counts(path, inner):
                    yield from self._at(descriptor, inner, f"{path}/{archive.text(inner)}")
        finally:
            os.close(descriptor)

    def _counts(self, directory: str, name: bytes) -> bool:
        """Whether an entry of deepctl's own is more than a leftover."""
        if directory == "checkpoints/packs" and self._packs is not None:
            return archive.text(name) in self._packs
        if directory == "checkpoints" and archive.text(name) == LOST_AND_FOUND:
            return False
        return not name.startswith(b".")

    def _missing(self, path: str, is_own: bool, error: OSError) -> None:
        """An entry has vanished, or cannot be read: acceptable in a workspace, which other programs use."""
        if is_own and path != "workspace":
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise data_vanished(path) from None
            error.filename = os.path.join(self._directory, path)
            raise error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return
        self.left_out.append(OmittedPath(path, (error.strerror or "cannot be read").lower()))

    @contextmanager
    def opened(self, item: ExportEntry) -> Iterator[int | None]:
        """A file of the walk, as a descriptor; `None` if it is in a workspace and has vanished or cannot be read."""
        is_own = not item.path.startswith("workspace/")
        try:
            descriptor = os.open(item.name, atomic.OPEN_FILE, dir_fd=item.parent)
        except OSError as error:
            self._missing(item.path, is_own, error)
            yield None
            return
        try:
            # Reading a FIFO could block forever; it was a file before.
            yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)


def data_vanished(path: str) -> Locked:
    """Data of deepctl's own vanished while the profile was read."""
    return Locked(
        f"The profile changed while it was read: {path} no longer exists.",
        "No archive was written. Try again when the other command has finished.",
        code="changed_while_read",
    )


def _ordered(names: list[bytes]) -> list[bytes]:
    numbers = {name.encode(): number for number, name in enumerate(_FIRST)}
    return sorted(names, key=lambda name: (name == b"workspace", numbers.get(name, len(numbers)), name))


def _kind(mode: int) -> Kind | None:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else None


def _reason(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return NO_CONTENT[0]
    return NO_CONTENT[1] if stat.S_ISSOCK(mode) else NO_CONTENT[2]
