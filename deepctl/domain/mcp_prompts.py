"""Prompts of MCP servers as slash commands: their names, their arguments, and what a profile knows of them.

The prompts of a server are known once it has run. A cache of the profile has them after that, so that completion and
`/help` start no server. `/NAME ARGUMENTS` asks the server for the text; the last argument takes the rest of the line,
and `name=value` gives one by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from deepctl.domain.mcp_servers import McpServer
from deepctl.errors import UsageError
from deepctl.files import atomic
from deepctl.store import log_file
from deepctl.unicode import one_line

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.*)", re.DOTALL)
_MAX_DESCRIPTION = 200
_MAX_CACHE = 1 << 20


class PromptArgument(NamedTuple):
    """An argument of a prompt, by its name."""

    name: str
    is_required: bool = False


class ServerPrompt(NamedTuple):
    """A prompt of a server. `description` is one line without control characters."""

    server: str
    name: str
    description: str = ""
    arguments: tuple[PromptArgument, ...] = ()

    @property
    def command(self) -> str:
        """The name as a command: `code review` is `code-review`."""
        return _UNFIT.sub("-", self.name).strip("-_") or "prompt"

    @property
    def usage(self) -> str:
        """The arguments for people: `PATH [STYLE]`."""
        names = [(_UNFIT.sub("-", argument.name).upper(), argument.is_required) for argument in self.arguments]
        return " ".join(name if is_required else f"[{name}]" for name, is_required in names)

    def values(self, typed: str, line: str) -> dict[str, str]:
        """The arguments in `line`, by name. Raises `UsageError`; `typed` is the command in its message."""
        names = [argument.name for argument in self.arguments]
        values: dict[str, str] = {}
        words: list[str] = []
        for word in _words(line, single=len(names) == 1):
            match = _NAMED.fullmatch(word)
            if match is not None and match[1] in names:
                values[match[1]] = match[2]
            else:
                words.append(word)
        free_names = [name for name in names if name not in values]
        if words and not free_names:
            raise UsageError(
                f"{typed} takes no more arguments; unexpected: {words[0]}.", f"Usage: {typed} {self.usage}".rstrip()
            )
        for place, name in enumerate(free_names):
            is_last = place == len(free_names) - 1
            value = " ".join(words[place:]) if is_last else next(iter(words[place : place + 1]), "")
            if value:
                values[name] = value
        missing = [argument.name for argument in self.arguments if argument.is_required and argument.name not in values]
        if missing:
            raise UsageError(f"{typed} needs {', '.join(missing)}.", f"Usage: {typed} {self.usage}")
        return values

    def prompt(self, typed: str, text: str) -> str:
        """What is sent for the line `typed`: the line itself, and the server's text in a block."""
        body = log_file.escaped_tags(text)
        return f'{typed}{log_file.COMMAND}{self.command}" source="mcp:{self.server}">\n{body}\n{log_file.COMMAND_END}'


def _words(line: str, *, single: bool) -> Sequence[str]:
    """The words of a line, as a shell splits them. A single argument is the whole line."""
    if single:
        return [line] if line else []
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def described(server: str, name: str, description: str, arguments: Iterable[tuple[str, bool]]) -> ServerPrompt:
    """A prompt as a server describes it."""
    line = " ".join(one_line(description).split())[:_MAX_DESCRIPTION]
    return ServerPrompt(server, name, line, tuple(PromptArgument(*argument) for argument in arguments))


def store(path: str, server: McpServer, prompts: Sequence[ServerPrompt]) -> None:
    """Remember the prompts of a server in the cache of a profile. A cache that cannot be written is no error."""
    entries = _entries(path)
    entry = {"table": _fingerprint(server), "prompts": [_document(prompt) for prompt in prompts]}
    if entries.get(server.name) == entry or (not prompts and server.name not in entries):
        return
    entries[server.name] = entry
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        atomic.replace_unsynced(path, json.dumps(entries).encode())


def stored(path: str, servers: Iterable[McpServer]) -> list[ServerPrompt]:
    """The prompts that the cache has of these servers, as long as their tables are the same."""
    entries = _entries(path)
    prompts: list[ServerPrompt] = []
    for server in servers:
        entry = entries.get(server.name)
        if not server.enabled or not isinstance(entry, dict) or entry.get("table") != _fingerprint(server):
            continue
        with suppress(KeyError, TypeError, ValueError):
            prompts += [
                described(server.name, str(item["name"]), str(item["description"]), _pairs(item["arguments"]))
                for item in entry["prompts"]
            ]
    return prompts


def _pairs(arguments: Iterable[Any]) -> list[tuple[str, bool]]:
    return [(str(name), bool(is_required)) for name, is_required in arguments]


def _document(prompt: ServerPrompt) -> dict[str, Any]:
    arguments = [[argument.name, argument.is_required] for argument in prompt.arguments]
    return {"name": prompt.name, "description": prompt.description, "arguments": arguments}


def _entries(path: str) -> dict[str, Any]:
    try:
        raw = atomic.read_file(path)
        entries = json.loads(raw) if len(raw) <= _MAX_CACHE else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _fingerprint(server: McpServer) -> str:
    """Changes with the program or the address of a server. It is a digest, because arguments could be secrets."""
    text = json.dumps([server.command, server.args, server.url, server.cwd])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def by_command(prompts: Sequence[ServerPrompt]) -> Mapping[str, ServerPrompt]:
    """The prompts by the names of their commands. A name that is taken gets the name of the server before it."""
    commands: dict[str, ServerPrompt] = {}
    for prompt in prompts:
        name = prompt.command if prompt.command not in commands else f"{prompt.server}-{prompt.command}"
        commands.setdefault(name, prompt)
    return commands
