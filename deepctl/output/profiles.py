"""The views of profiles, their archives and projects, settings and files to be trusted, and wipes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl import layout
from deepctl.domain.addresses import without_passwords
from deepctl.domain.profiles import Profile
from deepctl.layout import UNTRUSTED
from deepctl.output.render import Cell, ago, home, is_terminal, notice, print_sentence, printable, table, visible
from deepctl.quantities import counted, size
from deepctl.store.projects import command_to_move

if TYPE_CHECKING:
    from deepctl.domain.profile_choice import ProfileChoice
    from deepctl.domain.project_trust import TrustedFile
    from deepctl.domain.projects import ProjectDescription
    from deepctl.domain.transfer import profile_copy, profile_export, profile_import
    from deepctl.domain.transfer.archive import OmittedPath, Totals
    from deepctl.domain.trust import TrustItem
    from deepctl.domain.wipe.wipe_plan import CopyCounts, WipePart, WipePlan


def _document(profile: Profile, default: str | None) -> dict[str, Any]:
    document = profile._asdict()
    document["default"] = is_default(profile, default)
    document["model"] = without_passwords(profile.model)
    document["bytes"] = profile.bytes._asdict()
    document["files"] = profile.files._asdict()
    if document["problem"] is None:
        del document["problem"]
    return document


def is_default(profile: Profile, default: str | None) -> bool:
    """Whether a profile is the default, whose name is `default`; `None` if it is unknown."""
    return default is not None and layout.same_name(profile.name, default)


class ProfileListView(NamedTuple):
    """All profiles. `default` is the name of the default, `None` if it is unknown; `profiles_of` are the profiles of
    directories, by path; `here` is what comes before the default in the current directory.
    """

    profiles: list[Profile]
    default: str | None
    profiles_of: Mapping[str, str]
    here: ProfileChoice | None

    def document(self) -> dict[str, Any]:
        return {
            "profiles": [_document(profile, self.default) for profile in self.profiles],
            "directories": [{"path": path, "profile": name} for path, name in sorted(self.profiles_of.items())],
        }

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.profiles:
            notice("There are no profiles yet; `deepctl chat --user NAME` creates one.")
            return
        table(
            ("PROFILE", "USED", "MODEL", "SESSIONS", "SIZE", "PATH", *(() if terminal else ("DEFAULT",))),
            [
                (
                    f"{profile.name} (default)" if terminal and is_default(profile, self.default) else profile.name,
                    Cell(profile.problem, "bad")
                    if profile.problem
                    else Cell(ago(profile.last_used_at) if terminal else profile.last_used_at or "-", "faint"),
                    without_passwords(profile.model) or "-",
                    str(profile.sessions),
                    size(profile.bytes.total) if terminal else str(profile.bytes.total),
                    home(profile.path) if terminal else profile.path,
                    *(() if terminal else ("default" if is_default(profile, self.default) else "-",)),
                )
                for profile in self.profiles
            ],
            dispensable=("MODEL", "SESSIONS"),
            numbers=("SESSIONS", "SIZE"),
        )
        if terminal:
            self._print_directories()

    def _print_directories(self) -> None:
        for path, name in sorted(self.profiles_of.items()):
            notice(f"{home(path)} uses {name}{'' if os.path.isdir(path) else ', but does not exist'}.")
        if self.here is not None and self.here.directory is None:
            notice(f"$DEEPCTL_USER is {self.here.name}, and comes before the default.")
        elif self.here is not None:
            notice(f"This directory uses {self.here.name}.")


class ProfileUseView(NamedTuple):
    """The profile of commands without --user; in `directory`, or everywhere (`None`). `path` is the changed file."""

    profile: str
    directory: str | None
    path: str
    is_forgotten: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "directory": self.directory,
            "path": self.path,
            "forgotten": self.is_forgotten,
        }

    def print(self) -> None:
        if self.directory is None:
            print_sentence(f"The default profile is {self.profile}.")
        elif self.is_forgotten:
            print_sentence(f"{visible(self.directory)} no longer uses {self.profile}.")
        else:
            print_sentence(f"Commands in {visible(self.directory)} and below it use {self.profile}.")


class ProfileView(NamedTuple):
    """One profile; `default` is the name of the default, `None` if it is unknown."""

    profile: Profile
    default: str | None

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile.name, "profiles": [_document(self.profile, self.default)]}

    def print(self) -> None:
        profile = self.profile

        def part(name: str) -> str:
            count = getattr(profile.files, name)
            return f"{size(getattr(profile.bytes, name))} in {count:,} {'file' if count == 1 else 'files'}"

        rows = [
            ("Profile", f"{profile.name} (default)" if is_default(profile, self.default) else profile.name),
            ("Path", profile.path),
            ("Created", profile.created_at or "unknown"),
            ("Last used", profile.last_used_at or "never"),
            ("Model", without_passwords(profile.model) or "not set here"),
            ("Workspace", part("workspace")),
            ("  memory", part("memory")),
            ("  plans", part("plans")),
            ("  evicted", part("evicted")),
            ("Sessions", f"{profile.sessions}; {part('sessions')}"),
            ("Checkpoints", f"{profile.checkpoints}; {part('checkpoints')}"),
            ("Cache", part("cache")),
            ("Prompts", part("prompt_history")),
            ("In all", part("total")),
        ]
        if profile.problem:
            rows.append(("Problem", profile.problem))
        for label, value in rows:
            print(f"{label + ':':<14}{printable(value)}")


class ProfileRenamingView(NamedTuple):
    """A renamed profile. `container` was removed, `naming` still has the old name, and `directories` use it."""

    before: str
    name: str
    path: str
    container: str | None
    naming: list[str]
    directories: list[str]

    @property
    def notes(self) -> list[str]:
        """The remaining step for the user."""
        change = f"; `deepctl config set default_user {self.name}` changes that"
        return [
            f"{place} still names {self.before}; `deepctl config set {place.split()[0]} … --user {place.split()[-1]}` "
            "changes that."
            if place.startswith("memory.")
            else f"{place} is still {self.before}{'' if place[0] == '$' else change}."
            for place in self.naming
        ]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.name,
            "path": self.path,
            "from": self.before,
            "container": self.container,
            "notes": self.notes,
            "directories": self.directories,
        }

    def print(self) -> None:
        print(f"Renamed {self.before} to {self.name}.")
        if self.container is not None:
            notice(f"Removed its container {self.container}; the next chat creates another.")
        for note in self.notes:
            notice(note)
        for path in self.directories:
            notice(f"{path} now uses {self.name}.")


class ProfilePathView(NamedTuple):
    """Only a path, exactly, for `$(…)`."""

    profile: str | None
    path: str

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path}

    def print(self) -> None:
        print(self.path)


_SHOWN = 20
"""The number of left out paths that are named; --json has all."""


def _amount(totals: Totals) -> str:
    return f"{totals.files:,} {'file' if totals.files == 1 else 'files'}, {size(totals.bytes)}"


def notice_left_out(left_out: Sequence[OmittedPath]) -> None:
    """Print on stderr which paths were left out."""
    for path, reason in left_out[:_SHOWN]:
        notice(f"Left out: {path} ({reason})")
    if len(left_out) > _SHOWN:
        notice(f"Also left out: {len(left_out) - _SHOWN:,} more; --json lists all.")


class ProfileExportView(NamedTuple):
    """An archive that was written to `file`; `path` is its absolute path."""

    profile: str
    file: str
    path: str
    archive: profile_export.ProfileArchive

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "file": self.file,
            "path": self.path,
            **self.archive.totals._asdict(),
            "left_out": [entry._asdict() for entry in self.archive.left_out],
            "projects": self.archive.projects,
        }

    def print(self) -> None:
        print(f"Exported {self.profile} to {printable(self.file)}: {_amount(self.archive.totals)}.")
        self.notices()

    def notices(self) -> None:
        """Print on stderr which files are not in the archive."""
        if self.archive.projects:
            notice(f"Its checkpoints contain files of these directories: {', '.join(self.archive.projects)}.")
        notice_left_out(self.archive.left_out)


class ProfileCopyView(NamedTuple):
    """A copy of a profile."""

    result: profile_copy.ProfileCopy

    def document(self) -> dict[str, Any]:
        result = self.result
        return {
            "profile": result.paths.name,
            "path": result.paths.directory,
            "from": result.origin,
            "parts": list(result.parts),
            **result.totals._asdict(),
            "left_out": [entry._asdict() for entry in result.left_out],
            "settings_left_out": [item._asdict() for item in result.settings_left_out],
        }

    def print(self) -> None:
        result = self.result
        print(f"Copied {result.origin} to {result.paths.name} ({', '.join(result.parts)}): {_amount(result.totals)}.")
        for item in result.settings_left_out:
            notice(f"Left out: {visible(item.key)} ({item.reason})")
        notice_left_out(result.left_out)
        if result.stripped:
            notice(f"Without their setuid, setgid or sticky bit: {counted(result.stripped, 'entry')}.")


class ProfileImportView(NamedTuple):
    """An imported profile. `trusted` means that its imported settings are in force."""

    result: profile_import.ProfileImport
    trusted: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.result.paths.name,
            "path": self.result.paths.directory,
            "from": self.result.origin,
            **self.result.totals._asdict(),
            "notes": self.result.notes,
            "settings": documents(self.result.untrusted),
            "trusted": self.trusted,
        }

    def print(self) -> None:
        name = self.result.paths.name
        origin = "" if self.result.origin == name else f", which was {self.result.origin}"
        print(f"Imported {name}{printable(origin)}: {_amount(self.result.totals)}.")
        for note in self.result.notes:
            notice(note)

    def notice_waiting(self) -> None:
        """Print on stderr which settings are not in force."""
        if self.result.untrusted:
            name = self.result.paths.name
            notice(
                f"Not in force: {', '.join(item.key for item in self.result.untrusted)}. `deepctl profiles trust "
                f"{name}` shows these settings, asks, and puts them into force."
            )


def documents(items: Iterable[TrustItem]) -> list[dict[str, Any]]:
    """The settings as JSON; passwords of addresses are left out."""
    from deepctl.domain import trust

    return [{"key": item.key, "value": trust.shown_value(item), "reason": item.reason} for item in items]


def lines(items: Iterable[TrustItem]) -> Iterator[str]:
    """Every setting in full, with its consequence. In values, invisible characters are shown as escapes."""
    from deepctl.domain import trust

    for item in items:
        value = trust.shown_value(item)
        yield f"  {visible(item.key)}: {visible(item.reason)}"
        for place, leaf_value in _leaves(value):
            yield f"    {visible(place or item.key)} = {visible(json.dumps(leaf_value, ensure_ascii=False))}"


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield place, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{place}.{key}" if place else key)


class TrustView(NamedTuple):
    """The settings of a profile that need trust, and whether they were put into force just now. `seen`: they were shown
    before.

    `remaining_items` stays in untrusted.toml, because no profile could be used with it.
    """

    profile: str
    items: list[TrustItem]
    trusted: bool
    seen: bool = False
    remaining_items: list[TrustItem] = []

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "settings": documents(self.items),
            "trusted": self.trusted,
            "left": documents(self.remaining_items),
        }

    def check(self) -> None:
        """Raises the error of the first setting that stays out of force, if there is one."""
        for item in self.remaining_items:
            if item.problem is not None:
                raise item.problem

    def print(self) -> None:
        if not self.items:
            print(f"Profile {self.profile} has no settings to trust.")
            return
        print(f"Now in force in {self.profile}: {', '.join(visible(item.key) for item in self.items)}.")
        for line in [] if self.seen else lines(self.items):
            print(line)
        if self.remaining_items:
            print(
                f"Not put into force, and still in {UNTRUSTED}: "
                f"{', '.join(visible(item.key) for item in self.remaining_items)}."
            )
        for line in [] if self.seen else lines(self.remaining_items):
            print(line)


class WipeView(NamedTuple):
    """The wipe of one profile, done or as a preview.

    `copies` are the remaining copies elsewhere, `None` if there can be none. `leaves_rewound`: rewound turns stay in
    message logs. `history_stays`: typed text stays in the input history. `is_default`: the settings name the profile.
    `rewinding`: a rewind must be finished first. `roles` were made from the profile, and `readers` have read its
    memory. Lists that were `seen` before are not shown again.
    """

    plan: WipePlan
    dry_run: bool
    copies: CopyCounts | None = None
    container: str | None = None
    history_stays: bool = False
    is_default: bool = False
    rewinding: bool = False
    leaves_rewound: bool = False
    seen: bool = False
    roles: Sequence[str] = ()
    readers: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.plan.profile,
            "dry_run": self.dry_run,
            "removed": [_part_document(part) for part in self.plan.parts],
            "files": self.plan.files,
            "bytes": self.plan.bytes,
            "container": self.container,
            "copies": self.copies._asdict() if self.copies is not None else None,
            "notes": self._notes(),
        }

    def print(self) -> None:
        name = printable(self.plan.profile)
        if self.plan.is_nothing:
            print(f"There is nothing to wipe: profile {name} has no {' and no '.join(self.plan.only)}.")
        elif self.seen:
            print(f"Wiped {_what(self.plan)}: {counted(self.plan.files, 'file')}, {size(self.plan.bytes)}.")
        else:
            print(f"{'Would wipe' if self.dry_run else 'Wiped'} {_what(self.plan)}:")
            for line in _lines(self.plan):
                print(line)
        if self.container is not None:
            print(f"Removed the container {self.container}.")
        for note in [] if self.seen else self._notes():
            notice(note)

    def announce(self) -> list[str]:
        """The text before the confirmation."""
        subject = f"{'Parts of p' if self.plan.only else 'P'}rofile {printable(self.plan.profile)}"
        verb = "are" if self.plan.only else "is"
        return [f"{subject} {verb} about to be deleted:", *_lines(self.plan), *self._replace(dry_run=True)._notes()]

    def _notes(self) -> list[str]:
        return [*self._about_what_goes(), *self._about_what_stays()]

    def _about_what_goes(self) -> list[str]:
        notes = []
        if "sessions" in self.plan.only and any(part.part == "checkpoints" for part in self.plan.parts):
            notes.append(
                "Deleting sessions also deletes their checkpoints, because a checkpoint belongs to a conversation "
                "and contains its prompt."
            )
        if directory_count := sum(part.weight.uncounted for part in self.plan.parts):
            subject = "A directory" if directory_count == 1 else f"{directory_count:,} directories"
            notes.append(f"{subject} could not be read. Its contents are deleted too, and are not counted.")
        if self.rewinding:
            notes.append("A rewind was interrupted. It is finished before anything is deleted.")
        return notes

    def _about_what_stays(self) -> list[str]:
        notes = []
        profile = printable(self.plan.profile)
        stays = "Still there: " if not self.dry_run else "What stays: "
        if self.copies is not None and (self.copies.checkpoints or self.copies.logs):
            copies = self.copies
            places = []
            if copies.checkpoints:
                places.append(
                    f"in {counted(copies.checkpoints, 'checkpoint')} of {counted(copies.sessions, 'session')}"
                )
            if copies.logs:
                places.append(f"possibly in the messages of {counted(copies.logs, 'session')}")
            notes.append(
                f"{stays}copies of this data {', and '.join(places)}; `deepctl wipe --only sessions --user {profile}` "
                "deletes them."
            )
        if self.leaves_rewound:
            notes.append(f"{stays}rewound turns in message logs; `--only sessions` deletes them.")
        if self.history_stays:
            notes.append(f"{stays}typed text in the prompt history; `--only history` deletes it.")
        if self.readers:
            notes.append(f"{stays}copies of its memory, possibly in the conversations of {', '.join(self.readers)}.")
        for role in self.roles:
            notes.append(f"{stays}role {role}, made from {profile}; `deepctl roles delete {role}` deletes it.")
        if self.is_default:
            notes.append(f"The settings still name {profile}: `deepctl config unset default_user` removes it.")
        return notes


class WipeOfAllView(NamedTuple):
    """The wipe of every profile."""

    profiles: Sequence[WipeView]
    dry_run: bool

    def document(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "profiles": [view.document() for view in self.profiles],
            "files": sum(view.plan.files for view in self.profiles),
            "bytes": sum(view.plan.bytes for view in self.profiles),
        }

    def print(self) -> None:
        if not self.profiles:
            print("There is nothing to wipe, because there are no profiles.")
        for view in self.profiles:
            view.print()


class FinishedWipeView(NamedTuple):
    """An interrupted wipe that is now finished."""

    profile: str

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "dry_run": False,
            "removed": [],
            "files": 0,
            "bytes": 0,
            "container": None,
            "copies": None,
            "notes": [self._sentence],
        }

    @property
    def _sentence(self) -> str:
        return f"Finished an interrupted wipe of profile {printable(self.profile)}."

    def print(self) -> None:
        print(self._sentence)


def _part_document(part: WipePart) -> dict[str, Any]:
    weight = part.weight
    document: dict[str, Any] = {"part": part.part, "path": part.path, "files": weight.files, "bytes": weight.bytes}
    if weight.uncounted:
        document["uncounted"] = weight.uncounted
    return document


def _what(plan: WipePlan) -> str:
    return f"{'parts of ' if plan.only else ''}profile {printable(plan.profile)}"


def _lines(plan: WipePlan) -> list[str]:
    """A line for each part that is not empty, and one for the total."""
    parts = [part for part in plan.parts if part.weight.files or part.weight.uncounted]
    rows = [
        (_label(part, plan), counted(part.weight.files, "file"), size(part.weight.bytes), _path(part, plan))
        for part in parts
    ]
    if len(rows) > 1:
        rows.append(("in all", counted(plan.files, "file"), size(plan.bytes), ""))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]


def _label(part: WipePart, plan: WipePlan) -> str:
    """The part of a path; the cache counts as no part, because it is deleted with the checkpoints but also serves
    others.
    """
    return "cache" if part.path == os.path.join(plan.path, "cache") else part.part


def _path(part: WipePart, plan: WipePlan) -> str:
    """A path relative to the profile."""
    path = visible(part.path.removeprefix(f"{plan.path}{os.sep}"))
    is_rest = any(sibling.path.startswith(f"{part.path}{os.sep}") for sibling in plan.parts)
    return f"{path} (everything else)" if is_rest else path


class ProjectListView(NamedTuple):
    profile: str
    projects: list[ProjectDescription]

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "projects": [project._asdict() for project in self.projects]}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.projects:
            notice(f"Profile {self.profile} has no projects; `deepctl chat -C DIR --user {self.profile}` starts one.")
            return
        rows = [_row_at_terminal(project) if terminal else _row(project) for project in self.projects]
        table(
            ("SESSIONS", "CHECKPOINTS", "SIZE", "STATE", "PROJECT"), rows, numbers=("SESSIONS", "CHECKPOINTS", "SIZE")
        )
        for project in self.projects:
            if project.moved_to is not None:
                command = command_to_move(self.profile, project.path, project.moved_to)
                notice(f"{project.path} may be {project.moved_to} now: `{command}`.")


def _row_at_terminal(project: ProjectDescription) -> tuple[str | Cell, ...]:
    state = Cell("missing", "bad") if not project.exists else Cell("trusted" if project.trusted else "", "good")
    path = home(project.path)
    return str(project.sessions), str(project.checkpoints), size(project.bytes), state, path


def _row(project: ProjectDescription) -> tuple[str, ...]:
    state = "missing" if not project.exists else "trusted" if project.trusted else "-"
    return project.path, str(project.sessions), str(project.checkpoints), str(project.bytes), state


class ProjectMoveView(NamedTuple):
    """`in_settings` is whether the setting `project` still names the old directory."""

    profile: str
    old: str
    new: str
    sessions: int
    in_settings: bool

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "old": self.old, "new": self.new, "sessions": self.sessions}

    def print(self) -> None:
        print_sentence(f"{counted(self.sessions, 'session')} of {visible(self.old)} now in {visible(self.new)}.")
        if self.in_settings:
            command = f"deepctl config set project {shlex.quote(self.new)} --user {self.profile}"
            notice(f"The setting project still names {self.old}: `{command}`.")


class ProjectForgetView(NamedTuple):
    """Forgetting a project, done or as a preview; `bytes` is the space that is freed."""

    profile: str
    dry_run: bool
    path: str
    sessions: Sequence[str]
    checkpoints: int
    labels: Sequence[str]
    bytes: int

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "path": self.path,
            "sessions": list(self.sessions),
            "checkpoints": self.checkpoints,
            "labels": list(self.labels),
            "bytes": self.bytes,
        }

    def _contents(self) -> str:
        labels = f" (labelled {', '.join(self.labels)})" if self.labels else ""
        names = f" ({', '.join(self.sessions)})" if self.sessions else ""
        return (
            f"{counted(len(self.sessions), 'session')}{names}, {counted(self.checkpoints, 'checkpoint')}{labels}, "
            f"{size(self.bytes)}"
        )

    def foretell(self) -> None:
        """Print on stderr, before a question, what would be deleted."""
        notice(f"Of {self.path} in profile {self.profile}: {self._contents()}.")
        notice("The directory itself does not change.")

    def print(self) -> None:
        verb = "Would forget" if self.dry_run else "Forgot"
        print_sentence(f"{verb} {visible(self.path)}: {self._contents()}.")


class ProjectTrustView(NamedTuple):
    """What of a project needs trust, and whether it is trusted now.

    `is_shown` means that the user has seen the list, `is_revoked` that the trust was withdrawn.
    """

    profile: str
    path: str
    files: Sequence[TrustedFile]
    trusted: bool
    is_shown: bool = False
    is_revoked: bool = False

    def document(self) -> dict[str, Any]:
        files = [{"path": file.path, "bytes": file.bytes} for file in self.files]
        return {"profile": self.profile, "path": self.path, "files": files, "trusted": self.trusted}

    def lines(self) -> list[str]:
        """The files, one a line."""
        return [f"  {visible(file.path)}  {size(file.bytes)}" for file in self.files]

    def print(self) -> None:
        path = visible(self.path)
        if self.is_revoked:
            print_sentence(f"Nothing in {path} is trusted any more.")
            return
        if not self.files:
            print_sentence(f"Nothing in {path} needs trust.")
            return
        if not self.is_shown:
            for line in self.lines():
                print(line)
        if self.trusted:
            print_sentence(f"{path} is trusted with {counted(len(self.files), 'file')}, until one changes.")
        else:
            print_sentence(f"{path} is not trusted, so the agent does not follow these files.")
