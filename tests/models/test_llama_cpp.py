"""Whole commands talk to a real llama.cpp server, which renders the chat templates of open models.

The model is a test's own: it answers a prompt only if the prompt is the last text of the last message.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.models import llama_server, templates
from tests.support.command import Command
from tests.support.loopback import Text, ToolCalls, provider

CALL = llama_server.Call("write_file", {"path": "note.txt", "content": "Milk and bread"})
STRICT = ("Qwen3.5-4B", "mistralai-Ministral-3-14B-Reasoning-2512")
"""Qwen takes one system message, and only at the beginning. Ministral takes roles that alternate, and no others."""
GEMMA = "google-gemma-2-2b-it"
"""It has neither a system role nor tools."""
CALL_UNKNOWN = frozenset(
    (
        "HuggingFaceTB-SmolLM3-3B",
        "LFM2-8B-A1B",
        "LFM2.5-Instruct",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "deepseek-ai-DeepSeek-V3.1",
        "deepseek-ai-DeepSeek-V3.2",
        "google-gemma-4-31B-it",
        "ibm-granite-granite-3.3-2B-Instruct",
        "llama-cpp-rwkv-world",
        "microsoft-Phi-3.5-mini-instruct",
        "tencent-Hy3",
        "upstage-Solar-Open-100B",
    )
)
"""Templates that write no calls, or others than the parser of llama.cpp expects; so the test's model cannot call."""
ANSWER_UNKNOWN = frozenset(
    ("Apriel-1.6-15b-Thinker-fixed", "NVIDIA-Nemotron-Nano-v2", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B")
)
"""Templates whose prompt ends within the thinking, and that do not write where the thinking ends."""
NOT_PARSED = "CohereForAI-c4ai-command-r-plus-tool_use"
"""llama.cpp cannot use this template with a tool that takes a list."""
SOAKED = [name for name in templates.names() if name not in {GEMMA, NOT_PARSED} | ANSWER_UNKNOWN]
TEMPLATES = SOAKED if os.environ.get("DEEPCTL_SOAK") == "1" else STRICT


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_with_a_tool_call(process: Command, home: Path, tmp_path: Path, name: str) -> None:
    result, words = _recorded(process)
    can_call = name not in CALL_UNKNOWN
    with llama_server.scripted(
        tmp_path,
        templates.read(name),
        {"Hello": "Good day.", "Write the note.": CALL if can_call else "Not now."},
        {result: "It is written."},
        other="I did not see the prompt.",
        words=words,
    ) as server:
        env = {"OPENAI_BASE_URL": f"{server.address}/v1", "DEEPCTL_MODEL": "openai-chat:tiny"}
        assert "Good day." in process("chat", "Hello", env=env).ok().stdout
        events = process("chat", "--json", "Write the note.", env=env).ok().events
        assert "Good day." in process("chat", "Hello", env=env).ok().stdout
    assert events[-1]["usage"]["input_tokens"] > 100
    if not can_call:
        assert "Not now." in events[-1]["output"]
        return
    (call,) = (event for event in events if event["type"] == "tool_call")
    assert (call["name"], call["args"]) == CALL
    assert [event["ok"] for event in events if event["type"] == "tool_result"] == [True]
    assert events[-1]["output"].strip() == "It is written."
    assert (home / "profiles/default/workspace/note.txt").read_text() == "Milk and bread"


def test_a_template_without_system_role_and_tools(process: Command, tmp_path: Path) -> None:
    settings = {"openai_system_prompt_role": "user", "supports_tools": "false"}
    with llama_server.scripted(
        tmp_path, templates.read(GEMMA), {"Hello": "Good day."}, {}, other="I did not see the prompt."
    ) as server:
        env = {"OPENAI_BASE_URL": f"{server.address}/v1", "DEEPCTL_MODEL": "openai-chat:tiny"}
        process("profiles", "create", "alice").ok()
        for key, value in settings.items():
            process("config", "set", f"model_profile.{key}", value, "--user", "alice").ok()
        for _ in range(2):
            assert process("chat", "--user", "alice", "Hello", env=env).ok().stdout == "Good day.\n"


def test_a_check_of_the_model(process: Command, tmp_path: Path) -> None:
    answers = {"list .": llama_server.Call("ls", {"path": "."})}
    with llama_server.scripted(tmp_path, templates.read(STRICT[0]), answers, {}, other="I did not see it.") as server:
        env = {"OPENAI_BASE_URL": f"{server.address}/v1", "DEEPCTL_MODEL": "openai-chat:tiny"}
        check = process("models", "--check", "--json", env=env).ok().json
    expected = {"answers": True, "tools": True, "usage": True, "window": llama_server.WINDOW, "hints": []}
    assert check == {"version": 1, "model": "openai-chat:tiny", **expected}


def _recorded(process: Command) -> tuple[str, frozenset[str]]:
    """The last line of what the tool returns, and the words of a request."""
    with provider(ToolCalls([CALL]), Text(["."])) as server:
        env = {"OPENAI_BASE_URL": f"{server.address}/v1", "DEEPCTL_MODEL": "openai-chat:tiny", "OPENAI_API_KEY": "none"}
        process("chat", "--ephemeral", "Write the note.", env=env).ok()
    result = server.requests[-1]["messages"][-1]
    assert result["role"] == "tool", result
    return result["content"].splitlines()[-1], frozenset(re.findall(r" ?\w{2,}|\W{2,}", json.dumps(server.requests[0])))
