"""Where everything lies: the one place that knows the layout of directories.

`Root` is the state of this machine's user, `ProfilePaths` one profile in it. Neither touches the disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from deepctl import names
from deepctl.errors import UsageError

AGENT = "main"
"""The name of the agent whose memory a profile has by default."""

MEMORY_DIRECTORY = ".deep/memory"
TODO_DIRECTORY = ".deep/todo"
TODO_FILE = ".deep/todo.json"
"""Where the to-do list is that belongs to no session: an application's without any, and that of a profile up to 0.1."""
PLANS_DIRECTORY = "plans"
EVICTED_DIRECTORY = "large_tool_results"
OWN_DIRECTORIES = (".deep/home", f"{MEMORY_DIRECTORY}/*", TODO_DIRECTORY, PLANS_DIRECTORY, EVICTED_DIRECTORY)
"""Those in a workspace that deepctl needs, with the directories above them."""
CONTEXT_FILES = ("AGENTS.md", "DEEP.md")
NOTEBOOK = "MEMORY.md"
SETTINGS = "profile.toml"
UNTRUSTED = "untrusted.toml"
NEW = ".new-"
"""How the name begins of a profile, or a session, that is being made. No profile or session can have such a name."""
IMPORT = ".import-"
"""The same of a profile that is being imported."""
RESERVE = "cache/reserve"
"""Where a profile's reserve lies, relative to its directory; it counts in the total of a profile, and in no part."""
LOST_AND_FOUND = "lost+found"
"""The directory in `checkpoints/` for what a repair cannot place."""


def todo_file(session: str) -> str:
    """Where the to-do list of a session is in a workspace, by the session's id."""
    return f"{TODO_DIRECTORY}/{session}.json"


class ProfilePaths(NamedTuple):
    """The directories and files of one profile. `name` is spelled as its directory is."""

    name: str
    directory: str
    lock: str

    @property
    def settings(self) -> str:
        return os.path.join(self.directory, SETTINGS)

    @property
    def untrusted(self) -> str:
        """Settings that came with an archive and are not in force (`deepctl.domain.trust`)."""
        return os.path.join(self.directory, UNTRUSTED)

    @property
    def workspace(self) -> str:
        return os.path.join(self.directory, "workspace")

    @property
    def sessions(self) -> str:
        return os.path.join(self.directory, "sessions")

    @property
    def checkpoints(self) -> str:
        return os.path.join(self.directory, "checkpoints")

    @property
    def packs(self) -> str:
        return os.path.join(self.checkpoints, "packs")

    @property
    def lost_and_found(self) -> str:
        return os.path.join(self.checkpoints, LOST_AND_FOUND)

    @property
    def cache(self) -> str:
        """What can be found out again: it may be deleted at any time, and nothing vouches for its bytes."""
        return os.path.join(self.directory, "cache")

    @property
    def snapshot_cache(self) -> str:
        return os.path.join(self.cache, "snapshots.sqlite")

    @property
    def checkpoint_index(self) -> str:
        """One line a checkpoint, for completion in a shell: id, label, session, separated by tabs."""
        return os.path.join(self.cache, "index")

    @property
    def reserve(self) -> str:
        """Room on the disk that is held back for what frees space: see `deepctl.store.reserve`."""
        return os.path.join(self.directory, RESERVE)

    @property
    def commands_home(self) -> str:
        """The home of commands outside a sandbox, while a turn runs."""
        return os.path.join(self.cache, "home")

    @property
    def prompt_history(self) -> str:
        return os.path.join(self.directory, "prompt_history")


class Root(NamedTuple):
    """The root of all state."""

    path: str

    @property
    def profiles(self) -> str:
        return os.path.join(self.path, "profiles")

    @property
    def locks(self) -> str:
        return os.path.join(self.path, "locks")

    def profile(self, name: str) -> ProfilePaths:
        """The paths of a profile whose directory is spelled `name`."""
        return ProfilePaths(name, os.path.join(self.profiles, name), os.path.join(self.locks, names.fold(name)))


def root(environment: Mapping[str, str]) -> Root:
    """`$DEEPCTL_HOME`, else the user data directory that platformdirs names. Always absolute."""
    path = environment.get("DEEPCTL_HOME")
    if path is None:
        path = _below_home("user_data_dir")
    return Root(_absolute(path, "DEEPCTL_HOME"))


def config_file(environment: Mapping[str, str]) -> str:
    """`$DEEPCTL_CONFIG`, else `config.toml` in the user config directory that platformdirs names."""
    path = environment.get("DEEPCTL_CONFIG")
    if path is None:
        path = os.path.join(_below_home("user_config_dir"), "config.toml")
    # It may be a link into somebody's dotfiles: the link stays, what it leads to is read and changed.
    return os.path.realpath(_absolute(path, "DEEPCTL_CONFIG"))


def _below_home(name: str) -> str:
    """A directory of platformdirs'. Raises `UsageError` where it would be below a home and there is none."""
    import platformdirs

    try:
        path: str = getattr(platformdirs, name)("deepctl", appauthor=False)
    except RuntimeError:
        raise _homeless() from None
    return path


def _homeless() -> UsageError:
    why = "is not set" if "HOME" not in os.environ else "is not an absolute path" if os.environ["HOME"] else "is empty"
    return UsageError(
        f"There is no home directory: $HOME {why}, and user {os.getuid()} is not in the user database.",
        "Set HOME to an absolute path, or both DEEPCTL_HOME and DEEPCTL_CONFIG.",
        code="no_home",
    )


def _absolute(path: str, variable: str) -> str:
    if not path:
        raise UsageError(f"${variable} is set but empty.", "Unset it, or give it a path.")
    if path == "~" or path.startswith("~/"):
        path = _home() + path[1:]
    elif path.startswith("~"):
        expanded = os.path.expanduser(path)
        if expanded == path:
            user = path.partition("/")[0]
            raise UsageError(
                f"${variable} begins with {user}, and there is no such user.",
                "Give it an absolute path.",
                code="no_home",
            )
        path = expanded
    return os.path.abspath(path)


def _home() -> str:
    """The home directory: `$HOME` if that is an absolute path, else the one of the user database, as platformdirs."""
    import pwd

    if os.path.isabs(home := os.environ.get("HOME", "")):
        return home.rstrip("/")
    try:
        return pwd.getpwuid(os.getuid()).pw_dir.rstrip("/")
    except KeyError:
        raise _homeless() from None
