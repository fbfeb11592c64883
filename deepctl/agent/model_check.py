"""A test request to a model: whether the model can be the agent's, and what to set if not."""

from __future__ import annotations

from typing import NamedTuple

from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from deepctl.agent import windows
from deepctl.agent.limits import CompactionPolicy
from deepctl.agent.model_wrappers import CollectingModel
from deepctl.agent.offline import OFFLINE
from deepctl.agent.provider_errors import EMPTY
from deepctl.agent.wire import tool_call_hint

_PROMPT = "list ."
"""The offline model understands it too."""
_INSTRUCTIONS = "Call the tool `ls` once, with the path that the user gives. Write nothing else."
_TOOL = ToolDefinition(
    name="ls",
    description="List the files of a directory.",
    parameters_json_schema={"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
)
_SMALL = 8192
"""Tokens. The first request of a chat takes up to 3,000, so a smaller window is soon full."""

_TOOLS_UNSET = "model_profile.supports_tools is false, so the agent of this model has no tools."
_NO_TOOLS = "The model did not call the tool. The agent needs a model that calls tools: choose one with --model."
_NO_USAGE = (
    "The server does not report tokens, so deepctl estimates them. max_tokens and max_cost would stop every turn after "
    "its first request: unset them."
)
_NO_WINDOW = "Set the context window to the server's: `deepctl config set context_window TOKENS`."
_SMALL_WINDOW = (
    f"A window of less than {_SMALL} tokens is soon full. Start the server with a larger one ({windows.LARGER})"
)
_FEWER_TOOLS = ", or give the agent fewer tools: `deepctl config set tools lean`"


class ModelCheck(NamedTuple):
    """What a model did with a test request. `tools` is whether it called a tool, `usage` whether tokens were reported.

    `window` is the context window in tokens, `None` if it is unknown. `hints` say what to set.
    """

    answers: bool
    tools: bool
    usage: bool
    window: int | None
    hints: tuple[str, ...]


async def check(model: Model, policy: CompactionPolicy, tools: str) -> ModelCheck:
    """Send a request with one tool; `tools` is the setting.

    Raises the errors of the model, and `UnexpectedModelBehavior` for no answer.
    """
    supports_tools = model.profile.get("supports_tools", True)
    response = await model_request(
        CollectingModel(model),
        [ModelRequest.user_text_prompt(_PROMPT, instructions=_INSTRUCTIONS)],
        model_request_parameters=ModelRequestParameters(function_tools=[_TOOL] if supports_tools else []),
    )
    if not response.parts:
        raise UnexpectedModelBehavior(EMPTY)
    calls = any(call.tool_name == _TOOL.name for call in response.tool_calls)
    usage = response.usage.input_tokens > 0
    window = await policy.window_of(model)
    hints = []
    if not supports_tools:
        hints.append(_TOOLS_UNSET)
    elif not calls:
        hints.append(tool_call_hint(response.text or "") or _NO_TOOLS)
    if not usage:
        hints.append(_NO_USAGE)
    if window is None and model.system != OFFLINE:
        hints.append(_NO_WINDOW)
    if window is not None and window < _SMALL:
        hints.append(f"{_SMALL_WINDOW}{'' if tools == 'lean' else _FEWER_TOOLS}.")
    return ModelCheck(True, calls, usage, window, tuple(hints))
