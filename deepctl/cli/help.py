"""`deepctl help`."""

from __future__ import annotations

from typing import Annotated

import typer

from deepctl.cli.options import HELP_OPTIONS

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


@app.command(epilog="Example: deepctl help checkpoints rewind")
def help(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND]…", help="A command, such as `checkpoints rewind`. Default: deepctl itself."),
    ] = None,
) -> None:
    """Show the help of a command."""
    from deepctl.cli import main

    # A word that is an option would be read as one of the command.
    main.call([*(word for word in words or () if not word.startswith("-")), "--help"])
