"""Options that many commands share, and what they mean."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from deepctl import layout, names
from deepctl.domain import budget, profiles, settings
from deepctl.errors import BadName, DeepctlError, ProfileNotFound, UsageError
from deepctl.files import atomic, ownership
from deepctl.layout import ProfilePaths, Root
from deepctl.output.render import notice
from deepctl.quantities import size

if TYPE_CHECKING:
    from deepctl.store.repository import Repository

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


UNNAMED = "\0"
"""What `--new` without a NAME arrives as: no shell can pass it."""


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
        help="Profile to work on. Without it: $DEEPCTL_USER, the setting default_user, or `default`.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Wait = Annotated[
    float,
    typer.Option(
        "--wait", metavar="SECONDS", min=0, callback=_finite, help="How long to wait for another process to finish."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0.001, callback=_finite, help="Stop the turn after this time (exit 124)."),
]


def snapshot_settings(profile: ProfilePaths) -> tuple[list[str], str]:
    """What checkpoints of a profile leave out, and when they are made without being asked for."""
    exclude = settings.resolve("snapshot.exclude", environment=os.environ, profile=profile).value
    policy = settings.resolve("checkpoints", environment=os.environ, profile=profile).value
    return settings.patterns(exclude), policy or "every_tool"


@contextmanager
def opened(profile: ProfilePaths, tell: Callable[[str], None], *, frees: bool = False) -> Iterator[Repository]:
    """A profile's checkpoints, open for changes; the caller holds its lock. `tell` hears what was left to finish.

    `frees` is said by what must work on a full disk.
    """
    from deepctl.output.progress import Progress
    from deepctl.store import recovery

    exclude, policy = snapshot_settings(profile)
    with Progress("Checkpoint") as progress:
        with recovery.opened(profile, exclude=exclude, policy=policy, report=progress, frees=frees) as work:
            for note in work.notes:
                tell(note)
            yield work


@contextmanager
def working(user: str | None, command: str, wait: float, as_json: bool, *, frees: bool = False) -> Iterator[Repository]:
    """The profile meant by `--user`, locked and open for changes."""
    profile = existing_profile(user)
    with profiles.lock(root(), profile.name, command=command, wait=wait):
        limit = budget.limit(os.environ, profile)
        with opened(profile, (lambda note: None) if as_json else notice, frees=frees) as work:
            yield work
        if not as_json and (warning := over_budget(profile, limit)) is not None:
            notice(warning)


def over_budget(profile: ProfilePaths, limit: int) -> str | None:
    """What the user should know, once, if a profile's checkpoints take more than `limit` bytes; holds its lock."""
    passed = budget.passed(profile, limit)
    if passed is None:
        return None
    return (
        f"The checkpoints of {profile.name} take {size(passed.bytes)}, more than limits.checkpoints "
        f"({size(passed.limit)}). What pruning would free: "
        f"deepctl checkpoints prune --keep 50 --dry-run --user {profile.name}"
    )


def advise(problem: DeepctlError, name: str | None) -> None:
    """Have the hint of an error name what helps: of a full disk, what frees space in the profile `name`."""
    if _is_of_root(problem):
        problem.hint = ownership.OWN_ROOT
    if not atomic.wants_space(problem):
        return
    from deepctl.domain import freeing

    with suppress(DeepctlError, OSError):
        place = profiles.check_root(layout.root(os.environ))
        try:
            found = profiles.locate(place, user(name))
        except DeepctlError:
            found = None
        if (advice := freeing.advice(place, found)) is not None:
            problem.hint = f"{problem.hint} {advice}"


def _is_of_root(problem: DeepctlError) -> bool:
    """Whether an error that has no hint comes of a root that is no directory, and cannot be made."""
    error = problem.__cause__
    if problem.hint is not None or not isinstance(error, OSError) or not isinstance(error.filename, str):
        return False
    with suppress(DeepctlError):
        place = layout.root(os.environ).path
        inner, outer = sorted((f"{place}{os.sep}", f"{error.filename}{os.sep}"), key=len, reverse=True)
        return inner.startswith(outer) and not os.path.isdir(place)
    return False


def root() -> Root:
    """Where all state of this machine's user is."""
    return profiles.check_root(layout.root(os.environ))


def user(option: str | None) -> str:
    """The profile name meant by `--user` and what stands behind it. Raises `BadName`, saying where it came from."""
    if option is not None:
        return names.check(option)
    found = settings.resolve("default_user", environment=os.environ)
    try:
        return names.check(found.value or "default")
    except BadName as error:
        place = "$DEEPCTL_USER" if found.source == "environment" else "default_user of the settings"
        raise BadName(f"{error.message} It comes from {place}.", error.hint) from None


def existing_profile(option: str | None, find: Callable[[Root, str], ProfilePaths] = profiles.find) -> ProfilePaths:
    """The profile meant by `--user`. Raises `ProfileNotFound` (exit 3) if there is none, creating nothing."""
    name = user(option)
    try:
        return find(root(), name)
    except ProfileNotFound as error:
        if option is None:
            error.hint = "Name yours with --user NAME, or for good: deepctl config set default_user NAME"
        raise


def named_profile(argument: str | None, option: str | None) -> ProfilePaths:
    """The profile meant by a NAME argument or `--user`; giving both is refused unless they agree."""
    if argument is not None and option is not None and names.fold(argument) != names.fold(option):
        raise UsageError(f"NAME is {argument!r} and --user is {option!r}.", "Give one of them.")
    return existing_profile(argument if argument is not None else option)
