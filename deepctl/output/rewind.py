"""The views of rewinds, comparisons and diffs: what changes, file by file."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.checkpoints import document, short
from deepctl.output.render import (
    has_colour,
    home,
    is_conversation,
    is_terminal,
    notice,
    print_sentence,
    printable,
    printable_lines,
    visible,
)
from deepctl.quantities import counted
from deepctl.store.lookup import CheckpointInfo
from deepctl.store.rewind_plan import above

if TYPE_CHECKING:
    from deepctl.store.diff import CheckpointComparison, FileDifference
    from deepctl.store.rewind import RewindPlan


_MOST_IGNORED = 20
_MOST_COMMITS = 10
_SHORT_COMMIT = 10


class RewindView(NamedTuple):
    """A rewind, done or as a preview. `preview` has the files before and after, `undo` is a command.

    `is_undo` is true for the rewind that `checkpoints undo` does. `in_the_way` are the reasons why paths of the plan
    were not restored exactly.
    """

    profile: str
    dry_run: bool
    plan: RewindPlan
    target: CheckpointInfo
    safety: CheckpointInfo | None
    restored: list[bytes]
    deleted: list[bytes]
    kept: list[bytes]
    in_the_way: dict[bytes, str]
    preview: list[FileDifference]
    undo: str = ""
    is_undo: bool = False

    def document(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "project": self._directory,
            "rewound_to": document(self.target),
            "safety": document(self.safety) if self.safety is not None else None,
            "messages_removed": self.plan.messages_removed,
            "turns_removed": self.plan.turns_removed,
            "messages_restored": self.plan.messages_restored,
            "turns_restored": self.plan.turns_restored,
            "prompt": self.plan.undone,
            "files": {
                "restored": self._names(self.restored),
                "deleted": self._names(self.deleted),
                "kept": self._names(self.kept),
                "conflicts": self._names(self.plan.conflicts),
                **self._paths_of_project(),
            },
            "commits": [commit._asdict() for commit in self.plan.commits],
        }
        if self.dry_run:
            result["preview"] = [_difference(file) for file in self.preview]
        if self._notes:
            result["notes"] = self._notes
        return result

    def print(self) -> None:
        record = self.target.record
        label = f" ({self.target.label})" if self.target.label else ""
        if self.plan.is_nothing:
            reason = "there is no work of the agent to undo" if self.kept else "nothing has changed"
            print_sentence(f"Nothing to do since {record.id}{label}: {reason}.")
            self._print_paths()
            for note in self._notes:
                notice(note)
            return
        place = f" in {visible(home(self._directory))}" if self._directory is not None else ""
        self._print_heading(f"{record.id}{label}, turn {record.turn}{place}")
        message_count = self.plan.messages_removed
        if message_count:
            leave = "would leave" if self.dry_run else "left"
            turns = self.plan.turns_removed
            print_sentence(f"{counted(turns, 'turn')} ({counted(message_count, 'message')}) {leave} the conversation.")
        restored_count = self.plan.messages_restored
        if restored_count:
            phrase = "would come back" if self.dry_run else "came back"
            print_sentence(
                f"{counted(self.plan.turns_restored, 'turn')} ({counted(restored_count, 'message')}) {phrase}."
            )
        if self.dry_run:
            conflicts = set(self._names(self.plan.conflicts))
            merged_names = set(self._names(self.plan.merged_paths))
            by_command = set(self._names(self.plan.command_paths))
            rows = []
            kept = set(self._names(self.kept))
            for file in self.preview:
                if file.path in kept:
                    continue
                remark = "  (conflict)" if file.path in conflicts else "  (merged)" if file.path in merged_names else ""
                rows.append((f"{preview_line(file)}{remark}", file.path in by_command))
        else:
            implied = self._implied_directories()
            rows = [self._row("restored", path) for path in self.restored if path not in implied]
            rows += [self._row("deleted", path) for path in self.deleted if path not in implied]
        has_project = self.plan.workspace.project is not None
        by_commands = [line for line, by_command in rows if by_command and has_project]
        self._print_rows([line for line, by_command in rows if not (by_command and has_project)])
        self._print_paths()
        if by_commands:
            # Last, because in a project users save files while commands run.
            print_sentence("Changed by commands, with anything that was saved while they ran:")
            self._print_rows(by_commands)
        self._print_commits()
        for remark in self._notes:
            notice(remark)
        # A chat puts it into the next input line.
        if self.plan.undone is not None and (self.dry_run or not is_conversation()):
            print("The prompt that was undone:" if not self.dry_run else "The prompt that would be undone:")
            print("\n".join(f"> {printable(line)}" for line in self.plan.undone.split("\n")))
        if self.safety is not None:
            notice(f"To undo this: `{self.undo}`. Checkpoint {self.safety.record.id} contains the state before it.")

    @property
    def _notes(self) -> list[str]:
        """Notes about what the rewind leaves out."""
        is_about_files = self.plan.request.only in ("", "files")
        if not is_about_files or not self.target.record.project or self.plan.workspace.project is not None:
            return []
        return [
            f"Checkpoint {self.target.record.id} also has files of a project. They are not part of the rewind, because "
            "the session was imported and works in the private workspace."
        ]

    def _paths_of_project(self) -> dict[str, list[str]]:
        """The lists of paths that only a rewind in a project has."""
        if self.plan.workspace.project is None:
            return {}
        return {
            "ignored": self._names(self.plan.ignored_paths),
            "merged": self._names(self.plan.merged_paths),
            "commands": self._names(self.plan.command_paths),
        }

    def _implied_directories(self) -> set[bytes]:
        """Made and deleted directories above another changed path, which implies them."""
        changed_paths = {*self.restored, *self.deleted}
        implied = {directory for path in changed_paths for directory in above(path)}
        return {change.path for change in self.plan.changes if change.is_whole_directory and change.path in implied}

    def _row(self, verb: str, path: bytes) -> tuple[str, bool]:
        """A line for a changed path, and whether a command changed the path."""
        remark = ""
        if path in self.plan.conflicts and self.safety is not None:
            remark = f" (checkpoint {self.safety.record.id} contains the earlier version)"
        elif path in self.plan.merged_paths:
            verb, remark = "merged", " (changes of another author stay)"
        return f"{verb:<9} {visible(self._name(path))}{remark}", path in self.plan.command_paths

    def _print_rows(self, lines: Sequence[str]) -> None:
        show = print if self.dry_run else print_sentence
        for line in lines:
            show(f"  {line}")

    def _print_heading(self, target: str) -> None:
        session = self.plan.session
        if self.plan.refusal is not None:
            from deepctl.store.rewind import RewindConflicts

            has_conflicts = isinstance(self.plan.refusal, RewindConflicts)
            result = "refused because of conflicts. With --force it would be done" if has_conflicts else "refused"
            print_sentence(f"The rewind of session {session} to {target} would be {result}.")
        elif self.is_undo:
            verb, place = ("Would undo", "would be") if self.dry_run else ("Undid", "is")
            print_sentence(f"{verb} the last rewind: session {session} {place} back at {target}.")
        else:
            print_sentence(f"{'Would rewind' if self.dry_run else 'Rewound'} session {session} to {target}.")

    def _print_paths(self) -> None:
        if self.dry_run:
            previewed_paths = {file.path for file in self.preview}
            for name in self._names(self.plan.conflicts):
                if name not in previewed_paths:
                    print_sentence(f"  conflict  {visible(name)}")
        for path in self.kept:
            reason = "not changed by this session"
            if path in self.plan.occupied_paths:
                reason = "a directory with files of another author is in its place"
            elif path in self.in_the_way:
                reason = self.in_the_way[path]
            elif self.plan.is_unread(path):
                reason = "cannot be read"
            elif path in self.plan.blocked_paths:
                reason = "its earlier content was not stored"
            print_sentence(f"  kept      {visible(self._name(path))} (differs from the checkpoint, {reason})")
        for path in self.plan.ignored_paths[:_MOST_IGNORED]:
            name = self._name(path)
            is_gone = self._directory is not None and not os.path.lexists(os.path.join(self._directory, name))
            result = "not restored" if is_gone else "it stays as it is"
            print_sentence(f"  ignored   {visible(name)} (not covered at the checkpoint or now, so {result})")
        if (remainder := len(self.plan.ignored_paths) - _MOST_IGNORED) > 0:
            print_sentence(f"  … and {counted(remainder, 'other ignored file')}")
        if self.kept and not self.plan.request.exact:
            # Without its present content in the safety checkpoint, nothing is changed.
            condition = ", once you may read them (chmod u+rwX)" if any(map(self.plan.is_unread, self.kept)) else ""
            notice(f"--exact changes the kept files too{condition}.")

    def _print_commits(self) -> None:
        """The commits of the undone turns: a rewind never changes the repository."""
        commits = self.plan.commits
        if not commits:
            return
        verb = "would stay" if self.dry_run else "stay" if len(commits) > 1 else "stays"
        print_sentence(f"{counted(len(commits), 'commit')} of the agent {verb} in git:")
        for commit in commits[:_MOST_COMMITS]:
            print(f"  {commit.id[:_SHORT_COMMIT]} {printable(commit.subject)}")
        if len(commits) > _MOST_COMMITS:
            print(f"  … and {len(commits) - _MOST_COMMITS} more")
        head = self.target.record.git.get("head", "")[:_SHORT_COMMIT]
        if head:
            where = f" -C {shlex.quote(self._directory)}" if self._directory is not None else ""
            notice(f"`git{where} reset {head}` drops them, with all later commits, and leaves the files as they are.")

    @property
    def _directory(self) -> str | None:
        """The directory of the project that changes; `None` for the workspace of the profile."""
        project = self.plan.workspace.project
        return project.root if project is not None else None

    def _name(self, path: bytes) -> str:
        """A path as the user sees it: relative to the project, or below /profile in a session of a project."""
        return os.fsdecode(self.plan.workspace.shown(path))

    def _names(self, paths: Sequence[bytes]) -> list[str]:
        return [self._name(path) for path in paths]


def _difference(file: FileDifference) -> dict[str, Any]:
    return {
        "path": file.path,
        "change": file.change,
        "added_lines": file.added_lines,
        "removed_lines": file.removed_lines,
        "remark": file.remark,
    }


def preview_line(file: FileDifference) -> str:
    """A file with the numbers of added and removed lines."""
    if file.change == "mode":
        counts = _modes(file)
    elif file.added_lines is None:
        counts = file.remark or ""
    elif any(entry is not None and entry.what == "directory" for entry in (file.before, file.after)):
        counts = "directory"
    else:
        counts = f"+{file.added_lines} -{file.removed_lines}"
    return f"{file.change:<9} {visible(file.path)}  {counts}"


def _modes(file: FileDifference) -> str:
    return f"{file.before.mode:04o} to {file.after.mode:04o}" if file.before and file.after else ""


def _print_preview(preview: Sequence[FileDifference]) -> None:
    for file in preview:
        print(f"  {preview_line(file)}")


class CheckpointDiffView(NamedTuple):
    """A comparison; `before` and `after` are the records of `comparison` with the details of lists."""

    profile: str
    comparison: CheckpointComparison
    before: CheckpointInfo
    after: CheckpointInfo | None
    stat: bool

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "from": document(self.before),
            "to": document(self.after) if self.after is not None else None,
            "files": [
                _difference(file) | ({} if self.stat else {"diff": file.diff.decode("utf-8", "surrogateescape")})
                for file in self.comparison.differences
            ],
            "turns": {
                "removed": [turn._asdict() for turn in self.comparison.turns_removed],
                "added": [turn._asdict() for turn in self.comparison.turns_added],
            },
            "remark": self.comparison.remark,
        }

    def print(self) -> None:
        if self.comparison.remark is not None:
            notice(self.comparison.remark)
        if is_terminal(sys.stdout) and not (
            self.comparison.differences or self.comparison.turns_removed or self.comparison.turns_added
        ):
            since = f" from checkpoint {self.before.record.id} until now" if self.after is None else ""
            notice(f"Nothing differs{since}.")
            if self.after is None:
                notice("`~1` is the state before the last turn.")
        for sign, turns in (("-", self.comparison.turns_removed), ("+", self.comparison.turns_added)):
            for turn in turns:
                print(f"# {sign} turn {turn.turn}: {printable(short(' '.join(turn.prompt.split()), 100))}")
        if self.stat:
            _print_preview(self.comparison.differences)
            return
        for file in self.comparison.differences:
            _print_difference(file)


def _print_difference(file: FileDifference) -> None:
    name = file.path if file.path.isprintable() else repr(file.path)
    if file.before is not None and file.after is not None and file.before.mode != file.after.mode:
        print(f"# {name}: mode {_modes(file)}")
    if file.change == "type" and file.before is not None and file.after is not None:
        print(f"# {name}: a {file.before.what} became a {file.after.what}")
    elif not file.diff and file.change in ("added", "deleted"):
        entry = file.after or file.before
        print(f"# {name}: {entry.what if entry else ''} {file.change}{f', {file.remark}' if file.remark else ''}")
    elif file.remark:
        print(f"# {name}: {file.remark}")
    print_diff(file.diff)


_COLOURS = {"+": "32", "-": "31", "@": "36"}


def print_diff(diff: bytes) -> None:
    """Print a diff: exact bytes when piped; at a terminal in colours, with control characters as escapes."""
    colour = has_colour(sys.stdout)
    if not is_terminal(sys.stdout) and not colour:
        sys.stdout.flush()
        sys.stdout.buffer.write(diff)
        return
    for number, line in enumerate(diff.decode("utf-8", "surrogateescape").split("\n")[:-1]):
        code = _COLOURS.get(line[:1], "") if number > 1 else "1"
        text = printable_lines(line)
        print(f"\x1b[{code}m{text}\x1b[0m" if colour and code else text)
