"""Reading what a program draws at a pseudo-terminal, as plain text."""

from __future__ import annotations

import os
import re
import select
import time

_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LIMIT = 60.0
"""Seconds after which something that does not come is a failure."""


def read_until(descriptor: int, *wanted: bytes) -> None:
    """Read until these have been drawn one after the other, whatever escape sequences are within them."""
    end = time.monotonic() + _LIMIT
    seen = b""
    sought = re.compile(b".*".join(map(re.escape, wanted)), re.DOTALL)
    while not sought.search(_SEQUENCE.sub(b"", seen)):
        # Enough for what is wanted to be whole; all of a long answer would be searched again and again.
        seen = seen[-16384:]
        assert select.select([descriptor], [], [], max(end - time.monotonic(), 0))[0], seen
        seen += os.read(descriptor, 65536)


def read_available(descriptor: int, seconds: float) -> None:
    """Read what there is, and drop it; wait so long for it."""
    if select.select([descriptor], [], [], seconds)[0]:
        os.read(descriptor, 65536)
