"""Damage in a profile, leftovers of killed commands, and files that other users can access.

Contents of checkpoints are not read: `deepctl checkpoints verify` does that. The workspace belongs to the agent, with
its modes; the same holds for the copies that an editor works on.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from deepctl import layout
from deepctl.domain.doctor.check import Check, error_in_words, first_few
from deepctl.domain.memory import changes
from deepctl.domain.memory.directory import Memory, odd_lines
from deepctl.domain.wipe import trash
from deepctl.errors import BadName, Damaged, DeepctlError, MemoryNotFound, NewerFormat
from deepctl.files import atomic
from deepctl.files.paths_beneath import walk
from deepctl.layout import IMPORT, NEW, ProfilePaths, Root
from deepctl.quantities import counted
from deepctl.store import lookup, pack_store, repair_logs, reserve, session_catalogue, todo
from deepctl.store.ledger import LEDGER, Ledger
from deepctl.store.pack_store import UNCOUNTED
from deepctl.store.session_catalogue import pending_deletions


def sessions(paths: ProfilePaths) -> Iterator[Check]:
    """Every session and its messages, which are all read."""
    names = session_catalogue.all_names(paths)
    turns = messages = 0
    whole = True
    try:
        ledger = session_catalogue.read_ledger(paths)
    except (DeepctlError, OSError):
        ledger = Ledger()  # the check of checkpoints reports the error
    for vanished in repair_logs.vanished_sessions(paths, ledger):
        whole = False
        yield Check(
            "sessions", "problem", repair_logs.vanished_reason(paths, ledger, vanished), _REPAIR.format(paths.name)
        )
    for name in names:
        try:
            conversation = session_catalogue.read(session_catalogue.find(paths, name))
        except (DeepctlError, OSError) as error:
            whole = False
            hint = error.hint if isinstance(error, DeepctlError) else None
            yield Check("sessions", "problem", f"{name}: {error_in_words(error)}", hint)
            continue
        turns += len({message.turn for message in conversation.messages})
        messages += len(conversation.messages)
        damaged_names = [
            f"{damage.file} line {damage.line} ({damage.reason})" for damage in conversation.damage if not damage.torn
        ]
        if damaged_names:
            whole = False
            yield Check(
                "sessions",
                "problem",
                f"{name}: {first_few(damaged_names)}",
                "These lines are left out; the rest of the conversation is used. `deepctl checkpoints repair "
                f"--user {paths.name}` repairs what can be repaired.",
            )
        elif conversation.damage:
            yield Check(
                "sessions",
                "warning",
                f"{name}: its last line was cut off when a process was killed",
                "The next turn removes it.",
            )
    if whole:
        yield Check(
            "sessions", "ok", f"{counted(len(names), 'session')}, {counted(turns, 'turn')}, {messages:,} messages"
        )


def memory(paths: ProfilePaths) -> Iterator[Check]:
    """Notebooks that are not UTF-8 text; others are not reported."""
    try:
        agents = sorted(os.listdir(os.path.join(paths.workspace, layout.MEMORY_DIRECTORY)))
    except (FileNotFoundError, NotADirectoryError):
        return
    for agent in agents:
        try:
            notes = Memory(paths, agent)
            notebooks = [notes.read(notebook.name) for notebook in notes.notebooks()]
        except (BadName, MemoryNotFound):
            continue  # not the directory of an agent, or just removed
        for notebook in notebooks:
            numbers = [str(line) for line in odd_lines(notebook.content)]
            if numbers:
                yield Check(
                    "memory",
                    "warning",
                    f"{notebook.path} is not UTF-8 text in line{'' if len(numbers) == 1 else 's'} {first_few(numbers)}",
                    "The agent sees U+FFFD there. `deepctl memory edit` can correct it. If the whole file has "
                    "another encoding, use iconv.",
                )


def checkpoints(paths: ProfilePaths) -> Iterator[Check]:
    """The ledger, and whether its packs and logs exist and are long enough."""
    ledger = session_catalogue.read_ledger(paths)
    if ledger.unfinished is not None:
        yield Check(
            "unfinished",
            "warning",
            f"a rewind to {ledger.unfinished.to} was interrupted",
            "The next command that changes this profile finishes it.",
        )
    problems = lookup.damage(paths, ledger)
    alike: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        alike.setdefault((problem.reason, problem.file), []).extend([problem.id] if problem.id else [])
    for (reason, file), ids in list(alike.items())[:_MOST]:
        id_list = f"; checkpoint{'' if len(ids) == 1 else 's'} {first_few(ids)}" if ids else ""
        yield Check("checkpoints", "problem", f"{file}: {reason}{id_list}", _VERIFY.format(paths.name))
    if len(alike) > _MOST:
        yield Check("checkpoints", "problem", f"{len(alike) - _MOST} more of the same kind", _VERIFY.format(paths.name))
    newer = list(_later_packs(paths))
    if newer:
        yield Check("checkpoints", "problem", f"{newer[0].message} It is one of {len(newer)}.", newer[0].hint)
    if ledger.torn:
        yield Check(
            "checkpoints",
            "ok",
            f"the last line of {os.path.join(paths.checkpoints, LEDGER)} is incomplete and does not count",
        )
    if not problems and not newer:
        total = counted(len(ledger.records), "checkpoint")
        yield Check(
            "checkpoints",
            "ok",
            f"{total}, {counted(len(ledger.labels), 'label')}; `deepctl checkpoints verify` reads their contents",
        )


_MOST = 5
_REPAIR = "`deepctl checkpoints repair --user {0}` creates it again and lists the losses."
_VERIFY = (
    "`deepctl checkpoints verify --user {0}` lists all damage, and `deepctl checkpoints repair --user {0}` "
    "repairs it; the rest still works."
)


def _later_packs(paths: ProfilePaths) -> Iterator[NewerFormat]:
    """The packs of a later format. Of other packs only the first bytes are read."""
    try:
        names = sorted(os.listdir(paths.packs))
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(pack_store.PACK_SUFFIX):
            continue
        path = os.path.join(paths.packs, name)
        try:
            descriptor = atomic.open_regular(path, os.O_RDONLY)
            try:
                begins = os.pread(descriptor, len(pack_store.PACK_HEADER), 0)
            finally:
                os.close(descriptor)
            if begins != pack_store.PACK_HEADER:
                pack_store.read_table(path)
        except NewerFormat as error:
            yield error
        except (Damaged, FileNotFoundError):
            continue  # for `verify`


_TEMPORARY = ".tmp"
KNOWN = (NEW, IMPORT, trash.PREFIX)
"""Prefixes of names that are not profiles, in the directory of profiles."""

_NEXT = "The next command that changes this profile"


def beside_profiles(root: Root) -> Iterator[Check]:
    """Interrupted wipes, and incomplete profiles."""
    if not os.path.isdir(root.profiles):
        return  # the check of the root reports what replaced it
    for wipe in trash.unfinished_wipes(root):
        target = f"parts of {wipe.profile}" if wipe.is_partial else wipe.profile
        yield Check(
            "unfinished",
            "warning",
            f"the wipe of {target} was interrupted; the rest of it is in {wipe.path}",
            "The next command that changes any profile finishes it.",
        )
    if half_made := trash.half_made(root):
        yield Check(
            "leftovers",
            "ok",
            "incomplete profiles of interrupted commands; the next command that changes any profile removes "
            f"them: {first_few(half_made)}",
        )


def in_profile(paths: ProfilePaths) -> Iterator[Check]:
    """Interrupted deletions, drafts of notebooks, and temporary files."""
    deletions = pending_deletions(paths)
    if deletions:
        yield Check(
            "unfinished",
            "warning",
            f"the deletion of {counted(len(deletions), 'session')} was interrupted: "
            f"{first_few(sorted(deletions.values()))}",
            f"{_NEXT} finishes it.",
        )
    for draft in changes.drafts_left(paths):
        yield Check(
            "draft",
            "warning",
            f"{draft} has the text of an open or interrupted edit",
            f"Copy the text that you need into `deepctl {_editing(draft)} edit`; then remove the directory.",
        )
    temporary = list(_temporary(paths))
    if temporary:
        yield Check(
            "leftovers",
            "ok",
            f"{counted(len(temporary), 'temporary file')} of killed commands; the next command that changes this "
            f"profile removes them: {first_few(temporary)}",
        )


def _editing(draft: str) -> str:
    return "config" if os.path.basename(draft) == changes.SETTINGS_DRAFT else "memory"


def todo_lists(paths: ProfilePaths) -> Iterator[Check]:
    """The to-do list without a session, invalid lists, and lists of deleted sessions."""
    if todo.has_shared_list(paths):
        session = todo.old_lists_owner(paths, None)
        owner = (
            (f"the to-do list of session {session.name}; the next turn stores it there") if session else "no session's"
        )
        yield Check("todo", "ok", f"{layout.TODO_FILE} in the workspace is {owner}")
    if unreadable_lists := todo.unreadable(paths):
        yield Check(
            "todo", "warning", f"unreadable to-do lists: {first_few(unreadable_lists)}", "Repair or remove the files."
        )
    if orphans := todo.orphans(paths):
        yield Check("todo", "ok", f"to-do lists of deleted sessions, which no agent sees: {first_few(orphans)}")


def _temporary(paths: ProfilePaths) -> Iterable[str]:
    places = [paths.directory, paths.sessions, paths.checkpoints, paths.packs, paths.cache]
    places += [os.path.join(paths.sessions, name) for name in _listed(paths.sessions) if layout.is_good_name(name)]
    for place in places:
        for name in _named(place):
            if name.endswith(_TEMPORARY) or (place == paths.sessions and name.startswith(NEW)):
                yield os.path.join(place, name)


def _named(directory: str) -> list[str]:
    """The hidden entries of a directory."""
    return [name for name in _listed(directory) if name.startswith(".")]


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []  # other checks report what replaced it


_DEEPEST = 8


def rights(paths: ProfilePaths) -> Iterator[Check]:
    """Paths with wrong kind, owner or mode, by kind of problem. Raises `OSError` for unreadable directories."""
    open_paths: list[str] = []
    unusable_paths: list[str] = []
    foreign: list[str] = []
    foreign_paths: list[str] = []
    for path, status, is_right in _own(paths):
        if not is_right(status.st_mode):
            foreign_paths.append(path)
        elif status.st_uid != os.geteuid():
            foreign.append(path)
        else:
            owner_bits = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if path.endswith(".pack"):
                owner_bits = UNCOUNTED
            if status.st_mode & 0o077:
                open_paths.append(path)
            if status.st_mode & owner_bits != owner_bits:
                unusable_paths.append(path)
    if foreign_paths:
        yield Check(
            "rights", "problem", f"not created by deepctl: {first_few(foreign_paths)}", "Find out what replaced it."
        )
    if foreign:
        yield Check(
            "rights",
            "problem",
            f"owned by another user of this machine: {first_few(foreign)}",
            "Find out who created it.",
        )
    if unusable_paths:
        yield Check(
            "rights",
            "problem",
            f"not accessible to their owner: {first_few(unusable_paths)}",
            f"chmod -R u+rwX {_words(unusable_paths)}",
        )
    if open_paths:
        find_command = f"find {shlex.quote(paths.directory)} -path {shlex.quote(paths.workspace + '/*')} -prune"
        yield Check(
            "rights",
            "warning",
            f"other users of this machine can access {counted(len(open_paths), 'path')}: {first_few(open_paths)}",
            f"{find_command} -o -exec chmod go-rwx {{}} +",
        )
    if not (foreign_paths or foreign or unusable_paths or open_paths):
        yield Check("rights", "ok", "only you have access (0700 and 0600)")


def _words(paths: list[str]) -> str:
    return " ".join(shlex.quote(path) for path in paths[:3])


def _own(paths: ProfilePaths) -> Iterator[tuple[str, os.stat_result, Callable[[int], bool]]]:
    """All paths of deepctl's own state: path, status without following links, and the expected kind."""
    yield paths.directory, os.lstat(paths.directory), stat.S_ISDIR
    pending = [(paths.directory, 0)]
    while pending:
        directory, depth = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                is_directory = stat.S_ISDIR(status.st_mode)
                if depth == 0:
                    if is_directory and entry.name in _OF_THE_USER:
                        continue
                    should_be = _is_directory(entry.name)
                    yield entry.path, status, stat.S_ISDIR if should_be else stat.S_ISREG
                    if not should_be or entry.name == "workspace" or entry.name.startswith(changes.DRAFT_PREFIX):
                        continue
                else:
                    yield entry.path, status, stat.S_ISDIR if is_directory else stat.S_ISREG
                if is_directory and depth < _DEEPEST:
                    pending.append((entry.path, depth + 1))


_OF_THE_USER = (layout.SKILLS, layout.COMMANDS)
"""Directories in which the user creates files, with modes of the user's choice. The directory above is closed."""


def _is_directory(name: str) -> bool:
    own = ("workspace", "sessions", "checkpoints", "cache", layout.UNTRUSTED_FILES)
    return name in (*own, *_OF_THE_USER) or name.startswith(changes.DRAFT_PREFIX)


class DiskUsage(NamedTuple):
    """The space of one part of a profile: bytes of file content, number of files, number of unreadable directories.

    Files with several names count once, as do the logs that a fork shares with its origin.
    """

    name: str
    bytes: int
    files: int
    unread: int


_PARTS = ("workspace", "sessions", "checkpoints", "cache")


def disk_usage(paths: ProfilePaths) -> list[DiskUsage]:
    """The disk usage of a profile by part, the biggest first. Links are not followed; never raises."""
    inodes: set[tuple[int, int]] = set()
    usage_by_part: dict[str, DiskUsage] = {name: DiskUsage(name, 0, 0, 0) for name in (*_PARTS, "other")}
    try:
        descriptor = os.open(paths.directory, atomic.OPEN_DIRECTORY)
    except OSError:
        return [DiskUsage("other", 0, 0, 1)]
    try:
        names = os.listdir(descriptor)
    finally:
        os.close(descriptor)
    for name in names:
        kind = name if name in _PARTS else "other"
        part_usage = _measured(os.path.join(paths.directory, name), kind, inodes)
        before = usage_by_part[kind]
        usage_by_part[kind] = DiskUsage(
            kind, before.bytes + part_usage.bytes, before.files + part_usage.files, before.unread + part_usage.unread
        )
    if reserve_size := reserve.held_bytes(paths):
        cache = usage_by_part["cache"]
        usage_by_part["cache"] = cache._replace(bytes=cache.bytes - reserve_size, files=cache.files - 1)
    return sorted((part for part in usage_by_part.values() if part.files or part.unread), key=lambda part: -part.bytes)


def _measured(path: str, name: str, inodes: set[tuple[int, int]]) -> DiskUsage:
    total = files = unread_count = 0
    for status in _statuses(path):
        if status is None:
            unread_count += 1
        elif status.st_nlink == 1 or (status.st_dev, status.st_ino) not in inodes:
            files += 1
            total += status.st_size
            if status.st_nlink > 1:
                inodes.add((status.st_dev, status.st_ino))
    return DiskUsage(name, total, files, unread_count)


def _statuses(path: str) -> Iterator[os.stat_result | None]:
    """The status of every regular file at or below `path`, and `None` for each directory that cannot be read."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError:
        yield None
        return
    if stat.S_ISREG(status.st_mode):
        yield status
    for entry in walk(path) if stat.S_ISDIR(status.st_mode) else ():
        if entry.is_file or (entry.is_directory and entry.status is None):
            yield entry.status
