"""All slash commands of a conversation by their sources, and which one a typed name means.

Several sources can have a command of the same name. The first source in `SOURCES` has the plain name; the others are
typed with their source, as in `/project:review`. So a file of a repository cannot take the place of a command that
ships with deepctl or that the user wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from deepctl.cli import usage_errors
from deepctl.cli.repl.command_names import CommandNames
from deepctl.errors import DeepctlError, UsageError
from deepctl.output.render import printable

State: TypeAlias = Any
"""A `ReplState`. Its module imports this one."""
CommandSource = Literal["built-in", "profile", "root", "project", "mcp"]
SOURCES: tuple[CommandSource, ...] = ("built-in", "profile", "root", "project", "mcp")
"""The sources, the one with the highest priority first."""
GROUPS = {
    "profile": "Commands of this profile",
    "root": "Commands of all profiles",
    "project": "Commands of the project",
    "mcp": "Prompts of MCP servers",
}
"""The headings in `/help` of the commands that are not built in."""
TYPED_COMMAND = re.compile(r"/[A-Za-z?][\w-]*(?::[\w-]+)*(?=\s|$)|/(?:!.*|[^\w\s]*)$")
"""The start of an entry that is a command, known or unknown. `/etc/passwd is odd` is a prompt."""
_MAX_NAME = 60
"""Characters of an unknown name in an error."""


class SlashCommand(NamedTuple):
    """A slash command: `/rewind`, `[REF]`, what it does, and how it runs."""

    name: str
    """What is typed. Of a hidden command in `CommandCatalogue.commands`, this is the name with the source."""
    usage: str
    help: str
    """One line without control characters."""
    group: str
    """The heading in `/help`. Commands of one group follow each other."""
    run: Callable[[State, str], None]
    """Runs the command on the rest of the line. To send a prompt, it sets `ReplState.next_prompt`."""
    argument: str = ""
    """What completion offers for the first argument: `reference`, `session`, `model`, `choice:a,b,c`, or empty for
    nothing; `files` for each argument.
    """
    shell_words: tuple[str, ...] = ()
    """The shell command that it is, if it is one."""
    in_ephemeral: bool = False
    """Whether it exists in an `--ephemeral` conversation, too."""
    source: CommandSource = "built-in"

    @property
    def description(self) -> str:
        """What it does, for completion; of a command that is not built in, after its source."""
        return self.help if self.source == "built-in" else f"{self.source}: {self.help}".rstrip(": ")


CommandReader = Callable[[State], Iterable[SlashCommand]]
"""Returns the commands of one source as they are now. It is called before every entry, so it must not wait for a
network or a process.
"""


class CommandCatalogue:
    """The slash commands of one conversation. `readers` are those of the sources that can change meanwhile."""

    def __init__(
        self,
        built_in: Sequence[SlashCommand],
        names: CommandNames,
        aliases: dict[str, str] | None = None,
        readers: Sequence[CommandReader] = (),
    ) -> None:
        self.names = names
        """The built-in commands by their shell commands."""
        self._built_in = tuple(built_in)
        self._aliases = aliases or {}
        self._readers = readers
        self.commands: tuple[SlashCommand, ...] = ()
        """All commands as they are typed, in the order of `SOURCES`."""
        self._by_name: dict[str, SlashCommand] = {}
        self._messages: set[str] = set()
        self._set(self._built_in)

    def refresh(self, state: State) -> None:
        """Read the sources again. A source that cannot be read has no commands; a notice tells the reason once."""
        commands = list(self._built_in)
        for reader in self._readers:
            try:
                commands += reader(state)
            except DeepctlError as error:
                self.tell_once(state, error.message)
        self._set(commands)

    def tell_once(self, state: State, message: str) -> None:
        """Show a notice, unless this conversation has shown it already: the sources are read before every entry."""
        if message not in self._messages:
            self._messages.add(message)
            state.chat.display.notice(message)

    def _set(self, commands: Sequence[SlashCommand]) -> None:
        typed: list[SlashCommand] = []
        plain: dict[str, SlashCommand] = dict(self._aliases_of(commands))
        qualified: dict[str, SlashCommand] = {}
        for command in sorted(commands, key=lambda command: SOURCES.index(command.source)):
            lower = command.name.lower()
            long_name = f"/{command.source}:{lower[1:]}"
            if long_name in qualified:
                continue  # a source with two commands of one name has the first one
            qualified[long_name] = command
            # A name such as `/project:review` is reserved for the command `/review` of the project.
            is_hidden = lower in plain or (lower[1:].partition(":")[0] in SOURCES and ":" in lower)
            if not is_hidden:
                plain[lower] = command
            typed.append(command._replace(name=f"/{command.source}:{command.name[1:]}") if is_hidden else command)
        self.commands, self._by_name = tuple(typed), {**plain, **qualified}

    def _aliases_of(self, commands: Sequence[SlashCommand]) -> Iterable[tuple[str, SlashCommand]]:
        by_name = {command.name: command for command in commands if command.source == "built-in"}
        return [(alias, by_name[name]) for alias, name in self._aliases.items() if name in by_name]

    def available(self, *, is_ephemeral: bool) -> list[SlashCommand]:
        """The commands that exist in a conversation that is ephemeral, or not."""
        return [command for command in self.commands if command.in_ephemeral or not is_ephemeral]

    def find(self, name: str) -> SlashCommand:
        """The command that is typed as `name`, with or without its source. Raises `UsageError` if there is none."""
        lower = name.lower()
        command = self.get(name)
        if command is not None:
            return command
        if not any(map(str.isalpha, name)) or name.startswith("/!"):
            raise UsageError(
                f"{name} is not a command.", "/help lists the commands; !COMMAND runs a shell command in the workspace."
            )
        near = self.near_to(lower)
        raise UsageError(
            f"There is no command {printable(name)[:_MAX_NAME]}.",
            f"Did you mean {near}?" if near is not None else "/help lists the commands.",
        )

    def get(self, name: str) -> SlashCommand | None:
        """The same, or `None`."""
        return self._by_name.get(name.lower())

    def near_to(self, name: str) -> str | None:
        """The typed name of the command that is probably meant by `name`."""
        typed_names = [*(command.name for command in self.commands), *self._aliases]
        return next(iter(usage_errors.near_to(name, typed_names)), None)
