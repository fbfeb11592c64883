"""`deepctl projects`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deepctl.cli import options
from deepctl.cli.confirm import Yes, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles, sandbox_settings, session_choice
from deepctl.domain import projects as domain
from deepctl.errors import DeepctlError, Refused, UsageError
from deepctl.layout import ProfilePaths
from deepctl.output import profiles as views
from deepctl.output.render import say, show
from deepctl.store import projects as stored
from deepctl.store.projects import Project
from deepctl.store.session_delete import SessionDeletion

app = typer.Typer(
    help="The directories of yours in which an agent works.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Directory = Annotated[str, typer.Argument(metavar="DIR", help="Directory of the project.")]
_TO_BE_SEEN = "You must see what a repository brings before it is trusted"


@app.command("list", epilog="Example: deepctl projects list --user alice")
def list_(user: options.User = None, as_json: options.Json = False) -> None:
    """List the projects of a profile, with the space that their checkpoints take."""
    profile = options.existing_profile(user)
    show(views.ProjectListView(profile.name, domain.describe_all(profile)), as_json)


@app.command(epilog="Example: deepctl projects move ~/shop ~/src/shop --user alice")
def move(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Directory of the project so far. It need not exist.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Directory of the project from now on.")],
    user: options.User = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Tell deepctl that you have moved a project.

    Its sessions and checkpoints then belong to the new directory. No directory is changed.
    """
    profile, in_force = options.profile_and_settings(user)
    root = options.root()
    new_path = domain.locate(new)
    domain.check(root, new_path, os.environ)
    with profiles.lock(root, profile.name, command="projects move", wait=wait):
        project = _find(profile, old)
        with stored.lock_directory(profile, new_path, wait=wait):
            # Its name follows from the old path.
            sandbox_settings.remove_container_if_any(os.environ, in_force, profile, project.path)
            stored.move(profile, project.id, new_path)
        try:
            in_settings = session_choice.of_settings(in_force) == project.path
        except DeepctlError:
            in_settings = False
        sessions = domain.sessions_of(profile, project.id)
    show(views.ProjectMoveView(profile.name, project.path, new_path, len(sessions), in_settings), as_json)


@app.command(epilog="Example: deepctl projects forget ~/src/shop --user alice --dry-run")
def forget(
    directory: Directory,
    user: options.User = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Yes = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Delete the sessions of a project with their checkpoints, including labelled ones.

    The directory itself does not change.
    """
    from deepctl.store import session_delete
    from deepctl.store.repository import Repository

    profile, in_force = options.profile_and_settings(user, deletes=True)
    options.say_ignored_directory(user, profile, as_json)
    planned: list[SessionDeletion] | None = None
    if dry_run or not yes:
        with Repository.read_only(profile) as reader:
            project = _find(profile, directory)
            names = domain.sessions_of(profile, project.id)
            planned = [session_delete.plan(profile, reader.ledger, reader.packs, name) for name in names]
        view = _forget_view(profile, project, planned, dry_run=True)
        if dry_run:
            show(view, as_json)
            return
        if not as_json:
            view.foretell()
        confirm(f"Forget {project.path} permanently?", yes=False, as_json=as_json)
    with options.working(profile.name, "projects forget", wait, as_json, in_force=in_force, frees=True) as work:
        project = _find(work.paths, directory)
        names = domain.sessions_of(work.paths, project.id)
        deletions = [session_delete.plan(work.paths, work.ledger, work.store.packs, name) for name in names]
        if planned is not None and [deletion._replace(bytes=0) for deletion in planned] != [
            deletion._replace(bytes=0) for deletion in deletions
        ]:
            raise Refused(
                f"The sessions of {project.path} have changed in the meantime, so nothing was deleted.",
                "Run the command again to see them.",
                code="changed",
            )
        sandbox_settings.remove_container_if_any(os.environ, in_force, work.paths, project.path)
        deletions = [
            session_delete.delete(work, session_delete.plan(work.paths, work.ledger, work.store.packs, name))
            for name in names
        ]
        stored.forget(work.paths, project.id)
    show(_forget_view(profile, project, deletions, dry_run=False), as_json)


def _forget_view(
    profile: ProfilePaths, project: Project, deletions: list[SessionDeletion], *, dry_run: bool
) -> views.ProjectForgetView:
    return views.ProjectForgetView(
        profile.name,
        dry_run,
        project.path,
        [deletion.session for deletion in deletions],
        sum(len(deletion.records) for deletion in deletions),
        [label for deletion in deletions for label in deletion.labels.values()],
        sum(deletion.bytes for deletion in deletions),
    )


@app.command(epilog="Example: deepctl projects trust ~/src/shop --user alice")
def trust(
    directory: Directory,
    user: options.User = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what needs trust.")] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Trust nothing of the project any more.")] = False,
    yes: Yes = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Show the skills, commands and the like in a project, and put them into force after a confirmation.

    They are trusted by their content: after a change they are off again. Hooks, MCP servers, keys and rules of a
    project are never in force.
    """
    from deepctl.domain import project_trust

    profile = options.existing_profile(user)
    root = options.root()
    if revoke:
        if dry_run:
            raise UsageError("--revoke and --dry-run cannot be used together.", "Leave out one of the two.")
        with profiles.lock(root, profile.name, command="projects trust", wait=wait):
            project = _find(profile, directory)
            stored.set_trusted(profile, project.id, "")
        show(views.ProjectTrustView(profile.name, project.path, [], False, is_revoked=True), as_json)
        return
    path = domain.locate(directory)
    domain.check(root, path, os.environ, profile)
    files = project_trust.files(path)
    digest = project_trust.digest(files)
    view = views.ProjectTrustView(profile.name, path, files, bool(files))
    if not files or dry_run:
        stored_project = stored.by_path(profile, path)
        is_trusted = bool(files) and stored_project is not None and stored_project.trusted == digest
        show(view._replace(trusted=is_trusted), as_json)
        return
    if not yes and not as_json:
        say(f"{path} brings these files, which the agent would follow:")
        for line in view.lines():
            say(line)
    confirm("Trust them?", yes=yes, as_json=as_json, reason=_TO_BE_SEEN, instead="--dry-run lists it")
    with profiles.lock(root, profile.name, command="projects trust", wait=wait):
        if project_trust.digest(project_trust.files(path)) != digest:
            raise Refused(
                f"The files that need trust in {path} have changed in the meantime, so nothing is trusted.",
                "Run the command again to see them.",
                code="changed",
            )
        stored.set_trusted(profile, stored.ensure(profile, path).id, digest)
    show(view._replace(is_shown=not yes), as_json)


def _find(profile: ProfilePaths, directory: str) -> Project:
    """The project in a directory, or with that id. Raises `NotFound`."""
    path = domain.locate(directory)
    projects = stored.read(profile)
    # A link may have taken the place of a project that was moved. Its path is then no real path.
    places = os.path.abspath(os.path.expanduser(directory)), path
    project = next((project for place in places for project in projects if project.path == place), None)
    # A project whose directory is unknown has only an id.
    project = project or next((project for project in projects if project.id == directory), None)
    if project is None:
        raise stored.unknown(profile, path)
    return project
