"""`deepctl checkpoints`.

What only some commands need is imported where they need it: listing a thousand checkpoints takes less than that.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deepctl import names
from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles
from deepctl.errors import Damaged, UsageError
from deepctl.output import checkpoints as views
from deepctl.output.render import show
from deepctl.output.terminal_caps import is_terminal
from deepctl.store import lookup, session_catalogue
from deepctl.store.records import check_label

if TYPE_CHECKING:
    from deepctl.cli.checkpoint_views import Selection
    from deepctl.output.rewind import Rewound

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
    from deepctl.cli.checkpoint_list import listed

    show(listed(options.existing_profile(user), session, limit, tools=all_, graph=graph), as_json)


@app.command("show", epilog="Example: deepctl checkpoints show '~1' --user alice")
def show_(ref: Ref, user: options.User = None, session: SessionName = None, as_json: options.Json = False) -> None:
    """Show a checkpoint: its record, its files and its conversation."""
    from deepctl.cli.checkpoint_views import shown

    show(shown(options.existing_profile(user), ref, session), as_json)


@app.command(epilog="Example: deepctl checkpoints diff '~2' --user alice --stat")
def diff(
    before: Annotated[str | None, typer.Argument(metavar="[FROM]", help="The latest checkpoint without it.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="[TO]", help="What is now, without it.")] = None,
    user: options.User = None,
    session: SessionName = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only name the files and count lines.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare two checkpoints, or one with what is now: the files, and the turns that differ."""
    from deepctl.cli.checkpoint_views import compared

    show(compared(options.existing_profile(user), before, after, session, stat), as_json)


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
        if session is None and session_catalogue.latest(work.paths) is None:
            session_catalogue.start(work.paths, session_catalogue.FIRST)
        record = work.save_now(lookup.current_session(work.paths, session), label)
        view = views.CheckpointSaved(work.paths.name, lookup.describe(work.paths, work.ledger, record))
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
        record = lookup.find_checkpoint(work.paths, work.ledger, ref, session)
        work.label(record, label or None)
        view = views.Labelled(work.paths.name, lookup.describe(work.paths, work.ledger, record))
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints rewind '~1' --user alice --dry-run")
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
        from deepctl.cli.rewind_picker import pick

        ref = pick(options.existing_profile(user), session, only or "", force, exact)
    from deepctl.cli.checkpoint_views import foretold_rewind, rewound

    wanted = ref if ref is not None else "~1"
    wish = (only or "", force, exact)
    if dry_run:
        foretold = foretold_rewind(options.existing_profile(user), session, wanted, wish)
        show(foretold, as_json)
        _check(foretold)
        return
    with options.working(user, "checkpoints rewind", wait, as_json) as work:
        view = rewound(work, session, wanted, wish)
    show(view, as_json)


def _check(foretold: Rewound) -> None:
    """Raises the error with which what a dry run has just listed would be refused, if it would be."""
    from deepctl.store.rewind import Conflicts

    try:
        foretold.outline.check()
    except Conflicts as error:
        error.hint = error.force
        raise


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
    from deepctl.cli.checkpoint_views import foretold_undo, undone

    if dry_run:
        foretold = foretold_undo(options.existing_profile(user), session, force)
        show(foretold, as_json)
        _check(foretold)
        return
    with options.working(user, "checkpoints undo", wait, as_json) as work:
        view = undone(work, session, force)
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints fork '~3' another-try --user alice")
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
        record = lookup.find_checkpoint(work.paths, work.ledger, ref, session)
        forked = work.fork(record, name)
        view = views.Forked(work.paths.name, forked.name, lookup.describe(work.paths, work.ledger, record))
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
    from deepctl.cli.checkpoint_views import Selection

    _remove("checkpoints remove", Selection(refs, session), user, dry_run, wait, as_json)


@app.command(epilog="Example: deepctl checkpoints prune --older-than 30d --user alice --dry-run")
def prune(
    keep: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many of the newest stay.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only those made longer ago: 90m, 12h, 30d, 2w, 6mo, 1y."),
    ] = None,
    user: options.User = None,
    dry_run: DryRun = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove all but the newest N checkpoints, or those older than AGE; with both, only what is both.

    What has a label stays, the newest, and what the last rewind of each session is undone with.
    """
    from deepctl.cli.checkpoint_views import Selection
    from deepctl.store import ages

    if keep is None and older_than is None:
        raise UsageError("Nothing says which checkpoints go.", "Give --keep N, --older-than AGE, or both.")
    chosen = Selection(keep=keep, older_than=ages.before(older_than) if older_than is not None else None)
    _remove("checkpoints prune", chosen, user, dry_run, wait, as_json)


def _remove(command: str, chosen: Selection, user: str | None, dry_run: bool, wait: float, as_json: bool) -> None:
    from deepctl.cli.checkpoint_views import foretold_removal, removed

    if dry_run:
        show(foretold_removal(options.existing_profile(user), chosen), as_json)
        return
    with options.working(user, command, wait, as_json, frees=True) as work:
        view = removed(work, chosen)
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
    from deepctl.cli.checkpoint_views import taken_over

    if session is not None:
        names.check(session, "session")
    with options.working(user, "checkpoints import", wait, as_json) as work:
        view = taken_over(work, directory, session)
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints verify --user alice")
def verify(user: options.User = None, as_json: options.Json = False) -> None:
    """Read and check every byte that is kept; exit 5 if any is damaged."""
    from deepctl.output.progress import BYTES, Progress
    from deepctl.store import verify

    profile = options.existing_profile(user)
    with Progress("Checking", BYTES, verify.packed(profile)) as progress:
        found = verify.verify(profile, progress)
    show(views.Checked(profile.name, found), as_json)
    if found.problems:
        count = len(found.problems)
        raise Damaged(
            f"{count} problem{'' if count == 1 else 's'} found in profile {profile.name!r}.",
            "Everything that is not named still works. `deepctl checkpoints repair` mends what can be mended.",
        )


@app.command(epilog="Example: deepctl checkpoints repair --user alice --dry-run")
def repair(
    user: options.User = None, dry_run: DryRun = False, wait: options.Wait = 0.0, as_json: options.Json = False
) -> None:
    """Mend what `verify` finds. Everything readable stays; what is lost is listed, damaged originals are put aside."""
    from deepctl.output.repair import Repaired
    from deepctl.store import repair as repairing

    profile = options.existing_profile(user)
    with profiles.lock(options.root(), profile.name, command="checkpoints repair", wait=wait):
        done = repairing.repair(profile, dry_run=dry_run)
    show(Repaired(profile, dry_run, done), as_json)
    if done.problems:
        first = done.problems[0]
        raise Damaged(
            f"{len(done.problems)} problem{'' if len(done.problems) == 1 else 's'} could not be repaired in profile "
            f"{profile.name!r}; the first: {first.file}: {first.reason}.",
            "Everything else works. `deepctl checkpoints verify` names all of them.",
        )
