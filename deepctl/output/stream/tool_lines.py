"""A tool call at a terminal: one line with its subject and its outcome, the files that it changes, its output."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepctl.output.render import cells, clip, printable
from deepctl.output.stream import checklist
from deepctl.output.stream.checklist import Checklist
from deepctl.output.stream.file_diff import SHOWN_AS_CHANGE, FileDiff
from deepctl.output.stream.lines import TAB, TerminalCaps, cut_line, wrap

if TYPE_CHECKING:
    from rich.text import Text

_TELLING = (
    "command",
    "pattern",
    "query",
    "path",
    "file_path",
    "title",
    "file",
    "name",
    "label",
    "ref",
    "checkpoint",
    "url",
    "call_id",
    "text",
    "content",
)
"""Arguments that identify the subject of a call, the most specific first."""
_LEAST = 4
_LONGEST = 400
_LONGEST_READ = 20_000
"""Characters of a longer text that are used for a line."""
_SHORT = 60
_SLOW = 2.0
_EXIT_CODE = re.compile(r"Command failed \(exit code (-?\d+)\):\s*")
_COUNT = re.compile(r"Wrote (\d+) lines? to |Found (\d+) |.*: replaced (\d+) occurrence")
_OF = {"ls": "entry", "glob": "file", "grep": "match", "edit_file": "place"}
_LISTS = ("Contents of ", "Files containing ", "Matches for ")
_MORE = re.compile(r"\s+\.\.\. and (\d+) more")
_PLURALS = {"entry": "entries", "match": "matches"}
OUTPUT_ROWS = 5
_TAIL = 8192
"""Characters at the end of a command's output that are searched for its last lines."""
_MOST_OUTPUT = 1 << 20
"""Characters of a command's output that are kept for `/details`."""
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_DETAILS = " (/details)"
_DELEGATES = "delegate_task"
"""The tool that gives a task to a sub-agent."""


class ShownCall:
    """A tool call of a turn. Times are seconds of the monotonic clock."""

    def __init__(self, name: str, arguments: Mapping[str, Any], began: float) -> None:
        self.name = name
        self.arguments = arguments
        self.began = began
        self.seconds: float | None = None
        self.ok = False
        self.result = ""
        self.changes: list[FileDiff] = []
        """The files that it has changed."""
        self.is_previewed = False
        """Whether an approval request has shown the change."""
        self.inner: list[ShownCall] = []
        """The calls of the sub-agent that works on it."""
        self.cost: float | None = None
        """The cost of the sub-agent in USD, `None` before its end, or if it is unknown."""
        self._inner_calls: dict[str, ShownCall] = {}
        self._output: deque[str] = deque()
        self._output_length = 0
        self._partial = ""

    def printed(self, lines: str, partial: str) -> None:
        """A running command has printed more `lines`; `partial` is the present form of the line after them."""
        self._output.append(lines)
        self._output_length += len(lines)
        while self._output_length - len(self._output[0]) >= _MOST_OUTPUT:
            self._output_length -= len(self._output.popleft())
        self._partial = partial

    def delegated(self, event: Mapping[str, Any], now: float) -> None:
        """A sub-agent that works on the call has called a tool, has its result, or has ended."""
        match event["type"]:
            case "tool_call":
                self.inner.append(ShownCall(event["name"], event["args"], now))
                self._inner_calls[event["id"]] = self.inner[-1]
            case "tool_result" if event["id"] in self._inner_calls:
                self._inner_calls.pop(event["id"]).ended(event["ok"], event["content"], now)
            case "end":
                self.cost = event["cost"]

    def waited(self, seconds: float) -> None:
        """A question to the person took this time, which does not count."""
        self.began += seconds
        for call in self._inner_calls.values():
            call.waited(seconds)

    def output_rows(self, caps: TerminalCaps, width: int, room: int) -> list[Text]:
        """The last lines of the output of a running command, or the last calls of a sub-agent, at most `room`."""
        from rich.text import Text

        if self.inner:
            calls = self.inner[-min(room, OUTPUT_ROWS) :] if room > 0 else []
            bar = f"  {caps.sign('│', '|')} "
            return [
                Text.assemble((bar, "dim"), call.line(caps, width - len(bar), caps.sign("·", "-"))) for call in calls
            ]
        end = self._partial
        for piece in reversed(self._output):
            if len(end) >= _TAIL:
                break
            end = piece[-_TAIL:] + end
        lines = _CONTROL_SEQUENCE.sub("", end).split("\n")
        last = [line for line in lines if line.strip()][-max(min(room, OUTPUT_ROWS), 0) :] if room > 0 else []
        bar = caps.sign("│", "|")
        return [
            cut_line(Text(f"  {bar} {caps.safe(line[: 4 * width]).expandtabs(TAB)}", "dim"), width, caps)
            for line in last
        ]

    def change_rows(self, caps: TerminalCaps, width: int) -> list[Text]:
        """The changes in short, unless a person has just seen them."""
        if not self.ok or self.is_previewed:
            return []
        return [row for change in self.changes for row in change.preview(caps, width, _DETAILS)]

    def ended(self, ok: bool, result: str, now: float) -> None:
        """Set the outcome of the call."""
        self.ok, self.result, self.seconds = ok, result, now - self.began

    def line(
        self, caps: TerminalCaps, width: int, sign: str, *, is_waiting: bool = False, end: str | None = None
    ) -> Text:
        """The call on one row: running behind `sign` or waiting for its start, or with its outcome.

        `end` says in a word how a call without a result has ended.
        """
        from rich.text import Text

        style = "cyan"
        if self.seconds is not None:
            sign, style = (caps.sign("✓", "+"), "green") if self.ok else (caps.sign("✗", "x"), "red")
        seconds = time.monotonic() - self.began if self.seconds is None else self.seconds
        end = caps.safe(self.outcome()) if self.seconds is not None else end
        outcome = "" if end is None else f"  {caps.sign('→', '->')} {end}"
        if seconds >= _SLOW and not is_waiting:
            outcome += f"  {int(seconds)} s"
        head = Text.assemble((sign, style), f" {caps.safe(printable(self.name))}")
        about = caps.safe(self.about())
        # The outcome is the purpose of the line, so a long command leaves half of the row for it.
        room = width - cells(head.plain) - 2 - min(cells(outcome), width // 2)
        if about and room >= _LEAST:
            head = Text.assemble(head, "  ", _without_middle(about, room, caps))
        head.append(outcome, "dim" if self.ok or self.seconds is None else "red")
        return cut_line(head, width, caps)

    def about(self) -> str:
        """The argument that identifies the subject of the call, on one line."""
        if self.name == _DELEGATES:
            return _on_a_line(f"{self.arguments.get('agent_name', '')}: {self.arguments.get('task', '')}")
        match self.arguments:
            case {"questions": [{"question": str(question)}, *further]}:
                return _on_a_line(f"{question} (and {len(further)} more)" if further else question)
        for name in (*_TELLING, *self.arguments):
            value = self.arguments.get(name)
            if value is not None and value != "":
                return _on_a_line(value)
        return ""

    def outcome(self) -> str:
        """The outcome in a few words."""
        if not self.ok:
            return self._failure()
        if self.name == _DELEGATES:
            parts = [_counted(len(self.inner), "call"), _counted(len(self.result.splitlines()), "line")]
            return ", ".join([*parts, dollars(self.cost)] if self.cost else parts)
        if self.changes:
            return ", ".join(change.outcome() for change in self.changes)
        lines = self.result.strip().splitlines()
        if self.name == "execute" and not lines:
            return "no output"
        if self.name in ("read_file", "read_memory"):
            return _counted(len(self.result.splitlines()), "line")
        count_match = _COUNT.match(lines[0]) if lines else None
        if count_match is not None and self.name in ("write_file", *_OF):
            return _counted(int(next(filter(None, count_match.groups()))), _OF.get(self.name, "line"))
        if lines and self.name in _OF and lines[0].startswith(_LISTS):
            count_line = _MORE.match(lines[-1])
            count = len(lines) - 1 if count_line is None else len(lines) - 2 + int(count_line[1])
            return _counted(count, "file" if lines[0].startswith("Files") else _OF[self.name])
        if len(lines) == 1 and len(lines[0]) <= _SHORT:
            return _on_a_line(lines[0])
        return _counted(len(lines), "line") if lines else "done"

    def _failure(self) -> str:
        exit_code = _EXIT_CODE.match(self.result)
        output = (self.result[exit_code.end() :] if exit_code else self.result).strip()
        first = _on_a_line(output.splitlines()[0].removeprefix("Error: ")) if output else ""
        if exit_code is None:
            return first or "failed"
        return f"exit code {exit_code[1]}" + (f": {first}" if first else "")

    def details(self, number: int, caps: TerminalCaps, width: int) -> list[Text]:
        """The whole call: its arguments and its result."""
        from rich.text import Text

        sign = caps.sign("✓", "+") if self.ok else caps.sign("✗", "x")
        state = "" if self.seconds is not None else " (stopped)"
        lines = [
            Text(
                f"{number}. {sign if not state else caps.sign('·', '-')} {caps.safe(printable(self.name))}{state}",
                "bold",
            )
        ]
        plan = Checklist.of(self.arguments) if self.name == checklist.TOOL and self.ok else None
        if plan is not None:
            return [*lines, *plan.rows(caps, width)]
        for name, value in self.arguments.items():
            if self.changes and name in SHOWN_AS_CHANGE.get(self.name, ()):
                continue
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
            lines += _indented(caps, f"{printable(str(name))}: ", text, width)
        for change in self.changes:
            lines += change.details(caps, width)
        for call in self.inner:
            lines.append(Text.assemble("     ", call.line(caps, width - 5, caps.sign("·", "-"))))
        if self._output_length > len(self.result):
            # The result was cut, or the command has not ended.
            output = "".join([*self._output, self._partial])
            lines += _indented(caps, "output:", _CONTROL_SEQUENCE.sub("", output).rstrip("\n"), width)
        if self.seconds is not None:
            lines += _indented(caps, f"{caps.sign('→', '->')} ", self.result.rstrip("\n") or "(empty)", width)
        return lines


def _indented(caps: TerminalCaps, mark: str, text: str, width: int) -> list[Text]:
    from rich.text import Text

    safe_text = caps.safe(text)
    first = "   " + caps.safe(mark)
    if "\n" in safe_text:
        rows = [Text(first.rstrip(), "dim")]
        body = [row for line in safe_text.split("\n") for row in wrap(Text(line), width - 5)]
        return rows + [Text.assemble("     ", row) for row in body]
    rows = wrap(Text.assemble((first[3:], "dim"), safe_text), width - 5)
    return [Text.assemble("   " if not number else "     ", row) for number, row in enumerate(rows)]


def _on_a_line(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Cut only after spaces are collapsed, because spaces must not hide the end of a command.
    if len(text) > _LONGEST_READ:
        text = f"{text[: _LONGEST_READ // 2]} … {text[-_LONGEST_READ // 2 :]}"
    line = " ".join(text.split())
    return printable(line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]}…{line[-_LONGEST // 2 :]}")


def _without_middle(text: str, width: int, caps: TerminalCaps) -> str:
    """`text` in at most `width` cells: if it does not fit, its start and its end."""
    if cells(text) <= width:
        return text
    dots = caps.sign("…", "...")
    room = max(width - len(dots), 0)
    end = clip(text, room // 2, from_end=True)
    beginning = clip(text, room - cells(end)).rstrip()
    return f"{beginning}{dots}{end.lstrip()}"


def dollars(cost: float) -> str:
    """A cost in USD."""
    return f"${cost:.2f}" if cost >= 0.01 else f"${cost:.4f}" if cost >= 0.0001 else "less than $0.0001"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else _PLURALS.get(noun, noun + 's')}"
