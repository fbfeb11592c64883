"""Options that many commands share, and what they mean."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deepctl.domain import layout, profiles, settings
from deepctl.domain.layout import ProfilePaths, Root

User = Annotated[
    str | None,
    typer.Option("--user", "-u", "--profile", metavar="NAME", help="Profile to work on.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Wait = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for another process to finish.")
]


def root() -> Root:
    """Where all state of this machine's user is."""
    return layout.root(os.environ)


def user(option: str | None) -> str:
    """The profile name meant by `--user` and what stands behind it."""
    return settings.current_user(option, os.environ)


def existing_profile(option: str | None) -> ProfilePaths:
    """The profile meant by `--user`. Raises `ProfileNotFound` (exit 3) if there is none, creating nothing."""
    return profiles.find(root(), user(option))
