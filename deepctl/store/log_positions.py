"""Whether the positions that checkpoints name are in the logs there are. Each log is read once."""

from __future__ import annotations

from typing import NamedTuple

from deepctl.errors import Damaged, NewerFormat
from deepctl.layout import ProfilePaths
from deepctl.store import log_chain, log_file, lookup
from deepctl.store.ledger import Ledger
from deepctl.store.log_file import Point
from deepctl.store.lookup import Problem
from deepctl.store.records import BOTH, CONVERSATION, Record


class Position(NamedTuple):
    """What was found of a position: its digest, or why it is not there."""

    digest: str
    problem: str | None = None


class Positions:
    """The positions in the logs of a profile."""

    def __init__(self, paths: ProfilePaths) -> None:
        self._paths = paths
        self._logs: dict[str, tuple[dict[int, str], bool]] = {}
        self._searched: dict[Point, Position] = {}

    def find(self, record: Record) -> Position:
        """The position of a checkpoint that has one. Raises `NewerFormat`."""
        ends, is_sure = self._ends(record.log)
        digest = ends.get(record.offset)
        # Where a line is damaged, no digest behind it can be compared.
        if digest is not None and (digest == record.digest or not record.digest or not is_sure):
            return Position(digest)
        if record.point not in self._searched:
            self._searched[record.point] = self._search(record)
        return self._searched[record.point]

    def _ends(self, log: str) -> tuple[dict[int, str], bool]:
        """The digests at the ends of the lines of a log, and whether they are those of what was written."""
        if log not in self._logs:
            self._logs[log] = {}, False
            directory = lookup.directory_of(self._paths, log)
            if directory is not None:
                try:
                    found = log_chain.resolve(directory, Point(log, 0), is_open=True)
                except NewerFormat:
                    raise
                except Damaged:
                    return self._logs[log]
                if found.lost is None:
                    last = found.links[-1]
                    whole = [line for line in last.lines if line.problem != "cut short"]
                    ends = {line.end: digest for line, digest in zip(whole, last.digests, strict=False)}
                    self._logs[log] = ends, all(link.is_whole for link in found.links) and not found.damage
        return self._logs[log]

    def _search(self, record: Record) -> Position:
        try:
            return Position(lookup.chain_of(self._paths, record).digest)
        except NewerFormat:
            raise
        except Damaged as error:
            return Position("", error.message)


def problems(paths: ProfilePaths, found: Ledger) -> list[Problem]:
    """Everything damaged but for the contents: what `reading.structural` sees, and positions that are not there.

    All logs are read for it.
    """
    known = lookup.structural_damage(paths, found)
    named = {problem.id for problem in known}
    positions = Positions(paths)
    for record in found.records.values():
        if record.log and record.id not in named and not is_lost(record):
            problem = positions.find(record).problem
            if problem is not None:
                known.append(Problem(record.id, record.log + log_file.SUFFIX, problem))
    return known


def untied(found: Ledger) -> list[Record]:
    """The checkpoints whose positions have no digest yet, as 0.1 wrote them."""
    return [
        record
        for record in found.records.values()
        if record.log and not record.digest and record.id not in found.untieable and not is_lost(record)
    ]


def is_lost(record: Record) -> bool:
    """Whether the conversation of a checkpoint is known to be lost."""
    return record.lost in (CONVERSATION, BOTH)


def digests_of(paths: ProfilePaths, records: list[Record]) -> dict[str, str]:
    """The digests of the positions of checkpoints, empty where there is no such position."""
    positions = Positions(paths)
    return {record.id: positions.find(record).digest for record in records}
