"""The offline model: rules, no network and no key, good enough to try every feature and to rehearse scripts.

It understands one command a line and drives the real tools with it; README has the table.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from pydantic_ai.messages import ModelMessage, ModelRequest, TextContent, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

NAME = "offline"
CONTEXT_OPENING = "<stdin>"
"""Opens what was piped into a prompt; it is context, so no line of it is a command."""

_MAX_SHOWN = 2000


class _Call(NamedTuple):
    tool: str
    args: dict[str, Any]


_RULES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], _Call]]] = [
    (
        re.compile(r"remember\s+(.+)", re.I),
        lambda m: _Call("write_memory", {"content": f"- {m[1]}", "file": "MEMORY.md"}),
    ),
    (
        re.compile(r"write\s+(.+?):(?:\s(.*))?", re.I),
        lambda m: _Call("write_file", {"path": m[1], "content": m[2] or ""}),
    ),
    (re.compile(r"read\s+(.+)", re.I), lambda m: _Call("read_file", {"path": m[1]})),
    (re.compile(r"list(?:\s+(.+))?", re.I), lambda m: _Call("ls", {"path": m[1] or "."})),
    (re.compile(r"run\s+(.+)", re.I), lambda m: _Call("execute", {"command": m[1]})),
    (re.compile(r"plan\s+(.+?):\s*(.+)", re.I), lambda m: _Call("save_plan", {"title": m[1], "content": _steps(m[2])})),
    (re.compile(r"recall", re.I), lambda m: _Call("read_memory", {"file": "MEMORY.md"})),
    (re.compile(r"recall\s+(.+)", re.I), lambda m: _Call("search_memory", {"query": m[1]})),
]


def _steps(text: str) -> str:
    steps = [step.strip() for step in text.split(";")]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(filter(None, steps), 1))


def offline_model() -> FunctionModel:
    """A streaming model of pydantic-ai that answers by these rules."""
    return _OfflineModel(stream_function=_stream, model_name=NAME)


class _OfflineModel(FunctionModel):
    @property
    def system(self) -> str:
        return NAME


async def _stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    results = _results(messages)
    if results:
        for piece in _pieces("\n".join(_told(part) for part in results)) or ["Done."]:
            yield piece
        return
    prompts = _prompts(messages)
    commands, others = _understood(prompts[-1] if prompts else "")
    offered = {tool.name for tool in info.function_tools}
    calls = [command for command in commands if command.tool in offered]
    refused = [command for command in commands if command.tool not in offered]
    text = _unmet(refused, others if commands else [])
    if not commands:
        text = (
            "I am deepctl's offline model, not an LLM: I understand `remember TEXT`, `write PATH: TEXT`, `read PATH`, "
            "`list [PATH]`, `run COMMAND`, `plan TITLE: STEP; STEP` and `recall [WORDS]`, one a line, and can see "
            f"{_counted(len(prompts) - 1, 'earlier turn')} of this conversation."
        )
    for piece in _pieces(text):
        yield piece
    for number, call in enumerate(calls):
        arguments = json.dumps(call.args, ensure_ascii=False)
        # In two halves, as providers send them.
        half = len(arguments) // 2
        identity = f"offline_{uuid.uuid4().hex[:12]}"
        yield {number: DeltaToolCall(name=call.tool, json_args=arguments[:half], tool_call_id=identity)}
        yield {number: DeltaToolCall(json_args=arguments[half:], tool_call_id=identity)}


def _understood(prompt: str) -> tuple[list[_Call], list[str]]:
    calls: list[_Call] = []
    others: list[str] = []
    for line in prompt.partition(CONTEXT_OPENING)[0].splitlines():
        line = line.strip()
        for pattern, make in _RULES:
            if match := pattern.fullmatch(line):
                calls.append(make(match))
                break
        else:
            if line:
                others.append(line)
    return calls, others


def _unmet(refused: list[_Call], others: list[str]) -> str:
    sentences = [f"There is no tool {call.tool!r} here, so I cannot do that." for call in refused]
    if "execute" in {call.tool for call in refused}:
        sentences.append("Commands need a sandbox, or `--sandbox none`.")
    sentences += [f"I do not understand {line[:80]!r}." for line in others[:3]]
    return " ".join(sentences)


def _told(part: ToolReturnPart) -> str:
    content = part.content if isinstance(part.content, str) else part.model_response_str()
    shown = content if len(content) <= _MAX_SHOWN else f"{content[:_MAX_SHOWN]}… ({len(content)} characters)"
    if part.outcome != "success":
        return f"{part.tool_name} failed: {shown.removeprefix('Error: ')}"
    match part.tool_name, part.content:
        case "write_memory", _:
            return "Remembered."
        case "read_memory", _ if not shown.strip():
            return "Memory is empty."
        case "search_memory", {"matches": [*matches]}:
            return "\n".join(str(match.get("snippet", "")) for match in matches) or "Memory has nothing about that."
        case "execute", _:
            return shown.rstrip("\n") or "(no output)"
        case _:
            return shown


def _results(messages: list[ModelMessage]) -> list[ToolReturnPart]:
    last = messages[-1]
    if not isinstance(last, ModelRequest):
        return []
    if any(_typed(part) for part in last.parts):
        # Results an interrupted turn left, sent together with a new prompt: the prompt is what counts.
        return []
    return [part for part in last.parts if isinstance(part, ToolReturnPart)]


def _prompts(messages: list[ModelMessage]) -> list[str]:
    """What the user typed, turn by turn."""
    return [
        text
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if (text := _typed(part)) is not None
    ]


def _typed(part: object) -> str | None:
    """The text of a user's prompt; `None` for what capabilities add in the user's role, such as memory snapshots."""
    if not isinstance(part, UserPromptPart):
        return None
    if isinstance(part.content, str):
        # How pydantic-ai tells a model that takes no system messages of changed instructions.
        return None if part.content.startswith("<system>") else part.content
    if any(isinstance(item, TextContent) and item.metadata for item in part.content):
        return None
    texts = [item for item in part.content if isinstance(item, str)]
    if not texts or texts[0].startswith("<plan-reminder>"):
        return None
    return "\n".join(texts)


def _counted(count: int, noun: str) -> str:
    return f"{max(count, 0)} {noun}{'' if count == 1 else 's'}"


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S*\s*", text)[:-1] if text else []
