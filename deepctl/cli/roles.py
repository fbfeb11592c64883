"""`deepctl roles`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deepctl import layout
from deepctl.cli import options
from deepctl.cli.confirm import Yes, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles, settings
from deepctl.domain.roles import catalogue
from deepctl.output import roles as views
from deepctl.output.render import show

app = typer.Typer(
    help="What a new profile can start with: instructions, settings, rules and memory.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the role.")]


@app.command("list", epilog="Example: deepctl roles list")
def list_(as_json: options.Json = False) -> None:
    """List the roles that ship with deepctl, and your own."""
    show(views.RoleListView(catalogue.describe_all(options.root(), os.environ)), as_json)


@app.command("show", epilog="Example: deepctl roles show reviewer")
def show_(name: Name, as_json: options.Json = False) -> None:
    """Show the instructions, settings and files of a role."""
    role = catalogue.find(options.root(), name, os.environ)
    show(views.RoleView(role, catalogue.waiting(role)), as_json)


@app.command(epilog="Example: deepctl roles create our-reviewer --from alice --description 'Reviews our shop'")
def create(
    name: Name,
    source: Annotated[
        str, typer.Option("--from", metavar="PROFILE", help="Profile whose settings, AGENTS.md and memory it gets.")
    ],
    description: Annotated[str, typer.Option(metavar="TEXT", help="One line for `roles list`.")] = "",
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Make a role from a profile.

    Keys, tokens, trust, secrets and directories of this machine are never part of a role. The output names what was
    left out.
    """
    from deepctl.domain.roles import changes

    root = options.root()
    layout.check_name(name, "role")
    options.utf8_argument(description, "The description")
    paths = profiles.find(root, source)
    in_force = settings.load(os.environ, paths)
    in_force.keys(os.environ).remember()
    new_role = changes.create(root, name, paths, in_force.files[0], description, os.environ, wait)
    show(views.NewRoleView(new_role, []), as_json)


@app.command("import", epilog="Example: deepctl roles import ./our-reviewer --as reviewer")
def import_(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Directory with a role.toml.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the role. Default: the name of DIR.")
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Import a role from a directory.

    Settings that could do harm are kept apart. In a profile that starts with the role, they are not in force until
    `profiles trust`.
    """
    from deepctl.domain.roles import changes

    new_role = changes.take_in(options.root(), directory, name, os.environ, wait)
    show(views.NewRoleView(new_role, catalogue.waiting(new_role.role)), as_json)


@app.command(epilog="Example: deepctl roles export our-reviewer ./our-reviewer")
def export(
    name: Name,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Directory to create.")],
    as_json: options.Json = False,
) -> None:
    """Write a role to a new directory, for another machine or a repository."""
    from deepctl.domain.roles import changes

    root = options.root()
    role = catalogue.find(root, name, os.environ)
    changes.export(root, role, directory)
    show(views.RoleExportView(role, os.path.abspath(directory)), as_json)


@app.command(epilog="Example: deepctl roles delete our-reviewer")
def delete(name: Name, yes: Yes = False, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Delete a role of your own. Profiles that started with it do not change."""
    from deepctl.domain.roles import changes

    root = options.root()
    stored_name, path = catalogue.find_own(root, name)
    confirm(
        f"Delete role {stored_name} permanently?",
        yes=yes,
        as_json=as_json,
        instead=f"`deepctl roles show {stored_name}` shows it",
    )
    stored_name = changes.delete(root, stored_name, wait)
    show(views.RoleDeletionView(stored_name, path, catalogue.is_shipped(stored_name)), as_json)
