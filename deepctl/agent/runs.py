"""Runs of an agent for applications, with the rewinds that the agent asks for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import Any, TypeVar

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, UserContent
from pydantic_ai.run import AgentRunResult
from pydantic_ai.usage import RunUsage
from pydantic_core import to_jsonable_python

from deepctl.agent import tasks
from deepctl.agent.checkpoints import RewindRequested, reported_to
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.interruption import Emit, Event
from deepctl.agent.turn import ACTIVITY, TokenUsage, events_of
from deepctl.unicode import whole_value

OutputT = TypeVar("OutputT")


async def run(
    agent: Agent[DeepAgentDeps, OutputT],
    prompt: str | Sequence[UserContent],
    *,
    deps: DeepAgentDeps,
    message_history: Sequence[ModelMessage] | None = None,
    usage: RunUsage | None = None,
    **options: Any,
) -> AgentRunResult[OutputT]:
    """Run an agent until it has answered a prompt, also if it rewinds to a checkpoint and starts again from there.

    Args:
        agent: An agent of `create_deep_agent`.
        prompt: The prompt: text, or text with pictures and files.
        deps: The state of one user.
        message_history: The earlier messages of the conversation. After a rewind, it is that of the checkpoint.
        usage: Earlier usage, to which that of this run is added. All starts of the run count together, for
            `usage_limits` too.
        options: Other arguments of pydantic-ai's `Agent.run`, such as `model`, `usage_limits` and `timeout`.

    Returns:
        The result of the last start. `all_messages()` is the history for the next run.

    Raises the exceptions of `Agent.run`, and `deepctl.errors.DeepctlError` if a checkpoint cannot be stored.
    """
    total = usage if usage is not None else RunUsage()
    return await tasks.finished(_run(agent, prompt, deps, message_history, total, options))


async def _run(
    agent: Agent[DeepAgentDeps, OutputT],
    prompt: str | Sequence[UserContent],
    deps: DeepAgentDeps,
    history: Sequence[ModelMessage] | None,
    usage: RunUsage,
    options: dict[str, Any],
) -> AgentRunResult[OutputT]:
    user_content = prompt
    while True:
        try:
            return await agent.run(user_content, deps=deps, message_history=history, usage=usage, **options)
        except RewindRequested as request:
            user_content, history = request.prompt(prompt), request.messages


def stream(
    agent: Agent[DeepAgentDeps, Any],
    prompt: str | Sequence[UserContent],
    *,
    deps: DeepAgentDeps,
    message_history: Sequence[ModelMessage] | None = None,
    usage: RunUsage | None = None,
    **options: Any,
) -> AsyncGenerator[Event, None]:
    """Run an agent as `run` does, and yield events as they happen. The parameters are those of `run`.

    Events are dictionaries of JSON values, in the form of `deepctl chat --json`:

    - `{"type": "text", "delta": …}` and `{"type": "thinking", "delta": …}`: a piece of the answer.
    - `{"type": "tool_call", "id": …, "name": …, "args": …}` and
      `{"type": "tool_result", "id": …, "name": …, "ok": …, "content": …}`.
    - `{"type": "checkpoint", "id": …, "kind": …}`: a checkpoint was made.
    - `{"type": "result", "output": …, "usage": …}`: the last event. `output` is the answer; one of a type that is not
      JSON is converted. `usage` has `input_tokens`, `cached_tokens`, `output_tokens` and `requests`.

    After a rewind by the agent, the events of its new start follow. If the consumer stops early, by `aclose()` or
    because it is cancelled, the run is cancelled, and its last checkpoint is stored before `aclose()` returns.

    Raises the exceptions of `run`.
    """
    total = usage if usage is not None else RunUsage()

    async def work(emit: Emit) -> None:
        async def forward(ctx: RunContext[DeepAgentDeps], events: AsyncIterable[AgentStreamEvent]) -> None:
            async for event in events:
                for output_event in events_of(event):
                    if output_event is not ACTIVITY:
                        emit(whole_value(output_event))

        with reported_to(emit):
            result = await _run(
                agent, prompt, deps, message_history, total, {"event_stream_handler": forward, **options}
            )
        emit(result_event(result.output, TokenUsage.of(total)))

    return tasks.streamed(work)


def result_event(output: object, usage: TokenUsage, **fields: Any) -> Event:
    """The event `result` for an output of any type."""
    value = output if isinstance(output, str) else to_jsonable_python(output, fallback=str)
    return {"type": "result", "output": whole_value(value), **fields, "usage": usage._asdict()}
