"""Repairing a profile: what lost, stale or stray state makes of it, brought back to where `verify` finds nothing.

    .repair-<random>/       the profile's own files by hard links; everything below is done there, by whole files only
      ledger                single flipped bytes are mended; lines that stay unreadable become gaps
      sessions              records and logs alike; a hole takes the place of a lost message, so that offsets stay
      positions             found in whichever copy has them; tied anew where a hole is in between; otherwise lost
      packs                 what of a damaged one is readable moves on; strays that nothing needs go to lost+found
      trees                 without the contents that are lost, which count as never looked at
    a dry run ends here, and removes all that
    .repair-… becomes .repaired                                       <- from here on it is done
    file by file, what differs takes the place of what was
    .repaired becomes .repair-…, and is removed

Whoever opens the profile next finishes the last step. Nothing that can be read is deleted: what has no place any more,
and the damaged original of what was written anew, is in `checkpoints/lost+found/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from deepctl.files import atomic, rmtree, sealed_lines, sealed_repair
from deepctl.layout import ProfilePaths
from deepctl.store import ledger, ledger_size, log_file, lookup, repair_report, reserve, session_catalogue, verify
from deepctl.store.repair_logs import Logs, gap
from deepctl.store.repair_packs import Packs
from deepctl.store.repair_report import Findings, Lost, Repaired
from deepctl.store.repository import remove_leftovers

STAGING = ".repair-"
DONE = ".repaired"
_OWN = ("sessions", "checkpoints")


class Repair(NamedTuple):
    """What a repair did, or would do. `problems` are those that `verify` still finds."""

    repaired: list[Repaired]
    lost: list[Lost]
    moved: list[str]
    problems: list[lookup.Problem]


def repair(paths: ProfilePaths, *, dry_run: bool = False) -> Repair:
    """Repair a profile. The caller holds its lock. Raises `NewerFormat` before anything is done, and `OSError`."""
    finish(paths)
    if not dry_run:
        remove_leftovers(paths)
    verify.verify(paths)  # for `NewerFormat`
    staged = os.path.join(paths.directory, STAGING + os.urandom(8).hex())
    copy = ProfilePaths(paths.name, staged, paths.lock)
    with reserve.room(paths), _removed_at_last(staged):
        _link(paths, copy)
        found = Findings(copy, paths.directory)
        _ledger(copy, found)
        after = Logs(copy, paths, found).repair()
        Packs(copy, paths, found, after).repair()
        problems = verify.verify(copy).problems
        done = Repair(found.repaired, found.lost, found.moved, [_in(paths, copy, problem) for problem in problems])
        if not dry_run and (done.repaired or done.lost or done.moved):
            atomic.sync_directory(staged)
            os.rename(staged, os.path.join(paths.directory, DONE))
            atomic.sync_directory(paths.directory)
            finish(paths)
    return done


@contextmanager
def _removed_at_last(directory: str) -> Iterator[None]:
    try:
        yield
    finally:
        if os.path.isdir(directory):
            rmtree.remove_tree(directory)


def _in(paths: ProfilePaths, copy: ProfilePaths, problem: lookup.Problem) -> lookup.Problem:
    old, new = copy.directory, paths.directory
    return problem._replace(file=problem.file.replace(old, new), reason=problem.reason.replace(old, new))


def finish(paths: ProfilePaths) -> bool:
    """Put what a repair made into place, if a kill left that to do; also remove what one that was killed left."""
    try:
        entries = os.listdir(paths.directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    for entry in entries:
        if entry.startswith(STAGING):
            rmtree.remove_tree(os.path.join(paths.directory, entry))
    if DONE not in entries:
        return False
    done = os.path.join(paths.directory, DONE)
    for name in _OWN:
        _install(os.path.join(done, name), os.path.join(paths.directory, name))
    for cached in (paths.checkpoint_index, paths.snapshot_cache):
        try:
            os.unlink(cached)
        except FileNotFoundError:
            pass
    # Under another name first: half of it, installed again after a kill, would delete what is not in that half.
    leftover = os.path.join(paths.directory, STAGING + os.urandom(8).hex())
    os.rename(done, leftover)
    atomic.sync_directory(paths.directory)
    rmtree.remove_tree(leftover)
    return True


def _install(made: str, place: str) -> None:
    """Make the files below `place` those below `made`; the ledger first, so that nothing is gone that it names."""
    if not os.path.isdir(made):
        return
    atomic.make_directory(place)
    for name in sorted(os.listdir(made), key=lambda one: (one != ledger.LEDGER, one)):
        source, target = os.path.join(made, name), os.path.join(place, name)
        if os.path.isdir(source):
            _install(source, target)
        elif not _is_same(source, target):
            _put(source, target)
    for name in set(os.listdir(place)) - set(os.listdir(made)):
        target = os.path.join(place, name)
        if not name.startswith("."):
            rmtree.remove_tree(target)
    atomic.sync_directory(place)


def _is_same(source: str, target: str) -> bool:
    try:
        return os.path.samefile(source, target)
    except FileNotFoundError:
        return False


def _put(source: str, target: str) -> None:
    staged = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.repair.tmp")
    try:
        os.unlink(staged)
    except FileNotFoundError:
        pass
    log_file.share(source, staged)
    os.rename(staged, target)


def _link(paths: ProfilePaths, copy: ProfilePaths) -> None:
    """The profile's own files by hard links; what is neither file nor directory stays out, and so stays."""
    os.mkdir(copy.directory, atomic.DIRECTORY_MODE)
    for name in _OWN:
        _link_tree(os.path.join(paths.directory, name), os.path.join(copy.directory, name))
    atomic.make_directory(copy.checkpoints)
    atomic.make_directory(copy.sessions)


def _link_tree(source: str, target: str) -> None:
    try:
        entries = list(os.scandir(source))
    except FileNotFoundError:
        return
    atomic.make_directory(target)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _link_tree(entry.path, os.path.join(target, entry.name))
        elif not entry.name.endswith(".tmp"):
            log_file.share(entry.path, os.path.join(target, entry.name))


def _ledger(paths: ProfilePaths, found: Findings) -> None:
    """Make every line of the ledger readable; what stays unreadable becomes a gap."""
    path = os.path.join(paths.checkpoints, ledger.LEDGER)
    try:
        before = atomic.read_file(path)
    except FileNotFoundError:
        before = b""
    known = ledger_size.read(paths.checkpoints)
    is_short = known.is_short or len(before) < known.size
    raw = sealed_lines.without_copies(sealed_repair.mended(before))
    if not raw.endswith(b"\n"):
        raw = raw[: raw.rfind(b"\n") + 1]
    while damage := ledger.parsed(raw, path).damage:
        gone = {one.line: one for one in damage}
        lines = []
        start = 0
        for line in sealed_lines.parse(raw):
            piece, start = raw[start : line.end], line.end
            one = gone.get(line.number)
            if one is not None:
                piece = gap(one.id)
                found.lose(repair_report.LEDGER_LINE, one.id or f"line {line.number}", one.reason)
            lines.append(piece)
        raw = b"".join(lines)
    if is_short:
        raw += gap(None)
        everybody = session_catalogue.all_names(paths)
        if before:
            found.lose(repair_report.LEDGER_LINE, "at its end", "lines are missing at its end", everybody)
        else:
            found.lose(repair_report.LEDGER, "all", "the ledger is missing or empty", everybody)
    raw = sealed_lines.without_copies(raw)
    if raw != before:
        found.keep(path)
        atomic.write_file(path, raw)
        found.repair("ledger", path, "damaged lines are mended, or are gaps now")
    size = os.path.join(paths.checkpoints, ledger_size.NAME)
    if known.problem is not None:
        found.repair("length of the ledger", size, known.problem)
    if raw != before or known.problem is not None:
        atomic.write_file(size, ledger_size.line(ledger_size.before_last(raw), is_short=False))
