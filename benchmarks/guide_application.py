"""The application of pydantic-deep's guide with a directory per user, on the classes of `$CLASSES`.

`benchmarks.applications` serves it twice: once on deepctl, and once in an environment that has pydantic-deep and not
deepctl. So it imports neither by name. The scripted model calls three tools, and then answers.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from fastapi import FastAPI
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

_STATE = os.environ["STATE"]
_CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("write_file", {"path": "notes.txt", "content": "one\ntwo\n"}),
    ("read_file", {"path": "notes.txt"}),
    ("ls", {"path": "."}),
)


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """The next of the calls, or the answer once all have results."""
    results = 0
    for message in reversed(messages):
        parts = message.parts if isinstance(message, ModelRequest) else ()
        results += sum(isinstance(part, ToolReturnPart) for part in parts)
        if any(isinstance(part, UserPromptPart) for part in parts):
            break
    return ModelResponse(parts=[ToolCallPart(*_CALLS[results]) if results < len(_CALLS) else TextPart("Done.")])


if os.environ["CLASSES"] == "deepctl":
    _agents: Any = importlib.import_module("deepctl")
    _backends: Any = _agents
    _options: dict[str, Any] = {}
else:
    _agents = importlib.import_module("pydantic_deep")
    _backends = importlib.import_module("pydantic_ai_backends")
    # Its web tools need packages that it does not require.
    _options = {"web_search": False, "web_fetch": False}

agent = _agents.create_deep_agent(FunctionModel(_answer), include_memory=True, include_checkpoints=True, **_options)
user_histories: dict[str, list[ModelMessage]] = {}
app = FastAPI()


@app.post("/chat/{user_id}")
async def chat(user_id: str, message: str) -> dict[str, str]:
    """Run a turn."""
    deps = _agents.DeepAgentDeps(
        backend=_backends.LocalBackend(root_dir=f"{_STATE}/workspaces/{user_id}"),
        checkpoint_store=_agents.FileCheckpointStore(f"{_STATE}/checkpoints/{user_id}"),
    )
    result = await agent.run(message, deps=deps, message_history=user_histories.get(user_id, []))
    user_histories[user_id] = result.all_messages()
    return {"response": result.output}
