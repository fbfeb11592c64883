"""`checkpoints/ledger.size`: how long the ledger was before its last line, so that a shorter one is recognised.

One sealed line of fixed length, `{v, size, short}`, overwritten in place after each line of the ledger and not synced:
after a power cut it may say less than there is, never more. The last line is not counted, because a ledger without it
is what a kill leaves. `short` says that a writer found the ledger shorter; it stays until a repair. A file that is
missing says nothing, and the next writer makes it anew.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from deepctl.errors import Refused
from deepctl.files import atomic, sealed_lines

NAME = "ledger.size"
_DIGITS = 16


class Size(NamedTuple):
    """At least so many bytes the ledger has, whether it was found shorter, and why that cannot be read if it cannot."""

    size: int = 0
    is_short: bool = False
    problem: str | None = None


def read(directory: str) -> Size:
    """What is known of the length of the ledger in `directory`."""
    try:
        raw = atomic.read_file(os.path.join(directory, NAME))
    except (OSError, Refused):
        return Size()
    try:
        entry = sealed_lines.unseal(raw.removesuffix(b"\n"))
        if entry["v"] != 1 or not raw.endswith(b"\n"):
            raise ValueError
        return Size(int(entry["size"]), bool(entry["short"]))
    except (ValueError, KeyError, TypeError):
        return Size(problem="what it says of the length of the ledger cannot be read")


def line(size: int, *, is_short: bool) -> bytes:
    """The content of the file."""
    return sealed_lines.seal({"v": 1, "size": f"{size:0{_DIGITS}}", "short": int(is_short)})


def before_last(raw: bytes) -> int:
    """Where the last line of a ledger with the bytes `raw` begins."""
    return raw.rfind(b"\n", 0, len(raw) - 1) + 1 if raw else 0


def write(directory: str, size: int, *, is_short: bool) -> None:
    """Say how long the ledger is at least. Trouble with the disk costs this knowledge and nothing else."""
    path = os.path.join(directory, NAME)
    content = line(size, is_short=is_short)
    try:
        try:
            descriptor = atomic.open_regular(path, os.O_RDWR)
        except FileNotFoundError:
            atomic.write_file(path, content)
            return
        try:
            os.pwrite(descriptor, content, 0)
            if os.fstat(descriptor).st_size != len(content):
                os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)
    except (OSError, Refused):
        pass
