"""What a shell command is called in a conversation: `deepctl checkpoints undo --user alice` is `/undo`.

Hints and outcomes come from below, which knows shells only. Here they are put into the words of a conversation:
whatever stands in backquotes and has a slash command. What has none stays as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from deepctl.names import fold

_QUOTED = re.compile(r"(?<!\d, )`((?:deepctl|--session|--model)\b[^`]*)`")
"""A command, but not what another process runs, which follows the number of that."""
_ALONE = re.compile(r"( *)(deepctl [^`\n]+)")
"""A line that is nothing but a command."""
_USER = ("--user", "-u", "--profile")
_NEXT = "your next prompt"
_SENTENCE = re.compile(r"(?:\A|[.!?] )\Z")
_LONGEST = 4000
"""Characters of a text beyond which it is not looked through: no hint is as long."""
_CHOOSING = {"--session": "/switch", "--new": "/new", "--model": "/model"}
"""Options of `chat` that a conversation has commands for."""


class Names(NamedTuple):
    """The commands of a conversation by the words of the shell commands that they are, and the profile it is of."""

    commands: Mapping[tuple[str, ...], str]
    profile: str | None

    def reword(self, text: str) -> str:
        """`text` with the shell commands in it named as the conversation does, where it can."""

        def said(match: re.Match[str]) -> str:
            named = self.of(match[1])
            if named == _NEXT and _SENTENCE.search(text, max(0, match.start() - 2), match.start()):
                return named.capitalize()
            return named if named is not None else match[0]

        if len(text) > _LONGEST:
            return text
        if alone := _ALONE.fullmatch(text):
            return f"{alone[1]}{self.of(alone[2]) or alone[2]}"
        return _QUOTED.sub(said, text)

    def example(self, line: str) -> str:
        """An example of a shell command, of whatever profile, as one of the conversation."""
        return self._replace(profile=None).of(line) or line

    def of(self, line: str) -> str | None:
        """What a shell command is in the conversation; `None` if it is nothing there, or of another profile."""
        try:
            words = shlex.split(line)
        except ValueError:
            return None
        words = words[1:] if words[0] == "deepctl" else ["chat", *words]
        user = next((place for place, word in enumerate(words) if word in _USER), None)
        if user is not None:
            if self.profile is not None and fold(" ".join(words[user + 1 : user + 2])) != fold(self.profile):
                return None
            del words[user : user + 2]
        if words[:1] == ["chat"]:
            if len(words) == 1:
                return _NEXT
            command = _CHOOSING.get(words[1])
            return " ".join([command, *words[2:]]) if command is not None and len(words) <= 3 else None
        for count in range(len(words), 0, -1):
            command = self.commands.get(tuple(words[:count]))
            if command is not None:
                return " ".join([command, *map(_quoted, words[count:])])
        return None


def _quoted(word: str) -> str:
    """A word as it has to be typed; a conversation expands nothing, so fewer signs have a meaning."""
    return word if re.fullmatch(r"[^\s'\"\\]+", word) else shlex.quote(word)
