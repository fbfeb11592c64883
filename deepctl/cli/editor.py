"""The user's editor: which it is, and letting it edit a file."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deepctl.errors import Refused, UsageError
from deepctl.output.terminal_caps import is_terminal

_PROGRAMS = ("editor", "nano", "vi")


def editor(environment: Mapping[str, str]) -> list[str]:
    """The editor's command: `$VISUAL`, else `$EDITOR`, split as a shell does, else the first one there is.

    Raises `UsageError` for a variable that cannot be split, `Refused` if there is no editor, or nobody to use it.
    """
    for variable in ("VISUAL", "EDITOR"):
        try:
            words = shlex.split(environment.get(variable, ""))
        except ValueError as error:
            raise UsageError(f"${variable} cannot be understood: {error}.", "It is split as a shell does.") from None
        if words:
            return words
    if not is_terminal(sys.stdin) or not (is_terminal(sys.stdout) or is_terminal(sys.stderr)):
        raise Refused(
            "There is no terminal to edit at, and neither $VISUAL nor $EDITOR is set.",
            "`deepctl memory add` takes a note from the command line or from a pipe.",
            code="no_editor",
        )
    for program in _PROGRAMS:
        found = shutil.which(program, path=environment.get("PATH"))
        if found is not None:
            return [found]
    raise Refused(
        f"There is no editor: neither $VISUAL nor $EDITOR is set, and none of {', '.join(_PROGRAMS)} is on $PATH.",
        "Set one: EDITOR=nano, or EDITOR='code --wait'.",
        code="no_editor",
    )


def edit(command: list[str], path: str) -> str | None:
    """Let the editor edit a file and wait for its end. Returns how it failed, or `None`.

    Raises `Refused` if it cannot be started.
    """
    # What it prints is not the answer of a command whose stdout goes elsewhere.
    stdout = None if os.isatty(1) else 2
    # In a conversation, the terminal is not set for programs of its own.
    from deepctl.cli import tty_modes

    with _keys_are_the_editors(), tty_modes.plain():
        try:
            process = subprocess.Popen([*command, path], stdout=stdout)
        except OSError as error:
            raise Refused(
                f"The editor {command[0]!r} cannot be started: {error.strerror}.",
                "$VISUAL, else $EDITOR, says which it is.",
                code="no_editor",
            ) from None
        status = process.wait()
    if status < 0:
        return f"ended by signal {-status}"
    return f"exit status {status}" if status else None


@contextmanager
def _keys_are_the_editors() -> Iterator[None]:
    """Ctrl-C and what quits go to every program at the terminal, and mean the editor."""
    # Handlers, and not SIG_IGN, which the editor would inherit.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
