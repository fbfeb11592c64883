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
from deepctl.output.settings import Diagnosis

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


Only = Annotated[
    str | None,
    typer.Option("--user", "-u", "--profile", metavar="NAME", help="Only this profile; all without it."),
]


@app.command(epilog="Example: deepctl doctor --user alice --json")
def doctor(user: Only = None, as_json: options.Json = False) -> None:
    """See whether deepctl can work here: versions, paths, model and key, the sandbox, locks, damage, leftovers, space.

    All profiles are looked at, or with --user that one. Nothing is changed. Exit code 0, or 5 if something does not
    work.
    """
    checks = list(domain.examine(os.environ, user, distribution.__version__))
    several = len({check.profile for check in checks} - {None}) > 1
    diagnosis = Diagnosis(checks, in_full=not several)
    show(diagnosis, as_json)
    if diagnosis.has_problems:
        raise typer.Exit(Damaged.exit_code)
