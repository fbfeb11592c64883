"""The title of a session: the first words of its first prompt.

A title is derived from the log each time, so that a purge, a rewind or a rename leaves no old one behind.
"""

from __future__ import annotations

import re

from deepctl.store import log_file
from deepctl.unicode import cells, clip

_MAX_CELLS = 80
_MAX_LINES = 50
"""Lines of a prompt that are searched: piped text may have any number."""
_MENTION = re.compile(r"""(?:^|(?<=[\s(\[{,;:'"]))@(?:"([^"\n]+)"|((?:\\[^\n]|[^\s"\\])+))""")
"""As in `deepctl.domain.mention_syntax`."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def of_prompt(prompt: str) -> str:
    """The title of a session with this first prompt: at most 80 cells of the first line with words; may be empty.

    Piped text counts only if nothing was typed. A mention is shown as the path without its sign; a line that has only
    mentions, such as that of attached files, counts only if there is no other line.
    """
    lines = log_file.typed_part(prompt).removeprefix(log_file.PIPED.lstrip()).strip().split("\n")[:_MAX_LINES]
    worded_lines = [line for line in lines if _MENTION.sub("", line).strip()]
    line = next(iter(worded_lines), next(filter(str.strip, lines), ""))
    return shortened(_MENTION.sub(_path, line))


def _path(match: re.Match[str]) -> str:
    quoted, plain = match.groups()
    return quoted or re.sub(r"\\(.)", r"\1", plain)


def shortened(text: str) -> str:
    """`text` on one line, without control characters, cut at the width of a title."""
    text = " ".join(_CONTROL.sub(" ", text).split())
    return text if cells(text) <= _MAX_CELLS else f"{clip(text, _MAX_CELLS - 1).rstrip()}…"
