"""The user's editor: how it is found, and how it edits a file or a text."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deepctl.errors import DeepctlError, Refused, UsageError
from deepctl.files import atomic
from deepctl.files.rmtree import remove_tree
from deepctl.output.render import is_terminal

_PROGRAMS = ("editor", "nano", "vi")
_PROMPT_FILE = "prompt.md"


def editor(environment: Mapping[str, str]) -> list[str]:
    """The command of the editor: `$VISUAL`, else `$EDITOR`, split like a shell command, else the first installed one.

    Raises `UsageError` for a variable that cannot be split, `Refused` without an editor or a terminal.
    """
    for variable in ("VISUAL", "EDITOR"):
        try:
            words = shlex.split(environment.get(variable, ""))
        except ValueError as error:
            raise UsageError(
                f"${variable} cannot be split into words: {error}.", "It is split like a shell command."
            ) from None
        if words:
            return words
    if not is_terminal(sys.stdin) or not (is_terminal(sys.stdout) or is_terminal(sys.stderr)):
        raise Refused(
            "The editor needs a terminal, and neither $VISUAL nor $EDITOR is set.",
            "`deepctl memory add` takes a note from the command line or from a pipe.",
            code="no_editor",
        )
    for program in _PROGRAMS:
        path = shutil.which(program, path=environment.get("PATH"))
        if path is not None:
            return [path]
    raise Refused(
        f"There is no editor: neither $VISUAL nor $EDITOR is set, and $PATH contains none of {', '.join(_PROGRAMS)}.",
        "Set one: EDITOR=nano, or EDITOR='code --wait'.",
        code="no_editor",
    )


def edit(command: list[str], path: str) -> str | None:
    """Run the editor for a file and wait for its end. Returns the failure, or `None`.

    Raises `Refused` if the editor cannot be started.
    """
    # The output of the editor is not part of the result of a command with redirected stdout.
    stdout = None if os.isatty(1) else 2
    # In a chat, the terminal is not in the mode that other programs expect.
    from deepctl.cli import tty_modes

    with _keys_are_the_editors(), tty_modes.shell_mode():
        try:
            process = subprocess.Popen([*command, path], stdout=stdout)
        except OSError as error:
            raise Refused(
                f"The editor {command[0]!r} cannot be started: {error.strerror}.",
                "$VISUAL, then $EDITOR, names the editor.",
                code="no_editor",
            ) from None
        status = process.wait()
    if status < 0:
        return f"ended by signal {-status}"
    return f"exit status {status}" if status else None


@contextmanager
def _keys_are_the_editors() -> Iterator[None]:
    """Ctrl-C and the quit key go to every program at the terminal, and are meant for the editor."""
    # Handlers, and not SIG_IGN, which the editor would inherit.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def edit_text(text: str) -> tuple[str, str | None]:
    """Let the user edit `text`. Returns the new text and `None`, or the old text and the reason of the failure.

    During the edit, the text is in a private file, in memory if possible, which is deleted afterwards.
    """
    try:
        command = editor(os.environ)
        directory = _private_directory()
        try:
            path = os.path.join(directory, _PROMPT_FILE)
            atomic.write_file(path, text.encode(errors="replace"))
            failure = edit(command, path)
            if failure is not None:
                return text, f"The editor failed ({failure}); the line is unchanged."
            return atomic.read_file(path).decode("utf-8-sig", errors="replace").removesuffix("\n"), None
        finally:
            remove_tree(directory)
    except DeepctlError as error:
        return text, f"{error.message} {error.hint}" if error.hint else error.message
    except OSError as error:
        return text, f"The line cannot be edited: {error.strerror}."


def _private_directory() -> str:
    for place in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):
        if place and os.path.isabs(place):
            try:
                return tempfile.mkdtemp(prefix="deepctl-", dir=place)
            except OSError:
                continue
    return tempfile.mkdtemp(prefix="deepctl-")
