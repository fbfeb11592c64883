"""How sessions look: lists, search results, transcripts, and renamed, deleted, exported or imported sessions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.render import Cell, ago, has_colour, home, is_terminal, notice, printable, table, terminal_width
from deepctl.output.sessions_transcript import print_conversation as print_conversation
from deepctl.quantities import counted, size
from deepctl.store.log_file import MessageList
from deepctl.store.session_catalogue import SessionSummary
from deepctl.store.todo import TodoItem

if TYPE_CHECKING:
    # Only some commands need this.
    from deepctl.redaction import Redaction
    from deepctl.store.repository import SessionNames
    from deepctl.store.session_delete import SessionDeletion
    from deepctl.store.session_import import SessionImport
    from deepctl.store.session_search import SessionMatch, SessionSearchResult


def _document(session: SessionSummary, directories: Mapping[str, str]) -> dict[str, Any]:
    """A session as JSON; `directories` are those of the projects by their ids."""
    document = session._asdict()
    document["project"] = _directory(session, directories)
    for key in ("project", "problem", "damage"):
        if not document[key]:
            del document[key]
    return document


def _directory(session: SessionSummary, directories: Mapping[str, str]) -> str | None:
    """The directory of a session's project: its id if the directory is unknown, `None` without a project."""
    return directories.get(session.project, session.project) if session.project is not None else None


class SessionListView(NamedTuple):
    """`directories` are those of the projects by their ids."""

    profile: str
    sessions: list[SessionSummary]
    directories: Mapping[str, str] = {}

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "sessions": [_document(session, self.directories) for session in self.sessions],
        }

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.sessions:
            notice(f"Profile {self.profile} has no sessions yet; `deepctl chat --user {self.profile}` starts one.")
            return
        # When piped, every line has the same fields, whether or not there is a project.
        has_projects = terminal and any(session.project is not None for session in self.sessions)
        place = ("PROJECT",) if has_projects else ()
        table(
            ("SESSION", "LAST MESSAGE", "TURNS", *place, "TITLE"),
            [
                (
                    session.name,
                    Cell(ago(session.updated_at), "faint") if terminal else session.updated_at or "-",
                    str(session.turns),
                    *((home(_directory(session, self.directories) or ""),) if has_projects else ()),
                    Cell(f"(damaged: {session.problem})", "bad") if session.problem else session.title,
                )
                for session in self.sessions
            ],
            dispensable=place,
            numbers=("TURNS",),
        )


_MARKS = {"completed": "x", "in_progress": ">", "cancelled": "-", "blocked": "!"}
"""The mark in the box of a step that is not pending."""


def print_todo(steps: Sequence[TodoItem]) -> None:
    """Print the steps of a to-do list, one per line."""
    for step in steps:
        print(f"[{_MARKS.get(step.status, ' ')}] {printable(step.content)}")


class SessionView(NamedTuple):
    """A whole conversation: as JSON every message in pydantic-ai's format, as text a transcript."""

    profile: str
    summary: SessionSummary
    conversation: MessageList
    todo: list[TodoItem] | None
    """The steps of its to-do list; `None` if the list cannot be read."""
    full: bool = False
    directories: Mapping[str, str] = {}
    """The directories of the projects by their ids."""

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "sessions": [_document(self.summary, self.directories)],
            "messages": [entry._asdict() for entry in self.conversation.messages],
            "damaged": [damage._asdict() for damage in self.conversation.damage],
            "todo": None if self.todo is None else [step._asdict() for step in self.todo],
        }

    def print(self) -> None:
        fold_count = print_conversation(self.conversation, full=self.full)
        if self.todo:
            print("--- to-do list")
            print_todo(self.todo)
        if self.todo is None:
            notice("Its to-do list cannot be read.")
        if is_terminal(sys.stdout):
            if not self.conversation.messages:
                notice(f"Session {self.summary.name} is empty.")
            if fold_count:
                notice(f"{counted(fold_count, 'long call or result')} shortened; --full shows everything.")


class SessionRenamingView(NamedTuple):
    profile: str
    names: SessionNames

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "session": self.names.now, "before": self.names.before}

    def print(self) -> None:
        if self.names.before == self.names.now:
            print(f"Session {self.names.now} already has this name.")
        else:
            print(f"Renamed session {self.names.before} to {self.names.now}.")


class SessionCompactionView(NamedTuple):
    """A compaction by hand; `compaction` is its document (`deepctl.agent.compaction.CompactionResult`)."""

    profile: str
    session: str
    compaction: dict[str, Any]

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "session": self.session, **self.compaction}

    def print(self) -> None:
        done = self.compaction
        messages = f"{done['messages_before']} messages to {done['messages_after']}"
        tokens = f"{done['tokens_before']:,} tokens to {done['tokens_after']:,}"
        print(f"Compacted session {self.session}: {messages}, {tokens}.")
        options = f"--session {self.session} --user {self.profile}"
        notice(f"To undo this: deepctl checkpoints rewind {done['checkpoint'][:8]} {options}")


class SessionDeletionView(NamedTuple):
    """The deletion of a session, done or as a preview."""

    profile: str
    dry_run: bool
    deletion: SessionDeletion

    def document(self) -> dict[str, Any]:
        deletion = self.deletion
        document: dict[str, Any] = {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "session": deletion.session,
            "turns": deletion.turns,
            "message_count": deletion.message_count,
            "checkpoints": [record.id for record in deletion.records],
            "labels": [{"id": record_id, "label": label} for record_id, label in deletion.labels.items()],
            "forks": deletion.forks,
            "bytes": deletion.bytes,
        }
        return {**document, "problem": deletion.problem} if deletion.problem else document

    def what(self) -> str:
        """The deleted data, in a line."""
        deletion = self.deletion
        parts = [counted(deletion.turns, "turn"), counted(deletion.message_count, "message")]
        if deletion.problem:
            parts = ["an unreadable conversation"]
        labels = f" (labelled {', '.join(deletion.labels.values())})" if deletion.labels else ""
        return f"{', '.join(parts)}, {counted(len(deletion.records), 'checkpoint')}{labels}, {size(deletion.bytes)}"

    def consequences(self) -> list[str]:
        """Notes to read before the confirmation."""
        deletion = self.deletion
        sentences = ["The to-do list is deleted too. The workspace keeps the changes that the agent made."]
        if deletion.problem:
            sentences.append(f"The session is damaged: {deletion.problem}")
        if deletion.forks:
            sentences.append(
                f"Forks of it stay, without checkpoints from before the fork: {', '.join(deletion.forks)}."
            )
        return sentences + self._blocked()

    def _blocked(self) -> list[str]:
        if not self.deletion.is_blocked:
            return []
        return [
            "Some of the remaining data is damaged (`deepctl checkpoints verify` lists it), so the space of its "
            "checkpoints is not freed."
        ]

    def foretell(self) -> None:
        """Print on stderr, before a question, which session would be deleted and with what consequences."""
        notice(f"Session {self.deletion.session} of profile {self.profile}: {self.what()}.")
        for line in self.consequences():
            notice(line)

    def print(self) -> None:
        verb = "Would delete" if self.dry_run else "Deleted"
        print(f"{verb} session {self.deletion.session}: {printable(self.what())}.")
        for line in self.consequences() if self.dry_run else self._blocked():
            notice(line)


class SessionExportView(NamedTuple):
    """An export to a file. `secrets` and `homes` are the numbers of removed texts, if redaction was requested."""

    profile: str
    session: str
    format: str
    path: str
    bytes: int
    message_count: int
    damaged: int
    redacted: dict[str, int] | None

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        amount = f"{counted(self.message_count, 'message')}, {size(self.bytes)}"
        print(f"Exported session {self.session} to {printable(self.path)}: {amount}.")


class SessionStdoutExportView(NamedTuple):
    """An export to stdout; as JSON it is the document itself."""

    profile: str
    session: str
    format: str
    content: str

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "session": self.session, "format": self.format, "content": self.content}

    def print(self) -> None:
        sys.stdout.write(self.content)


def redaction_note(redaction: Redaction | None) -> str | None:
    """The numbers of removed texts of an export, for a person who checks the result."""
    if redaction is None:
        return None
    homes = f"{redaction.homes:,} home director{'y' if redaction.homes == 1 else 'ies'}"
    return f"Replaced {counted(redaction.secrets, 'secret')} and {homes}. Check the file before you give it away."


class SessionImportView(NamedTuple):
    profile: str
    session_import: SessionImport

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, **self.session_import._asdict()}

    def print(self) -> None:
        result = self.session_import
        amount = f"{counted(result.turns, 'turn')}, {counted(result.message_count, 'message')}"
        print(f"Imported session {result.session} into profile {self.profile}: {amount}.")
        if result.lost:
            notice(
                f"The session was damaged before the export: {counted(result.lost, 'line')} of its log could "
                "not be read."
            )
        notice(f"`deepctl chat --user {self.profile} --session {result.session}` continues it.")


_HEADING, _FOUND, _QUIET, _PLAIN = "\x1b[36m", "\x1b[1;31m", "\x1b[2m", "\x1b[0m"
_INDENT = 2
_NUMBER = 5


class SessionMatchesView(NamedTuple):
    """The matches of a query."""

    profile: str
    query: str
    result: SessionSearchResult

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "query": self.query,
            "matches": [
                {key: value for key, value in match._asdict().items() if key != "spans"}
                for match in self.result.matches
            ],
            "more": self.result.more,
            "damaged": [problem._asdict() for problem in self.result.damaged],
        }

    def print(self) -> None:
        if is_terminal(sys.stdout):
            self._print_at_terminal()
        else:
            sys.stdout.write("".join(map(_rows, _grouped(self.result.matches))))
        for problem in self.result.damaged:
            notice(f"Session {problem.session} is damaged: {problem.reason}")

    def _print_at_terminal(self) -> None:
        if not self.result.matches:
            notice(f"No message in the sessions of profile {self.profile} matches.")
        with_colour = has_colour(sys.stdout)
        for count, matches in enumerate(_grouped(self.result.matches)):
            print(("\n" if count else "") + _coloured(_HEADING if with_colour else "", _heading(matches[0])))
            last = None
            for line in _lines(matches):
                if last is not None and line.number > last + 1:
                    print(_coloured(_QUIET if with_colour else "", f"{'⋮':>{_INDENT + _NUMBER}}"))
                last = line.number
                print(_drawn(line, with_colour))
        if self.result.more:
            notice("There are more matches; a larger --limit shows them.")


class _ShownLine(NamedTuple):
    """A shown line: a match has `spans`, a line of context has `None`."""

    number: int
    text: str
    spans: list[tuple[int, int]] | None


def _grouped(matches: list[SessionMatch]) -> Iterator[list[SessionMatch]]:
    """Neighbouring matches in the same prompt, answer, call or result."""
    group: list[SessionMatch] = []
    for match in matches:
        if group and (match.line <= group[-1].line or match[:7] != group[-1][:7]):
            yield group
            group = []
        group.append(match)
    if group:
        yield group


def _lines(matches: list[SessionMatch]) -> list[_ShownLine]:
    """The lines of a group, each once, in order."""
    by_number: dict[int, _ShownLine] = {}
    for match in matches:
        for number, text in enumerate(match.before, match.line - len(match.before)):
            by_number.setdefault(number, _ShownLine(number, text, None))
        for number, text in enumerate(match.after, match.line + 1):
            by_number.setdefault(number, _ShownLine(number, text, None))
        by_number[match.line] = _ShownLine(match.line, match.text, match.spans)
    return [by_number[number] for number in sorted(by_number)]


def _heading(match: SessionMatch) -> str:
    authors = {
        "call": f"call of {match.tool}",
        "result": f"result of {match.tool}",
        "thinking": "assistant, thinking",
        "summary": "summary of earlier messages",
    }
    return printable(f"{match.session} · turn {match.turn} · {ago(match.at)} · {authors.get(match.part, match.role)}")


def _coloured(colour: str, text: str) -> str:
    return f"{colour}{text}{_PLAIN}" if colour else text


def _drawn(line: _ShownLine, with_colour: bool) -> str:
    room = max(20, (terminal_width() or 1 << 30) - _INDENT - _NUMBER - 2)
    quiet = _QUIET if with_colour else ""
    number = _coloured(quiet, f"{line.number:>{_INDENT + _NUMBER}}")
    if line.spans is None:
        return f"{number}  {_coloured(quiet, _cut(line.text, room))}"
    return f"{number}  {_marked(line.text, line.spans, room, with_colour)}"


def _cut(text: str, room: int) -> str:
    excerpt = printable(text[: room + 1])
    return excerpt if len(excerpt) <= room else excerpt[: room - 1] + "…"


def _marked(text: str, spans: list[tuple[int, int]], room: int, with_colour: bool) -> str:
    """The line, cut around its first match if it does not fit, with coloured matches."""
    start = max(0, spans[0][0] - room // 3) if len(text) > room else 0
    end = start + room - 2 * (len(text) > room)
    pieces = ["…" if start else ""]
    position = start
    for begin, stop in spans:
        if begin >= end:
            break
        if begin < stop:
            pieces.append(printable(text[position:begin]))
            pieces.append(_coloured(_FOUND if with_colour else "", printable(text[begin : min(stop, end)])))
            position = min(stop, end)
    pieces.append(printable(text[position:end]))
    pieces.append("…" if end < len(text) else "")
    return "".join(pieces)


def _rows(matches: list[SessionMatch]) -> str:
    """Session, turn, time, role, line number and line; the number of a context line ends in a dash."""
    first = matches[0]
    place = (first.session, str(first.turn), first.at, first.role)
    rows = [(*place, f"{line.number}{'' if line.spans is not None else '-'}", line.text) for line in _lines(matches)]
    return "".join("\t".join(printable(cell) for cell in row) + "\n" for row in rows)
