"""A yes before something that cannot be taken back; at a terminal only, elsewhere `--yes` says it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deepctl.errors import Interrupted, Refused
from deepctl.output.render import say
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import visible

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without a question.")]


def check_can_ask(
    *,
    yes: bool,
    as_json: bool,
    reason: str = "This cannot be taken back",
    instead: str = "--dry-run only says what would happen",
) -> None:
    """Raises `Refused` (exit 6) where there is neither an answer nor anybody to ask."""
    if not yes and (as_json or not is_terminal(sys.stdin) or not is_terminal(sys.stderr)):
        raise Refused(
            f"{reason}, and there is nobody to ask.",
            f"--yes does it without a question; {instead}.",
            code="needs_yes",
        )


def confirm(
    question: str,
    *,
    yes: bool,
    as_json: bool,
    typed: str | None = None,
    reason: str = "This cannot be taken back",
    instead: str = "--dry-run only says what would happen",
) -> None:
    """Return if the user agrees. Raises `Refused` (exit 6) otherwise, and where nobody can be asked; `Interrupted`
    (exit 130) after Ctrl-C.

    `reason` is why it is asked at all, `instead` what can be done without an answer.

    With `typed`, that very word has to be typed. With `--json` nobody is asked: whoever reads JSON is a script.
    """
    check_can_ask(yes=yes, as_json=as_json, reason=reason, instead=instead)
    if yes:
        return
    wanted = f"type {typed} to go on" if typed is not None else "y/N"
    # In a conversation, what is typed while a command runs is not shown: an answer is.
    from deepctl.cli import tty_modes

    try:
        with tty_modes.asked(f"{visible(question)} [{wanted}] "):
            line = sys.stdin.readline()
    except KeyboardInterrupt:
        # Whatever asks changes nothing before it has the answer.
        raise Interrupted("Stopped; nothing was changed.") from None
    if not line.endswith("\n"):
        say("")  # Ctrl-D leaves the cursor behind the question
    answer = line.strip()
    if typed is not None and answer != typed:
        raise Refused(
            f"That is not {typed!r}, so nothing was done.", "Type it exactly as it is asked for.", code="declined"
        )
    if typed is None and answer.lower() not in ("y", "yes"):
        raise Refused("Declined; nothing was done.", code="declined")
