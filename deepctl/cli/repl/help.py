"""`/help`: the commands in a table, and what one of them takes."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import groupby
from typing import Any, NamedTuple

from deepctl.cli.repl import run_cli_command
from deepctl.cli.repl.command_names import Names
from deepctl.cli.repl.completer import Command
from deepctl.output.render import show
from deepctl.output.text import tinted, width, wrapped

_WIDTH = 80
_LEAST = 30
"""Columns for what a command does, beside its name; with less, it stands below."""
_GAP = 2
_EXAMPLE = re.compile(r"deepctl .*")
_TURN = "A turn is one prompt and all that was done to answer it."
_SHELL = ("!command", "Run a command where the agent's commands run.")
_MENTION = ("@path", "Show a file of the workspace to the model.")
_KEYS = ("Ctrl-C, Ctrl-D", "Stop an answer or empty the line; leave.")


class Overview(NamedTuple):
    """All commands, by group; `more` is what else can be typed."""

    commands: Sequence[tuple[str, Command]]
    more: Sequence[tuple[str, str]]

    def document(self) -> dict[str, Any]:
        return {"commands": [one._asdict() for _, one in self.commands]}

    def print(self) -> None:
        groups = [
            (group, [(f"{one.name} {one.usage}".rstrip(), one.help) for _, one in found])
            for group, found in groupby(self.commands, key=lambda one: one[0])
        ]
        groups.append(("More", list(self.more)))
        behind = max(len(name) for _, rows in groups for name, _ in rows)
        for group, rows in groups:
            print(tinted(group, "strong"))
            for name, meaning in rows:
                _print(name, meaning, behind)
        print(f"\n{wrapped(_TURN, sys.stdout)}")


def _print(name: str, meaning: str, behind: int) -> None:
    room = (width() or _WIDTH) - behind - 2 * _GAP
    beside = room >= _LEAST
    lines = textwrap.wrap(meaning, room if beside else max(_LEAST, (width() or _WIDTH) - 3 * _GAP)) or [""]
    first = " " * _GAP + tinted(name, "name")
    if beside:
        print(f"{first}{' ' * (behind - len(name) + _GAP)}{lines[0]}".rstrip())
        indent, lines = behind + 2 * _GAP, lines[1:]
    else:
        print(first)
        indent = 3 * _GAP
    for line in lines:
        print(" " * indent + line)


def overview(commands: Iterable[tuple[str, Command]], *, has_shell: bool) -> None:
    """Print all commands, in their groups, and what else can be typed."""
    more = [_MENTION, _SHELL, _KEYS] if has_shell else [_MENTION, _KEYS]
    show(Overview(list(commands), more), as_json=False)


def usage(command: Command) -> None:
    """Print how a command is used, and what it does."""
    show(_Usage(command), as_json=False)


class _Usage(NamedTuple):
    command: Command

    def document(self) -> dict[str, Any]:
        return self.command._asdict()

    def print(self) -> None:
        print(f"{tinted(self.command.name, 'name')} {self.command.usage}".rstrip())
        for line in textwrap.wrap(self.command.help, (width() or _WIDTH) - _GAP):
            print(" " * _GAP + line)


def accepted(command: Command | None, words: Sequence[str], names: Names) -> None:
    """Print the help of the shell command `words`, as it is used here, where some of it is filled in.

    `command` is the slash command that it is; without it, what is typed are the words.
    """
    show(_Accepted(command, words, names), as_json=False)


class _Accepted(NamedTuple):
    command: Command | None
    words: Sequence[str]
    names: Names

    def document(self) -> dict[str, Any]:
        return {"command": " ".join(self.words)}

    def print(self) -> None:
        shell, _ = run_cli_command.found(self.words)
        shell = copy(shell)
        hidden = run_cli_command.filled_in(self.words, shell)
        shell.params = [one for one in shell.params if one.name not in hidden]
        shell.epilog = _EXAMPLE.sub(lambda match: self.names.example(match[0]), shell.epilog or "")
        if self.command is not None and self.words == run_cli_command.EXPORT:
            # It takes FILE as it stands, and says so in its own words.
            shell.help, shell.epilog = self.command.help, "Example: /export talk.md --redact"
            shell.params = [one for one in shell.params if one.name != "output"]
        called = self.names.of(shlex.join(["deepctl", *self.words])) or f"/{' '.join(self.words)}"
        with shell.make_context(called, [], resilient_parsing=True) as context:
            context.max_content_width = context.terminal_width = width() or _WIDTH
            formatter = context.make_formatter()
            if self.command is not None:
                called, typed = self.command.name, self.command.usage
            else:
                typed = " ".join(shell.collect_usage_pieces(context))
            print(f"{tinted(called, 'name')} {typed}".rstrip())
            shell.format_help_text(context, formatter)
            shell.format_options(context, formatter)
            shell.format_epilog(context, formatter)
        print(formatter.getvalue().strip("\n"))
        options = [f"--{name}" for name in ("user", "session", "wait") if name in hidden]
        if options:
            filled_in = f"Filled in from the conversation, if not given: {', '.join(options)}."
            print(f"\n{wrapped(filled_in, sys.stdout)}")
