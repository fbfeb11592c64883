"""`deepctl profiles`."""

from __future__ import annotations

from typing import Annotated

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles
from deepctl.output import profiles as views
from deepctl.output.render import show

app = typer.Typer(
    help="The users of this machine's deepctl, each in a directory of their own.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Profile; --user or the default without it.")]


@app.command("list", epilog="Example: deepctl profiles list --json")
def list_(as_json: options.Json = False) -> None:
    """List all profiles."""
    root = options.root()
    found = [profiles.describe(root.profile(name)) for name in profiles.all_names(root)]
    show(views.ProfileList(found), as_json)


@app.command("show", epilog="Example: deepctl profiles show alice")
def show_(name: Name = None, user: options.User = None, as_json: options.Json = False) -> None:
    """Show one profile: where it is and what uses space."""
    show(views.ProfileShown(profiles.describe(options.named_profile(name, user))), as_json)


@app.command(epilog="Example: deepctl profiles create alice")
def create(
    name: Annotated[str, typer.Argument(help="Name of the new profile.")],
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Create a profile."""
    root = options.root()
    with profiles.lock(root, name, command="profiles create", wait=wait):
        paths = profiles.create(root, name)
    show(views.ProfileCreated(paths.name, paths.directory), as_json)


@app.command(epilog='Example: cd "$(deepctl profiles path alice)"')
def path(name: Name = None, user: options.User = None, as_json: options.Json = False) -> None:
    """Print the directory of a profile."""
    paths = options.named_profile(name, user)
    show(views.Path(paths.name, paths.directory), as_json)
