"""How a unified diff looks."""

from __future__ import annotations

import sys

from deepctl.output.terminal_caps import has_colour, is_terminal
from deepctl.output.text import printable_lines

_COLOURS = {"+": "32", "-": "31", "@": "36"}


def print_diff(diff: bytes) -> None:
    """Print a diff: piped, its exact bytes; at a terminal in colours, with what could move the cursor as escapes."""
    colour = has_colour(sys.stdout)
    if not is_terminal(sys.stdout) and not colour:
        sys.stdout.flush()
        sys.stdout.buffer.write(diff)
        return
    for number, line in enumerate(diff.decode("utf-8", "surrogateescape").split("\n")[:-1]):
        code = _COLOURS.get(line[:1], "") if number > 1 else "1"
        shown = printable_lines(line)
        print(f"\x1b[{code}m{shown}\x1b[0m" if colour and code else shown)
