"""The events of a turn as lines: permanent lines, and below them what is going on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepctl.output.render import printable
from deepctl.output.stream import checklist
from deepctl.output.stream.checklist import Checklist
from deepctl.output.stream.file_diff import FileDiff
from deepctl.output.stream.lines import TerminalCaps, cut_line, fold, wrap
from deepctl.output.stream.markdown import Markdown
from deepctl.output.stream.thinking import FoldedThinking
from deepctl.output.stream.tool_lines import OUTPUT_ROWS, ShownCall, dollars
from deepctl.output.stream.turn_summary import TurnSummary

if TYPE_CHECKING:
    from rich.text import Text

_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_SPIN = 0.08
_MAX_TOKENS = 1_000_000_000_000
"""No answer has this many tokens, but a server may say so."""
SILENT_SECONDS = 15
"""A model that is silent for so long is named so in the status line."""
_MOST_WAITING = 4
"""The most calls that are named while another one runs."""
_ROOMY_LINES = 8
"""In a window of fewer lines, there is no empty line above the status line."""


class TurnView:
    """The lines of a turn. `parts` are its tool calls and its thinking so far; `usage` is its usage in words after its
    end.
    """

    def __init__(self, caps: TerminalCaps, now: float) -> None:
        self.parts: list[ShownCall | FoldedThinking] = []
        self.usage = ""
        self._summary = TurnSummary()
        self._checklist: Checklist | None = None
        self._cost: float | None = None
        self._caps = caps
        self._began = self._heard = now
        self._pending: dict[str, ShownCall] = {}
        self._stream: Markdown | FoldedThinking | None = None
        self._streaming = ""
        self._retry: tuple[Mapping[str, Any], float] | None = None
        self._waiting = ""
        """What keeps the turn from beginning, in words."""
        self._retries = 0
        self._settled: list[Text] = []
        self._kind = ""
        self._continued = False

    def event(self, event: Mapping[str, Any], at: float, width: int) -> None:
        """Process an event with its time on the monotonic clock."""
        kind = event["type"]
        self._heard = at
        if kind == "waiting":
            self._waiting = event["message"]
        if kind in ("activity", "waiting"):
            return
        if kind in ("change", "command", "output", "work"):
            self._work(event)
            return
        if kind == "subagent":
            if (delegating := self._pending.get(event["id"])) is not None:
                delegating.delegated(event["event"], at)
            return
        if self._retry is not None and kind != "notice" and not self._is_same_retry(event):
            self._end_retry(width)
        if kind not in (self._streaming, "checkpoint", "notice"):
            self._end_stream(width)
        match kind:
            case "text":
                if not isinstance(self._stream, Markdown):
                    self._stream, self._streaming = Markdown(self._caps), kind
                self._stream.feed(event["delta"])
            case "thinking":
                if not isinstance(self._stream, FoldedThinking):
                    self._stream, self._streaming = FoldedThinking(self._caps, at), kind
                    self.parts.append(self._stream)
                self._stream.feed(event["delta"], at)
            case "tool_call":
                call = ShownCall(event["name"], event["args"], at)
                self.parts.append(call)
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
            self.parts.append(call)
        call.ended(event["ok"], event["content"], at)
        plan = Checklist.of(call.arguments) if call.name == checklist.TOOL and call.ok else None
        if plan is not None:
            self._checklist = plan
        else:
            self._add("tool", [call.line(self._caps, width, ""), *call.change_rows(self._caps, width)])
        for pending in self._pending.values():
            # Calls run one after another, so the next one starts now.
            pending.began = at

    def _work(self, event: Mapping[str, Any]) -> None:
        """The work of a running tool, or of the whole turn."""
        call = self._pending.get(event.get("id", ""))
        if event["type"] == "work":
            self._summary.work(event)
        elif event["type"] == "command":
            self._summary.command_started()
        elif call is not None and event["type"] == "output":
            call.printed(event["lines"], event["partial"])
        elif call is not None:
            change = FileDiff.of(event)
            call.changes.append(change)
            self._summary.changed(change)

    def asked(self) -> None:
        """The running call waits for an approval, and its request shows what it changes."""
        for call in self._pending.values():
            call.is_previewed = True
            return

    def _end(self, event: Mapping[str, Any], width: int) -> None:
        if event.get("notice"):
            self._notice(event["notice"], width)
        cost, usage = event.get("cost"), event.get("usage", {})
        self._cost = cost
        tokens = f"{_thousands(usage.get('input_tokens', 0))} in, {_thousands(usage.get('output_tokens', 0))} out"
        # Not printed after every turn, because the toolbar shows the sums.
        self.usage = f"{tokens}, {dollars(cost)}" if cost else tokens

    def _notice(self, message: str, width: int) -> None:
        """Show a message that is not part of the answer."""
        from rich.text import Text

        self._add("notice", wrap(Text(self._caps.safe(printable(message)), "dim"), width))

    def waited(self, seconds: float) -> None:
        """A question to the person took this time, which does not count as time of the turn."""
        self._began += seconds
        self._heard += seconds
        for call in self._pending.values():
            call.waited(seconds)

    def ended(self, width: int) -> None:
        """The turn has ended or was stopped: unfinished parts stay as they are, and the summary follows."""
        if self._retry is not None:
            self._end_retry(width)
        if isinstance(self._stream, Markdown):
            self._print_stream(self._stream.break_off(width))
        self._end_stream(width)
        for number, call in enumerate(self._pending.values()):
            # The calls of an answer run one after the other, so only the first one has begun.
            end, rows = ("stopped", OUTPUT_ROWS) if number == 0 else ("not started", 0)
            row = call.line(self._caps, width, self._caps.sign("·", "-"), is_waiting=number > 0, end=end)
            self._add("tool", [row, *call.output_rows(self._caps, width, rows)])
        self._pending.clear()
        if self._checklist is not None:
            self._add("plan", self._checklist.rows(self._caps, width))
            self._checklist = None
        if line := self._summary.line(self._cost, self._caps.sign(" · ", " - ")):
            self._notice(line, width)
            self._summary = TurnSummary()

    def settled(self, width: int) -> list[Text]:
        """The lines that have become final since the last call."""
        if isinstance(self._stream, Markdown):
            self._print_stream(self._stream.settled(width))
        lines, self._settled = self._settled, []
        return lines

    def tail(self, width: int, height: int) -> list[Text]:
        """The rows below the final ones, for a window of `height` lines; at most `height - 1` rows."""
        from rich.text import Text

        if self._waiting:
            return wrap(self._status(), width - 1)[-max(height - 1, 1) :]

        rows = [row for line in (self._stream.tail(width) if self._stream else ()) for row in fold(line, width)]
        room = max(height - 2, 0)
        if rows and self._kind and not self._continued:
            rows.insert(0, Text())
        work = self._working(width, room)
        if work and not rows and self._kind not in ("", "tool"):
            rows.append(Text())
        if (rows or work or self._kind) and height >= _ROOMY_LINES:
            work.append(Text())
        rows = [*rows, *work]
        rows = rows[len(rows) - room :] if len(rows) > room else rows
        return [*rows, cut_line(self._status(), width - 1, self._caps)]

    def _working(self, width: int, room: int) -> list[Text]:
        """The running call with its output, the waiting calls, and the to-do list, in at most `room` rows."""
        from rich.text import Text

        plan_room = room if not self._pending else max(room // 2, 1)
        plan = self._checklist.rows(self._caps, width, plan_room) if self._checklist is not None else []
        room -= len(plan)
        rows: list[Text] = []
        calls = list(self._pending.values())
        if calls and room > 0:
            waiting_calls = calls[1 : max(room - 1, 1)][:_MOST_WAITING]
            rows.append(calls[0].line(self._caps, width, self._spinner()))
            rows += calls[0].output_rows(self._caps, width, room - 1 - len(waiting_calls) - (len(calls) > 1))
            rows += [call.line(self._caps, width, self._caps.sign("·", "-"), is_waiting=True) for call in waiting_calls]
            if (left_out_count := len(calls) - 1 - len(waiting_calls)) and len(rows) < room:
                rows.append(Text(f"{self._caps.sign('·', '-')} {left_out_count} more waiting", "dim"))
        if plan and rows and len(plan) + len(rows) < room:
            rows.append(Text())
        return [*rows, *plan]

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

    def _status(self) -> Text:
        from rich.text import Text

        stop = "Ctrl-C to stop waiting" if self._waiting else "Ctrl-C stops"
        parts = [self._doing(), f"{int(time.monotonic() - self._began)} s", stop]
        text = self._caps.sign(" · ", " - ").join(parts)
        return Text.assemble((self._spinner(), "cyan"), (f" {self._caps.safe(printable(text))}", "dim"))

    def _doing(self) -> str:
        if self._waiting:
            return f"{self._waiting}: waiting"
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
