"""`deepctl memory`.

Modules that read checkpoints are imported in the commands that need them, so that `show` and `list` start quickly.
"""

from __future__ import annotations

import codecs
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from deepctl import layout
from deepctl.cancellation import interruptible
from deepctl.cli import options
from deepctl.cli.confirm import Yes, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import settings
from deepctl.domain.memory.directory import MAX_BYTES, Memory, Notebook, check_new, file_name, forget_request, odd_lines
from deepctl.errors import DeepctlError, Interrupted, MemoryNotFound, Refused, UsageError
from deepctl.files.atomic import storage_error
from deepctl.output import memory as views
from deepctl.output.render import Progress, is_terminal, notice, show
from deepctl.quantities import counted

if TYPE_CHECKING:
    from deepctl.domain.memory.changes import Draft
    from deepctl.domain.memory.directory import ForgetRequest
    from deepctl.domain.memory.shared import SharedNotebook
    from deepctl.domain.purge.purge import PurgeResult
    from deepctl.domain.settings import Settings
    from deepctl.layout import ProfilePaths

app = typer.Typer(
    help="The notebooks of the agent of a profile.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Agent = Annotated[
    str,
    typer.Option(
        "--agent",
        metavar="NAME",
        help="Agent whose notebooks are used. deepctl's own agent is `main`; applications can have others.",
    ),
]
File = Annotated[
    str | None, typer.Argument(metavar="[FILE]", help="Notebook, with or without .md. Default: MEMORY.md.")
]


class _TextCommand(TyperCommand):
    """A command whose argument is text, such as `- a line of a list`: a leading dash does not make it an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        texts = [word for word in args[:end] if word[:1] == "-" and word[:2] != "--" and " " in word]
        options = [word for word in args[:end] if word not in texts]
        return super().parse_args(ctx, [*options, "--", *texts, *args[end + 1 :]] if texts else args)


@app.command("show", epilog="Example: deepctl memory show --user alice --at '~2'")
def show_(
    file: File = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="REF",
            help="Show the notebook as of this checkpoint: an id, the first digits of an id, a label or ~N.",
        ),
    ] = None,
    user: options.User = None,
    project: options.Project = None,
    agent: Agent = layout.AGENT,
    as_json: options.Json = False,
) -> None:
    """Print a notebook: rendered at a terminal, exact bytes when piped."""
    profile, in_force, session = options.target(user, None, project, (at,) if at is not None else ())
    if file is not None and ":" in file and agent == layout.AGENT:
        from deepctl.domain.memory import shared

        if (notebook := shared.find(options.root(), profile, in_force, file)) is not None:
            if at is not None:
                raise UsageError("--at is for notebooks of the profile itself.", f"--user {notebook.owner} names it.")
            show(views.NotebookView(profile.name, agent, [notebook.notebook], None, notebook.owner), as_json)
            return
    memory = Memory(profile, agent)
    name = file_name(layout.NOTEBOOK if file is None else file)
    checkpoint = None
    try:
        if at is None:
            notebooks = [memory.read(name)]
        else:
            from deepctl.domain.memory import history
            from deepctl.store.repository import Repository

            with Repository.read_only(profile) as reader:
                record = history.checkpoint_with_files(reader, at, session)
                checkpoint = record.id
                notebooks = [history.notebook_at(reader, memory, name, record)]
    except MemoryNotFound:
        if file is not None or memory.agent != layout.AGENT:
            raise
        notebooks = []
    show(views.NotebookView(profile.name, memory.agent, notebooks, checkpoint), as_json)


@app.command("list", epilog="Example: deepctl memory list --user alice --json")
def list_(user: options.User = None, agent: Agent = layout.AGENT, as_json: options.Json = False) -> None:
    """List the notebooks of a profile, and those that other profiles share with it."""
    profile, in_force = options.profile_and_settings(user)
    memory = Memory(profile, agent)
    own_notebooks = memory.notebooks()
    shared_notebooks, problems = _shared(profile, in_force) if memory.agent == layout.AGENT else ([], [])
    show(views.NotebookListView(profile.name, memory.agent, own_notebooks, shared_notebooks, problems), as_json)


def _shared(profile: ProfilePaths, in_force: Settings) -> tuple[list[SharedNotebook], list[str]]:
    """The notebooks that other profiles share with a profile, and why some of these profiles do not."""
    try:
        names = in_force.patterns("memory.read")
    except (DeepctlError, OSError):
        return [], []  # a broken settings file must not prevent the list
    if not names:
        return [], []
    from deepctl.domain.memory import shared

    owners, problems = shared.owners(options.root(), profile, names)
    notebooks: list[SharedNotebook] = []
    for owner in owners:
        try:
            notebooks += shared.notebooks(owner)
        except (DeepctlError, OSError) as error:
            problems.append(f"The memory of {owner.name} cannot be read: {error}")
    return notebooks, problems


def _check_own(file: str | None, profile: ProfilePaths, in_force: Settings) -> None:
    """Raises `Refused` if `file` is a notebook of another profile, which cannot be changed."""
    if file is None or ":" not in file:
        return
    from deepctl.domain.memory import shared

    if (place := shared.split(file, shared.names_to_read(in_force))) is not None:
        raise shared.read_only(profile.name, place[0])


@app.command("add", cls=_TextCommand, epilog="Example: deepctl memory add 'Alice prefers window seats.' --user alice")
def add(
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="Text of the note. Without TEXT, or with -, stdin is the note."),
    ] = None,
    file: Annotated[
        str,
        typer.Option(
            "--file", metavar="FILE", help="Notebook, with or without .md. It is created if it does not exist."
        ),
    ] = layout.NOTEBOOK,
    user: options.User = None,
    agent: Agent = layout.AGENT,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Append a note to a notebook. The text is not changed."""
    profile, in_force = options.profile_and_settings(user)
    _check_own(file, profile, in_force)
    memory = Memory(profile, agent)
    name = file_name(file)
    if memory.find(name) is None:
        check_new(name)
    note = _note(text)
    from deepctl.domain.memory import changes

    with options.working(profile.name, "memory add", wait, as_json, in_force=in_force) as work:
        view = views.NotebookAdditionView(
            profile.name, memory.agent, changes.add(work, Memory(work.paths, agent), name, note)
        )
    show(view, as_json)


def _note(text: str | None) -> bytes:
    """The note from the command line or from stdin. Raises `UsageError` if there is none."""
    if text is not None and text != "-":
        note = options.utf8_argument(text, "The TEXT").encode()
    elif text is None and is_terminal(sys.stdin):
        raise UsageError(
            "There is no TEXT to add.", "Give TEXT as an argument, or pipe it in: echo TEXT | deepctl memory add"
        )
    else:
        # In a chat, the terminal is in a mode in which Ctrl-D does not end the input.
        from deepctl.cli import tty_modes

        with tty_modes.shell_mode():
            note = interruptible(sys.stdin.buffer).read(MAX_BYTES + 1)
        if len(note) > MAX_BYTES:
            raise UsageError(f"The note is larger than {MAX_BYTES >> 20} MiB.", "A notebook is for short notes.")
        note = options.decode(note, "The note", "stdin_not_utf8").encode()
    if not note.strip():
        raise UsageError("The TEXT is empty.", "Give the text of the note.")
    return note


@app.command("edit", epilog="Example: EDITOR='code --wait' deepctl memory edit trip.md --user alice")
def edit(
    file: File = None,
    user: options.User = None,
    agent: Agent = layout.AGENT,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Edit a notebook with your editor. The notebook is created if it does not exist.

    The editor is $VISUAL, then $EDITOR, then the first installed one of editor, nano and vi. You edit a copy. If the
    notebook changes in the meantime, both changes are merged line by line. If both changed the same lines, nothing is
    written and your text is saved (exit 6).
    """
    from deepctl.cli import editor

    profile = options.existing_profile(user)
    memory = Memory(profile, agent)
    if file is not None and ":" in file:
        _check_own(file, profile, settings.load(os.environ, profile))
    name = file_name(layout.NOTEBOOK if file is None else file)
    notebook = memory.find(name)
    if notebook is None:
        check_new(name)
    command = editor.editor(os.environ)
    show(_edited(memory, name, notebook, command, wait, as_json), as_json)


@app.command("search", cls=_TextCommand, epilog="Example: deepctl memory search 'window seat' --user alice")
def search(
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY", help="Words, in one argument. A line must contain all of them, in any order and case."
        ),
    ],
    regex: Annotated[
        bool,
        typer.Option("--regex", help="QUERY is a Python regular expression. Case matters unless it contains (?i)."),
    ] = False,
    context: Annotated[
        int, typer.Option("-C", "--context", metavar="N", min=0, help="Show N lines before and after each match.")
    ] = 0,
    user: options.User = None,
    agent: Agent = layout.AGENT,
    as_json: options.Json = False,
) -> None:
    """Search the lines of all notebooks."""
    from deepctl.domain.memory import search

    profile = options.existing_profile(user)
    memory = Memory(profile, agent)
    find = search.pattern(query) if regex else search.words(query)
    show(views.NotebookMatchesView(profile.name, memory.agent, query, search.search(memory, find, context)), as_json)


@app.command("forget", cls=_TextCommand, epilog="Example: deepctl memory forget 'window seats' --user alice --dry-run")
def forget(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Lines that contain TEXT are removed.")],
    file: Annotated[str | None, typer.Option("--file", metavar="FILE", help="Only in this memory file.")] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Ignore upper and lower case.")] = False,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Also remove the lines from every checkpoint, permanently. The report lists where TEXT is "
            "still stored.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Yes = False,
    user: options.User = None,
    agent: Agent = layout.AGENT,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Remove the lines that contain TEXT from the notebooks.

    A checkpoint is made first, so you can undo this. That checkpoint and the conversations still contain the text. With
    --purge, the lines are also removed from every checkpoint, and this cannot be undone.
    """
    from deepctl.domain.memory import changes

    profile, in_force = options.profile_and_settings(user, deletes=True)
    options.say_ignored_directory(user, profile, as_json)
    _check_own(file, profile, in_force)
    memory = Memory(profile, agent)
    request = forget_request(text, file, ignore_case=ignore_case)
    if purge:
        purge_view = _purged(memory, in_force, request, dry_run=dry_run, yes=yes, wait=wait, as_json=as_json)
        show(purge_view, as_json)
        return
    lines = changes.lines_to_forget(memory, request)
    view = views.ForgottenLinesView(profile.name, memory.agent, request, lines, None, None)
    if dry_run:
        show(view, as_json)
        return
    if not yes:
        if not as_json:
            view.tell()
        is_undoable = changes.can_undo(memory, in_force.patterns("snapshot.exclude"))
        warning = "" if is_undoable else " Checkpoints leave these notebooks out, so this cannot be undone."
        is_one = len(lines) == 1
        confirm(
            f"Forget {'this line' if is_one else f'these {len(lines)} lines'}?{warning}",
            yes=False,
            as_json=as_json,
            reason="Forgetting needs a confirmation",
        )
    with options.working(profile.name, "memory forget", wait, as_json, in_force=in_force, frees=True) as work:
        result = changes.forget(work, Memory(work.paths, agent), request, lines)
    show(view._replace(result=result, undo=changes.undo_command(profile.name, result), is_shown=not yes), as_json)


@app.command("history", epilog="Example: deepctl memory history --user alice")
def history(
    file: File = None, user: options.User = None, agent: Agent = layout.AGENT, as_json: options.Json = False
) -> None:
    """List the versions of a notebook, newest first."""
    from deepctl.domain.memory import history
    from deepctl.store.repository import Repository

    profile = options.existing_profile(user)
    memory = Memory(profile, agent)
    name = file_name(layout.NOTEBOOK if file is None else file)
    with Repository.read_only(profile) as reader:
        try:
            versions = history.history(reader, memory, name)
        except MemoryNotFound:
            if file is not None or memory.agent != layout.AGENT:
                raise
            versions = history.NotebookHistory(name, [], [])
    show(views.NotebookHistoryView(profile.name, memory.agent, versions), as_json)


@app.command("diff", epilog="Example: deepctl memory diff '~2' --user alice")
def diff(
    before: Annotated[str | None, typer.Argument(metavar="[FROM]", help="Checkpoint. Default: the latest one.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="[TO]", help="Checkpoint. Default: the present state.")] = None,
    user: options.User = None,
    project: options.Project = None,
    agent: Agent = layout.AGENT,
    as_json: options.Json = False,
) -> None:
    """Show how the notebooks changed between two points in time.

    When piped, the output is valid input for `patch -p1 --binary` in a workspace.
    """
    from deepctl.domain.memory import history
    from deepctl.store import lookup
    from deepctl.store.repository import Repository

    references = [reference for reference in (before, after) if reference is not None]
    profile, _, session = options.target(user, None, project, references)
    memory = Memory(profile, agent)
    with Repository.read_only(profile) as reader:
        comparison = history.compare(reader, memory, before, after, session)
        describe = lookup.describer(profile, reader.ledger)
    later = describe(comparison.after) if comparison.after is not None else None
    show(
        views.NotebookDiffView(profile.name, memory.agent, describe(comparison.before), later, comparison.differences),
        as_json,
    )


_AT_ONCE = 1.0
"""An editor that ends within this many seconds has hardly been used: it may have opened a window of its own."""


def _edited(
    memory: Memory, name: str, notebook: Notebook | None, command: list[str], wait: float, as_json: bool
) -> views.NotebookEditView:
    """Let the user edit `notebook`, or a new one if it is `None`. The lock is not held meanwhile."""
    from deepctl.cli import editor
    from deepctl.domain.memory import changes

    profile = memory.profile
    if not as_json:
        for path in changes.drafts_left(profile):
            notice(f"Another edit of this notebook is open, or was broken off: {path}.")
    base = notebook.content if notebook is not None else None
    draft = changes.begin_draft(profile.directory, name, base or b"")
    began = time.monotonic()
    try:
        failure = editor.edit(command, draft.path)
    except Refused:
        changes.discard_draft(draft)
        raise
    text = changes.read_draft(draft)
    if not (base or b"").startswith(codecs.BOM_UTF8):
        text = text.removeprefix(codecs.BOM_UTF8)
    is_changed = text != (base or b"")
    if not is_changed:
        changes.discard_draft(draft)
    if failure is not None:
        draft_note = f" Your text is saved in {draft.path}." if is_changed else ""
        raise Refused(f"The editor failed ({failure}), so nothing was changed.{draft_note}", code="editor_failed")
    if not is_changed:
        hasty = time.monotonic() - began < _AT_ONCE
        notes = [_HASTY.format(command[0])] if hasty else []
        return views.NotebookEditView(profile.name, memory.agent, name, notebook, None, notes)
    if numbers := odd_lines(text, base or b""):
        raise UsageError(
            f"Line {numbers[0]} of your text is not UTF-8, so nothing was changed. Your text is saved in {draft.path}.",
            "Save it as UTF-8 in the editor.",
            code="not_utf8",
        )
    return _taken_over(memory, name, base, text, draft, wait, as_json)


_HASTY = "{} ended at once. If the editor opens its own window, it needs an option to wait, as in `code --wait`."


def _taken_over(
    memory: Memory, name: str, base: bytes | None, text: bytes, draft: Draft, wait: float, as_json: bool
) -> views.NotebookEditView:
    from deepctl.domain.memory import changes

    try:
        # The settings are those after the editor has ended, which may be open for hours: a file that they exclude now
        # must not come into the checkpoint.
        with options.working(memory.profile.name, "memory edit", wait, as_json) as work:
            change = changes.replace(work, Memory(work.paths, memory.agent), name, base, text)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. Your text is saved in {draft.path}.") from None
    except (DeepctlError, OSError) as error:
        problem = error if isinstance(error, DeepctlError) else storage_error(error)
        problem.message += f" Your text is saved in {draft.path}."
        raise problem from error
    changes.discard_draft(draft)
    return views.NotebookEditView(memory.profile.name, memory.agent, name, change.notebook, change, change.notes)


def _purged(
    memory: Memory,
    in_force: Settings,
    request: ForgetRequest,
    *,
    dry_run: bool,
    yes: bool,
    wait: float,
    as_json: bool,
) -> views.PurgedLinesView:
    """Purge what `request` says, and look where the text still stands.

    Raises `TextNotFound` if neither a notebook nor a checkpoint contains it, and `Refused` unless the user agrees.
    """
    from deepctl.domain.memory import shared
    from deepctl.domain.purge import purge, report
    from deepctl.domain.purge.notebooks import PurgeSelector, TextMatcher
    from deepctl.store import repair_report
    from deepctl.store.repository import Repository

    profile, agent = memory.profile, memory.agent
    selector = PurgeSelector(TextMatcher(request.text, request.ignore_case), agent, request.file)
    preview: PurgeResult | None = None
    readers = shared.readers_of(options.root(), profile.name) if agent == layout.AGENT else []
    aside = repair_report.count_put_aside(profile) if os.path.isdir(profile.lost_and_found) else 0
    if aside and not as_json:
        notice(
            f"A purge also deletes the files that repairs put aside: {counted(aside, 'file')} in "
            "checkpoints/lost+found."
        )
    if dry_run or not yes:
        with Repository.read_only(profile) as reader, _looking() as progress:
            preview = _found(purge.preview(reader, selector, progress), request)
            if dry_run:
                all_places = report.places(reader, preview.contents, progress)
                places = [place for place in all_places if not selector.covers(place.name)]
                return views.PurgedLinesView(
                    profile.name, agent, request, preview, places, dry_run=True, readers=readers
                )
        view = views.PurgedLinesView(profile.name, agent, request, preview, [], dry_run=True)
        if not as_json:
            view.tell()
        confirm(views.question(preview), yes=False, as_json=as_json, confirmation=profile.name)
    repository = options.working(profile.name, "memory forget", wait, as_json, in_force=in_force, frees=True)
    with repository as work, Progress("Purging", _READ) as progress:
        result = _found(purge.purge(work, selector, confirmed_purge=preview, report=progress), request)
    # This search only reads, so other processes do not have to wait for it.
    with Repository.read_only(profile) as reader, _looking() as progress:
        places = report.places(reader, result.contents, progress)
    return views.PurgedLinesView(
        profile.name, agent, request, result, places, dry_run=False, is_shown=preview is not None, readers=readers
    )


_READ = "files and objects read"


def _looking() -> Progress:
    return Progress("Looking", _READ)


def _found(result: PurgeResult, request: ForgetRequest) -> PurgeResult:
    if not result.is_nothing:
        return result
    from deepctl.domain.memory.changes import TextNotFound

    where = f"in {request.file!r}" if request.file is not None else "in the notebooks"
    text = request.text.decode("utf-8", "backslashreplace")
    raise TextNotFound(
        f"No line {where} contains {text!a}, and neither does any checkpoint.",
        "`deepctl memory search` finds lines by their words."
        if request.ignore_case
        else "--ignore-case also finds it with other upper and lower case letters.",
    )
