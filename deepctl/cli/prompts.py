"""What was typed before, for the line editor."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from deepctl.errors import Refused
from deepctl.files import durable

if TYPE_CHECKING:
    from prompt_toolkit.history import History


def profile_history(path: str) -> History:
    """The prompt history of a profile, in `path`. It is never made anew: a profile that was wiped stays wiped."""
    from prompt_toolkit.history import FileHistory

    class ProfileHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError, Refused):
                _append(path, string)

    durable.make_private_file(path)
    return ProfileHistory(path)


def _append(path: str, prompt: str) -> None:
    """Add a prompt in the form that `FileHistory` reads, through no link."""
    at = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    lines = "".join(f"+{line}\n" for line in prompt.split("\n"))
    descriptor = durable.open_regular(path, os.O_WRONLY | os.O_APPEND)
    try:
        durable.write_all(descriptor, f"\n# {at}\n{lines}".encode(errors="replace"))
    finally:
        os.close(descriptor)
