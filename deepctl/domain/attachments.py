"""Files that a prompt brings along: how `@path` is written in it, and how files from elsewhere get into the workspace.

`attach` copies files of the user's into a workspace, all of them or none, under names of their own. A name that deepctl
itself gives a meaning to is never given to a copy.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count, islice
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import UsageError
from deepctl.files import atomic
from deepctl.files.paths_beneath import Tree
from deepctl.layout import ProfilePaths
from deepctl.quantities import size
from deepctl.store.log_file import PIPED

MAX_MENTIONS = 200
"""How many words of a prompt are looked at."""
_MAX_READINGS = 8
"""How many paths a word may stand for: each is looked for, and a word may be thousands of dots."""

_MENTION = re.compile(r"""(?:^|(?<=[\s(\[{,;:'"]))@(?:"(?P<quoted>[^"\n]+)"|(?P<plain>[^\s"]+))""")
_ONLY_MENTIONS = re.compile(r"""\s*@(?:"[^"\n]+"|[^\s"]+)(?:\s+@(?:"[^"\n]+"|[^\s"]+))*\s*""")
_PLAIN = re.compile(r"[\w./+=:%~-]*[\w/+=%~-]")
_ENDINGS = ".,;:!?)]}'>"
_MAX_PATH = 4096
_MAX_NAME = 255

_OWN = frozenset({".deep", layout.PLANS_DIRECTORY, layout.EVICTED_DIRECTORY})
_TOLD = frozenset(map(str.casefold, layout.CONTEXT_FILES))

Tell = Callable[[str], None]


def mentions(prompt: str) -> list[list[str]]:
    """The words of a prompt that may name files, in order; each as the paths it may stand for, the likeliest first.

    `@path` begins a line or follows a blank, a bracket or a quote, so an address is none; `@"a path"` may have blanks.
    Punctuation behind one may belong to the sentence.
    """
    readings: list[list[str]] = []
    # What is piped in names no files: who wrote it is not known.
    for match in _MENTION.finditer(prompt.partition(PIPED)[0]):
        if len(readings) == MAX_MENTIONS:
            break
        word = match["quoted"] or match["plain"]
        if len(word) <= _MAX_PATH:
            readings.append([word] if match["quoted"] else list(islice(_readings(word), _MAX_READINGS)))
    return readings


def _readings(word: str) -> Iterator[str]:
    yield word
    while word.endswith("'s") or word[-1:] in tuple(_ENDINGS):
        word = word[:-2] if word.endswith("'s") else word[:-1]
        if not word.strip("."):
            return  # what is left of an ellipsis is no directory
        yield word


def only_mentions(line: str) -> bool:
    """Whether a line names files and says nothing else."""
    return _ONLY_MENTIONS.fullmatch(line) is not None


def mention(path: str) -> str:
    """How a file is named in a prompt."""
    return f"@{path}" if _PLAIN.fullmatch(path) else f'@"{path}"'


def mentioned(prompt: str, names: Sequence[str]) -> str:
    """The prompt with mentions of these files added, in a line of their own, unless it has them already."""
    present = {path for readings in mentions(prompt) for path in readings}
    missing = [mention(name) for name in names if name not in present]
    if not missing:
        return prompt
    text, tag, piped = prompt.partition(PIPED)
    return f"{text}\n\n{' '.join(missing)}{tag}{piped}"


def check(files: Sequence[str]) -> None:
    """Whether these files can be attached, before anything is done. Raises `UsageError`."""
    for path in files:
        with opened(path):
            pass


def content(path: str) -> tuple[str, bytes]:
    """Name and content of a file that is attached where there is no directory. Raises `UsageError`."""
    with opened(path) as source:
        return source.name, b"".join(chunks(source))


def attach(profile: ProfilePaths, files: Sequence[str], tell: Tell = lambda message: None) -> list[str]:
    """Copy files into the workspace of a profile; returns their paths there. The caller holds the profile's lock.

    A copy is a regular file with mode 0600, or 0700 where the original can be executed. Where the workspace has another
    file of the name, the copy gets a free one and `tell` hears of it; where it has the same, nothing is copied.
    Raises `UsageError` for a file that cannot be read, `StorageError` where there is no room; then nothing is copied.
    """
    with ExitStack() as stack:
        copies = [stack.enter_context(staged(profile, path)) for path in files]
        if not copies:
            return []
        try:
            atomic.make_directory(profile.workspace)
            workspace = Workspace(profile.workspace)
        except OSError as error:
            raise atomic.storage_error(error, NOTHING) from error
        stack.callback(workspace.close)
        try:
            names = [settle(copy.name, partial(workspace.take, copy), tell) for copy in copies]
            workspace.sync()
        except BaseException as error:
            workspace.clear()
            if isinstance(error, OSError):
                raise atomic.storage_error(error, NOTHING) from error
            raise
        return list(dict.fromkeys(names))


def settle(name: str, take: Callable[[str, bool], bool], tell: Tell) -> str:
    """Find a name for a file. `take` takes one if it is free or has the same content, and says whether it did.

    With `False`, `take` only looks whether the same is there: the name means something to deepctl.
    """
    meaning = _meaning(name)
    for candidate in _candidates(name):
        if take(candidate, candidate != name or meaning is None):
            break
    if candidate != name:
        why = meaning or "The workspace already has another file of that name"
        tell(f"{why}: the copy of {name} is called {candidate}.")
    return candidate


def _meaning(name: str) -> str | None:
    folded_name = name.casefold()
    if folded_name in _TOLD:
        return f"{name} would give the agent instructions in every conversation"
    return f"{name} is reserved for deepctl" if folded_name in _OWN else None


def _candidates(name: str) -> Iterator[str]:
    yield name
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > _MAX_NAME // 2:
        stem, suffix = name, ""
    for number in count(2):
        ending = f"-{number}{suffix}"
        room = _MAX_NAME - len(ending.encode())
        yield stem.encode()[:room].decode(errors="ignore") + ending


MAX_BYTES = 100 << 20
"""Of a file that is copied."""
NOTHING = "Nothing was copied."

_CHUNK = 1 << 20
_UNSAYABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, of bytes that are not UTF-8, and of what ends a line."""
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)


class Source(NamedTuple):
    """A file of the user's, open; `name` is what a copy of it is called."""

    path: str
    name: str
    descriptor: int
    executable: bool


class Staged(NamedTuple):
    """A whole copy beside the workspace, ready to be given a name in it."""

    name: str
    path: str
    executable: bool


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """A file of the user's; links to it are followed. Raises `UsageError`."""
    try:
        # Before it is opened: opening is what makes some devices do something.
        _check_kind(path, os.stat(path).st_mode)
        name = _checked_name(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"There is no file {path!r}.",
            "--file takes a path relative to the current directory.",
            code="file_not_found",
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        status = os.fstat(descriptor)
        _check_kind(path, status.st_mode)
        if status.st_size > MAX_BYTES:
            raise _too_large(path, status.st_size)
        yield Source(path, name, descriptor, bool(status.st_mode & 0o111))
    finally:
        os.close(descriptor)


def _check_kind(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UsageError(
            f"{path!r} is a directory.", "--file takes one file, and can be given several times.", code="bad_file"
        )
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"{path!r} is not a regular file.",
            "Save it as a regular file first, or pipe it in: … | deepctl chat",
            code="bad_file",
        )


def _checked_name(path: str) -> str:
    """What the copy is called. A model is told this name, and a prompt has it in quotes."""
    name = os.path.basename(path)
    if '"' in name or any(unicodedata.category(character) in _UNSAYABLE for character in name):
        raise UsageError(
            f"{name!r} cannot be named in a prompt, because it contains quotes or control characters, or is not UTF-8.",
            "Rename it first.",
            code="bad_file",
        )
    return name


def _unreadable(path: str, error: OSError) -> UsageError:
    return UsageError(f"{path!r} cannot be read: {(error.strerror or str(error)).lower()}.", code="file_unreadable")


def _too_large(path: str, byte_count: int) -> UsageError:
    return UsageError(
        f"{path!r} has {size(byte_count)}; --file takes up to {size(MAX_BYTES)}.",
        "Copy it into the workspace yourself; `deepctl profiles path` prints the directory of the profile.",
        code="file_too_large",
    )


def chunks(source: Source) -> Iterator[bytes]:
    """What is in a file, piece by piece. Raises `UsageError`."""
    total = 0
    while True:
        try:
            chunk = os.read(source.descriptor, _CHUNK)
        except OSError as error:
            raise _unreadable(source.path, error) from None
        if not chunk:
            return
        total += len(chunk)
        if total > MAX_BYTES:
            raise _too_large(source.path, total)  # it is growing
        yield chunk


@contextmanager
def staged(profile: ProfilePaths, path: str) -> Iterator[Staged]:
    """A copy in the profile, gone at the end. In the workspace, what a kill leaves would be taken for a file there."""
    copy = os.path.join(profile.directory, f".attach-{os.urandom(6).hex()}.tmp")
    try:
        with opened(path) as source:
            try:
                _write(copy, source, None)
            except OSError as error:
                raise atomic.storage_error(error, NOTHING) from error
            whole = Staged(source.name, copy, source.executable)
        yield whole
    finally:
        with suppress(OSError):
            os.unlink(copy)


def _write(path: str, source: Source, directory: int | None) -> None:
    """Write a new file, synced; there is none if this fails."""
    flags = atomic.CREATE_NEW
    descriptor = os.open(path, flags, atomic.FILE_MODE, dir_fd=directory)
    try:
        try:
            os.fchmod(descriptor, atomic.DIRECTORY_MODE if source.executable else atomic.FILE_MODE)
            for chunk in chunks(source):
                atomic.write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        os.unlink(path, dir_fd=directory)
        raise


class Workspace:
    """The top of a workspace, by its descriptor, and what has been put there."""

    def __init__(self, root: str) -> None:
        self._tree = Tree(root, follow=False)
        self._descriptor = os.open(root, atomic.OPEN_DIRECTORY)
        self._put: list[str] = []

    def take(self, staged: Staged, name: str, new: bool) -> bool:
        """Give a copy this name, if it is free and `new`, or find the same content there."""
        if new:
            try:
                self._link(staged, name)
            except FileExistsError:
                pass
            else:
                self._put.append(name)
                return True
        return self._is_same(staged, name)

    def _link(self, staged: Staged, name: str) -> None:
        try:
            os.link(staged.path, name, dst_dir_fd=self._descriptor, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            descriptor = os.open(staged.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _write(name, Source(staged.path, name, descriptor, staged.executable), self._descriptor)
            finally:
                os.close(descriptor)

    def _is_same(self, staged: Staged, name: str) -> bool:
        try:
            with self._tree.opened(name) as (descriptor, is_directory), open(staged.path, "rb") as staged_file:
                if is_directory or os.fstat(descriptor).st_size != os.fstat(staged_file.fileno()).st_size:
                    return False
                while chunk := staged_file.read(_CHUNK):
                    if not _reads(descriptor, chunk):
                        return False
                return True
        except OSError:
            return False  # a link, a FIFO, a file that may not be read: another one

    def sync(self) -> None:
        """Make the names durable."""
        os.fsync(self._descriptor)

    def clear(self) -> None:
        """Take away again what has been put there."""
        for name in self._put:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _reads(descriptor: int, reference: bytes) -> bool:
    view = memoryview(reference)
    while view:
        length = os.read(descriptor, len(view))
        if not length or view[: len(length)] != length:
            return False
        view = view[len(length) :]
    return True
