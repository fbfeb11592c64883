"""Git repositories of the user: where they are, what HEAD is, and the one safe way to run git.

A repository may be hostile, or an agent may have written into it. So git is started without its hooks, the network and
a file system monitor, from the directories of the system and with few variables; the commands that deepctl runs name no
filter and no pager. HEAD and the branch are read from files, without starting git, and no link is followed at their
names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import subprocess
from functools import cache
from typing import NamedTuple

from deepctl.files import git_settings

_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/bin")
_VARIABLES = ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
"""The variables that git gets: those that say where the user's settings are."""
_SAFE = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.sshCommand=false",
    "core.pager=cat",
    "log.showSignature=false",
    "protocol.allow=never",
)
_SECONDS = 60
_LARGEST = 1 << 20
"""Bytes of a `.git` file, and of a file with one reference; git has the same limit."""
_LARGEST_PACKED = 256 << 20
_LINKS = 5
"""References that a reference may lead through."""
_HASH = re.compile(rb"(?:[0-9a-f]{40}|[0-9a-f]{64})\s*")
_REFERENCE = re.compile(rb"ref:\s*(refs/[^\0\n]*?)\s*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


_MISSING = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTCONN, errno.ESTALE),
)
"""Errors of a file that is missing, of another kind, or not readable for the user."""


def check_missing(error: OSError) -> None:
    """Raise the error unless it says that a file is missing or may not be read.

    Otherwise a failing disk, or too many open files, would look like a directory without rules.
    """
    if error.errno not in _MISSING:
        raise error


class GitFailed(Exception):
    """A git command failed, did not end, or there is no git. The text is the reason."""


class Worktree(NamedTuple):
    """A working tree: its top directory, its git directory, and the directory that linked worktrees share."""

    top: str
    directory: str
    common: str


class GitHead(NamedTuple):
    """The commit that is checked out, empty before the first one, and the branch, empty if HEAD is detached."""

    head: str
    branch: str


class Commit(NamedTuple):
    """A commit: its hash, and the first line of its message."""

    id: str
    subject: str


@cache
def program() -> str | None:
    """The path of git. `$PATH` can lead into a project, where an agent writes, so it is not used."""
    paths = (os.path.join(directory, "git") for directory in _DIRECTORIES)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def run(directory: str, *arguments: str) -> bytes:
    """The output of a git command in a directory. Raises `GitFailed`."""
    git = program()
    if git is None:
        raise GitFailed("git is not installed")
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    environment |= {
        "PATH": os.pathsep.join(_DIRECTORIES),
        "LC_ALL": "C",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
    }
    command = [git, "--no-pager", *(word for setting in _SAFE for word in ("-c", setting)), *arguments]
    try:
        result = subprocess.run(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise GitFailed(f"git {arguments[0]} did not end within {_SECONDS} s") from None
    except OSError as error:
        raise GitFailed(f"git cannot be started: {error.strerror}") from None
    if result.returncode:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise GitFailed(lines[0] if lines else f"git {arguments[0]} ended with exit code {result.returncode}")
    return result.stdout


def worktree(directory: str) -> Worktree | None:
    """The working tree that contains a directory, or `None`. Like git, this does not leave the file system."""
    current = os.path.realpath(directory)
    try:
        device = os.stat(current).st_dev
        while os.stat(current).st_dev == device:
            git_directory = git_directory_of(os.path.join(current, ".git"))
            if git_directory is not None:
                return Worktree(current, git_directory, _common(git_directory))
            if current == "/":
                return None
            current = os.path.dirname(current)
    except OSError as error:
        check_missing(error)
    return None


def git_directory_of(path: str) -> str | None:
    """The git directory that `path`, which is called `.git`, is or names; `None` if git would not accept it."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        check_missing(error)
        return None
    if stat.S_ISREG(mode):
        content = read_file(path, _LARGEST, follow=True)
        if content is None or not content.startswith(b"gitdir: "):
            return None
        target = os.fsdecode(content.removeprefix(b"gitdir: ").rstrip(b"\r\n"))
        if not target or "\0" in target:
            return None
        path = os.path.join(os.path.dirname(path), target)
    return os.path.realpath(path) if _is_git_directory(path) else None


def is_nested(path: str) -> bool:
    """Whether git lists the directory with the `.git` at `path` as a repository of its own.

    It does so too if it may not read the file.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode) and not os.access(path, os.R_OK):
            return True
    except OSError:
        return False
    return git_directory_of(path) is not None


def _is_git_directory(directory: str) -> bool:
    head = os.path.join(directory, "HEAD")
    try:
        if os.path.islink(head):
            if not os.readlink(head).startswith("refs/"):
                return False
        else:
            content = read_file(head, _LARGEST)
            if content is None or not (_HASH.match(content) or _REFERENCE.match(content)):
                return False
    except OSError as error:
        check_missing(error)
        return False
    common = _common(directory)
    return all(os.access(os.path.join(common, name), os.X_OK) for name in ("objects", "refs"))


def _common(directory: str) -> str:
    content = read_file(os.path.join(directory, "commondir"), _LARGEST)
    path = os.fsdecode(content.rstrip(b"\r\n")) if content is not None else "."
    return os.path.realpath(os.path.join(directory, path)) if "\0" not in path else directory


def head(directory: str) -> GitHead | None:
    """HEAD of the working tree that contains a directory; `None` if there is none, or it cannot be read."""
    place = worktree(directory)
    if place is None:
        return None
    name = "HEAD"
    branch = ""
    for _ in range(_LINKS):
        content = _reference(place, name)
        if content is None:
            return GitHead("", branch) if branch else None
        target = _REFERENCE.fullmatch(content)
        if target is None:
            return GitHead(content.strip().decode(), branch) if _HASH.fullmatch(content) else None
        name = os.fsdecode(target[1])
        if name == "refs/heads/.invalid":  # references are not files: the format `reftable`
            return _asked(directory)
        if os.path.normpath(name) != name:
            return None
        branch = branch or name.removeprefix("refs/heads/")
    return None


def _reference(place: Worktree, name: str) -> bytes | None:
    """The content of a reference: a hash, or the name of another reference."""
    is_own = name == "HEAD" or name.startswith(("refs/bisect/", "refs/worktree/", "refs/rewritten/"))
    path = os.path.join(place.directory if is_own else place.common, name)
    try:
        return b"ref: " + os.fsencode(os.readlink(path))  # of a very old git
    except OSError:
        pass
    content = read_file(path, _LARGEST)
    if content is not None:
        return content
    packed = read_file(os.path.join(place.common, "packed-refs"), _LARGEST_PACKED) or b""
    line = re.search(rb"^([0-9a-f]{40,64}) %b$" % re.escape(os.fsencode(name)), packed, re.MULTILINE)
    return line[1] if line else None


def _asked(directory: str) -> GitHead | None:
    """HEAD as git says it."""
    try:
        commit = run(directory, "rev-parse", "--quiet", "--verify", "HEAD")
        branch = run(directory, "rev-parse", "--symbolic-full-name", "HEAD")
    except GitFailed:
        return None
    name = os.fsdecode(branch.strip())
    return GitHead(commit.decode().strip(), "" if name == "HEAD" else name.removeprefix("refs/heads/"))


def origin(directory: str) -> str:
    """A digest of the address of the remote `origin`, which may have a password; empty without one."""
    place = worktree(directory)
    config = read_file(os.path.join(place.common, "config"), _LARGEST, follow=True) if place is not None else None
    settings = git_settings.parse_settings((config or b"").decode("utf-8", "surrogateescape"))
    addresses = [setting.value for setting in settings if setting.name == "remote.origin.url" and setting.value]
    if not addresses:
        return ""
    address = addresses[0].rstrip("/").removesuffix(".git")
    return hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def identity(directory: str) -> dict[str, str]:
    """The variables that give a command of git the name and the address that it would have in a directory.

    They come from the settings of the user and of the repository. Empty if git has none, or cannot be asked.
    """
    try:
        output = run(directory, "config", "--null", "--get-regexp", r"^(user|author|committer)\.(name|email)$")
    except GitFailed:
        return {}
    settings: dict[str, str] = {}
    for entry in output.decode("utf-8", "replace").split("\0"):
        key, _, value = entry.partition("\n")
        settings[key] = value
    variables: dict[str, str] = {}
    for role in ("author", "committer"):
        for part in ("name", "email"):
            value = settings.get(f"{role}.{part}") or settings.get(f"user.{part}", "")
            if value.strip() and value.isprintable():
                variables[f"GIT_{role}_{part}".upper()] = value
    return variables


def commits_between(directory: str, old: str, new: str, *, since: float = 0) -> list[Commit]:
    """The commits that HEAD `new` contains and HEAD `old` does not, newest first. Raises `GitFailed`.

    An empty `old` is the time before the first commit. Commits made before `since`, in seconds since 1970, are left
    out: a merge or a pull brings them along.
    """
    commits = [commit for commit in (new, old) if commit]
    for commit in commits:
        if not _COMMIT.fullmatch(commit):
            raise GitFailed(f"{commit!r} is not the hash of a commit")
    if not new or old == new:
        return []
    revisions = [new, *([f"^{old}"] if old else [])]
    output = run(directory, "rev-list", "--topo-order", "--encoding=UTF-8", "--format=tformat:%ct %s", *revisions, "--")
    lines = output.decode("utf-8", "replace").split("\n")  # for each commit "commit HASH", and time and subject
    commits_in_order = []
    for line, (time, _, subject) in zip(lines[::2], (line.partition(" ") for line in lines[1::2]), strict=False):
        if int(time) >= int(since):
            commits_in_order.append(Commit(line.removeprefix("commit "), subject))
    return commits_in_order


def read_file(path: str, largest: int, *, follow: bool = False, descriptor: int | None = None) -> bytes | None:
    """The content of a regular file; `None` if there is none, or it has more than `largest` bytes.

    `descriptor` is the directory to which the path is relative. `follow` allows a link.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        with open(os.open(path, flags, dir_fd=descriptor), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(largest + 1)
    except OSError as error:
        check_missing(error)
        return None
    except ValueError:
        return None
    return content if len(content) <= largest else None
