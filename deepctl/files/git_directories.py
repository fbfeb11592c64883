"""Git directories in a workspace: what of them makes git run a program, and taking it away where an agent put it.

A person who runs git in a workspace runs the hooks in there, and the programs that the configuration names. So what a
command in a sandbox leaves there is compared with what was there before (`survey`, `additions`), wherever the
directory lies and whatever it is called: a hook that is new or changed, a setting that is not known to be harmless,
and a `.git` or `commondir` that leads out of the workspace. `set_aside` takes away these alone, and keeps their text in
a file beside them, which git does not read.

Nothing follows a link, and git is not run.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from deepctl.files import atomic, git_config
from deepctl.files.git_config import Setting, is_within

ASIDE = ".disabled"
"""What is behind the name of a file with what was set aside."""
_MOST = 500_000
"""Entries of a workspace that are looked at."""
_LARGEST = 1 << 20
_CONFIGS = ("config", "config.worktree")
_SHOWN = 80
"""Characters of a setting that are named."""


class _State(NamedTuple):
    """What is at a path: the bytes of a file, or a text for something else, and the permissions."""

    content: bytes
    mode: int


class Survey(NamedTuple):
    """What makes git run programs in a workspace.

    `mount` is what a sandbox calls the workspace, `states` is by path. `settings` are those that are not known to be
    harmless now: whether one is may depend on links, which a command can change.
    """

    root: str
    mount: str
    states: dict[str, _State]
    settings: set[tuple[str, str | None]]

    def hooks(self) -> set[tuple[str, _State]]:
        """All that is no settings file, by the last part of its path: a copy of one is no new one."""
        return {(os.path.basename(path), state) for path, state in self.states.items() if not _is_config(path)}


class Addition(NamedTuple):
    """What has been added at a path: these settings of a file, or if there are none, all that is there.

    `replaced` is the text of settings that the file had before under the same names, and has no more.
    """

    path: str
    state: _State
    was: _State | None
    settings: Sequence[Setting]
    replaced: Mapping[str, str]


GIT_NAMES = ("HEAD", "objects", "refs", "commondir")
"""What git looks for in a directory to know that it is one of its own."""


def looks_like_git(names: set[str]) -> bool:
    """Whether a directory with these names in it (in lower case) is one that git takes for its own."""
    return "head" in names and ("commondir" in names or {"objects", "refs"} <= names)


def survey(root: str, mount: str) -> Survey:
    """Everything in the workspace at `root` that makes git run programs."""
    states = {path: _state(path) for path in _dangerous(root, mount)}
    settings = {
        setting.identity
        for path, state in states.items()
        if _is_config(path)
        for setting in _settings(path, state.content, root)
    }
    return Survey(root, mount, states, settings)


def additions(before: Survey) -> list[Addition]:
    """What has been added since, in the order of the paths. What was there is none, at another place too."""
    hooks = before.hooks()
    added = []
    for path in sorted(set(_dangerous(before.root, before.mount))):
        was, now = before.states.get(path), _state(path)
        settings: list[Setting] = []
        replaced: dict[str, str] = {}
        if _is_config(path) and stat.S_ISREG(now.mode) and len(now.content) <= _LARGEST:
            settings = [
                setting
                for setting in _settings(path, now.content, before.root)
                if setting.identity not in before.settings
            ]
            if not settings:
                continue
            if was is not None and stat.S_ISREG(was.mode) and len(was.content) <= _LARGEST:
                replaced = _replaced(path, was.content, now.content, settings, before)
        elif now == was or (os.path.basename(path), now) in hooks:
            continue
        added.append(Addition(path, now, was, settings, replaced))
    return added


def describe(before: Survey, added: Sequence[Addition]) -> list[str]:
    """Each addition in words of ASCII: its path in the workspace, and the setting."""
    words = []
    for addition in added:
        path = os.path.relpath(addition.path, before.root)
        words += [f"{path}: {_shortened(str(setting))}" for setting in addition.settings] or [path]
    return [word.encode("unicode_escape", "surrogatepass").decode("ascii") for word in words]


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def set_aside(added: Sequence[Addition]) -> None:
    """Take the additions away, and put back what they replaced. Raises `OSError`.

    They are in a file of the same name with `.disabled` behind it, settings in the form that they had.
    """
    for addition in added:
        path, was = addition.path, addition.was
        if addition.settings:
            text = git_config.text(addition.state.content)
            cut = [f"{setting.header}\t{text[setting.start : setting.end]}" for setting in addition.settings]
            _keep(path, "".join(cut))
            _replace(path, git_config.without(text, addition.settings, addition.replaced), addition.state.mode)
            continue
        _move_aside(path, addition.state)
        if was is not None and stat.S_ISLNK(was.mode):
            os.symlink(was.content, path)
        elif was is not None and stat.S_ISREG(was.mode) and len(was.content) <= _LARGEST:
            _replace(path, was.content, was.mode)


def _is_config(path: str) -> bool:
    return os.path.basename(path).lower() in _CONFIGS


def _dangerous(root: str, mount: str) -> Iterator[str]:
    """The configurations and hooks of every git directory, and what leads to one outside of the workspace."""
    directories: dict[str, None] = {}
    pending, visited, seen = [root], set[str](), 0
    while pending and seen <= _MOST:
        directory = pending.pop()
        if directory in visited:
            continue
        visited.add(directory)
        try:
            with os.scandir(directory) as entries:
                dir_entries = list(entries)
        except OSError:
            continue
        seen += len(dir_entries)
        names = {entry.name.lower() for entry in dir_entries}
        is_git = looks_like_git(names)
        if is_git or os.path.basename(directory).lower() == ".git":
            directories[directory] = None
        for entry in dir_entries:
            lowered = entry.name.lower()
            is_directory = entry.is_dir(follow_symlinks=False)
            if (lowered == "commondir" and "head" in names) or (lowered == ".git" and not is_directory):
                target = _leads_to(entry.path, root, mount)
                if target is not None and is_within(target, root):
                    directories[target] = None
                    pending.append(target)  # it may lie among objects, and lead on
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
    """The directory that a link, a `.git` file or a `commondir` names, read as git does; `None` if it names none."""
    state = _state(path)
    target = os.fsdecode(state.content)
    is_commondir = os.path.basename(path).lower() == "commondir"
    if stat.S_ISLNK(state.mode):
        if is_commondir or os.path.isfile(path):
            return None  # git reads the file behind the link
    elif not stat.S_ISREG(state.mode) or "\0" in target:
        return None
    else:
        target = target.rstrip("\r\n")
        if not is_commondir:
            if not target.startswith("gitdir: "):
                return None
            target = target.removeprefix("gitdir: ")
    if target.startswith(f"{mount}/"):
        target = root + target.removeprefix(mount)  # git in a sandbox writes whole paths
    return os.path.realpath(os.path.join(os.path.dirname(path), target))


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


def _settings(path: str, content: bytes, root: str) -> Iterator[Setting]:
    """The settings of a file that are not known to be harmless."""
    for setting in git_config.settings(git_config.text(content)):
        if not git_config.is_harmless(setting, os.path.dirname(path), root):
            yield setting


def _replaced(path: str, was: bytes, now: bytes, added: Sequence[Setting], before: Survey) -> dict[str, str]:
    """The former settings in the place of which others have been added, by name, if they are no danger now."""
    text = git_config.text(was)
    identities = {setting.identity for setting in added}
    staying = {one.name for one in git_config.settings(git_config.text(now)) if one.identity not in identities}
    names = {setting.name for setting in added} - staying - {""}
    former: dict[str, str] = {}
    for setting in git_config.settings(text):
        if setting.name in names and (
            setting.identity in before.settings or git_config.is_harmless(setting, os.path.dirname(path), before.root)
        ):
            former[setting.name] = former.get(setting.name, "") + text[setting.start : setting.end]
    return former


def _replace(path: str, content: bytes, mode: int) -> None:
    atomic.write_file(path, content)
    os.chmod(path, stat.S_IMODE(mode))


def _keep(path: str, text: str) -> None:
    """Add what was cut out of a file to the one beside it, unless it is there."""
    added = text.encode("utf-8", "surrogateescape")
    for other in _names_aside(path):
        if not os.path.lexists(other):
            atomic.write_file(other, added)
            return
        state = _state(other)
        if stat.S_ISREG(state.mode) and len(state.content) <= _LARGEST:
            if added not in state.content:
                atomic.write_file(other, state.content + added)
            return


def _move_aside(path: str, state: _State) -> None:
    """Give it another name, which git does not look for; if a file is there already with the same text, remove it."""
    for other in _names_aside(path):
        if not os.path.lexists(other):
            os.rename(path, other)
            return
        if stat.S_ISREG(state.mode) and len(state.content) <= _LARGEST and _state(other) == state:
            os.unlink(path)
            return


def _names_aside(path: str) -> Iterator[str]:
    yield f"{path}{ASIDE}"
    for number in itertools.count(1):
        yield f"{path}-{number}{ASIDE}"
