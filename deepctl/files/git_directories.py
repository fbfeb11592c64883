"""Git directories in a workspace: what of them makes git run a program, and taking it away where an agent put it.

A person who runs git in a workspace runs the hooks in there, and the programs that the configuration names. So what a
command in a sandbox leaves there is compared with what was there before (`survey`, `disarm`), wherever the directory
lies and whatever it is called: a hook that is new or changed, a setting that is not known to be harmless, and a `.git`
or `commondir` that leads out of the workspace are put back as they were, or set aside.

A setting counts as harmless if it is listed here. Nothing follows a link, and git is not run.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from deepctl.files import durable

ASIDE = ".disabled"
"""What is behind the name of something that was set aside."""
_MOST = 500_000
"""Entries of a workspace that are looked at."""
_LARGEST = 1 << 20
_CONFIGS = ("config", "config.worktree")
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9-]*)(?:[ \t]*=[ \t]*([^\\\"]*))?")
_SECTION = re.compile(r'\[([A-Za-z0-9-]+)(?:[ \t]+"((?:[^"\\]|\\["\\])*)")?\]')
_RUNS = re.compile(r"-|(?:ext|fd)::", re.IGNORECASE)
_HARMLESS = {
    "core": {
        *("repositoryformatversion", "filemode", "bare", "logallrefupdates", "ignorecase", "precomposeunicode"),
        *("symlinks", "autocrlf", "eol", "safecrlf", "quotepath", "abbrev", "compression", "untrackedcache"),
        *("preloadindex", "sharedrepository", "commentchar", "whitespace", "bigfilethreshold", "longpaths"),
    },
    "user": {"name", "email"},
    "author": {"name", "email"},
    "committer": {"name", "email"},
    "init": {"defaultbranch"},
    "remote": {
        "url",
        "pushurl",
        "fetch",
        "push",
        "tagopt",
        "prune",
        "prunetags",
        "mirror",
        "promisor",
        "partialclonefilter",
    },
    "branch": {"remote", "merge", "rebase", "description", "pushremote", "autosetupmerge", "autosetuprebase", "sort"},
    "pull": {"rebase", "ff"},
    "push": {"default", "autosetupremote", "followtags"},
    "fetch": {"prune", "prunetags", "parallel"},
    "merge": {"ff", "conflictstyle", "log", "renamelimit", "autostash"},
    "rebase": {"autostash", "autosquash", "updaterefs"},
    "rerere": {"enabled", "autoupdate"},
    "diff": {"algorithm", "renames", "renamelimit", "colormoved", "mnemonicprefix", "noprefix", "context"},
    "log": {"date", "decorate", "abbrevcommit", "follow"},
    "status": {"short", "branch", "showuntrackedfiles", "relativepaths", "submodulesummary"},
    "commit": {"verbose", "status", "cleanup"},
    "tag": {"sort"},
    "gc": {"auto", "autodetach"},
    "help": {"autocorrect"},
    "advice": None,
    "color": None,
    "column": None,
    "extensions": {"objectformat", "worktreeconfig", "partialclone", "refstorage", "compatobjectformat", "noop"},
    "feature": {"manyfiles", "experimental"},
    "index": {"version", "threads"},
    "pack": {"window", "depth", "threads"},
    "submodule": {"url", "active", "branch", "path", "recurse", "ignore", "shallow"},
}
"""Settings that name no program and no place to read more settings from; `None` is every one of a section."""


class _State(NamedTuple):
    """What is at a path: the bytes of a file, or a text for something else, and the permissions."""

    content: bytes
    mode: int


class Survey(NamedTuple):
    """What makes git run programs in a workspace: by path; `mount` is what a sandbox calls the workspace."""

    root: str
    mount: str
    states: dict[str, _State]

    def settings(self) -> set[tuple[str, str]]:
        """All the settings that are not known to be harmless."""
        return {
            setting
            for path, state in self.states.items()
            if _is_config(path)
            for setting in _settings(state.content, path, self.root)
        }

    def hooks(self) -> set[tuple[str, _State]]:
        """All the others, by the last part of their paths."""
        return {(os.path.basename(path), state) for path, state in self.states.items() if not _is_config(path)}


GIT_NAMES = ("HEAD", "objects", "refs", "commondir")
"""What git looks for in a directory to know that it is one of its own."""


def looks_like_git(names: set[str]) -> bool:
    """Whether a directory with these names in it (in lower case) is one that git takes for its own."""
    return "head" in names and ("commondir" in names or {"objects", "refs"} <= names)


def survey(root: str, mount: str) -> Survey:
    """Everything in the workspace at `root` that makes git run programs."""
    return Survey(root, mount, {path: _state(path) for path in _dangerous(root, mount)})


def disarm(before: Survey) -> list[str]:
    """Put back, or set aside, what has been added since. Returns the paths in the workspace. Raises `OSError`."""
    settings, hooks = before.settings(), before.hooks()
    changed = []
    for path in list(_dangerous(before.root, before.mount)):
        was, now = before.states.get(path), _state(path)
        if _is_config(path) and _is_file(path) and len(now.content) <= _LARGEST:
            if set(_settings(now.content, path, before.root)) <= settings:
                continue
        elif now == was or (os.path.basename(path), now) in hooks:
            continue
        changed.append(os.path.relpath(path, before.root))
        if was is not None and stat.S_ISREG(was.mode) and _is_file(path) and len(was.content) <= _LARGEST:
            _replace(path, was.content, was.mode)
        elif _is_config(path) and _is_file(path) and len(now.content) <= _LARGEST:
            _replace(path, _without(now.content, path, before.root, settings), now.mode)
        else:
            _set_aside(path)
    return sorted(changed)


def _is_config(path: str) -> bool:
    return os.path.basename(path).lower() in _CONFIGS


def _dangerous(root: str, mount: str) -> Iterator[str]:
    """The configurations and hooks of every git directory, and what leads to one outside of the workspace."""
    directories: dict[str, None] = {}
    pending, seen = [root], 0
    while pending and seen <= _MOST:
        directory = pending.pop()
        try:
            with os.scandir(directory) as entries:
                listed = list(entries)
        except OSError:
            continue
        seen += len(listed)
        names = {entry.name.lower() for entry in listed}
        is_git = looks_like_git(names)
        if is_git or os.path.basename(directory).lower() == ".git":
            directories[directory] = None
        for entry in listed:
            lowered = entry.name.lower()
            is_directory = entry.is_dir(follow_symlinks=False)
            if (lowered == "commondir" and "head" in names) or (lowered == ".git" and not is_directory):
                target = _leads_to(entry.path, root, mount)
                if target is not None and _is_within(target, root):
                    directories[target] = None
                else:
                    yield entry.path
            elif is_directory and not (is_git and lowered == "objects"):
                pending.append(entry.path)
    for directory in directories:
        yield from _parts(directory)


def _parts(directory: str) -> Iterator[str]:
    for name in _listed(directory):
        path = os.path.join(directory, name)
        if name.lower() in _CONFIGS:
            yield path
        elif name.lower() == "hooks":
            if not os.path.isdir(path) or os.path.islink(path):
                yield path
                continue
            for hook in _listed(path):
                if not hook.endswith((".sample", ASIDE)):
                    yield os.path.join(path, hook)


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _leads_to(path: str, root: str, mount: str) -> str | None:
    """The directory that a link, a `.git` file or a `commondir` names; `None` if it names none."""
    state = _state(path)
    named = state.content.decode("utf-8", "surrogateescape")
    if stat.S_ISLNK(state.mode):
        pass
    elif not stat.S_ISREG(state.mode) or "\0" in named:
        return None
    else:
        named = named.strip()
        if os.path.basename(path).lower() == ".git":
            if not named.startswith("gitdir:"):
                return None
            named = named.removeprefix("gitdir:").strip()
    if named.startswith(f"{mount}/"):
        named = root + named.removeprefix(mount)  # git in a sandbox writes whole paths
    return os.path.realpath(os.path.join(os.path.dirname(path), named))


def _is_within(path: str, root: str) -> bool:
    real = os.path.realpath(root)
    return path == real or path.startswith(f"{real}/")


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _state(path: str) -> _State:
    """What is at a path; of a large file the beginning, and what changes when it does."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return _State(os.fsencode(os.readlink(path)), status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            return _State(b"", status.st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        return _State(f"unreadable: {error.errno}".encode(), 0)
    if len(content) > _LARGEST:
        content += repr((status.st_size, status.st_ctime_ns)).encode()
    return _State(content, status.st_mode)


def _settings(content: bytes, path: str, root: str) -> Iterator[tuple[str, str]]:
    """The lines that are not known to be harmless, each with its section."""
    for section, line, is_harmless in _read(content, path, root):
        if not is_harmless:
            yield section, line


def _without(content: bytes, path: str, root: str, allowed: set[tuple[str, str]]) -> bytes:
    """A configuration without the other lines, but for those that were somewhere before."""
    kept = [
        line for section, line, is_harmless in _read(content, path, root) if is_harmless or (section, line) in allowed
    ]
    return "\n".join(kept).encode("utf-8", "surrogateescape")


def _read(content: bytes, path: str, root: str) -> Iterator[tuple[str, str, bool]]:
    """The section, the text, and whether it is harmless, of each line. What is not plain is not."""
    section = name = ""
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        text = line.strip(" \t\r")
        if header := _SECTION.fullmatch(text):
            section, name = text, header[1].lower()
            yield section, line, True
        elif not text or (text[0] in "#;" and not text.endswith("\\")):
            yield section, line, True
        elif (setting := _LINE.fullmatch(text)) and name in _HARMLESS:
            known = _HARMLESS[name]
            key = setting[1].lower()
            inside = (name, key) == ("core", "worktree") and _is_within(
                os.path.realpath(os.path.join(os.path.dirname(path), (setting[2] or "").strip())), root
            )
            is_url = key in ("url", "pushurl") and _RUNS.match((setting[2] or "").strip())
            yield section, line, (known is None or key in known or inside) and not is_url
        else:
            yield section, line, False


def _replace(path: str, content: bytes, mode: int) -> None:
    durable.write_file(path, content)
    os.chmod(path, stat.S_IMODE(mode))


def _set_aside(path: str) -> None:
    """Another name, which git does not look for."""
    number = 0
    while os.path.lexists(other := f"{path}{f'-{number}' if number else ''}{ASIDE}"):
        number += 1
    os.rename(path, other)
