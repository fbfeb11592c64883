"""Chat templates of open models render what deepctl sends: none raises, and none loses text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deepctl.agent.chat import Chat, TurnRunner
from deepctl.agent.turn_engine import Options
from deepctl.layout import Root
from deepctl.store.repository import Repository
from tests.models import templates
from tests.support.command import InProcess
from tests.support.loopback import Status, Text, ToolCalls, provider

CALL = ("write_file", {"path": "note.txt", "content": "Milk and bread"})
CALL_ID = "call00001"
"""Templates of Mistral refuse other ids than nine letters and digits, and their servers make such ids."""
SHAPES = ("first turn", "second turn", "after a tool", "after a failed turn", "after compaction")


class Excepted(NamedTuple):
    """Templates that have a problem, and the reason why it is not deepctl's."""

    reason: str
    templates: tuple[str, ...]


EXCEPTIONS = {
    "System role not supported": Excepted(
        "has no system role: set `openai_system_prompt_role` to `user`", ("google-gemma-2-2b-it",)
    ),
    "lost: (Milk and bread|write_file)": Excepted(
        "writes no earlier tool calls into the prompt",
        (
            "HuggingFaceTB-SmolLM3-3B",
            "LFM2-8B-A1B",
            "LFM2.5-Instruct",
            "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
            "ibm-granite-granite-3.3-2B-Instruct",
        ),
    ),
    r"note\.txt|Milk and bread|write_file": Excepted(
        "knows no tools: neither calls nor results are in the prompt",
        ("llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"),
    ),
    "'append' of 'list' object is unsafe": Excepted(
        "changes a list, which the template engine of transformers refuses; llama.cpp renders it",
        ("Kimi-K2-Instruct", "Kimi-K2-Thinking"),
    ),
    "generator is not JSON serializable": Excepted(
        "is written for the template engine of llama.cpp, which renders it", ("llama-cpp-deepseek-r1",)
    ),
    "^after a tool: lost": Excepted(
        "writes the system message only if the last message is a user's, so not after a tool",
        ("mistralai-Mistral-Nemo-Instruct-2407",),
    ),
    "has no attribute 'description'": Excepted(
        "needs a description of every parameter of a tool", ("CohereForAI-c4ai-command-r-plus-tool_use",)
    ),
    "'functions' is undefined": Excepted(
        "takes the tools in a variable of its own", ("fireworks-ai-llama-3-firefunction-v2",)
    ),
}
"""By a pattern of the problem."""


def _recorded(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    answers = (Text(["Good day."]), ToolCalls([CALL]), Text(["It is written."]), Status(400), Text(["Again."]))
    with provider(*answers, Text(["The gist."]), Text(["After the gist."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("DEEPCTL_MODEL", "openai-chat:loopback")
        deepctl("chat", "Hello").ok()
        deepctl("chat", "Write the note.").ok()
        assert deepctl("chat", "This one fails.").code == 7
        deepctl("chat", "And this one?").ok()
        _compact(home)
        deepctl("chat", "What is left?").ok()
        first, second, after_tool, _, after_failure, summary, after_compaction = server.requests
    assert "What is left?" not in json.dumps(summary)
    recorded = (first, second, after_tool, after_failure, after_compaction)
    return {
        shape: json.loads(json.dumps(request).replace("call_write_file_0", CALL_ID))
        for shape, request in zip(SHAPES, recorded, strict=True)
    }


def _compact(home: Path) -> None:
    """What `/compact` does."""
    with (
        closing(TurnRunner(Options("openai-chat:loopback"), environment=os.environ)) as runner,
        Repository.open(Root(str(home)).profile("default")) as work,
    ):
        Chat(runner).compact(work, "main", None, lambda event: None)


def test_no_template_raises_or_loses_text(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _recorded(deepctl, home, monkeypatch)
    unexpected, kept = {}, set()
    for name in templates.names():
        expected = {problem: entry for problem, entry in EXCEPTIONS.items() if name in entry.templates}
        problems = set(_problems(name, requests))
        kept |= {name for problem in expected if any(re.search(problem, text) for text in problems)}
        if others := sorted(text for text in problems if not any(re.search(problem, text) for problem in expected)):
            unexpected[name] = others
    assert unexpected == {}
    assert kept == {name for entry in EXCEPTIONS.values() for name in entry.templates}, "some are no exceptions"


def test_the_page_lists_the_exceptions() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    for entry in EXCEPTIONS.values():
        assert f"| {', '.join(entry.templates)} | {entry.reason} |" in page


def _problems(name: str, requests: dict[str, dict[str, Any]]) -> Iterator[str]:
    template = templates.read(name)
    for shape, request in requests.items():
        try:
            prompt = templates.render(template, request)
        except templates.Refused as refusal:
            yield f"{shape}: refused: {refusal}"
        else:
            yield from (f"{shape}: lost: {text}" for text in _texts(request) if not _has(prompt, text))


def _texts(request: dict[str, Any]) -> Iterator[str]:
    """The lines of all messages, and the tool calls word by word."""
    for message in request["messages"]:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [part["text"] for part in content]
        yield from (line.strip() for part in parts for line in part.splitlines())
        for call in message.get("tool_calls") or ():
            yield call["function"]["name"]
            yield from json.loads(call["function"]["arguments"]).values()


def _has(prompt: str, text: str) -> bool:
    """Whether a line is in a prompt, as it is or as JSON."""
    return text in prompt or json.dumps(text, ensure_ascii=False)[1:-1] in prompt or json.dumps(text)[1:-1] in prompt
