"""`deepctl models`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles, providers
from deepctl.layout import ProfilePaths
from deepctl.output.models import Models
from deepctl.output.render import show

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


def _profile(user: str | None) -> ProfilePaths | None:
    """The profile that a chat would use, if there is one."""
    if user is not None:
        return options.existing_profile(user)
    root, name = options.root(), options.user(None)
    return profiles.find(root, name) if profiles.exists(root, name) else None


@app.command(epilog="Example: deepctl models --user alice")
def models(
    user: options.User = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List providers, too, that cannot be used as things are.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the model in force, the providers whose client and key are here, and the models of servers of your own.

    Of servers, only your own are asked: the one at base_url or $OPENAI_BASE_URL, and Ollama. No key is shown.
    """
    profile = _profile(user)
    show(
        Models(
            profile.name if profile is not None else None,
            providers.in_force(os.environ, profile),
            providers.all_providers(os.environ, profile),
            providers.ask(providers.own_servers(os.environ, profile)),
            everything,
        ),
        as_json,
    )
