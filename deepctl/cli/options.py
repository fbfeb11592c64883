"""Options that many commands share, and the functions that resolve them to profiles and settings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from deepctl import layout
from deepctl.domain import profile_choice, profiles, settings
from deepctl.domain.profile_choice import ProfileChoice
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, ProfileNotFound, UsageError
from deepctl.files import atomic, ownership
from deepctl.layout import ProfilePaths, Root
from deepctl.locks import Lease, Lock
from deepctl.output.render import notice
from deepctl.quantities import size

if TYPE_CHECKING:
    from deepctl.store.repository import ReadOnlyRepository, Repository

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("it must be a number of seconds")
    return value


User = Annotated[
    str | None,
    typer.Option(
        "--user",
        "-u",
        "--profile",
        metavar="NAME",
        help="Profile to work on. Default: $DEEPCTL_USER, then the profile of the directory (`profiles use --here`), "
        "then the setting default_user, then `default`.",
        show_default=False,
    ),
]
Project = Annotated[
    str | None,
    typer.Option(
        "--project",
        "-C",
        metavar="DIR",
        help="Work on the session that was used last in this directory. Default: the setting project, then the private "
        "workspace of the profile.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Model, as provider:name. Default: $DEEPCTL_MODEL, then the setting model, then offline.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        callback=_finite,
        help="Wait this long if another process has the lock of the profile.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0.001, callback=_finite, help="Stop the turn after this time (exit 124)."),
]


@contextmanager
def open_repository(
    profile: ProfilePaths, in_force: Settings, tell: Callable[[str], None], *, frees: bool = False
) -> Iterator[Repository]:
    """The repository of a profile, open for changes. The caller holds its lock. `in_force` are the profile's settings.

    `tell` is called with each note about an interrupted operation that was finished first. `frees` is true for commands
    that must work on a full disk.
    """
    from deepctl.output.render import Progress
    from deepctl.store.repository import Repository

    coverage, policy = in_force.coverage(), in_force.get("checkpoints") or "every_tool"
    with Progress("Checkpoint") as progress:
        with Repository.open(profile, coverage=coverage, policy=policy, report=progress, frees=frees) as work:
            for note in work.notes:
                tell(note)
            yield work


@contextmanager
def reading(profile: ProfilePaths, in_force: Settings, verb: str) -> Iterator[ReadOnlyRepository]:
    """A profile, open for reading; `in_force` are its settings. A progress line at the terminal shows `verb`."""
    from deepctl.output.render import Progress
    from deepctl.store.repository import Repository

    coverage = in_force.coverage()
    with Progress(verb) as progress:
        with Repository.read_only(profile, coverage=coverage, report=progress) as reader:
            yield reader


@contextmanager
def working(
    user: str | None,
    command: str,
    wait: float,
    as_json: bool,
    *,
    in_force: Settings | None = None,
    frees: bool = False,
) -> Iterator[Repository]:
    """The profile meant by `--user`, locked and open for changes; `in_force` are its settings, if they are read."""
    if in_force is None:
        profile, in_force = profile_and_settings(user)
    else:
        profile = existing_profile(user, in_force=in_force)
    with profiles.lock(root(), profile.name, command=command, wait=wait):
        limit = in_force.size("limits.checkpoints")
        with open_repository(profile, in_force, (lambda note: None) if as_json else notice, frees=frees) as work:
            yield work
        if not as_json and (warning := over_budget(profile, limit)) is not None:
            notice(warning)


def over_budget(profile: ProfilePaths, limit: int) -> str | None:
    """A warning if the checkpoints of a profile take more than `limit` bytes, else `None`. The caller holds its
    lock.
    """
    used_bytes = profiles.passed_limit(profile, limit)
    if used_bytes is None:
        return None
    return (
        f"The checkpoints of {profile.name} take {size(used_bytes)}, more than limits.checkpoints "
        f"({size(limit)}). To see what pruning would free: "
        f"deepctl checkpoints prune --keep 50 --dry-run --user {profile.name}"
    )


def advise(problem: DeepctlError, name: str | None) -> None:
    """Set the hint of an error: for a full disk, a command that frees space in the profile `name`."""
    if _is_of_root(problem):
        problem.hint = ownership.OWN_ROOT
    if not atomic.wants_space(problem):
        return
    with suppress(DeepctlError, OSError):
        place = profiles.check_root(layout.root(os.environ))
        # `default_user` is read again: the settings of the command that failed are out of reach here.
        try:
            profile = profiles.locate(place, user(name))
        except DeepctlError:
            profile = None
        if (advice := _space_advice(place, profile)) is not None:
            problem.hint = f"{problem.hint} {advice}"


_KEPT = (20, 1)
"""Numbers of checkpoints to keep, in the order in which they are tried as advice."""


def _space_advice(place: Root, profile: ProfilePaths | None) -> str | None:
    """A command that frees space and needs none itself; `None` if there is nothing to free."""
    from deepctl.store import prune
    from deepctl.store.repository import Repository

    if profile is not None:
        with suppress(DeepctlError, OSError), Repository.read_only(profile) as reader:
            for keep in _KEPT:
                records = prune.to_prune(reader.ledger, keep)
                if prune.forecast(reader.ledger, reader.packs, records).bytes:
                    return (
                        f"`deepctl checkpoints prune --keep {keep} --user {profile.name}` frees space and needs none "
                        "itself."
                    )
    with suppress(OSError):
        if any(entry[:1].isalnum() for entry in os.listdir(place.profiles)):
            return (
                "`deepctl profiles list` shows the size of each profile. `deepctl wipe --only PARTS` and "
                "`deepctl sessions delete` free space and need none themselves."
            )
    return None


def _is_of_root(problem: DeepctlError) -> bool:
    """Whether an error without a hint comes from a root that is not a directory and cannot be created."""
    error = problem.__cause__
    if problem.hint is not None or not isinstance(error, OSError) or not isinstance(error.filename, str):
        return False
    with suppress(DeepctlError):
        place = layout.root(os.environ).path
        inner, outer = sorted((f"{place}{os.sep}", f"{error.filename}{os.sep}"), key=len, reverse=True)
        return inner.startswith(outer) and not os.path.isdir(place)
    return False


_CONVERT = "Convert it to UTF-8 first, for example with iconv."


def utf8_argument(text: str, subject: str, code: str = "not_utf8") -> str:
    """A text of the command line; `subject` names it. Raises `UsageError` (exit 2) where it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{subject} is not UTF-8 text.", _CONVERT, code=code) from None
    return text


def decode(raw: bytes, subject: str, code: str = "not_utf8") -> str:
    """A text that was piped in, without the mark of byte order that Windows' editors write; `subject` names it.

    Raises `UsageError`.
    """
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = error.start
        raise UsageError(
            f"{subject} is not UTF-8 text: byte 0x{raw[at]:02x} at offset {at}.", _CONVERT, code=code
        ) from None


def root() -> Root:
    """The root directory of all state of this machine's user."""
    return profiles.check_root(layout.root(os.environ))


def user(option: str | None, in_force: Settings | None = None, directory: str | None = None) -> str:
    """The profile name of `--user`, else of the directory or the settings: see `choose`."""
    return choose(option, in_force, directory).name


def choose(
    option: str | None, in_force: Settings | None = None, directory: str | None = None, *, deletes: bool = False
) -> ProfileChoice:
    """The profile of `--user`, else of `$DEEPCTL_USER`, the directory, or `default_user`.

    `in_force` are the settings of this machine's user if they have been read already. `directory` is the value of `-C`;
    without it, the current directory counts. `deletes` is for commands that ask before they delete something
    permanently: no directory counts. Raises `BadName` with the source of the name, and `NotFound` if the profile of the
    directory is gone.
    """
    if option is not None:
        return ProfileChoice(layout.check_name(option))
    path = None if deletes else _real_path(directory)
    return profile_choice.choose(in_force or settings.load(os.environ), root, path)


def _real_path(directory: str | None) -> str | None:
    """The directory of `-C`, or the current one; `None` if it was deleted or cannot be a directory."""
    try:
        return os.path.realpath(os.path.expanduser(directory) if directory is not None else os.getcwd())
    except (OSError, ValueError):
        return None


def choice_here(in_force: Settings, profiles_of: Mapping[str, str]) -> ProfileChoice | None:
    """What comes before `default_user` in the current directory; `None` if nothing does.

    `profiles_of` are the profiles of directories.
    """
    if variable := in_force.variables.get("DEEPCTL_USER"):
        return ProfileChoice(variable)
    path = _real_path(None)
    return profile_choice.nearest(profiles_of, path) if path is not None else None


def config_lock(command: str, wait: float) -> Lease:
    """The lock of config.toml."""
    place = root()
    profiles.make_root(place)
    # No profile can have this name, so it cannot be confused with a profile's lock.
    return Lock(os.path.join(place.locks, ".config"), work="changing config.toml", command=command, wait=wait)


def say_ignored_directory(option: str | None, profile: ProfilePaths, as_json: bool) -> None:
    """Say that a command deletes in `profile` although the current directory has another one."""
    if option is not None or as_json or "DEEPCTL_USER" in os.environ:
        return
    with suppress(DeepctlError, OSError):
        path = _real_path(None)
        choice = profile_choice.nearest(profile_choice.read(root()), path) if path is not None else None
        if choice is not None and not layout.same_name(choice.name, profile.name):
            notice(
                f"This command works on {profile.name}: it ignores the profile of this directory. `--user "
                f"{choice.name}` names that one."
            )


def existing_profile(
    option: str | None,
    find: Callable[[Root, str], ProfilePaths] = profiles.find,
    in_force: Settings | None = None,
    directory: str | None = None,
    *,
    deletes: bool = False,
) -> ProfilePaths:
    """The profile of `--user`; for the other arguments see `choose`. Raises `ProfileNotFound` (exit 3) if it does not
    exist; creates nothing.
    """
    choice = choose(option, in_force, directory, deletes=deletes)
    try:
        return find(root(), choice.name)
    except ProfileNotFound as error:
        if option is None:
            error.hint = "Name a profile with --user NAME, or set the default: deepctl profiles use NAME"
        raise


def profile_and_settings(
    option: str | None, directory: str | None = None, *, deletes: bool = False
) -> tuple[ProfilePaths, Settings]:
    """The profile of `--user` and its settings; each file is read once. Raises `ProfileNotFound`."""
    in_force = settings.load(os.environ) if option is None else None
    profile = existing_profile(option, in_force=in_force, directory=directory, deletes=deletes)
    return profile, (in_force or settings.load(os.environ)).of_profile(profile)


def profile_of_chat(
    option: str | None, values: Mapping[str, str | None] | None = None
) -> tuple[ProfilePaths | None, Settings]:
    """The profile of a chat (`None` if the chat would create it) and its settings.

    `values` are settings from the command line.
    """
    in_force = settings.load(os.environ, options=values)
    if option is not None:
        profile = existing_profile(option)
        return profile, in_force.of_profile(profile)
    place = root()
    name = user(None, in_force)
    if not profiles.exists(place, name):
        return None, in_force
    profile = profiles.find(place, name)
    return profile, in_force.of_profile(profile)


def named_profile(argument: str | None, option: str | None, in_force: Settings | None = None) -> ProfilePaths:
    """The profile of a NAME argument or `--user`. Both are allowed only if they agree."""
    if argument is not None and option is not None and not layout.same_name(argument, option):
        raise UsageError(f"NAME is {argument!r} and --user is {option!r}.", "Give one of them.")
    return existing_profile(argument if argument is not None else option, in_force=in_force)


class Target(NamedTuple):
    """What a command works on: a profile with its settings, and a session of it.

    `session` is `None` for the one that was used last in the private workspace, and if no session is needed.
    """

    profile: ProfilePaths
    settings: Settings
    session: str | None


def target(
    user: str | None, session: str | None, directory: str | None, references: Iterable[str] | None = None
) -> Target:
    """The profile of `--user`, and the session of `--session`, of `-C`, or of the setting `project`.

    With `references`, no session is needed unless one of them is `~N`. Raises `UsageError` if `--session` and `-C`
    contradict each other, and `NotFound` if the directory has no session.
    """
    profile, in_force = profile_and_settings(user, directory)
    is_needed = references is None or any(reference.startswith("~") for reference in references)
    from deepctl.domain import session_choice  # it imports the stores

    return Target(profile, in_force, session_choice.chosen(profile, in_force, session, directory, is_needed=is_needed))
