"""The line in the user's own editor: Ctrl-X Ctrl-E."""

from __future__ import annotations

import os
import tempfile

from deepctl.cli import editor
from deepctl.cli.repl.input import cleaned
from deepctl.errors import DeepctlError
from deepctl.files import atomic
from deepctl.files.rmtree import remove_tree

_NAME = "prompt.md"


def edited(text: str) -> tuple[str, str | None]:
    """Let the user edit `text`; returns it, and what went wrong, in which case it is as it was.

    It is in a private file meanwhile, in memory where there is a place for that, which is gone afterwards.
    """
    try:
        command = editor.editor(os.environ)
        directory = _private_directory()
        try:
            path = os.path.join(directory, _NAME)
            atomic.write_file(path, text.encode(errors="replace"))
            failure = editor.edit(command, path)
            if failure is not None:
                return text, f"The editor failed ({failure}); the line is as it was."
            return cleaned(atomic.read_file(path).decode("utf-8-sig", errors="replace").removesuffix("\n")), None
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
