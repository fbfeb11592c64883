"""The events of a turn as lines: permanent lines, and below them lines about the present work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepctl.output.render import printable
from deepctl.output.stream.lines import TAB, TerminalCaps, cut_line, fold, wrap
from deepctl.output.stream.markdown import Markdown
from deepctl.output.stream.tool_lines import ShownCall

if TYPE_CHECKING:
    from rich.text import Text

_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_SPIN = 0.08
_MAX_TOKENS = 1_000_000_000_000
"""No answer has this many tokens, but a server may say so."""
SILENT_SECONDS = 15
"""A model that is silent for so long is named so in the status line."""
_ROOMY_LINES = 8
"""In a window of fewer lines, there is no empty line above the status line."""


class PlainText:
    """Plain text as it arrives, wrapped between words, in `style`: final rows are returned once.

    `width` may change from call to call.
    """

    def __init__(self, caps: TerminalCaps, style: str) -> None:
        self._caps = caps
        self._style = style
        self._text = ""
        self._begun = False

    def feed(self, delta: str) -> None:
        """The next piece of the text."""
        self._text += self._caps.safe(delta.replace("\r", "")).expandtabs(TAB)
        if not self._begun:
            self._text = self._text.lstrip()
            self._begun = bool(self._text)

    def settled(self, width: int) -> list[Text]:
        """The rows that have become final since the last call. A word that grows may still move to another row."""
        # Empty lines at the end are final only when text follows them, because the text may end there.
        final = self._rows(self._text.rstrip(), width)[:-1]
        if final:
            last_line = self._text[self._text.rstrip().rfind("\n") + 1 :]
            last = self._rows(last_line.rstrip(), width)[-1].plain
            self._text = last_line[len(last_line.rstrip()) - len(last) :]
        return final

    def tail(self, width: int) -> list[Text]:
        """The rows after the final ones, in their present form."""
        return self._rows(self._text.rstrip(), width)

    def finish(self, width: int) -> list[Text]:
        """The text is complete: returns the remaining rows."""
        rows, self._text = self.tail(width), ""
        return rows

    def _rows(self, text: str, width: int) -> list[Text]:
        from rich.text import Text

        return wrap(Text(text, self._style), width) if text else []


class TurnView:
    """The lines of a turn. `calls` are its tool calls so far; `usage` is its usage in words after its end."""

    def __init__(self, caps: TerminalCaps, now: float) -> None:
        self.calls: list[ShownCall] = []
        self.usage = ""
        self._caps = caps
        self._began = self._heard = now
        self._pending: dict[str, ShownCall] = {}
        self._stream: Markdown | PlainText | None = None
        self._streaming = ""
        self._retry: tuple[Mapping[str, Any], float] | None = None
        self._retries = 0
        self._settled: list[Text] = []
        self._kind = ""
        self._continued = False

    def event(self, event: Mapping[str, Any], at: float, width: int) -> None:
        """Process an event with its time on the monotonic clock."""
        kind = event["type"]
        self._heard = at
        if kind == "activity":
            return
        if self._retry is not None and kind != "notice" and not self._is_same_retry(event):
            self._end_retry(width)
        if kind not in (self._streaming, "checkpoint", "notice"):
            self._end_stream(width)
        match kind:
            case "text" | "thinking":
                if self._stream is None:
                    self._stream = Markdown(self._caps) if kind == "text" else PlainText(self._caps, "dim")
                    self._streaming = kind
                self._stream.feed(event["delta"])
            case "tool_call":
                call = ShownCall(event["name"], event["args"], at)
                self.calls.append(call)
                self._pending[event["id"]] = call
            case "tool_result":
                self._result(event, at, width)
            case "retry":
                self._retry = (event, at + float(event["seconds"]))
                self._retries += 1
            case "compaction":
                self._notice(compacted(event), width)
            case "notice":
                self._notice(event["message"], width)
            case "result":
                self._end(event, width)

    def _result(self, event: Mapping[str, Any], at: float, width: int) -> None:
        call = self._pending.pop(event["id"], None)
        if call is None:
            call = ShownCall(event["name"], {}, at)
            self.calls.append(call)
        call.ended(event["ok"], event["content"], at)
        self._add("tool", [call.line(self._caps, width, "")])
        for pending in self._pending.values():
            # Calls run one after another, so the next one starts now.
            pending.began = at

    def _end(self, event: Mapping[str, Any], width: int) -> None:
        if event.get("notice"):
            self._notice(event["notice"], width)
        cost, usage = event.get("cost"), event.get("usage", {})
        tokens = f"{_thousands(usage.get('input_tokens', 0))} in, {_thousands(usage.get('output_tokens', 0))} out"
        # Not printed after every turn, because the toolbar shows the sums.
        self.usage = f"{tokens}, {_dollars(cost)}" if cost else tokens

    def _notice(self, message: str, width: int) -> None:
        """Show a message that is not part of the answer."""
        from rich.text import Text

        self._add("notice", wrap(Text(self._caps.safe(printable(message)), "dim"), width))

    def waited(self, seconds: float) -> None:
        """A question to the person took this time, which does not count as time of the turn."""
        self._began += seconds
        self._heard += seconds
        for call in self._pending.values():
            call.began += seconds

    def broke_off(self, width: int) -> None:
        """The turn was stopped: unfinished parts stay as they are."""
        if self._retry is not None:
            self._end_retry(width)
        if isinstance(self._stream, Markdown):
            self._print_stream(self._stream.break_off(width))
        self._end_stream(width)
        for call in self._pending.values():
            self._add("tool", [call.line(self._caps, width, self._caps.sign("·", "-"))])
        self._pending.clear()

    def settled(self, width: int) -> list[Text]:
        """The lines that have become final since the last call."""
        if self._stream is not None:
            self._print_stream(self._stream.settled(width))
        lines, self._settled = self._settled, []
        return lines

    def tail(self, width: int, height: int, status: str) -> list[Text]:
        """The rows below the final ones, for a window of `height` lines; at most `height - 1` rows."""
        from rich.text import Text

        rows = [row for line in (self._stream.tail(width) if self._stream else ()) for row in fold(line, width)]
        rows += [
            call.line(self._caps, width, self._spinner() if not number else self._caps.sign("·", "-"))
            for number, call in enumerate(self._pending.values())
        ]
        if rows and self._kind and not self._continued:
            rows.insert(0, Text())
        if (rows or self._kind) and height >= _ROOMY_LINES:
            rows.append(Text())
        room = max(height - 2, 0)
        rows = rows[len(rows) - room :] if len(rows) > room else rows
        return [*rows, self._status(width, status)]

    def _end_stream(self, width: int) -> None:
        if self._stream is not None:
            self._print_stream(self._stream.finish(width))
            self._stream, self._streaming, self._continued = None, "", False

    def _end_retry(self, width: int) -> None:
        assert self._retry is not None
        event, _ = self._retry
        retries = self._retries
        self._retry, self._retries = None, 0
        outcome = f"after {_seconds(event['seconds'])} {_attempt(event)}" if retries == 1 else f"{retries} times"
        self._notice(f"{event['reason']}: tried again {outcome}", width)

    def _is_same_retry(self, event: Mapping[str, Any]) -> bool:
        """Whether this is a further retry for the same reason, which gets no line of its own."""
        return self._retry is not None and event["type"] == "retry" and event["reason"] == self._retry[0]["reason"]

    def _print_stream(self, lines: list[Text]) -> None:
        """Print more of the streamed text."""
        if lines:
            self._add(self._streaming, lines, is_continuation=self._continued)
            self._continued = True

    def _add(self, kind: str, lines: list[Text], *, is_continuation: bool = False) -> None:
        from rich.text import Text

        if self._kind and not is_continuation and (kind != self._kind or kind in ("text", "thinking")):
            self._settled.append(Text())
        self._settled += lines
        self._kind = kind

    def _spinner(self) -> str:
        signs = self._caps.sign(_SPINNER, _ASCII_SPINNER)
        return signs[int(time.monotonic() / _SPIN) % len(signs)]

    def _status(self, width: int, suffix: str) -> Text:
        from rich.text import Text

        parts = [self._doing(), f"{int(time.monotonic() - self._began)} s", "Ctrl-C stops", suffix]
        text = self._caps.sign(" · ", " - ").join(part for part in parts if part)
        line = Text.assemble((self._spinner(), "cyan"), (f" {self._caps.safe(printable(text))}", "dim"))
        return cut_line(line, width - 1, self._caps)

    def _doing(self) -> str:
        if self._retry is not None:
            event, until = self._retry
            seconds = max(until - time.monotonic(), 0.0)
            delay = f"in {_seconds(seconds + 0.5)}" if seconds else "now"
            return f"{event['reason']}: trying again {delay} {_attempt(event)}"
        if self._pending:
            return f"Running {next(iter(self._pending.values())).name}"
        activity = {"text": "Writing", "thinking": "Thinking"}.get(self._streaming, "Waiting")
        silence = int(time.monotonic() - self._heard)
        return f"{activity}, no answer for {silence} s" if silence >= SILENT_SECONDS else activity


def _attempt(event: Mapping[str, Any]) -> str:
    return f"({event['attempt']} of {event['attempts']})"


def _seconds(seconds: float) -> str:
    return f"{int(seconds + 0.5) if seconds >= 1 else round(seconds, 1):g} s"


def compacted(event: Mapping[str, Any]) -> str:
    """The line that reports a compaction."""
    messages = f"{event['messages_before']} messages to {event['messages_after']}"
    tokens = f"{_thousands(event['tokens_before'])} tokens to {_thousands(event['tokens_after'])}"
    return f"The conversation was compacted: {messages}, {tokens}."


def _thousands(count: int | None) -> str:
    if not count or count < 1000:
        return str(max(count or 0, 0))
    if count >= _MAX_TOKENS:
        return f"over {_MAX_TOKENS // 1000:,}k"
    return f"{count / 1000:.1f}k" if count < 100_000 else f"{count / 1000:.0f}k"


def _dollars(cost: float) -> str:
    return f"${cost:.2f}" if cost >= 0.01 else f"${cost:.4f}" if cost >= 0.0001 else "less than $0.0001"
