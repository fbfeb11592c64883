"""The layout of stored state: paths, names and formats. Nothing here touches the disk.

`Root` is the state of this machine's user, `ProfilePaths` one profile in it. `check_name` has the rules for the names
of profiles, sessions and labels. A name becomes a directory name, so the rules are those that every file system can
keep; a bad name is refused and never changed into another one.

Each stored format has a number:

| format | where | its number |
|---|---|---|
| `SETTINGS_FORMAT` | `profile.toml`, `config.toml` | `version`; a file without one was written by a person: format 1 |
| `SESSION_FORMAT` | `sessions/<name>/session.json` | `v` |
| `LOG_FORMAT` | each line of a message log | `v` |
| `LEDGER_FORMAT` | each line of `checkpoints/ledger.jsonl` | `v` |
| `PACK_FORMAT` | `checkpoints/packs/*.pack` | in the first line |
| `TREE_FORMAT` | the list of a directory, an object in a pack | in the first line |
| `PROJECTS_FORMAT` | `projects.json` | `v` |
| `DIRECTORIES_FORMAT` | `directories.json` | `v` |
| `USAGE_FORMAT` | each line of `usage.jsonl` | `v` |
| `SHARED_FORMAT` | `shared.json` | `v` |
| `ROLE_FORMAT` | `roles/<name>/role.toml` | `version`; a file without one was written by a person: format 1 |
| `CACHE_FORMAT` | `cache/snapshots.sqlite` | SQLite's `user_version`; with another number the cache is rebuilt |

Archives, exports of sessions, plans of moves and the to-do list have numbers of their own, beside the code that reads
them. The other files in `cache/` and the text in a lock file have no number, because they are not evidence: a reader
that does not understand them rebuilds or ignores them.

A newer number is refused (`NewerFormat`) and the file stays as it is. A number that is not a positive integer is
damage. An older entry is brought up in memory when it is read; no file is rewritten for being read. New entries have
the current number, so one log can hold lines of several numbers.

To change a format, raise its `current` and add the step from the number before to the next. A step changes the entry in
place, and stays for good.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from deepctl.errors import BadName, BadPath, NewerFormat, UsageError

AGENT = "main"
"""The name of the agent whose memory a profile has by default."""

OWN = ".deep"
"""The directory of deepctl in a workspace."""
MEMORY_DIRECTORY = ".deep/memory"
PROJECTS_DIRECTORY = ".deep/projects"
"""The directory of projects in the tree of a workspace (`deepctl.store.workspaces`); no such directory exists."""
TODO_DIRECTORY = ".deep/todo"
TODO_FILE = ".deep/todo.json"
"""The to-do list without a session: that of an application without sessions, and that of a profile up to 0.1."""
PLANS_DIRECTORY = "plans"
EVICTED_DIRECTORY = "large_tool_results"
HOME_DIRECTORY = ".deep/home"
"""The home of commands. deepctl makes it again before each command."""
OWN_DIRECTORIES = (HOME_DIRECTORY, f"{MEMORY_DIRECTORY}/*", TODO_DIRECTORY, PLANS_DIRECTORY, EVICTED_DIRECTORY)
"""The directories in a workspace that deepctl needs, parents included."""
CONTEXT_FILES = ("AGENTS.md", "DEEP.md")
NOTEBOOK = "MEMORY.md"
SETTINGS = "profile.toml"
UNTRUSTED = "untrusted.toml"
PROJECTS = "projects.json"
"""The file with the projects of a profile, in its directory."""
SHARED = "shared.json"
"""The file of a profile that names the profiles whose notebooks it has read (`deepctl.domain.memory.shared`)."""
DIRECTORIES = "directories.json"
"""The file in the root with the profiles of directories (`deepctl.domain.profile_choice`)."""
USAGE = "usage.jsonl"
"""The file with the requests of a profile to models, in its directory."""
KEYS = "keys"
"""The directory with stored keys, beside that of the profiles."""
COMMANDS = "commands"
SKILLS = "skills"
"""The directories with slash commands and skills, in a profile and in the root."""
UNTRUSTED_FILES = "untrusted"
"""The directory of a profile with imported skills and commands that are not in force."""
NEW = ".new-"
"""Prefix of the name of a profile or session during its creation. No profile or session can have such a name."""
IMPORT = ".import-"
"""Prefix of the name of a profile during its import."""
RESERVE = "cache/reserve"
"""The path of a profile's reserve, relative to its directory. It counts in the total size of a profile, but in no
part.
"""
LOST_AND_FOUND = "lost+found"
"""The directory in `checkpoints/` for data that a repair cannot place."""


UNNAMED = "\0"
"""A name that was left out, such as that of a new session, which deepctl then chooses. No shell can pass it."""


def todo_file(session: str) -> str:
    """The path of the to-do list of a session in a workspace, by the session's id."""
    return f"{TODO_DIRECTORY}/{session}.json"


class ProfilePaths(NamedTuple):
    """The directories and files of one profile. `name` has the spelling of the directory."""

    name: str
    directory: str
    lock: str

    @property
    def root(self) -> Root:
        """The root that the profile is in."""
        return Root(os.path.dirname(os.path.dirname(self.lock)))

    @property
    def settings(self) -> str:
        return os.path.join(self.directory, SETTINGS)

    @property
    def untrusted(self) -> str:
        """Settings from an archive that are not in force (`deepctl.domain.trust`)."""
        return os.path.join(self.directory, UNTRUSTED)

    @property
    def untrusted_files(self) -> str:
        """Imported skills and commands that are not in force (`deepctl.domain.untrusted_files`)."""
        return os.path.join(self.directory, UNTRUSTED_FILES)

    @property
    def workspace(self) -> str:
        return os.path.join(self.directory, "workspace")

    @property
    def commands(self) -> str:
        """The slash commands of the user for this profile (`deepctl.domain.prompt_commands`)."""
        return os.path.join(self.directory, COMMANDS)

    @property
    def skills(self) -> str:
        """The skills of the agent of this profile (`deepctl.domain.skills`)."""
        return os.path.join(self.directory, SKILLS)

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
        """Data that can be computed again: it may be deleted at any time, and its bytes are never evidence."""
        return os.path.join(self.directory, "cache")

    @property
    def snapshot_cache(self) -> str:
        return os.path.join(self.cache, "snapshots.sqlite")

    @property
    def ledger_cache(self) -> str:
        """The fold of the start of a long ledger: see `deepctl.store.ledger_fold`."""
        return os.path.join(self.cache, "ledger")

    @property
    def checkpoint_index(self) -> str:
        """One line per checkpoint, for completion in a shell: id, label, session, time, prompt, separated by tabs."""
        return os.path.join(self.cache, "index")

    @property
    def model_names(self) -> str:
        """The models that `deepctl models` has found, one name a line, for completion in a shell."""
        return os.path.join(self.cache, "models")

    @property
    def windows(self) -> str:
        """The context windows that servers of your own have reported: see `deepctl.agent.limits`."""
        return os.path.join(self.cache, "windows")

    @property
    def mcp_prompts(self) -> str:
        """The prompts of MCP servers that have run: see `deepctl.domain.mcp_prompts`."""
        return os.path.join(self.cache, "mcp-prompts")

    @property
    def usage(self) -> str:
        """The requests to models: see `deepctl.store.usage_log`."""
        return os.path.join(self.directory, USAGE)

    @property
    def usage_sums(self) -> str:
        """The sums of the requests, by day: see `deepctl.store.usage_sums`."""
        return os.path.join(self.cache, "usage")

    @property
    def usage_lock(self) -> str:
        """The lock of the usage of all profiles. No profile can have its name."""
        return os.path.join(os.path.dirname(self.lock), ".usage")

    @property
    def reserve(self) -> str:
        """Disk space that is reserved for commands that free space: see `deepctl.store.reserve`."""
        return os.path.join(self.directory, RESERVE)

    @property
    def package_cache(self) -> str:
        """What package managers download when the agent's commands in a project use them. No checkpoint contains it."""
        return os.path.join(self.cache, "packages")

    @property
    def commands_home(self) -> str:
        """The home directory of unsandboxed commands during a turn."""
        return os.path.join(self.cache, "home")

    @property
    def keys(self) -> str:
        """The keys that are stored for the profile (`deepctl.domain.stored_keys`). They are not in its directory."""
        locks, name = os.path.split(self.lock)
        return os.path.join(os.path.dirname(locks), KEYS, name)

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

    @property
    def roles(self) -> str:
        return os.path.join(self.path, "roles")

    @property
    def keys(self) -> str:
        return os.path.join(self.path, KEYS)

    @property
    def commands(self) -> str:
        """The slash commands of the user for all profiles."""
        return os.path.join(self.path, COMMANDS)

    @property
    def skills(self) -> str:
        """The skills of the agents of all profiles."""
        return os.path.join(self.path, SKILLS)

    def profile(self, name: str) -> ProfilePaths:
        """The paths of a profile whose directory is spelled `name`."""
        return ProfilePaths(name, os.path.join(self.profiles, name), os.path.join(self.locks, folded_name(name)))


def root(environment: Mapping[str, str]) -> Root:
    """`$DEEPCTL_HOME`, else the user data directory of platformdirs. Always absolute."""
    path = environment.get("DEEPCTL_HOME")
    if path is None:
        path = _below_home("user_data_dir")
    return Root(_absolute(path, "DEEPCTL_HOME"))


def config_file(environment: Mapping[str, str]) -> str:
    """`$DEEPCTL_CONFIG`, else `config.toml` in the user config directory of platformdirs."""
    path = environment.get("DEEPCTL_CONFIG")
    if path is None:
        path = os.path.join(_below_home("user_config_dir"), "config.toml")
    # It may be a link into dotfiles of the user: the link stays, and its target is read and changed.
    return os.path.realpath(_absolute(path, "DEEPCTL_CONFIG"))


def _below_home(name: str) -> str:
    """A directory of platformdirs. Raises `UsageError` if it depends on a home directory and there is none."""
    import platformdirs

    try:
        path: str = getattr(platformdirs, name)("deepctl", appauthor=False)
    except RuntimeError:
        raise _homeless() from None
    return path


def _homeless() -> UsageError:
    reason = (
        "is not set" if "HOME" not in os.environ else "is not an absolute path" if os.environ["HOME"] else "is empty"
    )
    return UsageError(
        f"There is no home directory: $HOME {reason}, and user {os.getuid()} is not in the user database.",
        "Set HOME to an absolute path, or both DEEPCTL_HOME and DEEPCTL_CONFIG.",
        code="no_home",
    )


def _absolute(path: str, variable: str) -> str:
    if not path:
        raise UsageError(f"${variable} is set but empty.", "Unset it, or set it to a path.")
    if path == "~" or path.startswith("~/"):
        path = _home() + path[1:]
    elif path.startswith("~"):
        full_path = os.path.expanduser(path)
        if full_path == path:
            user = path.partition("/")[0]
            raise UsageError(
                f"${variable} begins with {user}, but there is no such user.",
                "Set it to an absolute path.",
                code="no_home",
            )
        path = full_path
    return os.path.abspath(path)


def _home() -> str:
    """The home directory: `$HOME` if it is an absolute path, else the one of the user database, as in platformdirs."""
    import pwd

    if os.path.isabs(home := os.environ.get("HOME", "")):
        return home.rstrip("/")
    try:
        return pwd.getpwuid(os.getuid()).pw_dir.rstrip("/")
    except KeyError:
        raise _homeless() from None


MAX_NAME_LENGTH = 64

_ALLOWED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*", re.ASCII)
_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
_NAME_RULE = (
    "A name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, starts with a letter or a digit and does not end in "
    "a dot. Names that Windows reserves are not allowed."
)


def check_name(name: str, noun: str = "profile") -> str:
    """`name` itself, if it may be the name of a `noun`. Raises `BadName` (exit 2) otherwise."""
    if not name:
        raise BadName(f"The {noun} name is empty.", _NAME_RULE)
    excerpt = ascii(name[:MAX_NAME_LENGTH]) + ("…" if len(name) > MAX_NAME_LENGTH else "")
    kind = f"an {noun}" if noun[0] in "aeio" else f"a {noun}"
    if len(name) > MAX_NAME_LENGTH:
        raise BadName(
            f"The {noun} name {excerpt} has {len(name)} characters; {MAX_NAME_LENGTH} are allowed.", _NAME_RULE
        )
    if not _ALLOWED_NAME.fullmatch(name) or name.endswith("."):
        raise BadName(f"{excerpt} cannot be the name of {kind}.", _NAME_RULE)
    if _RESERVED_NAME.fullmatch(name):
        raise BadName(f"{excerpt} is a name that Windows reserves, so it cannot be the name of {kind}.", _NAME_RULE)
    return name


def check_characters(path: str | os.PathLike[str]) -> str:
    """`path` itself, if the operating system can have a path with these characters. Raises `BadPath` otherwise.

    A name from the JSON of a request can contain half of a surrogate pair, which no file name can.
    """
    text = os.fspath(path)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise BadPath(f"{text!a} cannot be a path: half of a surrogate pair is no character.", _CHECK_HINT) from None
    if "\0" in text:
        raise BadPath(f"{text!a} cannot be a path: it contains a null character.", _CHECK_HINT)
    return text


_CHECK_HINT = "`deepctl.user_directory(root, user_id)` makes a path of a checked name."


def check_directory(path: str | os.PathLike[str]) -> str:
    """`path` itself, if no part of it is empty, `..` or `.`; it may begin with `./`. Raises `BadPath` otherwise.

    An application builds paths from the names of its users. The names `../bob`, `/etc`, `.` and the empty name give
    such parts: with them, a path would lead to another user's directory, or to the directory of all users.
    """
    text = check_characters(path)
    first, *parts = text.split("/")
    if not text or first == ".." or {"", ".", ".."}.intersection(parts):
        raise BadPath(
            f"{text!a} cannot be a directory of an application: a part of the path is empty, '.' or '..'.",
            f"{_CHECK_HINT[:-1]}; `os.path.abspath` cleans other paths.",
        )
    return text


def user_directory(root: str | os.PathLike[str], user_id: str) -> str:
    """The path of the directory of a user below `root`, for a `LocalBackend` or a `FileCheckpointStore`.

    The id must be a valid name, so that it is one part of a path and leads to no other user: `a/b` would be a directory
    of the user `a`. Case does not count: `Alice` and `alice` have the same directory. Nothing is created. Raises
    `BadName` for an invalid id, and `BadPath` for an invalid root.
    """
    return os.path.join(check_directory(root), folded_name(check_name(user_id, "user")))


def is_good_name(name: str) -> bool:
    """Whether `name` is a valid name."""
    try:
        check_name(name)
    except BadName:
        return False
    return True


def folded_name(name: str) -> str:
    """The form in which names are compared: `Alice` and `alice` are the same name."""
    return name.lower()


def same_name(name: str, other_name: str) -> bool:
    """Whether two names belong to the same profile, session or label: case does not count."""
    return folded_name(name) == folded_name(other_name)


Entry = MutableMapping[str, Any]
Step = Callable[[Entry], None]


class BadVersion(ValueError):
    """A format number is invalid."""


class Format(NamedTuple):
    """One format: what it describes, the number that is written now, and the steps by the number that they start from.

    A step for `current` itself converts entries that had this number before the format was final; it does not change an
    entry in the final form. `key` is where an entry has its number, and `without` is the number of an entry without
    one. If `without` is missing, such an entry is damaged.
    """

    what: str
    current: int
    steps: Mapping[int, Step] = {}
    key: str = "v"
    without: int | None = None


def _workspace_has_one_name(entry: Entry) -> None:
    """The first messages name the workspace by its path; pydantic-ai continues only in the directory of its history."""
    message = entry.get("message")
    if isinstance(message, dict):
        reference = message.get("workspace_ref")
        if isinstance(reference, dict) and reference.get("provider") == "local":
            message["workspace_ref"] = {"provider": "deepctl", "id": "workspace"}


SETTINGS_FORMAT = Format("settings", 1, key="version", without=1)
SESSION_FORMAT = Format("session", 1)
LOG_FORMAT = Format("message log", 2, {1: _workspace_has_one_name})
LEDGER_FORMAT = Format("ledger", 2)
PACK_FORMAT = Format("pack", 2)
TREE_FORMAT = Format("tree", 1)
CACHE_FORMAT = Format("cache", 3)
PROJECTS_FORMAT = Format("projects", 1)
DIRECTORIES_FORMAT = Format("directories", 1)
USAGE_FORMAT = Format("usage", 1)
SHARED_FORMAT = Format("shared", 1)
ROLE_FORMAT = Format("role", 1, key="version", without=1)

FORMATS = (
    SETTINGS_FORMAT,
    SESSION_FORMAT,
    LOG_FORMAT,
    LEDGER_FORMAT,
    PACK_FORMAT,
    TREE_FORMAT,
    CACHE_FORMAT,
    PROJECTS_FORMAT,
    DIRECTORIES_FORMAT,
    USAGE_FORMAT,
    SHARED_FORMAT,
    ROLE_FORMAT,
)


def format_number(form: Format, entry: Mapping[str, Any]) -> int:
    """The number of an entry. Raises `BadVersion`."""
    number = entry.get(form.key, form.without)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise BadVersion(f"{number!r} is not a format number")
    return number


def bring_up(form: Format, entry: Entry, where: str) -> None:
    """Convert an entry to the present format, in place. `where` names it in errors.

    Raises `NewerFormat` or `BadVersion`; the entry is unchanged then.
    """
    number = format_number(form, entry)
    if number > form.current:
        raise NewerFormat(where, number, form.current)
    for version in range(number, form.current + 1):
        step = form.steps.get(version)
        if step is not None:
            step(entry)
    if number != form.current:
        entry[form.key] = form.current


def is_newer(form: Format, entry: Mapping[str, Any]) -> bool:
    """Whether an entry was written by a later deepctl."""
    try:
        return format_number(form, entry) > form.current
    except BadVersion:
        return False


_FORMAT_HEADER = re.compile(rb"deepctl ([a-z]+) ([1-9][0-9]{0,8})\n")


def format_header(form: Format, number: int | None = None) -> bytes:
    """The first line of a binary format; without `number`, of its current number."""
    return b"deepctl %s %d\n" % (form.what.encode(), form.current if number is None else number)


def check_format_header(form: Format, begins: bytes, where: str) -> None:
    """Raises `NewerFormat` if the first line of a binary file is that of a later deepctl."""
    header = _FORMAT_HEADER.match(begins)
    if header is not None and header[1] == form.what.encode() and int(header[2]) > form.current:
        raise NewerFormat(where, int(header[2]), form.current)
