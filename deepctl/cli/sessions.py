"""`deepctl sessions`.

Modules that only some commands need are imported in these commands, so that a list starts quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deepctl import layout
from deepctl.cli import options
from deepctl.cli.confirm import Yes, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import session_choice, settings
from deepctl.errors import UsageError
from deepctl.output import sessions as views
from deepctl.output.render import is_terminal, notice, show
from deepctl.store import lookup, session_catalogue, todo
from deepctl.store.session_reader import outline

if TYPE_CHECKING:
    from deepctl.store.session_export import ExportDocument

app = typer.Typer(
    help="The conversations of a profile.", rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Session.")]
Latest = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Session. Default: the session that was used last.")
]


@app.command("list", epilog="Example: deepctl sessions list --user alice")
def list_(
    user: options.User = None,
    project: Annotated[
        str | None, typer.Option("--project", "-C", metavar="DIR", help="Only sessions in this directory.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the sessions of a profile. The session that was used last is the first."""
    profile = options.existing_profile(user, directory=project)
    directory_project = session_choice.project_of(profile, project)
    summaries = session_catalogue.summaries(profile, lookup.heads(profile))
    if directory_project is not None:
        summaries = [summary for summary in summaries if summary.project == directory_project.id]
    show(views.SessionListView(profile.name, summaries, session_choice.directories(profile)), as_json)


@app.command("show", epilog="Example: deepctl sessions show main --user alice | less")
def show_(
    name: Latest = None,
    user: options.User = None,
    project: options.Project = None,
    full: Annotated[bool, typer.Option("--full", help="Show long calls, long results and thinking in full.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the transcript and the to-do list of a session.

    Long calls and results are shortened.
    """
    target = options.target(user, name, project)
    profile = target.profile
    session = lookup.current_session(profile, target.session)
    conversation = session_catalogue.read(session)
    summary = session_catalogue.summarize(session, outline(conversation), lookup.heads(profile))
    directories = session_choice.directories(profile)
    show(
        views.SessionView(profile.name, summary, conversation, todo.read(profile, session), full, directories), as_json
    )


@app.command(epilog="Example: deepctl sessions rename main trip-to-lisbon --user alice")
def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Present name of the session.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name of the session.")],
    user: options.User = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Rename a session."""
    for name in (old, new):
        layout.check_name(name, "session")
    with options.working(user, "sessions rename", wait, as_json) as work:
        view = views.SessionRenamingView(work.paths.name, work.rename(old, new))
    show(view, as_json)


@app.command(epilog="Example: deepctl sessions compact main --user alice --focus 'the open questions'")
def compact(
    name: Latest = None,
    user: options.User = None,
    project: options.Project = None,
    focus: Annotated[
        str | None, typer.Option("--focus", metavar="TEXT", help="The most important subject of the summary.")
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Replace the older messages of a session by a summary for the model.

    The model of the profile writes the summary. No message is deleted, and a checkpoint is made first.
    """
    from contextlib import closing

    from deepctl.cli.chat_setup import ChatSetup
    from deepctl.output.stream.display import TextDisplay

    if focus is not None:
        options.utf8_argument(focus, "The text of --focus")
    profile, in_force, name = options.target(user, name, project)
    lookup.current_session(profile, name)  # a wrong name is reported before the agent libraries are loaded
    display = TextDisplay()

    def emit(event: Mapping[str, Any]) -> None:
        if event["type"] in ("notice", "retry") and not as_json:
            display.event(event)

    with closing(ChatSetup(profile.name, in_force).summarizer(options.root(), profile)) as runner:
        from deepctl.agent.chat import Chat

        with options.working(profile.name, "sessions compact", wait, as_json, in_force=in_force) as work:
            session = lookup.current_session(work.paths, name).name
            result = Chat(runner).compact(work, session, focus or None, emit)
    show(views.SessionCompactionView(profile.name, session, result.document()), as_json)


@app.command(epilog="Example: deepctl sessions delete old-trip --user alice --dry-run")
def delete(
    name: Name,
    user: options.User = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Yes = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Delete a session with all its checkpoints, including labelled ones.

    The to-do list of the session is deleted too. The workspace keeps the changes that the agent made.
    """
    from deepctl.store import session_delete
    from deepctl.store.repository import Repository

    profile, in_force = options.profile_and_settings(user, deletes=True)
    options.say_ignored_directory(user, profile, as_json)
    plan = None
    if dry_run or not yes:
        with Repository.read_only(profile) as reader:
            plan = session_delete.plan(profile, reader.ledger, reader.packs, name)
        view = views.SessionDeletionView(profile.name, True, plan)
        if dry_run:
            show(view, as_json)
            return
        if not as_json:
            view.foretell()
        confirm(f"Delete session {plan.session} permanently?", yes=False, as_json=as_json)
    with options.working(profile.name, "sessions delete", wait, as_json, in_force=in_force, frees=True) as work:
        deletion = session_delete.plan(work.paths, work.ledger, work.store.packs, name)
        if plan is not None:
            session_delete.check_same(plan, deletion)
        deletion = session_delete.delete(work, deletion)
    show(views.SessionDeletionView(profile.name, False, deletion), as_json)


@app.command(epilog="Example: deepctl sessions search 'window seat' --user alice -C 2")
def search(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="Words, in one argument. A message must contain all of them.")
    ],
    user: options.User = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="Search only this session.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", metavar="DIR", help="Search only sessions in this directory.")
    ] = None,
    regex: Annotated[
        bool,
        typer.Option("--regex", help="QUERY is a Python regular expression. Case matters unless it contains (?i)."),
    ] = False,
    role: Annotated[
        Literal["user", "assistant", "tool"] | None,
        typer.Option(
            help="user: only prompts. assistant: only answers, thinking and tool calls. tool: only tool results."
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option("--context", "-C", min=0, max=1000, metavar="N", help="Show N lines before and after each match."),
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Show at most N matching lines.")] = None,
    as_json: options.Json = False,
) -> None:
    """Search the messages of all sessions.

    Prompts, answers, thinking, tool calls and tool results are searched. A message matches if it contains all words, in
    upper or lower case. The matching lines are shown.
    """
    from deepctl.output.render import Progress
    from deepctl.output.sessions import SessionMatchesView
    from deepctl.store import session_search

    pattern = session_search.expression(query) if regex else session_search.words(query)
    profile = options.existing_profile(user, directory=project)
    directory_project = session_choice.project_of(profile, project)
    if session is not None and directory_project is not None:
        session_choice.check_directory(profile, session_catalogue.find(profile, session), directory_project.path)
    project_id = directory_project.id if directory_project is not None else None
    with Progress("Searching", "sessions") as progress:
        matches = session_search.search(
            profile,
            pattern,
            session=session,
            project=project_id,
            role=role,
            context=context,
            limit=limit,
            report=progress,
        )
    show(SessionMatchesView(profile.name, query, matches), as_json)


@app.command(epilog="Example: deepctl sessions export main --user alice --output main.json")
def export(
    name: Latest = None,
    user: options.User = None,
    project: options.Project = None,
    format_: Annotated[
        Literal["json", "markdown"],
        typer.Option("--format", "-f", help="json: for import. markdown: for readers."),
    ] = "json",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    redact: Annotated[
        bool, typer.Option("--redact", help="Replace keys, tokens, home directories, and the passwords in addresses.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document about the export. Without --output, it contains the whole text."
        ),
    ] = False,
) -> None:
    """Write a session to a file or to stdout.

    `sessions import` reads the JSON format and restores the session exactly, in any profile and on any machine.
    """
    from deepctl.redaction import Redaction
    from deepctl.store import export_target, session_export

    profile, in_force, name = options.target(user, name, project)
    document = session_export.export(profile, lookup.current_session(profile, name).name)
    if output is not None and output != "-":
        export_target.check(options.root(), output, force=force)
    if redact:
        in_force.keys(os.environ).remember()
    redaction = Redaction(os.environ) if redact else None
    if redaction is not None:
        document = session_export.redact(document, redaction)
    if format_ == "json":
        content = session_export.as_json(document)
    else:
        from deepctl.output.sessions_transcript import markdown

        content = markdown(document)
    view: views.SessionExportView | views.SessionStdoutExportView = views.SessionStdoutExportView(
        profile.name, document.name, format_, content
    )
    if output is not None and output != "-":
        raw = content.encode(errors="surrogateescape")
        counts = {"secrets": redaction.secrets, "homes": redaction.homes} if redaction is not None else None
        path = session_export.write(output, raw, replace=force)
        lost_count = len(document.damaged)
        view = views.SessionExportView(
            profile.name, document.name, format_, path, len(raw), len(document.messages), lost_count, counts
        )
    # JSON on stdout is the export itself, with or without --json.
    show(view, as_json and not (isinstance(view, views.SessionStdoutExportView) and format_ == "json"))
    if not as_json:
        for line in (session_export.lost_note(document), views.redaction_note(redaction)):
            if line is not None:
                notice(line)


@app.command("import", epilog="Example: deepctl sessions import main.json --user bob --as from-alice")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File from `sessions export`, or - for stdin.")],
    user: options.User = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name of the new session. Default: its name in the export."),
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Import a session from an export.

    The profile is created if it does not exist. A damaged file is refused, and nothing is created then.
    """
    from deepctl.domain import profiles
    from deepctl.store import session_import

    if as_ is not None:
        layout.check_name(as_, "session")
    in_force = settings.load(os.environ)
    profile_name = options.user(user, in_force)
    export = _checked(file)
    root = options.root()
    with profiles.lock(root, profile_name, command="sessions import", wait=wait):
        if profiles.exists(root, profile_name):
            profile = profiles.find(root, profile_name)
        else:
            profile = profiles.create(root, profile_name)
            if not as_json:
                notice(f"Created profile {profile.name}.")
        with options.open_repository(
            profile, in_force.of_profile(profile), (lambda note: None) if as_json else notice
        ) as work:
            result = session_import.take_over(work.paths, export, as_)
    show(views.SessionImportView(profile.name, result), as_json)


def _checked(file: str) -> ExportDocument:
    """The session in FILE, checked so that its messages can be continued. Nothing has been created by then."""
    from deepctl.store import session_import

    if file == "-" and is_terminal(sys.stdin):
        raise UsageError("- means stdin, but stdin is a terminal.", "Name a file, or pipe an export in.")
    source_name = "What stdin has" if file == "-" else file
    export = session_import.parse(session_import.read(sys.stdin.buffer if file == "-" else file), source_name)
    from deepctl.agent.message_codec import check

    check([entry.message for entry in export.messages], source_name)
    return export
