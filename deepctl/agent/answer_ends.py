"""How an answer ended: complete, or not whole, with the error for the user and the mark for the model.

An answer that is not whole is recorded like any other, and its tools are not run, because their arguments may be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextContent,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model

from deepctl.agent.limits import ContextUsage, is_scripted
from deepctl.agent.mentions import METADATA
from deepctl.errors import ModelFailed

Finish = Literal["stop", "length", "content_filter", "refusal"]
"""The reason why an answer ended, as in the event `result`. Only `stop` is a whole answer, or one with tool calls."""

_FULL = 0.95
"""The share of the context window from which on the window, and not a limit of the answer, is the probable cause."""

_CALL_NOT_RUN = "This call was not run, because the answer with it is not whole: {}. Call the tool again if necessary."
_REASONS = {
    "length": "it reached its maximum length",
    "content_filter": "the content filter of the provider stopped it",
    "refusal": "the model refused to continue",
    "interrupted": "it was stopped, or the connection failed",
}
"""The reason of an answer that is not whole, in words for the model."""


class AnswerCut(Exception):
    """Ends a turn after an answer that is not whole."""

    def __init__(self, response: ModelResponse, finish: Finish) -> None:
        super().__init__(finish)
        self.response = response
        self.finish = finish


def finish_of(response: ModelResponse, model: Model) -> Finish:
    """How a complete stream ended. Raises `ModelAPIError` if it gave no reason to stop, or reported a failure.

    Anthropic's adapter, like others, treats a stream that is closed cleanly in mid-answer as complete.
    """
    details = response.provider_details or {}
    match response.finish_reason:
        case "stop" | "tool_call":
            return "stop"
        case "length":
            return "length"
        case "content_filter":
            return _filter_of(response)
        case "error":
            raise ModelAPIError(model.model_name, f"the answer ended with {details.get('finish_reason', 'an error')}")
        case _ if is_scripted(model):
            return "stop"
        case _:
            raise ModelAPIError(model.model_name, "the answer ended without a reason to stop")


def _filter_of(response: ModelResponse) -> Finish:
    # Anthropic reports a refusal as its reason to stop, OpenAI as a text of its own.
    details = response.provider_details or {}
    return "refusal" if details.get("finish_reason") == "refusal" or "refusal" in details else "content_filter"


def not_run(response: ModelResponse, finish: Finish) -> ModelRequest | None:
    """The results of the tool calls of an answer that is not whole; `None` if it has none."""
    text = _CALL_NOT_RUN.format(_REASONS[finish])
    parts = [
        ToolReturnPart(call.tool_name, text, call.tool_call_id, outcome="interrupted") for call in response.tool_calls
    ]
    return ModelRequest(parts=parts) if parts else None


def failure_of(cut: AnswerCut, name: str, context: ContextUsage, limit: int | None) -> ModelFailed:
    """The error for an answer of the model called `name` that is not whole.

    `limit` is the maximum length in tokens that the user has set, `None` for the model's own. With a `limit`, an answer
    without tool calls is what the user asked for: see `is_wanted`.
    """
    reword = "Change the wording, or choose another model."
    if cut.finish == "refusal":
        return ModelFailed(f"{name} refused to answer.", reword, code="answer_refused")
    if cut.finish == "content_filter":
        return ModelFailed(
            f"The content filter of the provider of {name} stopped the answer.", reword, code="answer_refused"
        )
    calls, details = cut.response.tool_calls, cut.response.provider_details or {}
    is_full = context.window is not None and context.tokens >= context.window * _FULL
    if is_full or details.get("finish_reason") == "model_context_window_exceeded":
        hint = (
            "The context window is full. Shorten the conversation with /compact, start a new session with --new, or "
            "set context_window if the window of the model is larger."
        )
    else:
        action = "Give a smaller task" if calls or not cut.response.text else "Tell the agent to continue"
        length = max(cut.response.usage.output_tokens, limit or 0)
        hint = f"{action}, or set max_tokens of [model_settings] {f'above {length}' if length else 'to more'}."
    place = "" if cut.response.text else " before its text began"
    if calls:
        place = f" in a call of {calls[-1].tool_name}, so no tool of this answer was run"
    return ModelFailed(
        f"The answer of {name} was cut off at its maximum length{place}.", hint, code="answer_incomplete"
    )


def is_wanted(cut: AnswerCut, limit: int | None) -> bool:
    """Whether an answer ended at the length that the user has set, and not within a tool call."""
    return cut.finish == "length" and limit is not None and not cut.response.tool_calls


def marked(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """The messages for a model: after an answer that is not whole, the next prompt begins with a note about it."""
    result: list[ModelMessage] = []
    for message in messages:
        text = _note(result[-1]) if result else None
        result.append(_with_note(message, text) if text is not None else message)
    return result


def _note(message: ModelMessage) -> str | None:
    # The results of tool calls that were not run say it themselves.
    if not isinstance(message, ModelResponse) or not message.parts or message.tool_calls:
        return None
    match message.finish_reason:
        case "length":
            reason = _REASONS["length"]
        case "content_filter":
            reason = _REASONS[_filter_of(message)]
        case _ if message.state == "interrupted":
            reason = _REASONS["interrupted"]
        case _:
            return None
    return f"[Your last answer is not whole: {reason}.]"


def _with_note(message: ModelMessage, text: str) -> ModelMessage:
    place = next((place for place, part in enumerate(message.parts) if isinstance(part, UserPromptPart)), None)
    if not isinstance(message, ModelRequest) or place is None:
        return message
    note = UserPromptPart([TextContent(text, metadata={"deepctl": METADATA})])
    return replace(message, parts=[*message.parts[:place], note, *message.parts[place:]])
