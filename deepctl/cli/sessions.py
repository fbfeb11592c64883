"""`deepctl sessions`."""

from __future__ import annotations

from typing import Annotated

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain.checkpoints import reading
from deepctl.domain.sessions import catalogue
from deepctl.errors import NoSession
from deepctl.output import sessions as views
from deepctl.output.render import show

app = typer.Typer(
    help="The conversations of a profile.", rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS
)


@app.command("list", epilog="Example: deepctl sessions list --user alice")
def list_(user: options.User = None, as_json: options.Json = False) -> None:
    """List the sessions of a profile, the latest first."""
    profile = options.existing_profile(user)
    show(views.SessionList(profile.name, catalogue.summaries(profile, reading.heads(profile))), as_json)


@app.command("show", epilog="Example: deepctl sessions show main --user alice")
def show_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Session; the latest without it.")] = None,
    user: options.User = None,
    as_json: options.Json = False,
) -> None:
    """Show a conversation."""
    profile = options.existing_profile(user)
    wanted = name if name is not None else catalogue.latest(profile)
    if wanted is None:
        raise NoSession(profile.name)
    session = catalogue.find(profile, wanted)
    conversation = catalogue.read(session)
    show(
        views.SessionShown(
            profile.name, catalogue.summarize(session, conversation, reading.heads(profile)), conversation
        ),
        as_json,
    )
