"""The tree of commands, as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from deepctl.cli.main import app


def commands() -> dict[str, Any]:
    """Every command by what a person types after `deepctl`, in the order of `--help`."""
    return dict(_leaves(get_command(app), ""))


def _leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name in below:
        yield from _leaves(below[name], f"{path} {name}".strip())
