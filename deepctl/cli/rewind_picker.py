"""Choosing a checkpoint at the terminal: the list at the top, the preview of the rewind below."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from deepctl.cli.repl import terminal
from deepctl.cli.repl.clusters import with_stand_ins
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, Interrupted, NotFound
from deepctl.layout import ProfilePaths
from deepctl.output.render import Progress, ago, cells, fit, printable, visible
from deepctl.output.rewind import preview_line
from deepctl.quantities import counted
from deepctl.store import lookup, rewind
from deepctl.store.records import Record, SessionRecord
from deepctl.store.repository import ReadOnlyRepository, Repository
from deepctl.store.rewind import RewindConflicts, RewindRequest

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import StyleAndTextTuples

_PREVIEWED = 12
_SHOWN = 12
_SHORTEST = 16


def pick(
    profile: ProfilePaths, in_force: Settings, session: str | None, only: str, force: bool, exact: bool, merge: bool
) -> str:
    """Let the user choose; returns the id. `in_force` are the profile's settings.

    Raises `Interrupted` if the user leaves, `NotFound` without checkpoints.
    """
    coverage = in_force.coverage()
    with Repository.read_only(profile, coverage=coverage) as reader:
        current = lookup.current_session(reader.paths, session)
        line = reader.ledger.line_of(reader.ledger.head(current))
        records = [record for record in line if record.kind != "tool"]
        if not records:
            raise NotFound(f"Session {current.name!r} has no checkpoints.", code="checkpoint_not_found")
        return _Picker(reader, current, records, (only, force, exact, merge)).run()


class _Picker:
    """One choice. Arrow keys or j and k move, Enter selects, Escape, q and Ctrl-C leave."""

    def __init__(
        self,
        reader: ReadOnlyRepository,
        session: SessionRecord,
        records: list[Record],
        options: tuple[str, bool, bool, bool],
    ) -> None:
        self._reader = reader
        self._session = session
        self._records = records
        self._options = options
        # The default of a script: the start of the last turn. That checkpoint may have been removed.
        try:
            began = lookup.find_checkpoint(reader.paths, reader.ledger, "~1", session.name)
        except DeepctlError:
            began = records[0]
        self._at = next((number for number, record in enumerate(records) if record.id == began.id), 0)
        self._previews: dict[str, list[str]] = {}

    def run(self) -> str:
        from prompt_toolkit.application import Application
        from prompt_toolkit.input import create_input
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window

        keys = KeyBindings()

        def move(by: int) -> None:
            self._at = max(0, min(len(self._records) - 1, self._at + by))

        far = len(self._records)
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -_SHOWN, "pagedown": _SHOWN, "home": -far, "end": far}
        for key, step in steps.items():
            keys.add(key)(lambda event, step=step: move(step))

        @keys.add("enter")
        def _take(event: KeyPressEvent) -> None:
            event.app.exit(result=self._records[self._at].id)

        @keys.add("escape", eager=True)
        @keys.add("q")
        @keys.add("c-c")
        @keys.add("c-d")
        def _leave(event: KeyPressEvent) -> None:
            event.app.exit(result=None)

        choices = Window(
            FormattedTextControl(self._choices, focusable=True, show_cursor=False), dont_extend_height=True
        )
        preview = Window(FormattedTextControl(self._preview), dont_extend_height=True, wrap_lines=False)
        application: Application[str | None] = Application(
            Layout(HSplit([choices, preview])),
            key_bindings=keys,
            erase_when_done=True,
            # No polling task: SIGTERM could be raised inside such a task, and would then end only the task.
            terminal_size_polling_interval=None,
            input=create_input(sys.stdin),
            output=terminal.output(sys.stderr),
        )
        checkpoint_id = application.run()
        if checkpoint_id is None:
            raise Interrupted("No checkpoint was chosen, so nothing was rewound.")
        return checkpoint_id

    def _choices(self) -> StyleAndTextTuples:
        heading = f"Rewind session {self._session.name} to (Enter selects, Esc leaves):"
        if cells(heading) > _room():
            heading = "Where? (Enter selects, Esc leaves)"
        fragments: StyleAndTextTuples = [("bold", f"{fit(heading, _room())}\n")]
        height = self._height()
        first = max(0, min(self._at - height // 2, len(self._records) - height))
        for number in range(first, min(first + height, len(self._records))):
            words = self._words(self._records[number])
            is_selected = number == self._at
            line = fit(f"{'>' if is_selected else ' '} {words}", _room())
            fragments.append(("reverse" if is_selected else "", f"{with_stand_ins(line)}\n"))
        return fragments

    def _height(self) -> int:
        """The number of choices that fit: at most half of the screen."""
        from prompt_toolkit.application import get_app

        return max(1, min(_SHOWN, get_app().output.get_size().rows // 2 - 1))

    def _words(self, record: Record) -> str:
        label = self._reader.ledger.labels.get(record.id)
        kind = "" if record.kind == "turn" else f" ({record.kind})"
        label_text = f" {printable(label)}" if label else ""
        before, after = f"{record.id[:8]} turn {record.turn}{kind}{label_text}, ", f", {ago(record.created_at)}"
        if not record.prompt:
            return f"{before}the beginning{after}"
        room = _room() - cells(f"> {before}after ''{after}")
        prompt = printable(record.prompt)
        prompt = fit(prompt, max(room, _SHORTEST))
        return f"{before}after '{prompt}'{after}"

    def _preview(self) -> StyleAndTextTuples:
        from prompt_toolkit.application import get_app

        room = max(1, get_app().output.get_size().rows - self._height() - 2)
        lines = [fit(line, _room()) for line in self._lines(self._records[self._at])]
        return [("", "\n".join(lines if len(lines) <= room else [*lines[: room - 1], "  …"]))]

    def _lines(self, record: Record) -> list[str]:
        if record.id not in self._previews:
            try:
                self._previews[record.id] = self._preview_lines(record)
            except (DeepctlError, OSError) as error:
                self._previews[record.id] = [f"This checkpoint cannot be shown: {printable(str(error))}"]
        return self._previews[record.id]

    def _preview_lines(self, record: Record) -> list[str]:
        reader = self._reader
        with Progress("Looking") as progress:
            reader.snapshots = reader.snapshots._replace(report=progress)
            plan = rewind.preview(reader, self._session, RewindRequest(record, *self._options))
        changes = rewind.differences(reader, plan)
        files = f"{len(changes)} file{'' if len(changes) == 1 else 's'} would change"
        turns = f"{plan.turns_removed} turn{'' if plan.turns_removed == 1 else 's'} would leave the conversation"
        lines = [f"{files}, {turns}."]
        if plan.refusal is not None and not isinstance(plan.refusal, RewindConflicts):
            lines.append(f"REFUSED: {printable(plan.refusal.message)}")
        elif plan.conflicts:
            paths = ", ".join(visible(os.fsdecode(plan.workspace.shown(path))) for path in plan.conflicts[:3])
            remainder = f" and {len(plan.conflicts) - 3} more" if len(plan.conflicts) > 3 else ""
            lines.append(f"CONFLICT, needs --force: changed by another author after the agent: {paths}{remainder}")
        lines += [f"  {preview_line(change)}" for change in changes[:_PREVIEWED]]
        if len(changes) > _PREVIEWED:
            lines.append(f"  … and {len(changes) - _PREVIEWED} more")
        if plan.kept_paths:
            verbs = "differs and stays" if len(plan.kept_paths) == 1 else "differ and stay"
            lines.append(f"  {counted(len(plan.kept_paths), 'other file')} {verbs}: not changed by this session")
        return lines


def _room() -> int:
    """The number of cells of a line. The last cell stays free, because some terminals start a new line there."""
    from prompt_toolkit.application import get_app

    return get_app().output.get_size().columns - 1
