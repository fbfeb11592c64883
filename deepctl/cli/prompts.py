"""What was typed before, for the line editor: one file a profile, in the form of prompt_toolkit's `FileHistory`.

It is never made anew, so that a profile that was wiped stays wiped, and never read or written through a link. However
long it is, reading it takes the same time: only its end is read, and what is very long is not written to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from deepctl.errors import Refused
from deepctl.files import atomic

if TYPE_CHECKING:
    from prompt_toolkit.history import History

LONGEST = 64 << 10
"""Bytes of the longest entry that is written; a longer one can be had back until the conversation ends."""
_READ = 2 << 20
"""Bytes read of the file's end."""


def profile_history(path: str) -> History:
    """The prompt history of a profile, in `path`."""
    from prompt_toolkit.history import History

    class ProfileHistory(History):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return _entries(_end(path))[::-1]
            except (OSError, Refused):
                return []

        def store_string(self, string: str) -> None:
            with suppress(OSError, Refused):
                _append(path, string)

    atomic.make_private_file(path)
    return ProfileHistory()


def _end(path: str) -> bytes:
    """The last bytes of the file, from the beginning of an entry on."""
    with open(atomic.open_regular(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _READ))
        content = file.read(_READ)
    return content if size <= _READ else content[content.find(b"\n#") + 1 :]


def _entries(content: bytes) -> list[str]:
    """The entries, oldest first; of several that are the same in a row, one."""
    entries: list[str] = []
    lines: list[str] = []
    for line in [*content.decode(errors="replace").split("\n"), ""]:
        if line.startswith("+"):
            lines.append(line[1:])
        elif lines:
            entry = "\n".join(lines)
            if not entries or entries[-1] != entry:
                entries.append(entry)
            lines = []
    return entries


def _append(path: str, prompt: str) -> None:
    """Add a prompt, through no link."""
    at = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    lines = "".join(f"+{line}\n" for line in prompt.split("\n"))
    entry = f"\n# {at}\n{lines}".encode(errors="replace")
    if len(entry) > LONGEST:
        return
    descriptor = atomic.open_regular(path, os.O_WRONLY | os.O_APPEND)
    try:
        atomic.write_all(descriptor, entry)
    finally:
        os.close(descriptor)
