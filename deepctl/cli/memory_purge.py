"""`deepctl memory forget --purge`."""

from __future__ import annotations

from contextlib import closing

from deepctl.cli import options
from deepctl.cli.confirm import confirm
from deepctl.domain.memory.forget import ForgetRequest, TextNotFound
from deepctl.domain.purge import purge, report
from deepctl.domain.purge.notebooks import PurgeSelector
from deepctl.domain.purge.purge import Purged
from deepctl.domain.purge.text_matcher import TextMatcher
from deepctl.layout import ProfilePaths
from deepctl.output.progress import Progress
from deepctl.output.purge import LinesPurged, question
from deepctl.output.render import notice
from deepctl.quantities import counted
from deepctl.store import repair_report
from deepctl.store.contents_reader import ReadOnlyRepository


def purged(
    profile: ProfilePaths, agent: str, wish: ForgetRequest, *, dry_run: bool, yes: bool, wait: float, as_json: bool
) -> LinesPurged:
    """Purge what `wish` says, and look where the text still stands.

    Raises `TextNotFound` if no notebook and no checkpoint of one has it, and `Refused` unless the user agrees.
    """
    selector = PurgeSelector(TextMatcher(wish.text, wish.ignore_case), agent, wish.file)
    told: Purged | None = None
    if (aside := repair_report.count_put_aside(profile)) and not as_json:
        notice(f"What repairs put aside goes with a purge, too: {counted(aside, 'file')} in checkpoints/lost+found.")
    if dry_run or not yes:
        with closing(ReadOnlyRepository(profile)) as reader, _looking() as progress:
            told = _found(purge.preview(reader, selector, progress), wish)
            if dry_run:
                found = report.places(reader, told.contents, progress)
                places = [one for one in found if not selector.covers(one.name)]
                return LinesPurged(profile.name, agent, wish, told, places, dry_run=True)
        view = LinesPurged(profile.name, agent, wish, told, [], dry_run=True)
        if not as_json:
            view.tell()
        confirm(question(told), yes=False, as_json=as_json, typed=profile.name)
    working = options.working(profile.name, "memory forget", wait, as_json, frees=True)
    with working as work, Progress("Purging", _READ) as progress:
        done = _found(purge.purge(work, selector, expected=told, report=progress), wish)
    # Where it still stands is for reading only, and nobody has to wait for that.
    with closing(ReadOnlyRepository(profile)) as reader, _looking() as progress:
        places = report.places(reader, done.contents, progress)
    return LinesPurged(profile.name, agent, wish, done, places, dry_run=False, is_shown=told is not None)


_READ = "files and objects read"


def _looking() -> Progress:
    return Progress("Looking", _READ)


def _found(purged: Purged, wish: ForgetRequest) -> Purged:
    if not purged.is_nothing:
        return purged
    where = f"in {wish.file!r}" if wish.file is not None else "in the notebooks"
    raise TextNotFound(
        f"{wish.text.decode('utf-8', 'backslashreplace')!a} is on no line {where}, nor in what checkpoints keep of "
        "them.",
        "`deepctl memory search` finds lines by their words."
        if wish.ignore_case
        else "--ignore-case finds it in another case, too.",
    )
