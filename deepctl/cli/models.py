"""`deepctl models`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deepctl.cli import options
from deepctl.cli.chat_setup import ChatSetup
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import providers
from deepctl.output.render import show
from deepctl.output.settings import ModelCheckView, ModelsView

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


@app.command(epilog="Example: deepctl models --check --user alice")
def models(
    user: options.User = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list providers that cannot be used at present.")
    ] = False,
    model: options.Model = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Send one small request with a tool to the model in force. Says whether the model answers and calls "
            "tools, whether the server reports tokens and lists the model, how large the context window is, and "
            "what to set.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the model in force, the usable providers, and the models of your own servers.

    A provider is usable if its client and its key are present. Only your own servers are contacted: the one at base_url
    or $OPENAI_BASE_URL, and Ollama; with --check, only the server of the model in force. Keys are never shown.
    """
    profile, in_force = options.profile_of_chat(user, {"model": model})
    if check:
        setup = ChatSetup(profile.name if profile is not None else options.user(None, in_force), in_force)
        result = setup.check(options.root())
        hints = (*result.hints, *providers.hints(os.environ, in_force, setup.model))
        show(ModelCheckView(setup.model, result._replace(hints=hints)), as_json)
        return
    servers = providers.ask(providers.own_servers(os.environ, in_force))
    if profile is not None:
        providers.remember_names(profile.model_names, providers.known_models(os.environ, in_force, servers))
    show(
        ModelsView(
            profile.name if profile is not None else None,
            in_force.resolve("model"),
            providers.all_providers(os.environ, in_force),
            servers,
            everything,
        ),
        as_json,
    )
