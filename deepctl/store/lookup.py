"""Looking up checkpoints: by reference, by session, and at the heads of conversations.

Reads only the ledger and the message logs: it takes no lock, and reads no contents of checkpoints. Commands that list
checkpoints need only this module, so it imports nothing slow. `repository` reads the contents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

from deepctl import locks
from deepctl.errors import Damaged, NewerFormat, NoSession, NotFound, UsageError
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store import ledger, log_chain, log_file, projects, session_catalogue, session_reader
from deepctl.store.ledger import MESSAGES, Ledger
from deepctl.store.log_chain import Chain
from deepctl.store.log_file import Point
from deepctl.store.records import Position, Record, SessionRecord
from deepctl.store.session_catalogue import read_ledger
from deepctl.store.session_reader import SessionReader, SessionReaders

OTHER_CHECKPOINTS_HINT = "`deepctl checkpoints list` lists the others."
REPAIR_HINT = "`deepctl checkpoints repair` searches every copy for it and lists the losses."

_TURNS_BACK = re.compile(r"~([0-9]{1,9})")
_PREFIX = re.compile(r"[0-9a-f-]{4,36}")
_CANDIDATES_SHOWN = 8


class CheckpointInfo(NamedTuple):
    """One checkpoint with the details of lists: label, name of the session, the checkpoint before it.

    `project` is the directory of its project: its id if the directory is unknown, `None` without a project.
    """

    record: Record
    label: str | None
    session: str
    parent: str | None
    project: str | None = None


class CheckpointProblem(NamedTuple):
    """A damaged item: the checkpoint if it is known, the file, and the reason."""

    id: str | None
    file: str
    reason: str


def heads(paths: ProfilePaths) -> dict[str, str]:
    """The checkpoint at which each session stands, by the session's id. Damage is reported elsewhere."""
    try:
        return read_ledger(paths).heads
    except Damaged:
        return {}


def current_session(paths: ProfilePaths, name: str | None) -> SessionRecord:
    """The session called `name`; without a name, the session used last. Raises `NoSession` if there is none."""
    chosen_name = name if name is not None else session_catalogue.latest_session(paths)
    if chosen_name is None:
        raise without_session(paths)
    return session_catalogue.find(paths, chosen_name)


def without_session(paths: ProfilePaths) -> NoSession:
    """The error of a command that needs a session, if none began in the private workspace."""
    return NoSession(paths.name, has_projects=bool(session_catalogue.all_names(paths)))


def describer(paths: ProfilePaths, checkpoints: Ledger) -> Callable[[Record], CheckpointInfo]:
    """The details of a record in lists."""
    names = session_catalogue.by_id(paths)
    # Most profiles have no project.
    has_projects = any(record.project for record in checkpoints.records.values())
    directories = {project.id: project.path for project in projects.read(paths)} if has_projects else {}

    def describe(record: Record) -> CheckpointInfo:
        session = names.get(record.session, record.session)
        project = directories.get(record.project, record.project) if record.project else None
        return CheckpointInfo(record, checkpoints.labels.get(record.id), session, checkpoints.parent(record), project)

    return describe


def describe(paths: ProfilePaths, checkpoints: Ledger, record: Record) -> CheckpointInfo:
    """The details of one record."""
    return describer(paths, checkpoints)(record)


def find_checkpoint(
    paths: ProfilePaths, checkpoints: Ledger, reference: str, session: str | None, reader: SessionReader | None = None
) -> Record:
    """The checkpoint of `reference`; `~N` counts in the session called `session`, or in the one that was used last.

    `reader` is a reader of that session, if the caller has one.
    """
    if not reference.startswith("~"):
        return resolve(checkpoints, reference, None, 0)
    if reader is None:
        reader = SessionReader(paths, current_session(paths, session))
    return resolve(checkpoints, reference, checkpoints.head(reader.session), reader.last_turn)


class CheckpointNotFound(NotFound):
    code = "checkpoint_not_found"


def resolve(ledger: Ledger, reference: str, head: str | None, turns: int) -> Record:
    """The checkpoint of `reference`: an id, then a label, then a prefix of at least 4 digits.

    `~N` is the state before the last N turns of the session that stands at the checkpoint `head` and has `turns` turns
    now. Raises `CheckpointNotFound`, or `UsageError` if a prefix matches several.
    """
    if match := _TURNS_BACK.fullmatch(reference):
        return _back(ledger, head, int(match[1]), turns)
    record = ledger.records.get(reference) or ledger.labelled(reference)
    if record is not None:
        return record
    reference = reference.lower()
    if not _PREFIX.fullmatch(reference):
        raise _missing(reference)
    matches = [record for record in ledger.records.values() if record.id.startswith(reference)]
    if len(matches) > 1:
        ids = ", ".join(record.id for record in matches[:_CANDIDATES_SHOWN])
        remainder = f" and {len(matches) - _CANDIDATES_SHOWN} more" if len(matches) > _CANDIDATES_SHOWN else ""
        raise UsageError(
            f"{reference!r} matches {len(matches)} checkpoints: {ids}{remainder}.",
            "Give more digits.",
            code="ambiguous_checkpoint",
        )
    if not matches:
        raise _missing(reference)
    return matches[0]


def _back(ledger: Ledger, head: str | None, count: int, turns: int) -> Record:
    turn = turns - count
    if turn < 0:
        raise CheckpointNotFound(
            f"The session has {turns} turn{'' if turns == 1 else 's'}, so there is no checkpoint ~{count}.",
            "`deepctl checkpoints list` lists the checkpoints.",
        )
    # Of several with the same number of turns, the latest is the state in which the next turn started. If there is no
    # next turn yet, the safety checkpoint of a rewind does not count.
    passed_over = ("tool",) if count else ("tool", "rewind")
    checkpoints = [entry for entry in ledger.line_with_removed(head) if entry[0].kind not in passed_over]
    candidates = [entry for entry in checkpoints if entry[0].turn <= turn]
    nearest_kept = next((record for record, is_there in candidates if is_there), None)
    if candidates and candidates[0][0].turn == turn:
        turn_start = candidates[0][0]
        if nearest_kept is not None and _is_same(nearest_kept, turn_start):
            return nearest_kept
        problem = f"Checkpoint ~{count} has been removed."
    else:
        problem = f"There is no checkpoint ~{count}."
    later = [record for record, is_there in checkpoints if is_there and record.turn > turn]
    nearest = [f"before it is {nearest_kept.id}"] if nearest_kept is not None else []
    nearest += [f"after it is {later[-1].id}"] if later else []
    raise CheckpointNotFound(
        f"{problem} The nearest {', the nearest '.join(nearest)}." if nearest else problem,
        "`deepctl checkpoints list` lists the checkpoints.",
    )


def _is_same(record: Record, turn_start: Record) -> bool:
    """Whether a checkpoint has the state of another one, which may have been removed."""
    return (record.tree, record.turn, record.log, record.offset) == (
        turn_start.tree,
        turn_start.turn,
        turn_start.log,
        turn_start.offset,
    )


def _missing(reference: str) -> CheckpointNotFound:
    if reference.startswith("/"):
        return CheckpointNotFound(
            f"There is no checkpoint {reference!r}.", "If the shell turns ~N into a path, quote it: '~1'."
        )
    return CheckpointNotFound(
        f"There is no checkpoint {reference!r}.",
        "A reference is an id, the first 4 or more digits of an id, a label, or ~N for N turns back.",
    )


def with_digest(session: SessionRecord, position: Position) -> Position:
    """A position with its digest, for which the log is read."""
    chain = log_chain.resolve(session.directory, Point(position.log, position.offset))
    return (
        position._replace(tied=Point(position.log, position.offset, chain.digest))
        if not chain.damaged_line
        else position
    )


def diverging_messages(reader: SessionReader, checkpoint: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages of a session that are not in the conversation of a checkpoint, and the reverse.

    Raises `Damaged` if that conversation has changed.
    """
    since = reader.since(checkpoint)
    if since is not None:
        return since, []
    now, then = reader.whole().messages, conversation_at(reader.paths, checkpoint, reader.files).messages
    common_length = shared_length(now, then)
    return [entry.message for entry in now[common_length:]], [entry.message for entry in then[common_length:]]


def conversation_at(paths: ProfilePaths, record: Record, files: dict[str, bytes] | None = None) -> log_file.MessageList:
    """The conversation up to a checkpoint. Raises `Damaged` if it has changed.

    `files` are logs that have been read already, by path.
    """
    return (
        session_reader.messages_of_chain(chain_of(paths, record, files))
        if record.log or record.lost
        else log_file.MessageList([], [], 0)
    )


def chain_of(paths: ProfilePaths, record: Record, files: dict[str, bytes] | None = None) -> Chain:
    """The files of the conversation of a checkpoint. Raises `Damaged` if it is in no file."""
    if record.has_lost_conversation:
        hint = "`--only files` restores its files." if record.tree else OTHER_CHECKPOINTS_HINT
        raise Damaged(f"The conversation of checkpoint {record.id} is lost.", hint)
    directory = directory_of(paths, record.log)
    if directory is None:
        raise Damaged(f"The message log {record.log} of checkpoint {record.id} is missing.", REPAIR_HINT)
    chain = log_chain.resolve(directory, record.point, files=files)
    if chain.damaged_line is not None and chain.damaged_line.reason == log_file.MISSING:
        raise Damaged(f"The message log {record.log} of checkpoint {record.id} is cut short.", REPAIR_HINT)
    if chain.damaged_line is not None:
        raise Damaged(
            f"The conversation of checkpoint {record.id} is lost: "
            f"{chain.damaged_line.file}: {chain.damaged_line.reason}.",
            REPAIR_HINT,
        )
    return chain


def lost_files_note(records: Iterable[Record]) -> str | None:
    """A sentence about checkpoints with lost files, `None` if there are none."""
    ids = [record.id for record in records if record.has_lost_files]
    if not ids:
        return None
    listing = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
    return f"The files of {counted(len(ids), 'checkpoint')} are lost: {listing}."


_SHOWN = 3


def check_files(record: Record, hint: str) -> None:
    """Raises `Damaged` if the files of a checkpoint are lost."""
    if record.has_lost_files:
        raise Damaged(f"The files of checkpoint {record.id} are lost.", hint)


def directory_of(paths: ProfilePaths, log: str) -> str | None:
    """The directory of a session that has the log `log`, or `None`."""
    if not log_file.is_id(log):
        return None
    messages_directory = os.path.join(paths.checkpoints, MESSAGES)
    if os.path.exists(log_file.log_path(messages_directory, log)):
        return messages_directory
    for name in session_catalogue.all_names(paths):
        directory = os.path.join(paths.sessions, name)
        if os.path.exists(log_file.log_path(directory, log)):
            return directory
    return None


def structural_damage(
    paths: ProfilePaths, checkpoints: Ledger, measured: Container[str] | None = None
) -> list[CheckpointProblem]:
    """All damage that is visible without reading contents: lines, missing or cut packs and logs.

    Only the packs of the checkpoints `measured` are measured (all by default): a list of the newest 20 need not look
    at 2,000 files.
    """
    path = os.path.join(paths.checkpoints, ledger.LEDGER)
    problems = [
        CheckpointProblem(damage.id, f"{path} line {damage.line}", damage.reason) for damage in checkpoints.damage
    ]
    sizes: dict[str, int] = {}
    messages_directory = os.path.join(paths.checkpoints, MESSAGES)
    for directory in session_catalogue.directories(paths) + (
        [messages_directory] if os.path.isdir(messages_directory) else []
    ):
        with os.scandir(directory) as entries:
            for entry in entries:
                # If a link is broken, one of the copies may be shorter.
                log = entry.name.removesuffix(log_file.SUFFIX)
                size = entry.stat(follow_symlinks=False).st_size
                sizes[log] = max(size, sizes.get(log, 0))
    packs = set(os.listdir(paths.packs)) if os.path.isdir(paths.packs) else set()
    for record in checkpoints.records.values():
        if record.log and sizes.get(record.log, -1) < record.offset and not record.has_lost_conversation:
            reason = "cut short" if record.log in sizes else "missing"
            problems.append(CheckpointProblem(record.id, record.log + log_file.SUFFIX, f"its message log is {reason}"))
        elif record.pack in checkpoints.packs:
            pack = os.path.join(paths.packs, record.pack)
            if record.pack not in packs:
                problems.append(CheckpointProblem(record.id, pack, "its pack is missing"))
            elif (measured is None or record.id in measured) and os.lstat(pack).st_size < record.added_bytes:
                problems.append(CheckpointProblem(record.id, pack, "its pack is cut short"))
    if (size_problem := log_file.read_ledger_size(paths.checkpoints).problem) is not None:
        problems.append(CheckpointProblem(None, os.path.join(paths.checkpoints, log_file.LEDGER_SIZE), size_problem))
    unnamed_packs = [name for name in packs - checkpoints.packs - checkpoints.gone if name.endswith(".pack")]
    if len(unnamed_packs) > 1:
        from deepctl.store.pack_store import is_uncounted  # imports the engine of packs, which no list needs

        unnamed_packs = [name for name in unnamed_packs if not is_uncounted(os.lstat(os.path.join(paths.packs, name)))]
    if len(unnamed_packs) > 1:
        problems.append(CheckpointProblem(None, path, f"lines are missing: no line names {len(unnamed_packs)} packs"))
    return problems


def last_author(paths: ProfilePaths, checkpoints: Ledger, readers: SessionReaders) -> str | None:
    """The author of the changes since the last snapshot (`WorkspaceState.by`); unknown after a killed turn.

    A running turn is not killed: its changes are its own.
    """
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            if readers.has_unfinished_turn(session, checkpoints):
                holder = locks.holder(paths.lock)
                return session.id if holder is not None and holder.command == "chat" else None
        except Damaged:
            continue
    return ""


def shared_length(first: list[log_file.Message], second: list[log_file.Message]) -> int:
    """The number of messages that two conversations share at their start."""
    length = 0
    while length < min(len(first), len(second)) and first[length].message == second[length].message:
        length += 1
    return length


class Listing(NamedTuple):
    """Checkpoints, newest first, damage, and the heads of the sessions (`heads`)."""

    checkpoints: list[CheckpointInfo]
    damaged: list[CheckpointProblem]
    notes: list[str]
    heads: frozenset[str]


def listing(
    paths: ProfilePaths,
    session: str | None,
    limit: int | None,
    *,
    project: str | None = None,
    tools: bool = False,
    graph: bool = False,
) -> Listing:
    """The newest `limit` checkpoints, of one session or of all, with or without those of single tool calls.

    `project` is the id of a project: only checkpoints of sessions in it.

    With `graph`, the parent of each is one in the list.
    """
    session_id = session_catalogue.find(paths, session).id if session is not None else None
    checkpoints = read_ledger(paths)
    to_info = describer(paths, checkpoints)
    records = [
        record
        for record in reversed(checkpoints.records.values())
        if (tools or record.kind != "tool")
        and session_id in (None, record.session)
        and project in (None, record.project)
    ][:limit]
    infos = [to_info(record) for record in records]
    if graph:
        ids = {record.id for record in records}
        infos = [info._replace(parent=_listed_parent(checkpoints, info.record, ids)) for info in infos]
    notes = []
    if checkpoints.unfinished:
        notes.append("A rewind was interrupted; the next command that changes something finishes it.")
    if (lost_note := lost_files_note(records)) is not None:
        notes.append(lost_note)
    damaged_files = structural_damage(paths, checkpoints, {record.id for record in records})
    return Listing(infos, damaged_files, notes, frozenset(checkpoints.heads.values()))


def _listed_parent(checkpoints: Ledger, record: Record, ids: set[str]) -> str | None:
    return next((ancestor.id for ancestor in checkpoints.line(record.parent) if ancestor.id in ids), None)


class FoundPosition(NamedTuple):
    """The check of a position: its digest, or the reason why it does not exist."""

    digest: str
    problem: str | None = None


class Positions:
    """The positions in the logs of a profile."""

    def __init__(self, paths: ProfilePaths) -> None:
        self._paths = paths
        self._logs: dict[str, tuple[dict[int, str], bool]] = {}
        self._searched: dict[Point, FoundPosition] = {}

    def find(self, record: Record) -> FoundPosition:
        """The position of a checkpoint that has one. Raises `NewerFormat`."""
        ends, is_sure = self._ends(record.log)
        digest = ends.get(record.offset)
        # After a damaged line, no digest can be compared.
        if digest is not None and (digest == record.digest or not record.digest or not is_sure):
            return FoundPosition(digest)
        if record.point not in self._searched:
            self._searched[record.point] = self._search(record)
        return self._searched[record.point]

    def _ends(self, log: str) -> tuple[dict[int, str], bool]:
        """The digests at the ends of the lines of a log, and whether the lines are intact."""
        if log not in self._logs:
            self._logs[log] = {}, False
            directory = directory_of(self._paths, log)
            if directory is not None:
                try:
                    chain = log_chain.resolve(directory, Point(log, 0), is_open=True)
                except NewerFormat:
                    raise
                except Damaged:
                    return self._logs[log]
                if chain.damaged_line is None:
                    last = chain.links[-1]
                    whole = [line for line in last.lines if line.problem != "cut short"]
                    ends = {line.end: digest for line, digest in zip(whole, last.digests, strict=False)}
                    self._logs[log] = ends, all(link.is_whole for link in chain.links) and not chain.damage
        return self._logs[log]

    def _search(self, record: Record) -> FoundPosition:
        try:
            return FoundPosition(chain_of(self._paths, record).digest)
        except NewerFormat:
            raise
        except Damaged as error:
            return FoundPosition("", error.message)


def damage(paths: ProfilePaths, checkpoint_ledger: Ledger) -> list[CheckpointProblem]:
    """All damage except in contents: the result of `structural_damage`, and positions that do not exist.

    Reads all logs.
    """
    problems = structural_damage(paths, checkpoint_ledger)
    record_ids = {problem.id for problem in problems}
    positions = Positions(paths)
    for record in checkpoint_ledger.records.values():
        if record.log and record.id not in record_ids and not record.has_lost_conversation:
            problem = positions.find(record).problem
            if problem is not None:
                problems.append(CheckpointProblem(record.id, record.log + log_file.SUFFIX, problem))
    return problems


def digests_of(paths: ProfilePaths, records: list[Record]) -> dict[str, str]:
    """The digests of the positions of checkpoints; empty for a position that does not exist."""
    positions = Positions(paths)
    return {record.id: positions.find(record).digest for record in records}
