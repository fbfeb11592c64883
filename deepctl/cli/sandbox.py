"""`deepctl sandbox`."""

from __future__ import annotations

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles, sandbox_settings
from deepctl.output import settings as views
from deepctl.output.render import show

app = typer.Typer(
    help="The place where the agent's commands run.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)


@app.command("show", epilog="Example: deepctl sandbox show --user alice")
def show_(user: options.User = None, as_json: options.Json = False) -> None:
    """Show where the agent's commands run, their limits, and the rules for them."""
    profile, in_force = options.profile_and_settings(user)
    show(views.SandboxView(sandbox_settings.describe(in_force, profile)), as_json)


@app.command(epilog="Example: deepctl sandbox remove --user alice")
def remove(user: options.User = None, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Remove the Docker container of the profile.

    The workspace stays. The next command in a chat creates a new container.
    """
    profile = options.existing_profile(user)
    with profiles.lock(options.root(), profile.name, command="sandbox remove", wait=wait):
        name, is_removed = sandbox_settings.remove_container(profile)
    show(views.ContainerRemovalView(profile.name, name, is_removed), as_json)
