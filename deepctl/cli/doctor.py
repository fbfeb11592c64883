"""`deepctl doctor`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deepctl import distribution
from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import doctor as domain
from deepctl.errors import Damaged
from deepctl.output.render import show
from deepctl.output.settings import DiagnosisView

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


Only = Annotated[
    str | None,
    typer.Option("--user", "-u", "--profile", metavar="NAME", help="Check only this profile. Default: all profiles."),
]


@app.command(epilog="Example: deepctl doctor --user alice --json")
def doctor(user: Only = None, as_json: options.Json = False) -> None:
    """Check whether deepctl works here: versions, paths, model, key, sandbox, locks, damage, temporary files of killed
    commands, and space.

    All profiles are checked, or only the one of --user. Nothing is changed. The exit code is 0, or 5 if something does
    not work.
    """
    checks = list(domain.examine(os.environ, user, distribution.__version__))
    has_several = len({check.profile for check in checks} - {None}) > 1
    diagnosis = DiagnosisView(checks, in_full=not has_several)
    show(diagnosis, as_json)
    if diagnosis.has_problems:
        raise typer.Exit(Damaged.exit_code)
