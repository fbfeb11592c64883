"""`deepctl usage`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from deepctl import layout
from deepctl.cli import ages, options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles, usage_report
from deepctl.errors import DeepctlError, NewerFormat, UsageError
from deepctl.layout import ProfilePaths
from deepctl.output.render import notice, show
from deepctl.output.usage import UsageCsvView, UsageView

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)


@app.command(epilog="Example: deepctl usage --user alice --since 30d --by model")
def usage(
    user: options.User = None,
    all_: Annotated[bool, typer.Option("--all", help="All profiles together.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Only requests that are not older than AGE: today, 90m, 12h, 30d, 2w, 6mo, 1y.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        Literal["day", "profile", "session", "model"] | None,
        typer.Option(help="One row for each of these. Default: day; with --all, profile."),
    ] = None,
    as_json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values with a heading.")] = False,
) -> None:
    """The requests to models, their tokens and their cost.

    Each request counts: answers, retries, summaries, and `deepctl models --check`. Days are those of the local
    calendar. A ~ marks numbers with estimates: the provider did not report the tokens of each request.
    """
    if all_ and user is not None:
        raise UsageError("--all means every profile, but --user means one profile.", "Give only one of the two.")
    if as_json and as_csv:
        raise UsageError("--json and --csv cannot be used together.", "Leave out one of the two.")
    earliest = ages.day_or_age(since) if since is not None else None
    paths = _all_profiles() if all_ else [options.existing_profile(user)]
    report = usage_report.report(paths, by or ("profile" if all_ else "day"), earliest)
    profile = None if all_ else paths[0].name
    view = UsageView(profile, earliest, report)
    show(UsageCsvView(view) if as_csv else view, as_json)
    for path, count in report.problems:
        notice(
            f"{path} has {count} damaged line{'' if count == 1 else 's'}, which do not count. "
            "`deepctl checkpoints repair` removes them."
        )


def _all_profiles() -> list[ProfilePaths]:
    """The profiles that can be read; a notice names the others."""
    root = options.root()
    found = []
    for name in profiles.all_names(root):
        if not layout.is_good_name(name):
            continue
        try:
            found.append(profiles.find(root, name))
        except NewerFormat:
            raise
        except (DeepctlError, OSError) as error:
            notice(f"Profile {name} is left out: {error}")
    return found
