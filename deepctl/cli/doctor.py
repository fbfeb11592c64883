"""`deepctl doctor`."""

from __future__ import annotations

import os

import typer

from deepctl import __version__
from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import doctor as domain
from deepctl.domain import profiles
from deepctl.errors import Damaged
from deepctl.output.doctor import Diagnosis
from deepctl.output.render import show

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


@app.command(epilog="Example: deepctl doctor --user alice --json")
def doctor(user: options.User = None, as_json: options.Json = False) -> None:
    """See whether deepctl can work here: versions, paths, and the sandbox, in which a command is run.

    Exit code 0, or 5 if something does not work.
    """
    root, name = options.root(), options.user(user)
    profile = options.existing_profile(user) if user is not None else None
    if profile is None and profiles.exists(root, name):
        profile = profiles.find(root, name)
    found = Diagnosis(domain.examine(os.environ, profile, __version__))
    show(found, as_json)
    if any(check.status == "problem" for check in found.checks):
        raise typer.Exit(Damaged.exit_code)
