"""`deepctl memory`."""

from __future__ import annotations

from typing import Annotated

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import layout
from deepctl.domain.memory import Memory
from deepctl.errors import MemoryNotFound
from deepctl.output import memory as views
from deepctl.output.render import show

app = typer.Typer(
    help="What the agent of a profile has noted.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Agent = Annotated[str, typer.Option("--agent", metavar="NAME", help="Whose memory.")]


@app.command("show", epilog="Example: deepctl memory show --user alice")
def show_(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="Memory file; MEMORY.md without it.")] = None,
    user: options.User = None,
    agent: Agent = layout.AGENT,
    as_json: options.Json = False,
) -> None:
    """Print a notebook: rendered at a terminal, byte for byte when piped."""
    profile = options.existing_profile(user)
    memory = Memory(profile, agent)
    try:
        notebooks = [memory.read(layout.NOTEBOOK if file is None else file)]
    except MemoryNotFound:
        if file is not None or memory.agent != layout.AGENT:
            raise
        notebooks = []
    show(views.NotebookShown(profile.name, memory.agent, notebooks), as_json)


@app.command("list", epilog="Example: deepctl memory list --user alice --json")
def list_(user: options.User = None, agent: Agent = layout.AGENT, as_json: options.Json = False) -> None:
    """List the notebooks."""
    profile = options.existing_profile(user)
    memory = Memory(profile, agent)
    show(views.NotebookList(profile.name, memory.agent, memory.notebooks()), as_json)
