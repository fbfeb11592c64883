"""The views of the memory commands: notebooks, changes, versions, differences, and results of a search or a purge.

Modules that only some views need are imported in these views, so that `show` and `list` start quickly.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.render import (
    Cell,
    ago,
    has_colour,
    is_terminal,
    notice,
    printable,
    printable_lines,
    say,
    table,
    terminal_size,
)
from deepctl.quantities import counted, size

if TYPE_CHECKING:
    from deepctl.domain.memory.changes import ForgottenLines, MemoryChange, NotebookLine
    from deepctl.domain.memory.directory import ForgetRequest, Notebook
    from deepctl.domain.memory.history import NotebookDifference, NotebookHistory, Version
    from deepctl.domain.memory.search import NotebookMatch, Span
    from deepctl.domain.memory.shared import SharedNotebook
    from deepctl.domain.purge.purge import PurgeResult
    from deepctl.domain.purge.report import PurgePlace
    from deepctl.store.lookup import CheckpointInfo

_ITEM = re.compile(r" {0,3}(?:(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)|>)")
"""The start of a line that Markdown would continue with the text below: a list item or a quotation."""
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_NOTHING = "The memory of profile {} is empty."


def document(notebook: Notebook, *, content: bool = False, source: str | None = None) -> dict[str, Any]:
    """A notebook as JSON. `source` is the profile that it belongs to, if this is to be said."""
    fields: dict[str, Any] = {
        "name": notebook.name,
        "path": notebook.path,
        "bytes": notebook.size,
        "modified_at": notebook.modified_at,
    }
    if source is not None:
        fields["source"] = source
    if content:
        fields["content"] = notebook.content.decode("utf-8", "surrogateescape")
    return fields


class NotebookView(NamedTuple):
    """One notebook, or `None` if it is empty: the exact bytes when piped, rendered at a terminal.

    `checkpoint` is the checkpoint of the shown version, `source` another profile that shares the notebook.
    """

    profile: str
    agent: str
    notebooks: list[Notebook]
    checkpoint: str | None = None
    source: str | None = None

    def document(self) -> dict[str, Any]:
        source = self.source or self.profile
        files = [document(notebook, content=True, source=source) for notebook in self.notebooks]
        as_of = {"checkpoint": self.checkpoint} if self.checkpoint is not None else {}
        return {"profile": self.profile, "agent": self.agent, **as_of, "files": files}

    def print(self) -> None:
        if not self.notebooks:
            as_of = f"The memory of profile {self.profile} was empty at checkpoint {self.checkpoint}."
            notice(as_of if self.checkpoint else _NOTHING.format(self.profile))
        for notebook in self.notebooks:
            if not is_terminal(sys.stdout):
                sys.stdout.flush()
                sys.stdout.buffer.write(notebook.content)
                continue
            _render(notebook.content.decode("utf-8", "replace"))


def _render(text: str) -> None:
    """Render Markdown at a terminal like answers; line breaks stay, because a note is a line."""
    from deepctl.output.stream.lines import of_stdout
    from deepctl.output.stream.markdown import Markdown

    terminal, (width, _) = of_stdout(), terminal_size()
    markdown = Markdown(terminal)
    markdown.feed(_apart(text))
    for line in markdown.finish(width):
        print(terminal.ansi(line))


def _apart(text: str) -> str:
    """`text` with an empty line between a list and a note below it, which Markdown would add to the item."""
    lines: list[str] = []
    fence, is_item = "", False
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if not fence and not _ITEM.match(line):
            if is_item and line[:1].strip():
                lines.append("")
            is_item = is_item and line[:1] in (" ", "\t")
        elif not fence:
            is_item = True
        if mark is not None and not fence:
            fence = mark[1]
        elif mark is not None and mark[1].startswith(fence) and not line[mark.end() :].strip():
            fence = ""
        lines.append(line)
    return "\n".join(lines)


class NotebookListView(NamedTuple):
    """The notebooks of a profile, those that other profiles share with it, and why some of these do not."""

    profile: str
    agent: str
    notebooks: list[Notebook]
    shared: list[SharedNotebook]
    problems: list[str]

    def document(self) -> dict[str, Any]:
        files = [document(notebook, source=self.profile) for notebook in self.notebooks]
        files += [{**document(item.notebook, source=item.owner), "name": item.name} for item in self.shared]
        return {"profile": self.profile, "agent": self.agent, "files": files, "notes": self.problems}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        for problem in self.problems:
            notice(problem)
        if terminal and not self.notebooks and not self.shared:
            notice(_NOTHING.format(self.profile))
            return
        rows = [(notebook.name, notebook, "") for notebook in self.notebooks]
        rows += [(item.name, item.notebook, f"of {item.owner}, read-only") for item in self.shared]
        table(
            ("FILE", "CHANGED", "SIZE", *(("SOURCE",) if self.shared else ())),
            [
                (
                    name,
                    Cell(ago(notebook.modified_at) if terminal else notebook.modified_at, "faint"),
                    size(notebook.size) if terminal else str(notebook.size),
                    *((source or "-",) if self.shared else ()),
                )
                for name, notebook, source in rows
            ],
            numbers=("SIZE",),
        )


class NotebookAdditionView(NamedTuple):
    profile: str
    agent: str
    change: MemoryChange

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "file": document(self.change.notebook),
            "checkpoint": self.change.checkpoint.id if self.change.checkpoint is not None else None,
            "notes": self.change.notes,
        }

    def print(self) -> None:
        print(f"Added to {printable(self.change.notebook.name)}.")
        for note in self.change.notes:
            notice(note)


class NotebookEditView(NamedTuple):
    """An edit. `change` is `None` if the person changed nothing; `notebook` is then `None` if there is still none."""

    profile: str
    agent: str
    name: str
    notebook: Notebook | None
    change: MemoryChange | None
    notes: list[str]

    def document(self) -> dict[str, Any]:
        change = self.change
        additions, deletions = (change.lines or (None, None)) if change is not None else (0, 0)
        return {
            "profile": self.profile,
            "agent": self.agent,
            "file": document(self.notebook) if self.notebook is not None else None,
            "changed": change is not None,
            "merged": change is not None and change.merged,
            "added_lines": additions,
            "removed_lines": deletions,
            "checkpoint": change.checkpoint.id if change is not None and change.checkpoint is not None else None,
            "notes": self.notes,
        }

    def print(self) -> None:
        name = printable(self.name)
        if self.change is None:
            notice(f"{self.name} was not changed.")
        else:
            lines = f" (+{self.change.lines[0]} -{self.change.lines[1]})" if self.change.lines is not None else ""
            print(f"Changed {name}{lines}.")
            if self.change.merged:
                notice("Another author changed it in the meantime: it contains both changes.")
        for note in self.notes:
            notice(note)


def _text(line: bytes) -> str:
    """A line of a notebook without its end."""
    return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def line_shown(name: str, number: int, text: str) -> str:
    """A line of a notebook and its position, with control characters shown as escapes."""
    return f"{printable(name)}:{number}: {printable_lines(text)}"


class ForgottenLinesView(NamedTuple):
    """The removed lines, or those that would be removed (`result` is `None`). `is_shown`: the user has seen them."""

    profile: str
    agent: str
    request: ForgetRequest
    lines: list[NotebookLine]
    result: ForgottenLines | None
    undo: str | None
    is_shown: bool = False

    def document(self) -> dict[str, Any]:
        result = self.result
        return {
            "profile": self.profile,
            "agent": self.agent,
            "dry_run": result is None,
            "text": self.request.text.decode("utf-8", "surrogateescape"),
            "removed": [{"file": line.file, "line": line.line, "text": _text(line.text)} for line in self.lines],
            "checkpoint": result.before.id if result is not None else None,
            "after": result.after.id if result is not None and result.after is not None else None,
            "undo": self.undo,
            "notes": result.notes if result is not None else [],
        }

    def tell(self) -> None:
        """Print the lines that would be removed on stderr, before a question."""
        for line in self.lines:
            say(line_shown(line.file, line.line, _text(line.text)))

    def print(self) -> None:
        if not self.is_shown or not is_terminal(sys.stdout):
            for line in self.lines:
                print(line_shown(line.file, line.line, _text(line.text)))
        count = len(self.lines)
        files = len({line.file for line in self.lines})
        verb = "Forgot" if self.result is not None else "Would forget"
        where = f"{files} notebook{'' if files == 1 else 's'}"
        print(f"{verb} {count} line{'' if count == 1 else 's'} in {where}.")
        if self.result is None:
            return
        for note in self.result.notes:
            notice(note)
        if self.undo is not None:
            notice("Checkpoints and conversations still contain the text. To restore the memory:")
            notice(f"  {self.undo}")
        else:
            notice("Checkpoints leave the notebooks out (snapshot.exclude), so the lines cannot be restored.")


_SHORT = 8


class NotebookHistoryView(NamedTuple):
    """The versions of a notebook, the newest first."""

    profile: str
    agent: str
    history: NotebookHistory

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "file": self.history.file,
            "versions": [
                {
                    "checkpoint": version.checkpoint,
                    "kind": version.kind,
                    "session": version.session,
                    "at": version.at,
                    "bytes": version.size,
                    "added_lines": version.added,
                    "removed_lines": version.removed,
                }
                for version in self.history.versions
            ],
            "damaged": [problem._asdict() for problem in self.history.damaged],
        }

    def print(self) -> None:
        if not is_terminal(sys.stdout):
            table((), [_row(version) for version in self.history.versions])
        elif self.history.versions:
            rows = [_row_at_terminal(version) for version in self.history.versions]
            table(("WHEN", "CHECKPOINT", "LINES", "SIZE", "SESSION"), rows, numbers=("LINES", "SIZE"))
        elif not self.history.damaged:
            notice(f"{self.history.file} of profile {self.profile} has never had any notes.")
        first: dict[str, list[str]] = {}
        for problem in self.history.damaged:
            first.setdefault(problem.reason, []).append(problem.id or "a checkpoint")
        for reason, ids in first.items():
            remainder = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            notice(f"Damaged: {ids[0]}{remainder} ({reason.rstrip('.')}).")


def _row(version: Version) -> tuple[str, ...]:
    counts = ("" if count is None else str(count) for count in (version.added, version.removed, version.size))
    return (version.at or "", version.checkpoint or version.kind, version.session or "", *counts)


def _row_at_terminal(version: Version) -> tuple[str, ...]:
    from deepctl.domain.memory.history import NOW, REWOUND

    at = ago(version.at) if version.at is not None else ""
    name = version.checkpoint[:_SHORT] if version.checkpoint is not None else ""
    if version.kind == REWOUND:
        name = f"back to {name}" if name else "rewound"
    lines = f"+{version.added} -{version.removed}" if version.added is not None else "?"
    return (
        at,
        NOW if version.kind == NOW else name,
        lines,
        size(version.size) if version.size is not None else "gone",
        version.session or "",
    )


class NotebookDiffView(NamedTuple):
    """The differences between notebooks; `after` is `None` for now. Piped, exact bytes for `patch -p1 --binary`."""

    profile: str
    agent: str
    before: CheckpointInfo
    after: CheckpointInfo | None
    differences: list[NotebookDifference]

    def document(self) -> dict[str, Any]:
        from deepctl.output.checkpoints import document as checkpoint_document

        return {
            "profile": self.profile,
            "agent": self.agent,
            "from": checkpoint_document(self.before),
            "to": checkpoint_document(self.after) if self.after is not None else None,
            "files": [
                {
                    "path": difference.path,
                    "change": difference.change,
                    "added_lines": difference.added,
                    "removed_lines": difference.removed,
                    "remark": difference.remark,
                    "diff": difference.diff.decode("utf-8", "surrogateescape"),
                }
                for difference in self.differences
            ],
        }

    def print(self) -> None:
        from deepctl.output.rewind import print_diff

        terminal = is_terminal(sys.stdout)
        if terminal and not self.differences:
            since = self.after.record.id if self.after is not None else "now"
            notice(f"The notebooks are the same at checkpoint {self.before.record.id} and {since}.")
        for difference in self.differences:
            if difference.remark is not None:
                notice(f"{difference.path}: {difference.remark}.")
            elif not difference.diff:
                notice(f"{difference.path}: {difference.change}, empty.")
            print_diff(difference.diff)


class NotebookMatchesView(NamedTuple):
    """The matching lines, in the format of `grep -n`."""

    profile: str
    agent: str
    query: str
    matches: list[NotebookMatch]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "query": self.query,
            "matches": [
                {
                    "file": match.file,
                    "line": match.line,
                    "text": match.text,
                    "before": match.before,
                    "after": match.after,
                }
                for match in self.matches
            ],
        }

    def print(self) -> None:
        if not self.matches and is_terminal(sys.stdout):
            notice("No match.")
        colour = has_colour(sys.stdout)
        context = any(match.before or match.after for match in self.matches)
        lines: dict[tuple[str, int], str] = {}
        for match in self.matches:
            around = [*enumerate(match.before, match.line - len(match.before)), *enumerate(match.after, match.line + 1)]
            for number, text in around:
                lines.setdefault((match.file, number), f"{printable(match.file)}-{number}-{printable_lines(text)}")
            where = f"{printable(match.file)}:{match.line}:"
            # A matching line is shown as a match, even if it is in the context of another match.
            lines[match.file, match.line] = where + _marked(match.text, match.spans if colour else [])
        last: tuple[str, int] | None = None
        for (file, number), line in sorted(lines.items()):
            if context and last is not None and (file, number) != (last[0], last[1] + 1):
                print("--")
            print(line)
            last = file, number


def _marked(text: str, spans: list[Span]) -> str:
    """A line with its matches in bold red."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [printable_lines(text[position:start]), f"\x1b[1;31m{printable_lines(text[start:end])}\x1b[0m"]
        position = end
    return "".join([*pieces, printable_lines(text[position:])])


_SHOWN = 20


def question(result: PurgeResult) -> str:
    """The question before a purge."""
    places = [counted(len(result.workspace_lines), "notebook")] if result.workspace_lines else []
    if result.notebooks:
        places.append(counted(result.checkpoints, "checkpoint"))
    if result.leftovers:
        places.append(_leftovers(result))
    return f"Remove the text permanently from {_enumerated(places)}?"


def _enumerated(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _leftovers(result: PurgeResult) -> str:
    return f"{counted(result.leftovers, 'content')} that removed checkpoints left"


def _summary(result: PurgeResult) -> str:
    lines = sum(len(notebook.lines) for notebook in result.workspace_lines)
    parts = [f"{counted(lines, 'line')} in {counted(len(result.workspace_lines), 'notebook')}"] if lines else []
    if result.notebooks:
        versions = counted(result.notebooks, "version")
        parts.append(f"{versions} of notebooks in {counted(result.checkpoints, 'checkpoint')}")
    if result.leftovers:
        parts.append(_leftovers(result))
    return _enumerated(parts)


_WORDS = {
    "session": ("session {}", "message"),
    "application": ("a conversation of an application {}", "message"),
    "file": ("file {}", ""),
    "checkpoint_file": ("file {} in checkpoints", "checkpoint"),
    "prompt_history": ("input history ({})", "line"),
    "settings": ("settings ({})", "line"),
    "profile": ("{} in the profile's directory", ""),
    "unread": ("{} cannot be read completely, so it may contain the text", ""),
}
_LEDGER = {"prompts": "beginnings of prompts", "labels": "labels", "other": "paths and other notes"}


def _shown(place: PurgePlace) -> str:
    if place.place == "ledger":
        return f"{_LEDGER[place.name]} in the list of checkpoints: {counted(place.times, 'line')}"
    words, unit = _WORDS[place.place]
    times = f": {counted(place.times, unit)}" if unit else ""
    return f"{words.format(printable(place.name))}{times}"


def readers_note(readers: Sequence[str]) -> str:
    """The note that other profiles have read the notebooks, so their messages may contain copies."""
    names = ", ".join(readers)
    return f"Other profiles have read these notebooks, and their conversations may contain copies: {names}."


class PurgedLinesView(NamedTuple):
    """The result of a purge, or its preview (`dry_run`). `is_shown`: the user has seen the lines. `readers` are other
    profiles that have read the notebooks.
    """

    profile: str
    agent: str
    request: ForgetRequest
    result: PurgeResult
    places: list[PurgePlace]
    dry_run: bool
    is_shown: bool = False
    readers: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        result = self.result
        return {
            **self._lines().document(),
            "dry_run": self.dry_run,
            "notes": self._notes(),
            "purged": {
                "checkpoints": result.checkpoints,
                "notebooks": result.notebooks,
                "leftovers": result.leftovers,
                "lines": [{"file": file, "text": _text(line)} for file, line in result.checkpoint_lines],
            },
            "still_in": [{"place": place.place, "name": place.name, "count": place.times} for place in self.places],
        }

    def _lines(self) -> ForgottenLinesView:
        from deepctl.domain.memory.changes import NotebookLine

        lines = [
            NotebookLine(notebook.file, number, text)
            for notebook in self.result.workspace_lines
            for number, text in notebook.lines
        ]
        return ForgottenLinesView(self.profile, self.agent, self.request, lines, None, None)

    def _notes(self) -> list[str]:
        notes = [
            f"Pack {name} cannot be read completely, so it stays; it may contain the text."
            for name in self.result.unread_packs
        ]
        return [*notes, *([readers_note(self.readers)] if self.readers else [])]

    def tell(self) -> None:
        """Print the lines that would be removed on stderr, before a question."""
        self._lines().tell()
        for line in self._only_kept():
            say(line)

    def _only_kept(self) -> list[str]:
        """Lines that are in checkpoints but no longer in the workspace."""
        live = {(notebook.file, text) for notebook in self.result.workspace_lines for _, text in notebook.lines}
        kept_lines = dict.fromkeys(
            (file, _text(line)) for file, line in self.result.checkpoint_lines if (file, line) not in live
        )
        return [f"{printable(file)} in checkpoints: {printable_lines(text)}" for file, text in kept_lines]

    def print(self) -> None:
        if not self.is_shown or not is_terminal(sys.stdout):
            for notebook in self.result.workspace_lines:
                for number, text in notebook.lines:
                    print(line_shown(notebook.file, number, _text(text)))
            for line in self._only_kept():
                print(line)
        print(f"{'Would purge' if self.dry_run else 'Purged'} {_summary(self.result)}.")
        for note in self._notes():
            notice(note)
        if self.places:
            print("The text would still be in:" if self.dry_run else "The text is still in:")
        for place in self.places[:_SHOWN]:
            print(f"  {_shown(place)}")
        if len(self.places) > _SHOWN:
            notice(f"And in {counted(len(self.places) - _SHOWN, 'more place')}; --json names them all.")
        if not self.dry_run:
            notice(
                "The blocks of deleted files are not overwritten. The disk and its backups may still contain the text."
            )
