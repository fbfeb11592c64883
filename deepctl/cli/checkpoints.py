"""`deepctl checkpoints`."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Annotated, Literal

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import names
from deepctl.domain.checkpoints import comparing, importing, pruning, reading, rewinding, trees, verifying
from deepctl.domain.checkpoints.ledger import Ledger, Record, check_label
from deepctl.domain.checkpoints.reading import Listed, Reader
from deepctl.domain.checkpoints.rewinding import Done, Outline, Wish
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import catalogue, log
from deepctl.domain.sessions.catalogue import Session
from deepctl.errors import Damaged, NotFound
from deepctl.output import checkpoints as views
from deepctl.output.progress import Progress
from deepctl.output.render import show
from deepctl.output.text import is_terminal

app = typer.Typer(
    help="Points in time of a conversation, its files and its memory; going back to them, and back again.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Ref = Annotated[str, typer.Argument(help="An id, 4 or more digits it begins with, a label, or ~N for N turns back.")]
SessionName = Annotated[
    str | None, typer.Option("--session", "-s", metavar="NAME", help="Session at hand; the latest without it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Force = Annotated[bool, typer.Option("--force", help="Take back what somebody else changed after the agent, too.")]


def _listed(profile: ProfilePaths, found: Ledger, record: Record) -> Listed:
    return reading.described(found, catalogue.by_id(profile))(record)


@app.command("list", epilog="Example: deepctl checkpoints list --user alice --limit 10")
def list_(
    user: options.User = None,
    session: Annotated[str | None, typer.Option("--session", "-s", metavar="NAME", help="Only this session's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many, the newest.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Those made after single tool calls, too.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Draw which came from which.")] = False,
    as_json: options.Json = False,
) -> None:
    """List checkpoints, the newest first."""
    profile = options.existing_profile(user)
    wanted = catalogue.find(profile, session).id if session is not None else None
    found = reading.read(profile)
    describe = reading.described(found, catalogue.by_id(profile))
    records = [
        record
        for record in reversed(found.records.values())
        if (all_ or record.kind != "tool") and wanted in (None, record.session)
    ][:limit]
    shown = {record.id for record in records}
    listed = [describe(record) for record in records]
    if graph:
        listed = [one._replace(parent=_shown_parent(found, one.record, shown)) for one in listed]
    notes = (
        ["A rewind was interrupted; the next command that changes something finishes it."] if found.unfinished else []
    )
    show(views.CheckpointList(profile.name, listed, reading.structural(profile, found), notes, graph), as_json)


def _shown_parent(found: Ledger, record: Record, shown: set[str]) -> str | None:
    return next((one.id for one in found.line_of(record.parent) if one.id in shown), None)


@app.command("show", epilog="Example: deepctl checkpoints show ~1 --user alice")
def show_(ref: Ref, user: options.User = None, session: SessionName = None, as_json: options.Json = False) -> None:
    """Show a checkpoint: its record, its files and its conversation."""
    profile = options.existing_profile(user)
    with closing(Reader(profile)) as reader:
        record = reading.find(profile, reader.ledger, ref, session)
        walked = trees.walk(reader.objects, bytes.fromhex(record.tree)) if record.tree else iter(())
        files = [(os.fsdecode(path), entry) for path, entry in walked]
        conversation = reading.conversation_at(profile, record)
        show(views.CheckpointShown(profile.name, _listed(profile, reader.ledger, record), files, conversation), as_json)


@app.command(epilog="Example: deepctl checkpoints diff ~2 --user alice --stat")
def diff(
    before: Annotated[str | None, typer.Argument(metavar="[FROM]", help="The latest checkpoint without it.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="[TO]", help="What is now, without it.")] = None,
    user: options.User = None,
    session: SessionName = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only name the files and count lines.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare two checkpoints, or one with what is now: the files, and the turns that differ."""
    profile = options.existing_profile(user)
    exclude, _ = options.snapshot_settings(profile)
    with closing(Reader(profile)) as reader, Progress("Comparing") as progress:
        first = _from(profile, reader.ledger, before, session)
        second = reading.find(profile, reader.ledger, after, session) if after is not None else None
        new = bytes.fromhex(second.tree) if second is not None else reader.present(exclude, progress).tree
        old = bytes.fromhex(first.tree)
        content = comparing.kept(reader.objects)
        changed = trees.changes(reader.objects, old, new) if old and new else iter(())
        later = content if second is not None else comparing.present(profile.workspace, reader.objects)
        found = list(comparing.differences(changed, content, later))
        describe = reading.described(reader.ledger, catalogue.by_id(profile))
        removed, added = _turns(profile, first, second, session)
        to = describe(second) if second is not None else None
        show(views.Compared(profile.name, describe(first), to, found, removed, added, stat), as_json)


def _from(profile: ProfilePaths, found: Ledger, reference: str | None, session: str | None) -> Record:
    if reference is not None:
        return reading.find(profile, found, reference, session)
    records = [record for record in found.records.values() if record.tree]
    if session is not None:
        wanted = catalogue.find(profile, session).id
        records = [record for record in records if record.session == wanted]
    if not records:
        raise NotFound(
            "There is no checkpoint to compare with.",
            "`deepctl checkpoints save` makes one.",
            code="checkpoint_not_found",
        )
    return records[-1]


def _turns(
    profile: ProfilePaths, first: Record, second: Record | None, session: str | None
) -> tuple[list[views.Turn], list[views.Turn]]:
    before = reading.conversation_at(profile, first).messages
    if second is not None:
        after = reading.conversation_at(profile, second).messages
    else:
        name = session if session is not None else catalogue.by_id(profile).get(first.session)
        after = catalogue.read(reading.session_at_hand(profile, name)).messages
    shared = 0
    while shared < min(len(before), len(after)) and before[shared].message == after[shared].message:
        shared += 1
    removed, added = (_prompts(messages[shared:]) for messages in (before, after))
    return removed, added


def _prompts(messages: list[log.Message]) -> list[views.Turn]:
    return [views.Turn(entry.turn, text) for entry in messages if (text := catalogue.prompt(entry.message)) is not None]


@app.command(epilog="Example: deepctl checkpoints save before-refactoring --user alice")
def save(
    label: Annotated[str | None, typer.Argument(metavar="[LABEL]", help="What to call it.")] = None,
    user: options.User = None,
    session: SessionName = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Make a checkpoint now. Piped, it prints the id alone."""
    if label is not None:
        check_label(label)
    with options.working(user, "checkpoints save", wait, as_json) as work:
        if session is None and catalogue.latest(work.paths) is None:
            catalogue.start(work.paths, catalogue.FIRST)
        record = work.save_now(reading.session_at_hand(work.paths, session), label)
        view = views.CheckpointSaved(work.paths.name, _listed(work.paths, work.ledger, record))
    show(view, as_json)


@app.command("label", epilog="Example: deepctl checkpoints label 3fa2 good --user alice")
def label_(
    ref: Ref,
    label: Annotated[str, typer.Argument(help="Its name; '' takes the name away.")],
    user: options.User = None,
    session: SessionName = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Name a checkpoint. What has a name is never pruned."""
    if label:
        check_label(label)
    with options.working(user, "checkpoints label", wait, as_json) as work:
        record = reading.find(work.paths, work.ledger, ref, session)
        work.label(record, label or None)
        view = views.Labelled(work.paths.name, _listed(work.paths, work.ledger, record))
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints rewind ~1 --user alice --dry-run")
def rewind(
    ref: Annotated[
        str | None,
        typer.Argument(metavar="[REF]", help="Where to. Without it: choose at a terminal, else before the last turn."),
    ] = None,
    user: options.User = None,
    session: SessionName = None,
    only: Annotated[Literal["conversation", "files", "memory"] | None, typer.Option(help="Rewind this alone.")] = None,
    dry_run: DryRun = False,
    force: Force = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Make the whole workspace what it was, whoever changed it.")
    ] = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Go back to a checkpoint: conversation, files and memory. `undo` takes it back.

    What the agent did in this session since then is undone; what somebody else changed stays. Where somebody changed a
    file after the agent did, nothing is touched and the file is named (exit 6).
    """
    if ref is None and not as_json and not dry_run and is_terminal(sys.stdin) and is_terminal(sys.stderr):
        from deepctl.cli.picker import pick

        ref = pick(options.existing_profile(user), session, only or "", force, exact)
    wanted = ref if ref is not None else "~1"
    wish = (only or "", force, exact)
    if dry_run:
        show(_foretold(options.existing_profile(user), session, wanted, wish), as_json)
        return
    with options.working(user, "checkpoints rewind", wait, as_json) as work:
        at_hand, target = _target(work.paths, work.ledger, session, wanted)
        done = rewinding.rewind(work, at_hand, Wish(target, *wish))
        view = _rewound(work.paths, work.ledger, done)
    show(view, as_json)


def _target(paths: ProfilePaths, found: Ledger, session: str | None, reference: str) -> tuple[Session, Record]:
    """The session at hand and the checkpoint in it. Raises `UsageError` for a checkpoint of another session."""
    at_hand = reading.session_at_hand(paths, session)
    target = reading.find(paths, found, reference, at_hand.name)
    rewinding.check_session(found, at_hand, target, catalogue.by_id(paths))
    return at_hand, target


def _foretold(
    profile: ProfilePaths, session: str | None, reference: str, wish: tuple[str, bool, bool]
) -> views.Rewound:
    with closing(Reader(profile)) as reader, Progress("Looking") as progress:
        at_hand, target = _target(profile, reader.ledger, session, reference)
        foretold = foretell(reader, at_hand, Wish(target, *wish), progress)
        return _foreseen(reader, foretold)


def foretell(reader: Reader, session: Session, wish: Wish, progress: Progress) -> Outline:
    """What a rewind would do, without the lock and without changing anything."""
    exclude, _ = options.snapshot_settings(reader.paths)
    present = reader.present(exclude, progress)
    author = reading.last_author(reader.paths, reader.ledger)
    files = rewinding.plan_files(
        reader.ledger, reader.objects, reader.sink, present, session.id, wish, exclude=exclude, author=author
    )
    position = reading.position(session, catalogue.read(session))
    return rewinding.outline(reader.paths, session, position, present, wish, files)


def _foreseen(reader: Reader, foretold: Outline) -> views.Rewound:
    now = comparing.present(reader.paths.workspace, reader.objects)
    preview = list(comparing.differences(foretold.changes, now, comparing.kept(reader.objects)))
    changed = [change for change in foretold.changes if change.before != change.after]
    return views.Rewound(
        reader.paths.name,
        True,
        foretold,
        _listed(reader.paths, reader.ledger, foretold.wish.to),
        None,
        [change.path for change in changed if change.after is not None],
        [change.path for change in changed if change.after is None],
        foretold.kept,
        [],
        preview,
    )


def _rewound(paths: ProfilePaths, found: Ledger, done: Done) -> views.Rewound:
    describe = reading.described(found, catalogue.by_id(paths))
    return views.Rewound(
        paths.name,
        False,
        done.outline,
        describe(done.outline.wish.to),
        describe(done.safety) if done.safety is not None else None,
        done.restored,
        done.deleted,
        [*done.outline.kept, *(path for path, _ in done.in_the_way)],
        [f"{os.fsdecode(path)!r} is not as it was: {reason}." for path, reason in done.in_the_way],
        [],
    )


@app.command(epilog="Example: deepctl checkpoints undo --user alice")
def undo(
    user: options.User = None,
    session: SessionName = None,
    dry_run: DryRun = False,
    force: Force = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Take back the last rewind of the session; an undo too, which does it again."""
    if dry_run:
        profile = options.existing_profile(user)
        with closing(Reader(profile)) as reader, Progress("Looking") as progress:
            at_hand = reading.session_at_hand(profile, session)
            foretold = foretell(reader, at_hand, rewinding.undoing(reader.ledger, at_hand), progress)
            show(_foreseen(reader, foretold), as_json)
        return
    with options.working(user, "checkpoints undo", wait, as_json) as work:
        done = rewinding.undo(work, reading.session_at_hand(work.paths, session), force=force)
        view = _rewound(work.paths, work.ledger, done)
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints fork ~3 another-try --user alice")
def fork(
    ref: Ref,
    name: Annotated[str, typer.Argument(help="Name of the new session.")],
    user: options.User = None,
    session: SessionName = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Begin a new session from a checkpoint's conversation. The workspace stays as it is."""
    names.check(name, "session")
    with options.working(user, "checkpoints fork", wait, as_json) as work:
        record = reading.find(work.paths, work.ledger, ref, session)
        reading.conversation_at(work.paths, record)
        directory = reading.directory_of(work.paths, record.log)
        assert directory is not None
        forked = catalogue.fork(work.paths, name, directory, record.id, record.log, record.offset)
        view = views.Forked(work.paths.name, forked.name, _listed(work.paths, work.ledger, record))
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints remove 3fa2 77c0 --user alice")
def remove(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="Which.")],
    user: options.User = None,
    session: SessionName = None,
    dry_run: DryRun = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove checkpoints and free what only they needed; never the newest, never a labelled one."""
    _remove(refs, None, user, session, dry_run, wait, as_json)


@app.command(epilog="Example: deepctl checkpoints prune --keep 100 --user alice --dry-run")
def prune(
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the newest stay.")],
    user: options.User = None,
    dry_run: DryRun = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove all but the newest N checkpoints; labelled ones stay, and what the last rewind is undone with."""
    _remove([], keep, user, None, dry_run, wait, as_json)


def _remove(
    refs: list[str],
    keep: int | None,
    user: str | None,
    session: str | None,
    dry_run: bool,
    wait: float,
    as_json: bool,
) -> None:
    def chosen(paths: ProfilePaths, found: Ledger) -> list[Record]:
        if keep is not None:
            return pruning.to_prune(found, keep)
        records = {record.id: record for record in (reading.find(paths, found, ref, session) for ref in refs)}
        pruning.check_removable(found, records.values())
        return list(records.values())

    if dry_run:
        profile = options.existing_profile(user)
        with closing(Reader(profile)) as reader:
            removal = pruning.forecast(reader.ledger, reader.objects, chosen(profile, reader.ledger))
        show(views.Removed(profile.name, True, removal), as_json)
        return
    command = "checkpoints remove" if keep is None else "checkpoints prune"
    with options.working(user, command, wait, as_json) as work:
        removal = pruning.remove(work, chosen(work.paths, work.ledger))
        view = views.Removed(work.paths.name, False, removal)
    show(view, as_json)


@app.command("import", epilog="Example: deepctl checkpoints import ./checkpoints/alice --user alice")
def import_(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Where pydantic-deep's FileCheckpointStore kept its <id>.json files.")
    ],
    user: options.User = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="Name of the session they become.")
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Take over the checkpoints of a pydantic-deep application, as a session of its own. DIR stays as it is."""
    if session is not None:
        names.check(session, "session")
    with options.working(user, "checkpoints import", wait, as_json) as work:
        taken = importing.take_over(work, directory, session)
        describe = reading.described(work.ledger, catalogue.by_id(work.paths))
        view = views.Imported(work.paths.name, taken.session, [describe(one) for one in taken.records], taken.problems)
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints verify --user alice")
def verify(user: options.User = None, as_json: options.Json = False) -> None:
    """Read and check every byte that is kept; exit 5 if any is damaged."""
    profile = options.existing_profile(user)
    found = verifying.verify(profile)
    show(views.Checked(profile.name, found), as_json)
    if found.problems:
        count = len(found.problems)
        raise Damaged(
            f"{count} problem{'' if count == 1 else 's'} found in profile {profile.name!r}.",
            "Everything that is not named still works.",
        )
