"""Hooks: commands of the user that run before a tool of the agent, after one, and at the end of a turn.

    [hooks]
    before_tool = [{ command = "./check.sh", tools = "execute" }]
    after_tool = [{ command = "ruff format -q .", tools = ["write_file", "edit_file"], timeout = 20 }]
    turn_end = [{ command = "notify-send deepctl done", sandbox = false }]

They come from profile.toml and config.toml of the user only. An import keeps them in untrusted.toml, and a project has
none.
"""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from deepctl.domain.addresses import without_passwords
from deepctl.domain.mcp_servers import is_where_agents_write
from deepctl.errors import BadSetting

TABLE = "hooks"
BEFORE_TOOL, AFTER_TOOL, TURN_END = EVENTS = ("before_tool", "after_tool", "turn_end")
SECONDS, MAX_SECONDS = 60, 600
_KEYS = ("command", "tools", "timeout", "sandbox")
_SUCH_AS = 'Example: before_tool = [{ command = "./check.sh", tools = "execute" }].'


class Hook(NamedTuple):
    """A command for one event. `tools` are patterns of tool names, `timeout` is in seconds.

    With `is_sandboxed` it runs where commands of the agent run, else in the home directory with the rights of the user.
    `source` is `profile` or `config`.
    """

    event: str
    command: str
    tools: tuple[str, ...] = ("*",)
    timeout: float = SECONDS
    is_sandboxed: bool = True
    source: str = "profile"

    def is_for(self, event: str, tool: str) -> bool:
        """Whether it runs at this event of a tool."""
        return event == self.event and any(fnmatch.fnmatchcase(tool, pattern) for pattern in self.tools)


def parse(tables: object, where: str, source: str = "profile") -> list[Hook]:
    """The hooks in the table of a settings file. Raises `BadSetting`, because a misspelled hook must not be ignored."""
    place = f"[{TABLE}] in {where}"
    if not isinstance(tables, dict):
        raise BadSetting(f"{place} must be a table.", _SUCH_AS)
    hooks: list[Hook] = []
    for event, entries in tables.items():
        if event not in EVENTS:
            raise BadSetting(
                f"{without_passwords(event)!r} is unknown in {place}.", f"It must be one of: {', '.join(EVENTS)}."
            )
        if not isinstance(entries, list):
            raise BadSetting(f"{event!r} of {place} must be a list of tables.", _SUCH_AS)
        hooks += [_hook(event, entry, place)._replace(source=source) for entry in entries]
    return hooks


def _hook(event: str, entry: object, place: str) -> Hook:
    place = f"a hook of {event!r} of {place}"
    if not isinstance(entry, dict):
        raise BadSetting(f"In {place} there must be a table.", _SUCH_AS)
    for key in entry:
        if key not in _KEYS or (key == "tools" and event == TURN_END):
            raise BadSetting(f"{without_passwords(key)!r} is unknown in {place}.", f"Keys are: {', '.join(_KEYS)}.")
    command = entry.get("command")
    if not isinstance(command, str) or not command.strip() or not _is_text(command):
        raise BadSetting(f"There is no command in {place}.", _SUCH_AS)
    tools = entry.get("tools", "*")
    patterns = [tools] if isinstance(tools, str) else tools
    if not isinstance(patterns, list) or not patterns or not all(isinstance(name, str) and name for name in patterns):
        raise BadSetting(f"The tools of {place} must be names or patterns, such as github__*.", _SUCH_AS)
    timeout = entry.get("timeout", SECONDS)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_SECONDS:
        raise BadSetting(f"The timeout of {place} must be a number of seconds.", f"It is at most {MAX_SECONDS}.")
    sandbox = entry.get("sandbox", True)
    if not isinstance(sandbox, bool):
        raise BadSetting(f"The field sandbox of {place} must be true or false.", _SUCH_AS)
    return Hook(event, command, tuple(patterns), float(timeout), sandbox)


def _is_text(command: str) -> bool:
    return "\0" not in command and not any("\ud800" <= character <= "\udfff" for character in command)


def risk(value: Any) -> str:
    """The effect of the hooks of one event, from a value that need not be valid."""
    entries = value if isinstance(value, list) else [value]
    is_free = any(not isinstance(entry, dict) or entry.get("sandbox", True) is not True for entry in entries)
    where = "unsandboxed, with your rights" if is_free else "where commands of the agent run"
    return f"it runs these commands in every turn, {where}"


def problem(hook: Hook, environment: Mapping[str, str]) -> str | None:
    """Why an unsandboxed hook does not run, as a clause; `None` if it can. Sandboxed ones are not checked."""
    if hook.is_sandboxed:
        return None
    try:
        words = shlex.split(hook.command)
    except ValueError:
        words = hook.command.split()
    home = environment.get("HOME") or "/"
    for word in words:
        for part in (word, word.partition("=")[2]):
            path = os.path.join(home, part.removeprefix("~/")) if part else ""
            if "/" in part and is_where_agents_write(path, environment, is_argument=True):
                return "the agent can change a file that it names, and would so leave its sandbox"
    return None
