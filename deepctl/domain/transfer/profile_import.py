"""Importing: a profile from an archive, completely or not at all.

An archive may come from anyone. It is written to a private directory (`staging`). After every byte has been read and
checked, one rename makes it a profile. Anything that could reach beyond that profile refuses the whole archive: names
that lead elsewhere, links, kinds of files that no export has, and a ledger that names files by more than their ids. Its
harmless settings are in force; the others need trust (`deepctl.domain.trust`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, NamedTuple, Self

from deepctl import layout
from deepctl.domain import addresses, profiles, settings, trust, untrusted_files
from deepctl.domain.transfer.archive import ArchiveEntry, Totals, raw
from deepctl.domain.transfer.archive_reader import ArchiveReader
from deepctl.domain.trust import TrustItem, WaitingSettings
from deepctl.domain.wipe import trash
from deepctl.errors import Damaged, DeepctlError, Refused, StorageError
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import IMPORT, ProfilePaths, Root
from deepctl.locks import Lease
from deepctl.store import ledger, session_catalogue, usage_log
from deepctl.store.records import SESSION_RECORD

MAX_FILES = 250_000
MAX_BYTES = 1 << 30
_RATIO = 100
"""The maximum content of an archive as a multiple of its own size, if that is more than `MAX_BYTES`."""
_BLOCK = 4096
"""Approximate bytes that a file system needs for an entry besides its content."""
_LONGEST = 200
"""Characters of a value in a note; `profiles trust` shows the full value."""
_FORMS = {
    # An application's checkpoints have ids that the application chose.
    "id": re.compile(r"[^\x00-\x1f\x7f]{1,200}"),
    "log": re.compile(r"[0-9a-z]{0,64}", re.ASCII),
    "pack": re.compile(r"([0-9a-f]{16}\.pack)?", re.ASCII),
    "tree": re.compile(r"([0-9a-f]{64})?", re.ASCII),
    "label": re.compile(r".{0,64}"),
}
"""Valid values of ledger fields that become paths, hashes, or lines of other files."""

Report = Callable[[int], None]
"""Receives the number of content bytes that have been read."""


class ImportLimits(NamedTuple):
    """The limits of an archive: entries, and bytes of content; `None` for the default by its own size."""

    files: int = MAX_FILES
    bytes: int | None = None


class ProfileImport(NamedTuple):
    """An imported profile. `origin` is its former name, `notes` are to be read before its use, `untrusted` are the
    imported settings that are not in force.
    """

    paths: ProfilePaths
    origin: str
    totals: Totals
    notes: list[str]
    untrusted: list[TrustItem]
    waiting: WaitingSettings | None
    """The same with the bytes of the two files; `None` if there are none, or they cannot be read."""


class OpenArchive(NamedTuple):
    """An archive that may be imported according to its header, and the name of the new profile."""

    incoming: ArchiveReader
    name: str

    @property
    def bytes(self) -> int:
        """Its declared content in bytes."""
        return self.incoming.header.bytes


def examine(
    root: Root, file: BinaryIO, label: str, *, name: str | None, size: int | None, limits: ImportLimits
) -> OpenArchive:
    """Read the header of an archive, and refuse an invalid one before anything is written.

    `label` is its name in errors, `size` its size in bytes if it is known. Raises `UsageError`, `Damaged`,
    `NewerFormat`, `BadName`, `Refused` (a name that is taken, more than `limits`) or `StorageError` (a disk too small).
    """
    incoming = ArchiveReader(file, label)
    header = incoming.header
    if name is None and not layout.is_good_name(header.profile):
        raise incoming.hostile(f"it is of a profile called {header.profile[:100]!a}")
    name = layout.check_name(header.profile if name is None else name)
    if profiles.exists(root, name):
        raise name_taken(name)
    most = limits.bytes if limits.bytes is not None else max(MAX_BYTES, _RATIO * (size or 0))
    if header.bytes > most or header.entries > limits.files:
        raise Refused(
            f"{label} holds {header.entries:,} entries and {header.bytes:,} bytes; {limits.files:,} and {most:,} are "
            "allowed.",
            "If you trust its source, allow more with --max-files and --max-size.",
            code="archive_too_large",
        )
    free = free_bytes(root)
    needed_bytes = header.bytes + header.entries * _BLOCK
    if needed_bytes > free:
        raise StorageError(
            f"{label} needs {needed_bytes:,} bytes on the disk of the profiles, and {free:,} are free.",
            "Nothing was imported. Free some space and try again.",
            code="storage_enospc",
        )
    return OpenArchive(incoming, name)


def name_taken(name: str) -> Refused:
    """There is already a profile of that name."""
    return Refused(
        f"There is already a profile {name!r}; nothing was imported.",
        "--as NAME imports it under another name.",
        code="profile_exists",
    )


def free_bytes(root: Root) -> int:
    """Free bytes on the disk of the profiles."""
    place = root.profiles
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def take_in(
    root: Root, source: OpenArchive, lock: Callable[[], Lease], report: Report = lambda count: None
) -> ProfileImport:
    """Import an archive. `lock` creates the lock of the new profile, which is held for the last step only.

    Raises the errors of `ArchiveReader`, `Refused` if the name has been taken in the meantime, `Locked`, and `OSError`;
    then there is no profile and no part of one.
    """
    incoming = source.incoming
    profiles.make_root(root)
    trash.remove_half_made(root)
    with Staging(root) as staging:
        strips = _write(incoming, staging, report)
        paths = ProfilePaths(source.name, staging.path, "")
        _check_ledger(incoming, paths)
        _make_private(paths)
        content, untrusted = _set_apart(incoming, paths, root.profile(source.name))
        untrusted_files.set_apart(paths)
        preview = untrusted if untrusted is not None else WaitingSettings([], None, content or None)
        preview = trust.with_files(paths, root.profile(source.name), preview)
        untrusted = preview if preview.files else untrusted
        items = untrusted.items if untrusted is not None else []
        notes = _notes(items, paths, content)
        if strips:
            notes.append(
                f"Without their setuid, setgid or sticky bit: {strips} {'entry' if strips == 1 else 'entries'}."
            )
        _complete(paths)
        staging.complete()
        with lock():
            if profiles.exists(root, source.name):
                raise name_taken(source.name)
            profiles.discard_old_keys(root.profile(source.name))
            staging.move(root.profile(source.name).directory)
    return ProfileImport(root.profile(source.name), incoming.header.profile, incoming.totals, notes, items, untrusted)


def _write(incoming: ArchiveReader, staging: Staging, report: Report) -> int:
    """Write everything; returns the number of modes that lost a bit."""
    sessions: set[str] = set()
    strips = 0
    for entry in incoming.entries():
        _check_session(incoming, entry, sessions)
        strips += is_stripped(entry)
        before = incoming.totals.bytes - entry.size
        try:
            if entry.kind == "directory":
                staging.directory(entry)
            elif entry.kind == "link":
                staging.link(entry)
            else:
                staging.file(entry, _reported(incoming, before, report))
        except MisplacedEntry:
            raise incoming.hostile(f"{entry.path[:200]!a} does not follow its directory") from None
        except OSError as error:
            if error.errno == errno.EEXIST:
                reason = (
                    f"{entry.path[:200]!a} occurs twice, or differs from another path only by case or normalisation"
                )
                raise incoming.hostile(reason) from None
            if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
                raise StorageError(
                    f"This file system does not support the name {entry.path[:200]!a}.",
                    "Nothing was imported. Set $DEEPCTL_HOME to a directory on another file system.",
                    code="storage_name",
                ) from None
            raise
    return strips


def _reported(incoming: ArchiveReader, before: int, report: Report) -> Iterator[bytes]:
    for piece in incoming.content():
        before += len(piece)
        yield piece
        report(before)


def _check_session(incoming: ArchiveReader, entry: ArchiveEntry, folded_names: set[str]) -> None:
    """Raises `Refused` for a second session of a name; `A` and `a` are the same name."""
    match entry.path.split("/"):
        case ["sessions", name] if layout.folded_name(name) in folded_names:
            raise incoming.hostile(f"two sessions are called {name!r} apart from case")
        case ["sessions", name]:
            folded_names.add(layout.folded_name(name))


def _complete(paths: ProfilePaths) -> None:
    """Make the directories that a profile always has, and its usage: imported sessions have cost nothing here."""
    for directory in (paths.workspace, paths.sessions, paths.checkpoints):
        atomic.make_directory(directory)
    usage_log.begin(paths.directory)


def _check_ledger(incoming: ArchiveReader, paths: ProfilePaths) -> None:
    """Raises `NewerFormat`, and `Refused` if the ledger has an invalid id, because logs and packs become paths."""
    try:
        raw = atomic.read_file(os.path.join(paths.checkpoints, ledger.LEDGER))
    except FileNotFoundError:
        return
    unfinished = ledger.parse(raw, f"The ledger in {incoming.name}").unfinished
    if unfinished is not None and unfinished.root:
        # The next command would finish the rewind, in a directory that the archive names.
        raise incoming.hostile("an interrupted rewind in it belongs to a directory on another machine")
    for line in sealed_lines.parse(raw):
        if line.problem == sealed_lines.TOO_DEEP or (line.value is not None and not _is_harmless(line.value)):
            raise incoming.hostile(f"line {line.number} of its ledger is not valid")


def _is_harmless(line: dict[str, object]) -> bool:
    """Whether the logs, packs, trees and names in a ledger line have a valid form."""
    for kind in ("record", "rewind", "label"):
        part = line.get(kind)
        if not isinstance(part, dict):
            continue
        for key, form in _FORMS.items():
            value = part.get(key)
            if value is not None and not (isinstance(value, str) and form.fullmatch(value)):
                return False
        if part.get("label") and not layout.is_good_name(part["label"]):
            return False
        if kind == "rewind" and "/" in (part.get("id") or ""):
            return False  # it becomes part of a file's name
    return True


def _make_private(paths: ProfilePaths) -> None:
    """Let the sessions work in the workspace: an archive must not name directories of this machine."""
    for name in session_catalogue.all_names(paths):
        with suppress(DeepctlError):  # the record is damaged, and names no directory then
            session = session_catalogue.find(paths, name)
            if session.project is not None and session.damage is None:
                record = os.path.join(session.directory, SESSION_RECORD)
                status = os.stat(record)
                session_catalogue.write_record(session._replace(project=None))
                os.utime(record, ns=(status.st_atime_ns, status.st_mtime_ns))  # the last use of the session


def _set_apart(
    incoming: ArchiveReader, paths: ProfilePaths, final_paths: ProfilePaths
) -> tuple[bytes, WaitingSettings | None]:
    """Keep settings that are not harmless out of profile.toml. Returns its bytes, and these settings if they can be
    read; their problems name the files by `final_paths`. Raises `NewerFormat` and `Refused`.
    """
    try:
        raw = settings.read_document(paths.settings)
    except FileNotFoundError:
        return b"", None
    try:
        harmless, untrusted = trust.split(raw, f"profile.toml in {incoming.name}")
    except trust.UnusableProfileFile as error:
        raise incoming.hostile(str(error)) from None
    if untrusted is None:
        return raw, None
    settings.replace_document(paths.untrusted, untrusted)
    settings.replace_document(paths.settings, harmless)
    try:
        return harmless, trust.compared(final_paths, untrusted, harmless)
    except Damaged:
        return harmless, None


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _notes(items: list[TrustItem], paths: ProfilePaths, content: bytes) -> list[str]:
    """The consequences of the imported settings for the safety of the user; `content` is the profile.toml."""
    notes = [f"It contains {item.key} = {_cut(trust.text(item))}: {item.reason}." for item in items]
    if not notes and os.path.exists(paths.untrusted):
        notes.append(f"Its profile.toml cannot be read. It is not in force, and is stored as {layout.UNTRUSTED}.")
    values = settings.flat(settings.parse_tables(content, paths.settings), paths.settings)
    if "model" in values:
        notes.append(f"It contains model = {addresses.without_passwords(values['model'])}.")
    if "instructions" in values:
        notes.append("It contains instructions for its agent at the start of every conversation.")
    return notes


class MisplacedEntry(Exception):
    """An entry that does not follow its directory."""


def _held(path: str) -> int | None:
    """A descriptor that holds the lock of the directory at `path`, or `None` if another process does, or it no longer
    exists.
    """
    try:
        descriptor = os.open(path, atomic.OPEN_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


class Staging:
    """A private directory for one profile; a context manager that removes it unless it has been moved to its place.

    Entries come as in an archive: a directory right before its contents. Raises `MisplacedEntry` otherwise, and
    `OSError`; `EEXIST` means a name that occurs twice.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._descriptor = -1
        self.path = ""
        self._open: list[tuple[int, ArchiveEntry]] = []

    def __enter__(self) -> Self:
        # Between its creation and its locking, a cleanup by another process may take it for a leftover.
        while self._descriptor < 0:
            self.path = os.path.join(self._root.profiles, IMPORT + os.urandom(8).hex())
            try:
                atomic.make_new_directory(self.path)
                descriptor = _held(self.path)
            except BaseException:
                with suppress(OSError):
                    os.rmdir(self.path)
                raise
            self._descriptor = descriptor if descriptor is not None else -1
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.pop()[0])
        try:
            if os.path.lexists(self.path):
                rmtree.remove_tree(self.path)
        finally:
            os.close(self._descriptor)

    def directory(self, entry: ArchiveEntry) -> None:
        """Create a directory; it gets its mode and its time when its contents are complete."""
        parent, name = self._parent(entry)
        os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, atomic.OPEN_DIRECTORY, dir_fd=parent)
        os.fchmod(descriptor, 0o700)
        self._open.append((descriptor, entry))

    def link(self, entry: ArchiveEntry) -> None:
        """Make a symbolic link."""
        parent, name = self._parent(entry)
        os.symlink(raw(entry.target), name, dir_fd=parent)

    def file(self, entry: ArchiveEntry, pieces: Iterable[bytes]) -> None:
        """Make a file."""
        parent, name = self._parent(entry)
        with _closing(os.open(name, atomic.CREATE_NEW, 0o600, dir_fd=parent)) as descriptor:
            for piece in pieces:
                atomic.write_all(descriptor, piece)
            _dress(descriptor, entry)

    def _parent(self, entry: ArchiveEntry) -> tuple[int, bytes]:
        above, _, name = entry.path.rpartition("/")
        while self._open and not _is_in(above, self._open[-1][1].path):
            self._leave()
        if above != (self._open[-1][1].path if self._open else ""):
            raise MisplacedEntry
        return self._open[-1][0] if self._open else self._descriptor, raw(name)

    def _leave(self) -> None:
        descriptor, entry = self._open.pop()
        with _closing(descriptor):
            _dress(descriptor, entry)

    def complete(self) -> None:
        """All entries are complete: make them durable."""
        while self._open:
            self._leave()
        os.sync()
        os.fsync(self._descriptor)

    def move(self, directory: str) -> None:
        """Make it the profile in `directory`, which must not exist. The caller holds that profile's lock."""
        os.rename(self.path, directory)
        atomic.sync_directory(self._root.profiles)


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _dress(descriptor: int, entry: ArchiveEntry) -> None:
    """Set the mode and the time of a file or directory; a mode is limited to bits that an import may set."""
    os.fchmod(descriptor, wanted_mode(entry))
    # A time that this file system cannot store must not prevent the import of the file.
    with suppress(OverflowError, OSError):
        os.utime(descriptor, ns=(entry.modified, entry.modified))


def wanted_mode(entry: ArchiveEntry) -> int:
    """The mode of an imported entry: deepctl's own are private, those of the workspace keep theirs without setuid,
    setgid and sticky.
    """
    if entry.path.startswith("workspace/"):
        return entry.mode & 0o777
    if entry.kind == "file" and entry.path.startswith(f"{layout.SKILLS}/"):
        return atomic.FILE_MODE | (entry.mode & 0o100)  # scripts
    return atomic.DIRECTORY_MODE if entry.kind == "directory" else atomic.FILE_MODE


def is_stripped(entry: ArchiveEntry) -> bool:
    """Whether an entry loses a setuid, setgid or sticky bit."""
    return entry.path.startswith("workspace/") and bool(entry.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX))


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
