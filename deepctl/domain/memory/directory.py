r"""Memory: the Markdown notebooks of a profile's agent in its workspace, and their text.

The agent can write the notebooks, so they are opened without following a link (`deepctl.files.paths_beneath`). An entry
of another kind in the place of a notebook or its directory is refused, never skipped.

A notebook is bytes, not text: line ends of any kind (`\n`, `\r\n`, `\r`), a last line without one, and bytes that are
not UTF-8 do not change. A line includes its end, and is numbered from 1. New text is UTF-8. A notebook can contain
other bytes, for example from an editor or a command. The agent then sees U+FFFD for these bytes (`as_text`), and a line
that the agent does not change keeps its bytes (`as_bytes`).
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from deepctl import layout, quantities, unicode
from deepctl.errors import BadName, MemoryNotFound, Refused, UsageError
from deepctl.files import atomic, ownership
from deepctl.files.paths_beneath import DirectoryTree, OutsideTree

MAX_BYTES = 64 << 20
"""Bytes of the largest notebook; larger files are not read."""

_NEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", re.ASCII)
"""The names that the agent's own tools can open."""

_NOT_A_NOTEBOOK = (errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG)


class Notebook(NamedTuple):
    """One memory file. `path` is relative to the workspace, `size` in bytes, `modified_at` RFC 3339 in UTC."""

    name: str
    path: str
    size: int
    modified_at: str
    content: bytes = b""


class Memory:
    """The notebooks of one agent of a profile. Raises `BadName` for an invalid agent name."""

    def __init__(self, profile: layout.ProfilePaths, agent: str = layout.AGENT) -> None:
        self.agent = layout.check_name(agent, "agent")
        self.profile = profile
        self.directory = posixpath.join(layout.MEMORY_DIRECTORY, self.agent)
        self._tree = DirectoryTree(profile.workspace, follow=False)
        ownership.regain(profile.workspace, layout.OWN_DIRECTORIES)

    def path(self, name: str) -> str:
        """The path of a notebook, relative to the workspace."""
        return posixpath.join(self.directory, name)

    def notebooks(self) -> list[Notebook]:
        """All notebooks, sorted by name, without their content.

        Raises `Refused` if an entry of another kind has the name of one.
        """
        with self._refusing(self.directory, "read"):
            try:
                entries = self._tree.entries(self.directory)
            except FileNotFoundError:
                self._check_agent()
                return []
        notebooks = []
        for entry in entries:
            if not entry.name.endswith(".md") or entry.name.startswith("."):
                continue
            if entry.size is None:
                raise self._refused(self.path(entry.name), "read", "not a regular file")
            notebooks.append(
                Notebook(entry.name, self.path(entry.name), entry.size, quantities.time_at(entry.modified))
            )
        return notebooks

    def read(self, file: str) -> Notebook:
        """One notebook with its content; `.md` may be omitted. Raises `MemoryNotFound`, or `Refused` for a link or a
        FIFO.
        """
        name = file_name(file)
        entry = self.find(name)
        if entry is None:
            self._check_agent()
            raise MemoryNotFound(
                f"Profile {self.profile.name!r} has no memory file {name!r}.",
                f"`deepctl memory list --user {self.profile.name}` lists the notebooks.",
            )
        return entry

    def find(self, file: str) -> Notebook | None:
        """The same, or `None` if it does not exist."""
        name = file_name(file)
        path = self.path(name)
        with self._refusing(path, "read"):
            try:
                content = self._tree.read(path)
                modified_at = self._tree.entry(path).modified
            except FileNotFoundError:
                return None
        return Notebook(name, path, len(content), quantities.time_at(modified_at), content)

    def write(self, file: str, content: bytes, *, expected_content: bytes | None) -> Notebook:
        """Replace a whole notebook, or create it with its missing directories. The caller holds the lock.

        `expected_content` is its expected present content, `None` for no file. A notebook keeps its mode; its other
        hard links keep the old content. Raises `BadName` for a new name that the agent could not open, `Refused` if the
        notebook has another content or is not a file, and `OSError`.
        """
        name = file_name(file) if expected_content is not None else check_new(file)
        path = self.path(name)
        if len(content) > MAX_BYTES:
            raise self._refused(path, "written", f"more than {MAX_BYTES >> 20} MiB")
        temporary_name = atomic.temporary_name()
        with self._refusing(path, "written"):
            self._tree.make_directory(self.directory)
            with self._tree.opened(self.directory) as (parent, _), self._beside(parent) as place:
                mode = _mode(parent, name, path)
                try:
                    modified_at = _stage(place, temporary_name, content, mode)
                    now = self.find(name)
                    if (now.content if now is not None else None) != expected_content:
                        raise MemoryChanged(name)
                    os.rename(temporary_name, name, src_dir_fd=place, dst_dir_fd=parent)
                except BaseException:
                    _unlink(place, temporary_name)
                    raise
                with atomic.after_commit():
                    _sync(parent)
        return Notebook(name, path, len(content), quantities.time_at(modified_at), content)

    @contextmanager
    def _beside(self, parent: int) -> Iterator[int]:
        """A directory for temporary files that can be renamed into `parent`.

        It is in the profile, where the next command removes leftovers of a kill; in the workspace, they would get into
        checkpoints. It is on another file system only if something is mounted in the workspace.
        """
        place = os.open(self.profile.directory, atomic.OPEN_DIRECTORY)
        try:
            is_other_device = os.fstat(place).st_dev != os.fstat(parent).st_dev
            yield parent if is_other_device else place
        finally:
            os.close(place)

    def _check_agent(self) -> None:
        """The memory of the default agent may be empty; any other agent exists only through its notebooks."""
        if self.agent == layout.AGENT:
            return
        with self._refusing(self.directory, "read"):
            try:
                self._tree.entries(self.directory)
            except FileNotFoundError:
                raise MemoryNotFound(
                    f"Profile {self.profile.name!r} has no agent {self.agent!r} with a memory.",
                    f"The agent is called {layout.AGENT!r}, unless an application gave it another name.",
                ) from None

    @contextmanager
    def _refusing(self, path: str, action: str) -> Iterator[None]:
        """Turn an invalid notebook into `Refused`, and name `path` in disk errors."""
        try:
            yield
        except OSError as error:
            if isinstance(error, OutsideTree) or error.errno in _NOT_A_NOTEBOOK:
                in_the_way = "a file is in the place of a directory" if error.errno == errno.ENOTDIR else None
                raise self._refused(path, action, in_the_way or error.strerror or str(error)) from None
            error.filename, error.filename2 = path, None
            raise

    def _refused(self, path: str, action: str, reason: str) -> Refused:
        return Refused(
            f"Memory of profile {self.profile.name!r} cannot be {action}: {path}: {reason}.",
            "deepctl follows no links in a workspace, and opens only regular files. Find out what created it.",
            code="memory_refused",
        )


class MemoryChanged(Refused):
    """Another author changed a notebook in the meantime; it was not changed."""

    code = "memory_changed"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Another author changed memory file {name!r} in the meantime, so nothing was done.", "Try again."
        )


def _stage(place: int, name: str, content: bytes, mode: int) -> float:
    """Make a synced file in the directory `place`; returns its time, in seconds since the epoch."""
    descriptor = os.open(name, atomic.CREATE_NEW, atomic.FILE_MODE, dir_fd=place)
    try:
        atomic.write_all(descriptor, content)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _unlink(place: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=place)
    except FileNotFoundError:
        pass


def _sync(directory: int) -> None:
    """Make the names in a directory durable; the descriptor may be one that cannot be synced itself."""
    descriptor = os.open(".", atomic.OPEN_DIRECTORY, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode(parent: int, name: str, path: str) -> int:
    """The permission bits for a written notebook: those it has. Raises `OSError` if it may not be written."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return atomic.FILE_MODE
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    if not mode & stat.S_IWUSR:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return stat.S_IMODE(mode)


def file_name(file: str) -> str:
    """The name of the notebook `file`; `.md` may be omitted. Raises `BadName`."""
    name = file if file.endswith(".md") else f"{file}.md"
    if "/" in name or "\0" in name or name.startswith(".") or len(os.fsencode(name)) > 255:
        excerpt = file if len(file) <= 80 else file[:80] + "…"
        raise BadName(f"{excerpt!a} is not a valid name of a memory file.", "Give only the name, such as MEMORY.md.")
    return name


def check_new(file: str) -> str:
    """The same for a new notebook, whose name the agent's own tools can open."""
    name = file_name(file)
    if not _NEW_NAME.fullmatch(name) or ".." in name:
        excerpt = name if len(name) <= 80 else name[:80] + "…"
        raise BadName(
            f"{excerpt!a} is not a valid name for a new memory file.",
            "The agent can open names of up to 80 characters of A-Z a-z 0-9 . _ - that start with a letter or a digit.",
        )
    return name


def lines_with(content: bytes, text: bytes, *, ignore_case: bool) -> list[tuple[int, bytes]]:
    """The lines of `content` that contain the literal `text`: their number and the whole line, its end included.

    A `text` that is empty or contains a line end is in no line.
    """
    lines = content.splitlines(keepends=True)
    return [(number, line) for number, line in enumerate(lines, 1) if _holds(line, text, ignore_case)]


def without_lines(content: bytes, text: bytes, *, ignore_case: bool) -> bytes:
    """`content` without the lines that contain `text`, and otherwise byte for byte the same."""
    return b"".join(line for line in content.splitlines(keepends=True) if not _holds(line, text, ignore_case))


def _holds(line: bytes, text: bytes, ignore_case: bool) -> bool:
    if not text or text.splitlines() != [text]:
        return False
    return text in line or (ignore_case and folded_text(text) in folded_text(line))


def folded_text(text: bytes) -> str:
    """`text` for comparison in any case; bytes that are not UTF-8 equal only themselves."""
    return unicode.fold(text.decode("utf-8", "surrogateescape"))


def as_bytes(text: str, before: bytes) -> bytes:
    """`text` as a notebook. `text` was made from the notebook `before`: lines that look the same keep their bytes.

    White space at the end of a line may have changed.
    """
    originals: dict[str, list[bytes]] = {}
    for line in before.split(b"\n"):
        if _is_odd(line):
            originals.setdefault(unicode.as_text(line).rstrip(), []).append(line)
    if not originals:
        return text.encode()
    lines = []
    for text_line in text.split("\n"):
        candidates = originals.get(text_line.rstrip())
        if candidates:
            # The last one is used for all further ones, because a line may have been copied.
            raw = candidates.pop(0) if len(candidates) > 1 else candidates[0]
            lines.append(raw.rstrip() + text_line[len(text_line.rstrip()) :].encode())
        else:
            lines.append(text_line.encode())
    return b"\n".join(lines)


def odd_lines(content: bytes, before: bytes = b"") -> list[int]:
    """The numbers, from 1, of the lines that are not UTF-8, except those that are also in `before`."""
    if not _is_odd(content):
        return []
    old_lines = {line.rstrip() for line in before.split(b"\n")}
    return [
        number
        for number, line in enumerate(content.split(b"\n"), 1)
        if _is_odd(line) and line.rstrip() not in old_lines
    ]


def _is_odd(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


def append_note(content: bytes, note: bytes) -> bytes:
    """`content` with `note` as its last line or lines, each ended by a newline."""
    end = b"" if not content or content.endswith(b"\n") else b"\n"
    return content + end + (note if note.endswith(b"\n") else note + b"\n")


class ForgetRequest(NamedTuple):
    """The request to forget every line with the literal `text`, in all notebooks or only in `file`."""

    text: bytes
    file: str | None = None
    ignore_case: bool = False


def forget_request(text: str, file: str | None, *, ignore_case: bool) -> ForgetRequest:
    """The request to forget the lines with `text`. Raises `UsageError` for an empty text or one of several lines, and
    `BadName`.
    """
    if not text.strip():
        raise UsageError("The TEXT is empty.", "Give a text that the lines contain.")
    data = os.fsencode(text)
    if data.splitlines() != [data]:
        raise UsageError("The TEXT has several lines.", "Forget one line at a time.")
    return ForgetRequest(data, file_name(file) if file is not None else None, ignore_case)
