"""`/file`: the files that are attached to the next prompt, as with `--file`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from deepctl.cli.repl.completer import REMOVE
from deepctl.cli.repl.run_cli_command import split
from deepctl.cli.repl.state import ReplState
from deepctl.domain import attachments
from deepctl.errors import NotFound, UsageError
from deepctl.output.text import home
from deepctl.quantities import size

HELP = f"Attach files to the next prompt, or {REMOVE} them."


def run(state: ReplState, arguments: str) -> None:
    """Attach files, all or none; take files back after `--remove`; and list the attached files."""
    # A path with blanks, as it is without a shell's quotes.
    words = [arguments] if os.path.isfile(os.path.expanduser(arguments)) else split(arguments)
    if words[:1] == [REMOVE]:
        _remove(state, words[1:])
        return
    option = next((word for word in words if word.startswith("-")), None)
    if option == "--":
        words.remove("--")
    elif option is not None:
        raise UsageError(
            f"/file has no option {option!r} here.",
            f"/file {REMOVE} PATH takes a file back. A path that begins with a dash is written as ./{option}.",
        )
    if not words and not state.files:
        state.chat.display.notice("No file is attached. /file PATH attaches one to the next prompt.")
        return
    attach(state, words)
    state.chat.display.notice(listing(state.files))


def attach(state: ReplState, paths: Sequence[str]) -> None:
    """Attach files to the next prompt, all or none. Raises `UsageError`."""
    # There is no shell here that expands `~`.
    paths = [os.path.abspath(os.path.expanduser(path)) for path in paths]
    attachments.check(paths)
    state.files = list(dict.fromkeys((*map(os.path.abspath, state.files), *paths)))


def listing(files: Sequence[str]) -> str:
    """What goes with the next prompt."""
    return f"With the next prompt: {', '.join(f'{home(path)} ({_amount(path)})' for path in files)}"


def _amount(path: str) -> str:
    try:
        return size(os.stat(path).st_size)
    except OSError:
        return "missing"


def _remove(state: ReplState, words: Sequence[str]) -> None:
    """Take back these files, or all. Raises `NotFound`; nothing is taken back then."""
    files = [os.path.abspath(path) for path in state.files]
    removed_files = {_attached(files, word) for word in words} if words else set(files)
    state.files = [path for path in files if path not in removed_files]
    if state.files:
        state.chat.display.notice(listing(state.files))
    else:
        state.chat.display.notice("No file is attached.")


def _attached(files: Sequence[str], word: str) -> str:
    """The attached file that a word means: by its path, or by its name if that is unique."""
    path = os.path.abspath(os.path.expanduser(word))
    if path in files:
        return path
    same_name = [file for file in files if os.path.basename(file) == word]
    if len(same_name) != 1:
        raise NotFound(f"{word!r} is not attached.", "/file lists the attached files.", code="file_not_found")
    return same_name[0]
