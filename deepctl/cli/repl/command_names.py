"""Shell commands as a conversation knows them: their slash names, and the parameters that it fills in.

Hints and outcomes come from lower layers, which know shell commands only. `CommandNames` rewords them: a command in
backquotes that has a slash command becomes that, so `deepctl checkpoints undo --user alice` is `/undo`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deepctl.layout import same_name

EXPORT = ("sessions", "export")
TAKES_SESSION_NAME = (("sessions", "show"), EXPORT)
"""Commands whose argument NAME is the current session if it is left out."""
SEARCHES_ALL_SESSIONS = (("checkpoints", "import"), ("sessions", "search"))
"""Commands whose option --session does not mean the current session."""

_QUOTED = re.compile(r"(?<!\d, )`((?:deepctl|--session|--model)\b[^`]*)`")
"""A command, but not one that another process runs: that follows the number of the process."""
_ALONE = re.compile(r"( *)(deepctl [^`\n]+)")
"""A line that is nothing but a command."""
_USER = ("--user", "-u", "--profile")
_NEXT_PROMPT = "your next prompt"
_SENTENCE_START = re.compile(r"(?:\A|[.!?] )\Z")
_MAX_TEXT = 4000
"""Characters of the longest text that is reworded: no hint is as long."""
_CHAT_OPTIONS = {"--session": "/switch", "--new": "/new", "--model": "/model"}
"""Options of `chat` that are slash commands in a conversation."""


class CommandNames(NamedTuple):
    """Slash commands by the words of the shell commands that they are, and the profile of the conversation."""

    commands: Mapping[tuple[str, ...], str]
    profile: str | None

    def reword(self, text: str) -> str:
        """`text` with its shell commands replaced by slash commands, where there are some."""

        def replacement(match: re.Match[str]) -> str:
            name = self.slash_line(match[1])
            if name == _NEXT_PROMPT and _SENTENCE_START.search(text, max(0, match.start() - 2), match.start()):
                return name.capitalize()
            return name if name is not None else match[0]

        if len(text) > _MAX_TEXT:
            return text
        if alone := _ALONE.fullmatch(text):
            return f"{alone[1]}{self.slash_line(alone[2]) or alone[2]}"
        return _QUOTED.sub(replacement, text)

    def example(self, line: str) -> str:
        """An example of a shell command, of any profile, as one of the conversation."""
        return self._replace(profile=None).slash_line(line) or line

    def slash_line(self, line: str) -> str | None:
        """A shell command as it is typed in the conversation; `None` if it has no slash command or another profile."""
        try:
            words = shlex.split(line)
        except ValueError:
            return None
        words = words[1:] if words[0] == "deepctl" else ["chat", *words]
        user = next((place for place, word in enumerate(words) if word in _USER), None)
        if user is not None:
            if self.profile is not None and not same_name(" ".join(words[user + 1 : user + 2]), self.profile):
                return None
            del words[user : user + 2]
        if words[:1] == ["chat"]:
            if len(words) == 1:
                return _NEXT_PROMPT
            command = _CHAT_OPTIONS.get(words[1])
            return " ".join([command, *words[2:]]) if command is not None and len(words) <= 3 else None
        for count in range(len(words), 0, -1):
            command = self.commands.get(tuple(words[:count]))
            if command is not None:
                return " ".join([command, *map(_quoted, words[count:])])
        return None


def _quoted(word: str) -> str:
    """A word as it has to be typed. A conversation expands nothing, so fewer characters need quotes than in a shell."""
    return word if re.fullmatch(r"[^\s'\"\\]+", word) else shlex.quote(word)


def resolve(words: Sequence[str]) -> tuple[Any, int]:
    """The Typer command that the first words name, and how many words these are."""
    from typer.main import get_command

    from deepctl.cli import main

    command: Any = get_command(main.app)
    count = 0
    for word in words:
        subcommands = getattr(command, "commands", {})
        if word not in subcommands:
            break
        command = subcommands[word]
        count += 1
    return command, count


def parameters(command: Any) -> set[str]:
    """The names of a command's arguments and options; a group has none of ours."""
    return set() if hasattr(command, "commands") else {parameter.name for parameter in command.params}


def filled_in(name: Sequence[str], command: Any) -> set[str]:
    """The arguments and options of a command that the conversation fills in."""
    names = {"user", "wait"}
    if tuple(name) not in SEARCHES_ALL_SESSIONS:
        names.add("session")
    if tuple(name) in TAKES_SESSION_NAME:
        names.add("name")
    return names & parameters(command)
