"""`deepctl wipe`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Annotated

import typer

from deepctl import layout
from deepctl.cli import options
from deepctl.cli.confirm import Yes, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profile_choice, profiles, settings
from deepctl.domain.settings import Settings
from deepctl.domain.wipe import trash, wipe_plan
from deepctl.domain.wipe.wipe_plan import PARTS
from deepctl.errors import Damaged, DeepctlError, Interrupted, ProfileNotFound, Refused, UsageError
from deepctl.layout import ProfilePaths
from deepctl.output import profiles as views
from deepctl.output.render import Progress, is_terminal, notice, say, show
from deepctl.store import reserve

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)

_EVERY_PROFILE = "all profiles"


@app.command(epilog="Example: deepctl wipe --user alice --only memory,history --dry-run")
def wipe(
    user: options.User = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARTS",
            help=f"Delete only these parts, separated by commas: {', '.join(PARTS)}. evicted: large tool results. "
            "history: prompts that you typed.",
            show_default=False,
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Delete every profile.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Yes = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Delete a profile, or parts of it, permanently.

    The command first lists what it would delete. At a terminal, you confirm by typing the name of the profile. Deleting
    sessions also deletes their checkpoints.
    """
    parts = wipe_plan.parse_parts(only) if only is not None else ()
    if all_ and user is not None:
        raise UsageError("--all means every profile, but --user means one profile.", "Give only one of the two.")
    in_force = settings.load(os.environ)
    targets = _targets(user, in_force, wait, all_=all_, finish=not dry_run)
    if not targets and not all_:
        show(views.FinishedWipeView(options.choose(user, in_force, deletes=True).name), as_json)
        return
    if not all_:
        options.say_ignored_directory(user, targets[0], as_json)
    if dry_run:
        results = [_foreseen(target, parts, in_force, dry_run=True) for target in targets]
    else:
        previews = None if yes else _agreed(targets, parts, in_force, wait, as_json, all_=all_)
        try:
            results = _wiped(targets, parts, in_force, previews, wait, as_json)
        except KeyboardInterrupt:
            raise Interrupted(
                "Interrupted during a wipe.",
                "If the wipe has begun, the next command that changes something in any profile finishes it.",
            ) from None
    show(views.WipeOfAllView(results, dry_run) if all_ else results[0], as_json)


def _targets(user: str | None, in_force: Settings, wait: float, *, all_: bool, finish: bool) -> list[ProfilePaths]:
    """The selected profiles; none if the selected profile was the rest of an interrupted wipe, which is now deleted.

    Raises `ProfileNotFound`, and any error of a profile before the first profile is changed.
    """
    root = options.root()
    if all_:
        targets = [profiles.locate(root, name) for name in profiles.all_names(root) if layout.is_good_name(name)]
        if finish and not targets:
            _finish({unfinished_wipe.profile for unfinished_wipe in trash.unfinished_wipes(root)}, wait)
        return targets
    try:
        return [options.existing_profile(user, profiles.locate, in_force, deletes=True)]
    except ProfileNotFound:
        folded_name = layout.folded_name(options.choose(user, in_force, deletes=True).name)
        if not finish or folded_name not in {
            unfinished_wipe.profile for unfinished_wipe in trash.unfinished_wipes(root)
        }:
            raise
    _finish({folded_name}, wait)
    return []


def _finish(names: Iterable[str], wait: float) -> None:
    """Finish interrupted wipes of these profiles. Raises the error that prevents it."""
    root = options.root()
    for name in sorted(names):
        with profiles.lock(root, name, command="wipe", wait=wait):  # the holder of the lock has already tried
            for unfinished_wipe in trash.unfinished_wipes(root):
                if unfinished_wipe.profile == name:
                    trash.finish_one(root, unfinished_wipe, name)


@contextmanager
def _locked(targets: Sequence[ProfilePaths], wait: float) -> Iterator[None]:
    """All of these profiles locked, after a check that they still exist."""
    root = options.root()
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(profiles.lock(root, target.name, command="wipe", wait=wait))
            profiles.locate(root, target.name)
        yield


def _foreseen(target: ProfilePaths, parts: tuple[str, ...], in_force: Settings, *, dry_run: bool) -> views.WipeView:
    plan = wipe_plan.plan(options.root(), target, parts)
    return views.WipeView(
        plan,
        dry_run,
        copies=wipe_plan.copies(target, plan),
        history_stays="sessions" in parts and "history" not in parts and wipe_plan.has_history(target),
        is_default=not parts and _is_default(target, in_force),
        roles=_roles(target) if not parts else [],
        readers=_readers(target) if not parts or "memory" in parts or "workspace" in parts else [],
        leaves_rewound=wipe_plan.leaves_rewound(target, parts),
        rewinding=dry_run and wipe_plan.is_rewinding(target, parts),
    )


def _roles(target: ProfilePaths) -> list[str]:
    """The roles that contain data of the profile, because they were made from it."""
    from deepctl.domain.roles import catalogue  # most profiles have none

    root = options.root()
    return catalogue.made_from(root, target.name, os.environ) if os.path.isdir(root.roles) else []


def _readers(target: ProfilePaths) -> list[str]:
    """The profiles that have read the notebooks of the profile."""
    from deepctl.domain.memory import shared

    return shared.readers_of(options.root(), target.name)


def _is_default(target: ProfilePaths, in_force: Settings) -> bool:
    """Whether config.toml names the profile as the default user."""
    try:
        setting = in_force._replace(variables={}).resolve("default_user")
    except DeepctlError:
        return False  # an unreadable file must not prevent a wipe
    return setting.source != "default" and setting.value is not None and layout.same_name(setting.value, target.name)


def _agreed(
    targets: Sequence[ProfilePaths],
    parts: tuple[str, ...],
    in_force: Settings,
    wait: float,
    as_json: bool,
    *,
    all_: bool,
) -> list[views.WipeView]:
    """The plan that the user has seen and confirmed. The lock is held for reading only, not during the question."""
    with _locked(targets, wait):
        previews = _prepared({target: in_force.of_profile(target) for target in targets}, parts, as_json)
    if all(preview.plan.is_nothing for preview in previews):
        return previews
    if not as_json and is_terminal(sys.stderr):
        for preview in previews:
            for line in [] if preview.plan.is_nothing else preview.announce():
                say(line)
    confirmation = _EVERY_PROFILE if all_ else previews[0].plan.profile
    confirm("Delete this permanently?", yes=False, as_json=as_json, confirmation=confirmation)
    return previews


def _prepared(targets: Mapping[ProfilePaths, Settings], parts: tuple[str, ...], as_json: bool) -> list[views.WipeView]:
    """The plan, after an interrupted rewind has been finished, because finishing it later would restore deleted
    data. `targets` are the profiles with their settings.
    """
    for target, in_force in targets.items():
        if wipe_plan.is_rewinding(target, parts):
            with options.open_repository(target, in_force, (lambda note: None) if as_json else notice, frees=True):
                pass
    return [_foreseen(target, parts, in_force, dry_run=False) for target, in_force in targets.items()]


def _forget_directories(target: ProfilePaths, wait: float, as_json: bool) -> None:
    """Take the profile away from its directories, before it is deleted: a name without a profile must not stay."""
    try:
        profile_choice.rename(options.root(), target.name, None, wait=wait)
    except (Damaged, Refused) as error:
        # A file that cannot be read must not prevent a wipe.
        if not as_json:
            notice(f"{error.message} It may still name {target.name}.")


def _take_back(targets: Sequence[ProfilePaths]) -> None:
    """Reserve the space again that the wipe needed on a full disk."""
    for target in targets:
        if reserve.held_bytes(target) < reserve.SIZE:
            with suppress(DeepctlError, OSError), profiles.lock(options.root(), target.name, command="wipe", wait=0):
                reserve.take_back(target)


def _wiped(
    targets: Sequence[ProfilePaths],
    parts: tuple[str, ...],
    in_force: Settings,
    previews: list[views.WipeView] | None,
    wait: float,
    as_json: bool,
) -> list[views.WipeView]:
    """Move all data out of sight, release the locks, and delete the data."""
    root = options.root()
    trash_entries: list[wipe_plan.HiddenData] = []
    problem: DeepctlError | OSError | None = None
    with _locked(targets, wait):
        # A profile's settings are read under this lock, also after a question: a chat may have selected Docker since.
        settings_of = {target: in_force.of_profile(target) for target in targets}
        results = _prepared(settings_of, parts, as_json)
        if previews is not None and [result.plan for result in results] != [result.plan for result in previews]:
            raise Refused(
                "Something changed after you saw what would be deleted; nothing was deleted.",
                "Run the command again to see what it would delete now. --yes deletes without a confirmation.",
                code="changed",
            )
        for position, (target, result) in enumerate(zip(targets, results, strict=True)):
            if result.plan.is_nothing:
                continue
            try:
                if not parts:
                    _forget_directories(target, wait, as_json)
                trash_entries.append(wipe_plan.put_away(root, target, result.plan, os.environ, settings_of[target]))
            except (DeepctlError, OSError) as error:
                problem = error
                break
            results[position] = result._replace(container=trash_entries[-1].container, seen=previews is not None)
    total = sum(result.plan.entries for result in results)
    with Progress("Deleting", "files and directories", total) as progress:
        wipe_plan.delete(trash_entries, progress)
    if parts:
        _take_back(targets)
    if problem is not None:
        raise problem
    return results
