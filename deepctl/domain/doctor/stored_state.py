"""What is damaged in a profile, or was written by a later deepctl, as far as one can tell without reading contents."""

from __future__ import annotations

import os
from collections.abc import Iterator

from deepctl import layout
from deepctl.domain.doctor.check import Check, some, told
from deepctl.domain.memory.directory import Memory
from deepctl.errors import BadName, Damaged, DeepctlError, MemoryNotFound, NewerFormat
from deepctl.files import atomic
from deepctl.layout import ProfilePaths
from deepctl.notebook_text import odd_lines
from deepctl.quantities import counted
from deepctl.store import log_positions, lookup, packs, session_catalogue, session_from_forks
from deepctl.store.ledger import LEDGER, Ledger


def sessions(paths: ProfilePaths) -> Iterator[Check]:
    """Every session and its messages, which are all read."""
    names = session_catalogue.all_names(paths)
    turns = messages = 0
    whole = True
    try:
        found = lookup.read_ledger(paths)
    except (DeepctlError, OSError):
        found = Ledger()  # the check of checkpoints says what is wrong with it
    for one in session_from_forks.find(paths, found):
        whole = False
        yield Check("sessions", "problem", session_from_forks.reason(paths, found, one), _REPAIR.format(paths.name))
    for name in names:
        try:
            conversation = session_catalogue.read(session_catalogue.find(paths, name))
        except (DeepctlError, OSError) as error:
            whole = False
            hint = error.hint if isinstance(error, DeepctlError) else None
            yield Check("sessions", "problem", f"{name}: {told(error)}", hint)
            continue
        turns += len({message.turn for message in conversation.messages})
        messages += len(conversation.messages)
        damaged = [f"{one.file} line {one.line} ({one.reason})" for one in conversation.damage if not one.torn]
        if damaged:
            whole = False
            yield Check(
                "sessions",
                "problem",
                f"{name}: {some(damaged)}",
                "These lines are left out; everything else of the conversation is used. "
                f"`deepctl checkpoints repair --user {paths.name}` mends what can be mended.",
            )
        elif conversation.damage:
            yield Check(
                "sessions", "warning", f"{name}: its last line was cut short by a kill", "The next turn cuts it off."
            )
    if whole:
        yield Check(
            "sessions", "ok", f"{counted(len(names), 'session')}, {counted(turns, 'turn')}, {messages:,} messages"
        )


def memory(paths: ProfilePaths) -> Iterator[Check]:
    """Notebooks that are not UTF-8 text; nothing is said of others."""
    try:
        agents = sorted(os.listdir(os.path.join(paths.workspace, layout.MEMORY_DIRECTORY)))
    except (FileNotFoundError, NotADirectoryError):
        return
    for agent in agents:
        try:
            notes = Memory(paths, agent)
            found = [notes.read(notebook.name) for notebook in notes.notebooks()]
        except (BadName, MemoryNotFound):
            continue  # not the directory of an agent, or removed a moment ago
        for notebook in found:
            odd = [str(line) for line in odd_lines(notebook.content)]
            if odd:
                yield Check(
                    "memory",
                    "warning",
                    f"{notebook.path} is not UTF-8 text in line{'' if len(odd) == 1 else 's'} {some(odd)}",
                    "The agent sees U+FFFD there. `deepctl memory edit` can mend it, or iconv if all of it is in "
                    "another encoding.",
                )


def checkpoints(paths: ProfilePaths) -> Iterator[Check]:
    """The ledger, and whether the packs and the logs that it names are there and long enough."""
    found = lookup.read_ledger(paths)
    if found.unfinished is not None:
        yield Check(
            "unfinished",
            "warning",
            f"a rewind to {found.unfinished.to} was interrupted",
            "The next command that changes something in this profile finishes it.",
        )
    problems = log_positions.problems(paths, found)
    alike: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        alike.setdefault((problem.reason, problem.file), []).extend([problem.id] if problem.id else [])
    for (reason, file), ids in list(alike.items())[:_MOST]:
        whose = f"; checkpoint{'' if len(ids) == 1 else 's'} {some(ids)}" if ids else ""
        yield Check("checkpoints", "problem", f"{file}: {reason}{whose}", _VERIFY.format(paths.name))
    if len(alike) > _MOST:
        yield Check("checkpoints", "problem", f"{len(alike) - _MOST} more like these", _VERIFY.format(paths.name))
    newer = list(_later_packs(paths))
    if newer:
        yield Check("checkpoints", "problem", f"{newer[0].message} It is one of {len(newer)}.", newer[0].hint)
    if found.torn:
        yield Check(
            "checkpoints",
            "ok",
            f"the last line of {os.path.join(paths.checkpoints, LEDGER)} was never finished and does not count",
        )
    if not problems and not newer:
        total = counted(len(found.records), "checkpoint")
        yield Check(
            "checkpoints",
            "ok",
            f"{total}, {counted(len(found.labels), 'label')}; their contents are read by `deepctl checkpoints verify`",
        )


_MOST = 5
_REPAIR = "`deepctl checkpoints repair --user {0}` makes it again, and says what is lost."
_VERIFY = (
    "`deepctl checkpoints verify --user {0}` names everything that is damaged, `deepctl checkpoints repair --user {0}` "
    "mends it; the rest still works."
)


def _later_packs(paths: ProfilePaths) -> Iterator[NewerFormat]:
    """The packs of a later format. Of those of this one only the first bytes are looked at."""
    try:
        names = sorted(os.listdir(paths.packs))
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(packs.SUFFIX):
            continue
        path = os.path.join(paths.packs, name)
        try:
            descriptor = atomic.open_regular(path, os.O_RDONLY)
            try:
                begins = os.pread(descriptor, len(packs.HEADER), 0)
            finally:
                os.close(descriptor)
            if begins != packs.HEADER:
                packs.read_table(path)
        except NewerFormat as error:
            yield error
        except (Damaged, FileNotFoundError):
            continue  # for `verify`
