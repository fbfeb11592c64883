"""How a turn looks while it happens: text streamed to stdout, or one JSON event a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from deepctl.output.render import notice, write
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import printable_lines

_SHOWN_ARGUMENT = 100


class Display(Protocol):
    """Where the events of a turn go."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Show one event as it happens."""
        ...

    def notice(self, message: str) -> None:
        """Tell something that is not the answer."""
        ...

    def close(self) -> None:
        """Leave the screen in order, however the turn ended."""
        ...


class Events:
    """NDJSON: one event a line, flushed as it happens; the last is a `result` or an `error`."""

    def event(self, event: Mapping[str, Any]) -> None:
        write(json.dumps(event) + "\n")

    def notice(self, message: str) -> None:
        """Nothing but events is printed."""

    def close(self) -> None:
        """Every event is a whole line already."""


class Text:
    """The answer on stdout as it comes; what tools do, as a line each, on stderr if a person is watching."""

    def __init__(self) -> None:
        self._clean: Callable[[str], str] = printable_lines if is_terminal(sys.stdout) else str
        self._watched = is_terminal(sys.stderr)
        self._at_line_start = True

    def event(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "text":
                self._write(event["delta"])
            case "tool_call" if self._watched:
                self._end_line()
                arguments = ", ".join(f"{key}={_short(value)}" for key, value in event["args"].items())
                notice(f"→ {event['name']}({arguments})")
            case "tool_result" if self._watched and not event["ok"]:
                notice(f"✗ {event['name']}: {_short(event['content'])}")
            case "retry" if self._watched:
                self._end_line()
                wait = f"{event['seconds']:.1f} s"
                notice(f"↻ {event['reason']}: again in {wait} ({event['attempt']} of {event['attempts']})")
            case "notice":
                self.notice(event["message"])
            case "tool_result" | "result":
                self._end_line()

    def _write(self, text: str) -> None:
        write(self._clean(text))
        self._at_line_start = text.endswith("\n")

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def notice(self, message: str) -> None:
        self._end_line()
        notice(message)

    def close(self) -> None:
        self._end_line()


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return repr(text) if len(text) <= _SHOWN_ARGUMENT else repr(text[:_SHOWN_ARGUMENT]) + "…"
