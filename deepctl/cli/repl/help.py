"""`/help` and `--help`: the table of slash commands, and the usage of a single one."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from copy import copy
from itertools import groupby
from typing import Any, NamedTuple

from deepctl.cli.repl import command_names
from deepctl.cli.repl.command_catalogue import GROUPS, SlashCommand
from deepctl.cli.repl.state import ReplState
from deepctl.output.render import is_terminal, show, terminal_size, terminal_width, tint, wrap

_WIDTH = 80
_MIN_HELP_WIDTH = 30
"""Columns for the description of a command beside its name; with fewer columns, it is printed below the name."""
_GAP = 2
_EXAMPLE = re.compile(r"deepctl .*")
_LINES_BELOW = 4
"""The lines below the commands: a blank one, a sentence, the prompt and the toolbar."""
_MORE_HELP = "/help COMMAND explains a command, /help all has a line for each."
_TURN = "A turn is one prompt and all work to answer it."
_SHELL = ("!command", "Run a command where the agent's commands run.")
_MENTION = ("@path", "Show a file of the workspace to the model.")
_KEYS = (
    ("Ctrl-C", "Stop an answer, or empty the line."),
    ("Ctrl-D", "Leave the chat."),
    ("Enter", "During an answer: queue the line for afterwards."),
    ("Up", "On an empty line: take back the last queued entry."),
    ("Alt-Enter", "During an answer: stop it, and send the line at once."),
)


class _Overview(NamedTuple):
    """All commands, by group; `further_commands` lists other entries such as `!COMMAND`."""

    commands: Sequence[SlashCommand]
    further_commands: Sequence[tuple[str, str]]
    is_whole: bool
    """Whether each command has a line of its own even if the window has fewer lines."""

    def document(self) -> dict[str, Any]:
        return {"commands": [command.name for command in self.commands]}

    def print(self) -> None:
        groups = [
            (group, [(f"{command.name} {command.usage}".rstrip(), command.help) for command in commands])
            for group, commands in groupby(self.commands, key=lambda command: command.group)
        ]
        groups.append(("More", list(self.further_commands)))
        name_width = max(len(name) for _, rows in groups for name, _ in rows)
        lines = []
        for group, rows in groups:
            lines.append(tint(group, "strong"))
            lines += [line for name, meaning in rows for line in _row_lines(name, meaning, name_width)]
        sentence = _TURN
        if not self.is_whole and is_terminal(sys.stdout) and len(lines) + _LINES_BELOW > terminal_size()[1]:
            indent = max(len(group) for group, _ in groups) + _GAP
            lines = [line for group, rows in groups for line in _short_lines(group, [name for name, _ in rows], indent)]
            sentence = _MORE_HELP
        print("\n".join(lines))
        print(f"\n{wrap(sentence, sys.stdout)}")


def _short_lines(group: str, names: Sequence[str], indent: int) -> list[str]:
    """The names of a group without their arguments, for a window with few lines."""
    columns = terminal_width() or _WIDTH
    indent = indent if columns >= _WIDTH else _GAP
    lines = textwrap.wrap(" ".join(name.partition(" ")[0] for name in names), columns - indent, break_on_hyphens=False)
    if indent == _GAP:
        return [tint(group, "strong"), *(" " * indent + line for line in lines)]
    first = f"{tint(group, 'strong')}{' ' * (indent - len(group))}{lines[0]}"
    return [first, *(" " * indent + line for line in lines[1:])]


def _row_lines(name: str, meaning: str, name_width: int) -> list[str]:
    columns = terminal_width() or _WIDTH
    room = columns - name_width - 2 * _GAP
    is_beside = room >= _MIN_HELP_WIDTH
    lines = textwrap.wrap(meaning, room if is_beside else max(_MIN_HELP_WIDTH, columns - 3 * _GAP)) or [""]
    first = " " * _GAP + tint(name, "name")
    if is_beside:
        first = f"{first}{' ' * (name_width - len(name) + _GAP)}{lines[0]}".rstrip()
        indent, lines = name_width + 2 * _GAP, lines[1:]
    else:
        indent = 3 * _GAP
    return [first, *(" " * indent + line for line in lines)]


class _CommandHelp(NamedTuple):
    """The help of a command about the chat itself."""

    command: SlashCommand

    def document(self) -> dict[str, Any]:
        return {"command": self.command.name}

    def print(self) -> None:
        print(f"{tint(self.command.name, 'name')} {self.command.usage}".rstrip())
        for line in textwrap.wrap(self.command.help, (terminal_width() or _WIDTH) - _GAP):
            print(" " * _GAP + line)
        if self.command.source != "built-in":
            print(f"\n{GROUPS[self.command.source]}.")


class _ShellCommandUsage(NamedTuple):
    """The help of a shell command as Typer formats it, without the parameters that the chat fills in."""

    command: SlashCommand | None
    words: Sequence[str]
    names: command_names.CommandNames

    def document(self) -> dict[str, Any]:
        return {"command": " ".join(self.words)}

    def print(self) -> None:
        shell, _ = command_names.resolve(self.words)
        shell = copy(shell)
        hidden_names = command_names.filled_in(self.words, shell)
        shell.params = [parameter for parameter in shell.params if parameter.name not in hidden_names]
        shell.epilog = _EXAMPLE.sub(lambda match: self.names.example(match[0]), shell.epilog or "")
        if self.command is not None and self.words == command_names.EXPORT:
            # `/export` takes FILE as an argument, and has its own help text.
            shell.help, shell.epilog = self.command.help, "Example: /export talk.md --redact"
            shell.params = [parameter for parameter in shell.params if parameter.name != "output"]
        name = self.names.slash_line(shlex.join(["deepctl", *self.words])) or f"/{' '.join(self.words)}"
        with shell.make_context(name, [], resilient_parsing=True) as context:
            context.max_content_width = context.terminal_width = terminal_width() or _WIDTH
            formatter = context.make_formatter()
            if self.command is not None:
                name, usage = self.command.name, self.command.usage
            else:
                usage = " ".join(shell.collect_usage_pieces(context))
            print(f"{tint(name, 'name')} {usage}".rstrip())
            shell.format_help_text(context, formatter)
            shell.format_options(context, formatter)
            shell.format_epilog(context, formatter)
        print(formatter.getvalue().strip("\n"))
        options = [f"--{name}" for name in ("user", "session", "wait") if name in hidden_names]
        if options:
            filled_in = f"Filled in from the chat if not given: {', '.join(options)}."
            print(f"\n{wrap(filled_in, sys.stdout)}")


def show_overview(commands: Sequence[SlashCommand], *, has_shell: bool, is_whole: bool = False) -> None:
    """Print all commands in their groups, and the other entries: in short if the window has too few lines, unless
    `is_whole`.
    """
    sections = [_MENTION, _SHELL, *_KEYS] if has_shell else [_MENTION, *_KEYS]
    show(_Overview(commands, sections, is_whole), as_json=False)


def show_command(state: ReplState, command: SlashCommand) -> None:
    """Print the usage of a slash command."""
    if command.shell_words:
        show(_ShellCommandUsage(command, command.shell_words, state.command_names), as_json=False)
    else:
        show(_CommandHelp(command), as_json=False)


def show_shell_command(state: ReplState, words: Sequence[str]) -> None:
    """Print the help of a shell command that is typed with its words, as it is used in a chat."""
    show(_ShellCommandUsage(None, words, state.command_names), as_json=False)
