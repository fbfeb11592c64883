"""`deepctl checkpoints`.

Modules that only some commands need are imported in these commands, because the imports take longer than listing a
thousand checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deepctl import layout
from deepctl.cli import ages, options
from deepctl.cli.options import HELP_OPTIONS, Target
from deepctl.domain import profiles, session_choice
from deepctl.errors import Damaged, UsageError
from deepctl.layout import ProfilePaths
from deepctl.output import checkpoints as views
from deepctl.output.render import is_terminal, show
from deepctl.store import lookup, projects, session_catalogue
from deepctl.store.ledger import Ledger
from deepctl.store.lookup import CheckpointInfo
from deepctl.store.records import Record, SessionRecord, check_label

if TYPE_CHECKING:
    from deepctl.domain.settings import Settings
    from deepctl.output.rewind import RewindView
    from deepctl.store.repository import ReadOnlyRepository, Repository
    from deepctl.store.rewind import RewindRequest

app = typer.Typer(
    help="Points in time of a conversation, its files and its memory, and how to return to them.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Ref = Annotated[
    str, typer.Argument(help="Checkpoint: an id, the first 4 or more digits of an id, a label, or ~N for N turns back.")
]
SessionName = Annotated[
    str | None,
    typer.Option(
        "--session", "-s", metavar="NAME", help="Session to work on. Default: the one that was used last, see -C."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would happen.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Also rewind files with a conflict. Edits by another author in these files are undone."
    ),
]


@app.command("list", epilog="Example: deepctl checkpoints list --user alice --limit 10")
def list_(
    user: options.User = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="Only checkpoints of this session.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show at most N checkpoints, the newest.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", "-C", metavar="DIR", help="Only checkpoints of sessions in this directory."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also show the checkpoints of single tool calls.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Draw the history as a graph with rewinds and forks.")] = False,
    as_json: options.Json = False,
) -> None:
    """List checkpoints, newest first."""
    profile = options.existing_profile(user, directory=project)
    directory_project = session_choice.project_of(profile, project)
    if session is not None and directory_project is not None:
        session_choice.check_directory(profile, session_catalogue.find(profile, session), directory_project.path)
    project_id = directory_project.id if directory_project is not None else None
    listing = lookup.listing(profile, session, limit, project=project_id, tools=all_, graph=graph)
    show(views.CheckpointListView(profile.name, listing, graph), as_json)


@app.command("show", epilog="Example: deepctl checkpoints show '~1' --user alice")
def show_(
    ref: Ref,
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    as_json: options.Json = False,
) -> None:
    """Show the record, the files and the conversation of a checkpoint."""
    from deepctl.store.repository import Repository

    target = options.target(user, session, project, (ref,))
    with Repository.read_only(target.profile) as repository:
        view = checkpoint_view(repository, ref, target.session)
    show(view, as_json)


def checkpoint_view(repository: ReadOnlyRepository, reference: str, session: str | None) -> views.CheckpointView:
    """A checkpoint with its files and its conversation."""
    from deepctl.store import trees, workspaces

    paths, ledger = repository.paths, repository.ledger
    record = lookup.find_checkpoint(paths, ledger, reference, session)
    entries = trees.walk(repository.objects, bytes.fromhex(record.tree)) if record.tree else ()
    project = record.project
    files = [
        (os.fsdecode(workspaces.shown(path, project)), entry)
        for path, entry in entries
        if workspaces.is_shown(path, project)
    ]
    conversation = lookup.conversation_at(paths, record)
    return views.CheckpointView(paths.name, lookup.describe(paths, ledger, record), files, conversation)


@app.command(epilog="Example: deepctl checkpoints diff '~2' --user alice --stat")
def diff(
    before: Annotated[str | None, typer.Argument(metavar="[FROM]", help="Checkpoint. Default: the latest one.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="[TO]", help="Checkpoint. Default: the present state.")] = None,
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    stat: Annotated[bool, typer.Option("--stat", help="Show only file names and line counts.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show which files and turns differ between two checkpoints, or between a checkpoint and now."""
    from deepctl.output.rewind import CheckpointDiffView
    from deepctl.store import diff

    references = [reference for reference in (before, after) if reference is not None]
    target = options.target(user, session, project, references if before is not None else None)
    with options.reading(target.profile, target.settings, "Comparing") as repository:
        comparison = diff.compare(repository, before, after, target.session)
        describe = _describer(repository)
        second = describe(comparison.after) if comparison.after is not None else None
        view = CheckpointDiffView(repository.paths.name, comparison, describe(comparison.before), second, stat)
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints save before-refactoring --user alice")
def save(
    label: Annotated[str | None, typer.Argument(metavar="[LABEL]", help="Label of the checkpoint.")] = None,
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Make a checkpoint now.

    If stdout is not a terminal, the command prints only the id.
    """
    if label is not None:
        check_label(label)
    target = options.target(user, session, project)
    with options.working(target.profile.name, "checkpoints save", wait, as_json, in_force=target.settings) as work:
        name = target.session
        if name is None and session_catalogue.latest_session(work.paths) is None:
            name = session_catalogue.start(work.paths, session_catalogue.first_name(work.paths)).name
        record = work.save_now(lookup.current_session(work.paths, name), label)
        view = views.CheckpointSaveView(work.paths.name, lookup.describe(work.paths, work.ledger, record))
    show(view, as_json)


@app.command("label", epilog="Example: deepctl checkpoints label 3fa2 good --user alice")
def label_(
    ref: Ref,
    label: Annotated[str, typer.Argument(help="New label. '' removes the label.")],
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Give a checkpoint a label. Labelled checkpoints are never pruned."""
    if label:
        check_label(label)
    target = options.target(user, session, project, (ref,))
    with options.working(target.profile.name, "checkpoints label", wait, as_json, in_force=target.settings) as work:
        record = lookup.find_checkpoint(work.paths, work.ledger, ref, target.session)
        work.label(record, label or None)
        view = views.CheckpointLabelView(work.paths.name, lookup.describe(work.paths, work.ledger, record))
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints rewind '~1' --user alice --dry-run")
def rewind(
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="[REF]",
            help="Checkpoint to return to. Default: a choice at a terminal; otherwise the state before the last turn.",
        ),
    ] = None,
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    only: Annotated[
        Literal["conversation", "files", "memory"] | None, typer.Option(help="Rewind only this part.")
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Make the whole workspace equal to the checkpoint, and undo changes by every author."
        ),
    ] = False,
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Refuse the rewind instead of merging a file by line.")
    ] = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Return to a checkpoint: conversation, files and memory.

    The rewind undoes the later changes of the agent in this session. Changes by another author stay: notebooks, and
    text files of a project, are merged by line. If another author changed the same lines, or any other file, after the
    agent, the rewind is refused and names the file (exit 6). `undo` undoes a rewind.
    """
    target = options.target(user, session, project)
    if ref is None and not as_json and not dry_run and is_terminal(sys.stdin) and is_terminal(sys.stderr):
        from deepctl.cli.repl.pickers import pick_checkpoint

        ref = pick_checkpoint(target.profile, target.settings, target.session, only or "", force, exact, not no_merge)
    reference = ref if ref is not None else "~1"

    def request(repository: Repository | ReadOnlyRepository) -> tuple[SessionRecord, RewindRequest]:
        from deepctl.store import rewind

        return rewind.request_rewind(
            repository, target.session, reference, only=only or "", force=force, exact=exact, merge=not no_merge
        )

    _rewind("checkpoints rewind", request, target, dry_run, wait, as_json)


def _rewind(
    command: str,
    request: Callable[[Repository | ReadOnlyRepository], tuple[SessionRecord, RewindRequest]],
    target: Target,
    dry_run: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Apply `request` to the profile of `target`, or only show the preview."""
    is_undo = command == "checkpoints undo"
    if dry_run:
        with options.reading(target.profile, target.settings, "Looking") as reader:
            preview = rewind_preview(reader, *request(reader))._replace(is_undo=is_undo)
        show(preview, as_json)
        _check(preview)
        return
    with options.working(target.profile.name, command, wait, as_json, in_force=target.settings) as repository:
        session, rewind_request = request(repository)
        with projects.lock(repository.paths, session, wait=wait):
            view = rewound(repository, session, rewind_request)._replace(is_undo=is_undo)
    show(view, as_json)


def rewind_preview(repository: ReadOnlyRepository, session: SessionRecord, request: RewindRequest) -> RewindView:
    """The preview of a rewind."""
    from deepctl.output.rewind import RewindView
    from deepctl.store import rewind

    plan = rewind.preview(repository, session, request)
    occupied_paths = set(plan.occupied_paths) if plan.refusal is None else set()
    changes = [change for change in plan.changes if change.before != change.after and change.path not in occupied_paths]
    return RewindView(
        repository.paths.name,
        True,
        plan,
        lookup.describe(repository.paths, repository.ledger, request.to),
        None,
        [change.path for change in changes if change.after is not None],
        [change.path for change in changes if change.after is None],
        sorted({*plan.kept_paths, *occupied_paths}),
        {},
        rewind.differences(repository, plan),
    )


def rewound(repository: Repository, session: SessionRecord, request: RewindRequest) -> RewindView:
    """Rewind, and return the result to show."""
    from deepctl.output.rewind import RewindView
    from deepctl.store import rewind

    result = rewind.run(repository, session, request)
    describe = _describer(repository)
    return RewindView(
        repository.paths.name,
        False,
        result.plan,
        describe(request.to),
        describe(result.safety) if result.safety is not None else None,
        result.restored_paths,
        result.deleted_paths,
        sorted({*result.plan.kept_paths, *(path for path, _ in result.in_the_way)}),
        dict(result.in_the_way),
        [],
        _undo_command(repository.paths, session.name),
    )


def _describer(repository: Repository | ReadOnlyRepository) -> Callable[[Record], CheckpointInfo]:
    return lookup.describer(repository.paths, repository.ledger)


def _undo_command(paths: ProfilePaths, session: str) -> str:
    """The command that undoes a rewind of a session. A rewind of files alone does not make the session the current
    one.
    """
    command = f"deepctl checkpoints undo --user {paths.name}"
    return command if session_catalogue.latest_session(paths) == session else f"{command} --session {session}"


def _check(preview: RewindView) -> None:
    """Raises the error with which the listed rewind of a dry run would be refused, if there is one."""
    from deepctl.store.rewind import RewindConflicts

    try:
        preview.plan.check()
    except RewindConflicts as error:
        error.hint = error.force
        raise


@app.command(epilog="Example: deepctl checkpoints undo --user alice")
def undo(
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    dry_run: DryRun = False,
    force: Force = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Undo the last rewind of the session. A second undo redoes the rewind."""
    target = options.target(user, session, project)

    def request(repository: Repository | ReadOnlyRepository) -> tuple[SessionRecord, RewindRequest]:
        from deepctl.store import rewind

        return rewind.request_undo(repository, target.session, force=force)

    _rewind("checkpoints undo", request, target, dry_run, wait, as_json)


@app.command(epilog="Example: deepctl checkpoints fork '~3' another-try --user alice")
def fork(
    ref: Ref,
    name: Annotated[str, typer.Argument(help="Name of the new session.")],
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Start a new session from the conversation of a checkpoint. The workspace does not change."""
    layout.check_name(name, "session")
    target = options.target(user, session, project, (ref,))
    with options.working(target.profile.name, "checkpoints fork", wait, as_json, in_force=target.settings) as work:
        record = lookup.find_checkpoint(work.paths, work.ledger, ref, target.session)
        new_session = work.fork(record, name)
        view = views.CheckpointForkView(
            work.paths.name, new_session.name, lookup.describe(work.paths, work.ledger, record)
        )
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints remove 3fa2 77c0 --user alice")
def remove(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF...", help="Checkpoints to remove: ids, the first 4 or more digits of ids, labels, or ~N."
        ),
    ],
    user: options.User = None,
    session: SessionName = None,
    project: options.Project = None,
    dry_run: DryRun = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove checkpoints and free the space that only they needed.

    The newest checkpoint and labelled checkpoints cannot be removed.
    """
    target = options.target(user, session, project, refs)

    def select(paths: ProfilePaths, ledger: Ledger) -> list[Record]:
        from deepctl.store import prune

        matches = (lookup.find_checkpoint(paths, ledger, reference, target.session) for reference in refs)
        records = {record.id: record for record in matches}
        prune.check_removable(ledger, records.values())
        return list(records.values())

    _remove("checkpoints remove", select, target.profile.name, dry_run, wait, as_json, target.settings)


@app.command(epilog="Example: deepctl checkpoints prune --older-than 30d --user alice --dry-run")
def prune(
    keep: Annotated[int | None, typer.Option(min=1, metavar="N", help="Keep the N newest checkpoints.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove only checkpoints older than AGE: 90m, 12h, 30d, 2w, 6mo, 1y."),
    ] = None,
    user: options.User = None,
    dry_run: DryRun = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove old checkpoints.

    --keep N removes all checkpoints except the newest N. Checkpoints of tool calls do not count; those before the
    Nth checkpoint are removed too. --older-than AGE removes checkpoints by age. With both options, a checkpoint is
    removed only if it meets both conditions. Three kinds of checkpoints always stay: labelled ones, the newest one, and
    those that can undo the last rewind of a session.
    """
    if keep is None and older_than is None:
        raise UsageError("Neither --keep nor --older-than is given.", "Give --keep N, --older-than AGE, or both.")
    oldest = ages.time_before(older_than) if older_than is not None else None

    def select(paths: ProfilePaths, ledger: Ledger) -> list[Record]:
        from deepctl.store import prune

        return prune.to_prune(ledger, keep, oldest)

    _remove("checkpoints prune", select, user, dry_run, wait, as_json)


def _remove(
    command: str,
    select: Callable[[ProfilePaths, Ledger], list[Record]],
    user: str | None,
    dry_run: bool,
    wait: float,
    as_json: bool,
    in_force: Settings | None = None,
) -> None:
    """Remove the checkpoints that `select` returns, or only show what this would free.

    `in_force` are the settings of the profile, if they are read.
    """
    from deepctl.output.render import Progress
    from deepctl.store import prune

    if dry_run:
        from deepctl.store.repository import Repository

        profile = options.existing_profile(user, in_force=in_force)
        with Repository.read_only(profile) as reader, Progress("Looking", "objects read") as progress:
            records = select(profile, reader.ledger)
            removal = prune.forecast(reader.ledger, reader.packs, records, progress)
        show(views.CheckpointRemovalView(profile.name, True, removal), as_json)
        return
    with options.working(user, command, wait, as_json, in_force=in_force, frees=True) as repository:
        records = select(repository.paths, repository.ledger)
        with Progress("Removing", "objects read") as progress:
            view = views.CheckpointRemovalView(
                repository.paths.name, False, prune.remove(repository, records, progress)
            )
    show(view, as_json)


@app.command("import", epilog="Example: deepctl checkpoints import ./checkpoints/alice --user alice")
def import_(
    directory: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Directory of pydantic-deep's FileCheckpointStore, with its <id>.json files."
        ),
    ],
    user: options.User = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session", "-s", metavar="NAME", help="Name of the new session. Default: imported, imported-2 and so on."
        ),
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Import the checkpoints of a pydantic-deep application as a new session.

    DIR is not changed.
    """
    from deepctl.store import pydantic_deep

    if session is not None:
        layout.check_name(session, "session")
    with options.working(user, "checkpoints import", wait, as_json) as work:
        result = pydantic_deep.take_over(work, directory, session)
        infos = [_describer(work)(record) for record in result.records]
        view = views.CheckpointImportView(work.paths.name, result.session, infos, result.problems)
    show(view, as_json)


@app.command(epilog="Example: deepctl checkpoints verify --user alice")
def verify(user: options.User = None, as_json: options.Json = False) -> None:
    """Read and check every stored byte. The exit code is 5 if something is damaged."""
    from deepctl.output.render import BYTES, Progress
    from deepctl.store import verify

    profile = options.existing_profile(user)
    with Progress("Checking", BYTES, verify.packed_bytes(profile)) as progress:
        result = verify.verify(profile, progress)
    show(views.VerificationView(profile.name, result), as_json)
    if result.problems:
        count = len(result.problems)
        raise Damaged(
            f"{count} problem{'' if count == 1 else 's'} found in profile {profile.name!r}.",
            "Everything that is not listed still works. `deepctl checkpoints repair` repairs what can be repaired.",
        )


@app.command(epilog="Example: deepctl checkpoints repair --user alice --dry-run")
def repair(
    user: options.User = None, dry_run: DryRun = False, wait: options.Wait = 0.0, as_json: options.Json = False
) -> None:
    """Repair what `verify` reports.

    All readable data stays. Losses are listed, and damaged originals are put aside.
    """
    from deepctl.output.repair import RepairView
    from deepctl.store import repair as repairing

    profile = options.existing_profile(user)
    with profiles.lock(options.root(), profile.name, command="checkpoints repair", wait=wait):
        result = repairing.repair(profile, dry_run=dry_run)
        if not dry_run:
            projects.sweep_all(profile)
    show(RepairView(profile, dry_run, result), as_json)
    if result.problems:
        first = result.problems[0]
        raise Damaged(
            f"{len(result.problems)} problem{'' if len(result.problems) == 1 else 's'} could not be repaired in "
            f"profile {profile.name!r}; the first: {first.file}: {first.reason}.",
            "Everything else works. `deepctl checkpoints verify` lists all problems.",
        )
