"""The title of a session: the first words of its first prompt, or what a model has written about it.

The first one is derived from the log each time, so that no rewind leaves an old one behind. Those of a model are in
`cache/titles` of the profile, one sealed line each, with a digest of the first prompt. A title of another first prompt
does not count. The file is never evidence: it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from typing import Any

from deepctl.errors import Refused
from deepctl.files import atomic, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import log_file
from deepctl.store.records import SessionRecord
from deepctl.unicode import cells, clip

_MAX_CELLS = 80
_MAX_LINES = 50
"""Lines of a prompt that are searched: piped text may have any number."""
_MENTION = re.compile(r"""(?:^|(?<=[\s(\[{,;:'"]))@(?:"([^"\n]+)"|((?:\\[^\n]|[^\s"\\])+))""")
"""As in `deepctl.domain.mention_syntax`."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


_MAX_STORED = 1000
"""Titles of models that are kept; the latest stay."""


def of_session(session: SessionRecord, prompt: str) -> str:
    """The title of a session with this first prompt."""
    entry = _stored(_path(session)).get(session.id)
    if entry is not None and entry["prompt"] == _digest(prompt):
        return shortened(entry["title"])
    return of_prompt(prompt)


def remember(session: SessionRecord, prompt: str, title: str) -> None:
    """Store the title that a model has written, unless the session is gone. A disk error loses only the title."""
    entry = {"v": 1, "session": session.id, "prompt": _digest(prompt), "title": title}
    if title.strip() and os.path.isdir(session.directory):
        _replace(_path(session), session.id, [entry])


def forget(paths: ProfilePaths, identity: str) -> None:
    """Remove the title that a model has written about a session, by its id."""
    path = os.path.join(paths.cache, "titles")
    if os.path.exists(path):
        _replace(path, identity, [])


def _path(session: SessionRecord) -> str:
    return os.path.join(os.path.dirname(os.path.dirname(session.directory)), "cache", "titles")


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _stored(path: str) -> dict[str, dict[str, Any]]:
    """The valid entries by the ids of the sessions."""
    entries: dict[str, dict[str, Any]] = {}
    with suppress(OSError, Refused):
        for line in sealed_lines.parse(atomic.read_file(path)):
            match line.value:
                case {"v": 1, "session": str(identity), "prompt": str(prompt), "title": str(title)}:
                    entries[identity] = {"v": 1, "session": identity, "prompt": prompt, "title": title}
    return entries


def _replace(path: str, identity: str, new: list[dict[str, Any]]) -> None:
    entries = [entry for key, entry in _stored(path).items() if key != identity]
    # No directory is created: the profile may have been wiped meanwhile.
    with suppress(OSError, Refused):
        atomic.replace_unsynced(path, b"".join(map(sealed_lines.seal, [*entries, *new][-_MAX_STORED:])))


def of_prompt(prompt: str) -> str:
    """The title of a session with this first prompt: at most 80 cells of the first line with words; may be empty.

    Piped text counts only if nothing was typed. A mention is shown as the path without its sign; a line that has only
    mentions, such as that of attached files, counts only if there is no other line.
    """
    lines = typed(prompt).split("\n")[:_MAX_LINES]
    worded_lines = [line for line in lines if _MENTION.sub("", line).strip()]
    line = next(iter(worded_lines), next(filter(str.strip, lines), ""))
    return shortened(_MENTION.sub(_mentioned, line))


def typed(prompt: str) -> str:
    """The typed text of a prompt, or its piped text if nothing was typed."""
    return log_file.typed_part(prompt).removeprefix(log_file.PIPED.lstrip()).strip()


def _mentioned(match: re.Match[str]) -> str:
    quoted, plain = match.groups()
    return quoted or re.sub(r"\\(.)", r"\1", plain)


def shortened(text: str) -> str:
    """`text` on one line, without control characters, cut at the width of a title."""
    text = " ".join(_CONTROL.sub(" ", text).split())
    return text if cells(text) <= _MAX_CELLS else f"{clip(text, _MAX_CELLS - 1).rstrip()}…"
