"""Git directories in a workspace: what of them makes git run a program, and taking it away where an agent put it.

A person who runs git in a workspace runs the hooks in there, and the programs that the configuration names. So what a
command in a sandbox leaves there is compared with what was there before (`survey`, `additions`), wherever the
directory lies and whatever it is called: a hook that is new or changed, a setting that is not known to be harmless,
and a `.git` or `commondir` that leads out of the workspace. `set_aside` takes away these alone, and keeps their text in
a file beside them, which git does not read. Nothing follows a link, and git is not run. `git_settings` has the parser.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from deepctl.files import atomic
from deepctl.files.git_settings import GitSetting, decode, is_harmless, parse_settings, without
from deepctl.files.paths_beneath import is_within

ASIDE = ".disabled"
"""The suffix of a file with settings that were set aside."""
_MOST = 500_000
"""Maximum number of workspace entries that are checked."""
_LARGEST = 1 << 20
_HOOKS_OF_READERS = frozenset({"post-index-change", "reference-transaction"})
"""Hooks of commands that only show something: `git status` writes the index."""
_CONFIGS = ("config", "config.worktree")
_SHOWN = 80
"""Characters of a setting that are named."""


class _PathState(NamedTuple):
    """The state of a path: the bytes of a file, or a text for another kind, and the permissions."""

    content: bytes
    mode: int


class GitPaths(NamedTuple):
    """The paths of settings, hooks and pointers in a workspace, and the repositories there.

    A repository is named by its working tree; a bare one, or one under another name, by its git directory.
    """

    dangerous: Sequence[str]
    repositories: frozenset[str]


class GitSurvey(NamedTuple):
    """The settings and hooks in a workspace that make git run programs.

    `mount` is the workspace's path in a sandbox, `states` is by path. `settings` are those that are not known to be
    harmless now; this may depend on links, which a command can change.
    """

    root: str
    mount: str
    states: dict[str, _PathState]
    settings: set[tuple[str, str | None]]
    repositories: frozenset[str] = frozenset()

    def hooks(self) -> set[tuple[str, _PathState]]:
        """All states except settings files, by the last part of the path, so that a copy does not count as new."""
        return {(os.path.basename(path), state) for path, state in self.states.items() if not _is_config(path)}


class Addition(NamedTuple):
    """An addition at a path: these settings of a file, or the whole file if there are none.

    `replaced` is the text of former settings with the same names that the file no longer has.
    """

    path: str
    state: _PathState
    was: _PathState | None
    settings: Sequence[GitSetting]
    replaced: Mapping[str, str]


GIT_NAMES = ("HEAD", "objects", "refs", "commondir")
"""The names by which git recognises its own directory."""


def looks_like_git(names: set[str]) -> bool:
    """Whether git takes a directory with these names (in lower case) for its own."""
    return "head" in names and ("commondir" in names or {"objects", "refs"} <= names)


def survey(root: str, mount: str) -> GitSurvey:
    """All settings and hooks in the workspace at `root` that make git run programs."""
    now = paths(root, mount)
    states = {path: _state(path) for path in now.dangerous}
    settings = {
        setting.identity
        for path, state in states.items()
        if _is_config(path)
        for setting in _settings(path, state.content, root)
    }
    return GitSurvey(root, mount, states, settings, now.repositories)


def runs_no_program(root: str, mount: str, home: str | None = None) -> bool:
    """Whether git in `root` can show files and commits without a program that a setting or a hook names.

    The repository must be that of `root` itself, and the only one: git looks into nested ones, too. `home` is the
    `HOME` of the command. The settings of the machine are trusted.
    """
    root = os.path.realpath(root)
    git = os.path.join(root, ".git")
    if not os.path.isdir(git) or os.path.islink(git):
        return False  # git would use one above, or elsewhere
    if home is not None and any(os.path.lexists(os.path.join(home, name)) for name in (".gitconfig", ".config/git")):
        return False
    present = survey(root, mount)
    if present.settings or present.repositories != {root}:
        return False
    for path, state in present.states.items():
        if _is_config(path):
            text = decode(state.content).lower()
            # git fetches missing objects of a partial clone, and gpg checks signatures.
            words = ("promisor", "partialclone", "showsignature", "pretty")
            if not stat.S_ISREG(state.mode) or any(word in text for word in words):
                return False
        elif os.path.dirname(path) != os.path.join(git, "hooks") or os.path.basename(path) in _HOOKS_OF_READERS:
            return False
    return not _reads_elsewhere(git)


def _reads_elsewhere(git: str) -> bool:
    """Whether a link, or the list of other object directories, leads out of a git directory."""
    if os.path.lexists(os.path.join(git, "objects", "info", "alternates")):
        return True
    return any(
        os.path.islink(os.path.join(directory, name))
        for directory, directories, files in os.walk(git)
        for name in (*directories, *files)
    )


def additions(before: GitSurvey, now_there: GitPaths | None = None) -> list[Addition]:
    """The additions since then, in the order of the paths. A state that existed before is no addition, even at another
    path. `now_there` are the present paths, if they are known.
    """
    hooks = before.hooks()
    changes = []
    for path in sorted(set((now_there or paths(before.root, before.mount)).dangerous)):
        old_state, now = before.states.get(path), _state(path)
        settings: list[GitSetting] = []
        replacements: dict[str, str] = {}
        if _is_config(path) and stat.S_ISREG(now.mode) and len(now.content) <= _LARGEST:
            settings = [
                setting
                for setting in _settings(path, now.content, before.root)
                if setting.identity not in before.settings
            ]
            if not settings:
                continue
            if old_state is not None and stat.S_ISREG(old_state.mode) and len(old_state.content) <= _LARGEST:
                replacements = _replaced(path, old_state.content, now.content, settings, before)
        elif now == old_state or (os.path.basename(path), now) in hooks:
            continue
        changes.append(Addition(path, now, old_state, settings, replacements))
    return changes


def describe(before: GitSurvey, changes: Sequence[Addition]) -> list[str]:
    """Each addition in ASCII words: its path in the workspace, and the setting."""
    words = []
    for addition in changes:
        path = os.path.relpath(addition.path, before.root)
        words += [f"{path}: {_shortened(str(setting))}" for setting in addition.settings] or [path]
    return [word.encode("unicode_escape", "surrogatepass").decode("ascii") for word in words]


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def set_aside(changes: Sequence[Addition]) -> None:
    """Remove the additions, and restore what they replaced. Raises `OSError`.

    The removed text is in a file of the same name with the suffix `.disabled`; settings keep their form.
    """
    for addition in changes:
        path, old_state = addition.path, addition.was
        if addition.settings:
            text = decode(addition.state.content)
            cut = [f"{setting.header}\t{text[setting.start : setting.end]}" for setting in addition.settings]
            _keep(path, "".join(cut))
            _replace(path, without(text, addition.settings, addition.replaced), addition.state.mode)
            continue
        _move_aside(path, addition.state)
        if old_state is not None and stat.S_ISLNK(old_state.mode):
            os.symlink(old_state.content, path)
        elif old_state is not None and stat.S_ISREG(old_state.mode) and len(old_state.content) <= _LARGEST:
            _replace(path, old_state.content, old_state.mode)


def restore_link(path: str, target: str) -> None:
    """Put a symbolic link back that something replaced, and keep the replacement under a name of `set_aside`.

    Raises `OSError`.
    """
    if os.path.islink(path) and os.readlink(path) == target:
        return
    if os.path.lexists(path):
        _move_aside(path, _state(path))
    os.symlink(target, path)


def _is_config(path: str) -> bool:
    return os.path.basename(path).lower() in _CONFIGS


def paths(root: str, mount: str) -> GitPaths:
    """The configurations and hooks of every git directory, pointers to one outside of the workspace, and all
    repositories.
    """
    directories: dict[str, None] = {}
    pointers: list[str] = []
    repositories: set[str] = set()
    pending, visited, entry_count = [root], set[str](), 0
    while pending and entry_count <= _MOST:
        directory = pending.pop()
        if directory in visited:
            continue
        visited.add(directory)
        try:
            with os.scandir(directory) as entries:
                dir_entries = list(entries)
        except OSError:
            continue
        entry_count += len(dir_entries)
        names = {entry.name.lower() for entry in dir_entries}
        is_git = looks_like_git(names)
        is_named_git = os.path.basename(directory).lower() == ".git"
        if is_git or is_named_git:
            directories[directory] = None
        if is_git:
            repositories.add(os.path.dirname(directory) if is_named_git else directory)
        for entry in dir_entries:
            name = entry.name.lower()
            is_directory = entry.is_dir(follow_symlinks=False)
            if (name == "commondir" and "head" in names) or (name == ".git" and not is_directory):
                target = _leads_to(entry.path, root, mount)
                if name == ".git":
                    repositories.add(directory)
                if target is not None and is_within(target, os.path.realpath(root)):
                    directories[target] = None
                    pending.append(target)  # it may be among objects, and lead further
                else:
                    pointers.append(entry.path)
            elif is_directory and not (is_git and name == "objects"):
                pending.append(entry.path)
    parts = (part for directory in directories for part in _parts(directory))
    return GitPaths([*pointers, *parts], frozenset(repositories))


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
    """The target directory of a link, a `.git` file or a `commondir`, read as git does; `None` without a target."""
    state = _state(path)
    target = os.fsdecode(state.content)
    is_commondir = os.path.basename(path).lower() == "commondir"
    if stat.S_ISLNK(state.mode):
        if is_commondir or os.path.isfile(path):
            return None  # git reads the target of the link
    elif not stat.S_ISREG(state.mode) or "\0" in target:
        return None
    else:
        target = target.rstrip("\r\n")
        if not is_commondir:
            if not target.startswith("gitdir: "):
                return None
            target = target.removeprefix("gitdir: ")
    if target.startswith(f"{mount}/"):
        target = root + target.removeprefix(mount)  # git in a sandbox writes absolute paths
    return os.path.realpath(os.path.join(os.path.dirname(path), target))


def _state(path: str) -> _PathState:
    """The state of a path; for a large file its beginning, and attributes that change with it."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return _PathState(os.fsencode(os.readlink(path)), status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            return _PathState(b"", status.st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        return _PathState(f"unreadable: {error.errno}".encode(), 0)
    if len(content) > _LARGEST:
        content += repr((status.st_size, status.st_ctime_ns)).encode()
    return _PathState(content, status.st_mode)


def _settings(path: str, content: bytes, root: str) -> Iterator[GitSetting]:
    """The settings of a file that are not known to be harmless."""
    for setting in parse_settings(decode(content)):
        if not is_harmless(setting, os.path.dirname(path), root):
            yield setting


def _replaced(
    path: str, old_content: bytes, now: bytes, new_settings: Sequence[GitSetting], before: GitSurvey
) -> dict[str, str]:
    """The former settings that additions replaced, by name, if they are harmless now."""
    text = decode(old_content)
    identities = {setting.identity for setting in new_settings}
    stable_names = {setting.name for setting in parse_settings(decode(now)) if setting.identity not in identities}
    names = {setting.name for setting in new_settings} - stable_names - {""}
    former: dict[str, str] = {}
    for setting in parse_settings(text):
        if setting.name in names and (
            setting.identity in before.settings or is_harmless(setting, os.path.dirname(path), before.root)
        ):
            former[setting.name] = former.get(setting.name, "") + text[setting.start : setting.end]
    return former


def _replace(path: str, content: bytes, mode: int) -> None:
    atomic.write_file(path, content)
    os.chmod(path, stat.S_IMODE(mode))


def _keep(path: str, text: str) -> None:
    """Append the removed text to the file beside it, unless that contains it."""
    content = text.encode("utf-8", "surrogateescape")
    for target in _names_aside(path):
        if not os.path.lexists(target):
            atomic.write_file(target, content)
            return
        state = _state(target)
        if stat.S_ISREG(state.mode) and len(state.content) <= _LARGEST:
            if content not in state.content:
                atomic.write_file(target, state.content + content)
            return


def _move_aside(path: str, state: _PathState) -> None:
    """Rename it to a name that git ignores; if that file already exists with the same text, remove it."""
    for target in _names_aside(path):
        if not os.path.lexists(target):
            os.rename(path, target)
            return
        if stat.S_ISREG(state.mode) and len(state.content) <= _LARGEST and _state(target) == state:
            os.unlink(path)
            return


def _names_aside(path: str) -> Iterator[str]:
    yield f"{path}{ASIDE}"
    for number in itertools.count(1):
        yield f"{path}-{number}{ASIDE}"
