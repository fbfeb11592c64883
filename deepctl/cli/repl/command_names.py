"""Shell commands in a chat: their slash names, and the parameters that the chat fills in.

Hints and results come from lower layers, which know only shell commands. `CommandNames` rewords them: a command in
backquotes that has a slash command becomes this slash command, so `deepctl checkpoints undo --user alice` becomes
`/undo`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deepctl.layout import same_name

EXPORT = ("sessions", "export")
TAKES_SESSION_NAME = (("sessions", "show"), EXPORT)
"""Commands whose argument NAME defaults to the current session."""
SEARCHES_ALL_SESSIONS = (("checkpoints", "import"), ("sessions", "search"))
"""Commands whose option --session does not mean the current session."""

_QUOTED = re.compile(r"(?<!\d, )`((?:deepctl|--session|--model)\b[^`]*)`")
"""A command, except one that another process runs, which follows a process id."""
_ALONE = re.compile(r"( *)(deepctl [^`\n]+)")
"""A line that consists of one command."""
_USER = ("--user", "-u", "--profile")
_NEXT_PROMPT = "your next prompt"
_SENTENCE_START = re.compile(r"(?:\A|[.!?] )\Z")
_MAX_TEXT = 4000
"""Characters of the longest text that is reworded. Hints are shorter."""
_CHAT_OPTIONS = {"--session": "/switch", "--new": "/new", "--model": "/model", "--file": "/file"}
"""Options of `chat` that are slash commands in a conversation."""


class CommandNames(NamedTuple):
    """Maps shell commands to slash commands, for the profile of the chat."""

    commands: Mapping[tuple[str, ...], str]
    profile: str | None

    def reword(self, text: str) -> str:
        """`text` with its shell commands replaced by slash commands where these exist."""

        def replacement(match: re.Match[str]) -> str:
            name = self.slash_line(match[1])
            if name == _NEXT_PROMPT and _SENTENCE_START.search(text, max(0, match.start() - 2), match.start()):
                return name.capitalize()
            return name if name is not None else match[0]

        if len(text) > _MAX_TEXT:
            return text
        if match := _ALONE.fullmatch(text):
            return f"{match[1]}{self.slash_line(match[2]) or match[2]}"
        return _QUOTED.sub(replacement, text)

    def example(self, line: str) -> str:
        """An example of a shell command, of any profile, as a slash command."""
        return self._replace(profile=None).slash_line(line) or line

    def slash_line(self, line: str) -> str | None:
        """A shell command as it is typed in the chat; `None` if it has no slash command or names another profile."""
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
    """A word with the quotes that it needs. A chat expands nothing, so fewer characters need quotes than in a shell."""
    return word if re.fullmatch(r"[^\s'\"\\]+", word) else shlex.quote(word)


def resolve(words: Sequence[str]) -> tuple[Any, int]:
    """The Typer command of the first words, and the number of these words."""
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
    """The names of a command's arguments and options; none for a group."""
    return set() if hasattr(command, "commands") else {parameter.name for parameter in command.params}


def filled_in(name: Sequence[str], command: Any) -> set[str]:
    """The arguments and options of a command that the chat fills in."""
    names = {"user", "wait"}
    if tuple(name) not in SEARCHES_ALL_SESSIONS:
        names.add("session")
    if tuple(name) in TAKES_SESSION_NAME:
        names.add("name")
    return names & parameters(command)
