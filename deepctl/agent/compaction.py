"""Compaction: before a long conversation exceeds the model's context window, the messages for the model are shortened.

The strategies are the harness'. The oldest messages become a summary that the model itself writes; the latest messages
stay, and so does the prompt of the turn. If the summary cannot be written, the turn continues with all messages, and
the oldest ones are left out only when the window would overflow. Nothing is removed from the stored conversation: see
`deepctl.store.session_log`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import CompactionPart, ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RunUsage
from pydantic_ai_harness.compaction import (
    DEFAULT_CONTEXT_WINDOW,
    CompactionStrategy,
    SlidingWindowCompaction,
    SummarizingCompaction,
    compact_now,
    drain_summary_events,
    estimate_message_tokens,
    estimate_token_count,
)
from pydantic_ai_harness.compaction._summary import is_summary_part, summary_request

from deepctl.agent.limits import CompactionPolicy, context_tokens, window_of
from deepctl.agent.message_filters import Places, SentHistory, is_prompt, without_usage
from deepctl.agent.model_wrappers import UnicodeFilter
from deepctl.agent.offline import SUMMARISE
from deepctl.errors import DeepctlError, NotFound

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestContext

_TAIL_SHARE, _TAIL_TOKENS = 8, 20_000
"""The unchanged part: an eighth of the window, and at most this many tokens."""

_FULL = 0.95
"""The share of the window beyond which a conversation that cannot be summarised is cut."""

_AGAIN = 0.05
"""The share of the window by which a conversation has to grow before a failed compaction is repeated."""

_LEFT_OUT = "[The beginning of this conversation was left out here, because no summary could be written.]"


class CompactionResult(NamedTuple):
    """The effect of a compaction on the messages for the model. Tokens are estimates, `summary` is the model's text.

    `checkpoint` is the state before the compaction, if it was stored. `cost` is in USD, `None` if no price is known.
    """

    messages_before: int
    messages_after: int
    tokens_before: int
    tokens_after: int
    summary: str
    usage: RunUsage
    checkpoint: str | None = None
    cost: float | None = None

    def event(self) -> dict[str, Any]:
        """In the form of events."""
        return {
            "type": "compaction",
            "messages_before": self.messages_before,
            "messages_after": self.messages_after,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "summary": self.summary,
        }


class ShortenedHistory(NamedTuple):
    """A shorter history: the summary, the messages at its start, and the messages of the old history that follow it."""

    summary: ModelRequest
    messages: list[ModelMessage]
    begins: int
    tail: list[ModelMessage]

    @property
    def text(self) -> str:
        """The summary."""
        part = self.summary.parts[0]
        return part.content or "" if isinstance(part, CompactionPart) else ""


class Recorder(Protocol):
    """Records a turn."""

    places: Places

    def compacting(
        self, before: Sequence[ModelMessage], short_history: ShortenedHistory, event: dict[str, Any]
    ) -> None:
        """The model now receives `short_history`, of which only the last message has not been recorded yet."""
        ...


@dataclass
class Compactor:
    """Compacts the history of one run.

    `explain` translates an exception of the model; any other ends the turn. `notify` receives notices for the user.
    """

    model: Model
    recorder: Recorder
    explain: Callable[[Exception], DeepctlError | None]
    notify: Callable[[str], None]
    least: float = field(default=0, init=False)
    """Tokens that the conversation must reach before another compaction is tried."""
    _gave_up: bool = field(default=False, init=False)

    async def compact(
        self, ctx: RunContext[Any], request_context: ModelRequestContext, tokens: int, window: int
    ) -> ModelRequestContext:
        """Shorten the history of `tokens`, in the request and in the run."""
        messages = list(ctx.messages)
        self.least = tokens + window * _AGAIN
        short_history = await self._shorten(ctx, messages, tokens, window)
        if short_history is None:
            return request_context
        after = _tokens_after(tokens, messages, short_history)
        self.least = after + window * _AGAIN
        result = CompactionResult(
            len(messages), len(short_history.messages), tokens, after, short_history.text, RunUsage()
        )
        # The recorder knows the old history, so it must be informed before the run uses the new one.
        self.recorder.compacting(messages, short_history, result.event())
        ctx.messages[:] = short_history.messages
        if ctx.usage_limits is not None:
            # The request was allowed before the summary was paid for.
            ctx.usage_limits.check_before_request(ctx.usage)
        return replace(request_context, messages=list(short_history.messages))

    async def _shorten(
        self, ctx: RunContext[Any], messages: list[ModelMessage], tokens: int, window: int
    ) -> ShortenedHistory | None:
        places = self.recorder.places
        if not self._gave_up:
            try:
                # The strategy's result does not show it, and a useless summary must not be paid for.
                if (await _shortened(_sliding(_tail(window)), messages, places, ctx)) is None:
                    return None
                self.notify(f"The conversation takes {tokens / window:.0%} of the model's context: summarising it.")
                return await _shortened(_summarizing(self.model, keep_tokens=_tail(window)), messages, places, ctx)
            except UsageLimitExceeded:
                raise
            except Exception as error:  # as in `TurnRunner.run`: every client has its own exceptions
                failure = self.explain(error)
                if failure is None:
                    raise
                self._gave_up = True
                self.notify(f"The conversation could not be summarised. {failure.message}")
        if tokens <= window * _FULL:
            return None
        self.notify("It almost exceeds the context of the model, so the model no longer sees its beginning.")
        return await _shortened(_sliding(window // 2), messages, places, ctx)


async def by_hand(
    model: Model, history: SentHistory, policy: CompactionPolicy, focus: str | None = None
) -> tuple[CompactionResult, ShortenedHistory]:
    """Summarise a conversation between two turns: all but the last turn, or all but the end of that if it is long.

    `focus` is the most important subject of the summary. Raises `NotFound` if there is nothing to summarise, and the
    errors of the model.
    """
    messages, places, usage = history.messages, Places(history), RunUsage()
    tail = _tail(window_of(model, policy.window) or DEFAULT_CONTEXT_WINDOW)
    last = max((index for index, message in enumerate(messages) if is_prompt(message)), default=0)
    whole = len(messages) - last
    strategies = [_summarizing(model, keep_messages=keep) for keep in (whole, 1) if keep < len(messages)]
    if strategies and estimate_token_count(messages[last:]) > tail:
        strategies.insert(0, _summarizing(model, keep_tokens=tail))
    for strategy in strategies:
        ctx = RunContext[Any](deps=None, model=model, usage=usage)
        window = SlidingWindowCompaction[Any](
            max_messages=1,
            keep_messages=strategy.keep_messages,
            keep_tokens=strategy.keep_tokens,
            preserve_first_user_message=False,
        )
        if await _shortened(window, messages, places, ctx) is None:
            continue
        result = await compact_now(strategy, messages, model=model, focus=focus, usage=usage)
        short_history = _history_of(result, messages, places)
        if short_history is not None:
            before = context_tokens(messages)
            after = _tokens_after(before, messages, short_history)
            report = CompactionResult(
                len(messages), len(short_history.messages), before, after, short_history.text, usage
            )
            return report, short_history
    raise NotFound(
        "There is nothing to compact: the model already sees only a summary and the last answer.",
        code="nothing_to_compact",
    )


def _tokens_after(tokens: int, messages: list[ModelMessage], short_history: ShortenedHistory) -> int:
    """The tokens of a shortened history that had `tokens` before: the removed messages count as the provider
    reported.
    """
    removed_tokens = sum(estimate_message_tokens(messages)[: len(messages) - len(short_history.tail)])
    added_tokens = sum(
        estimate_message_tokens(short_history.messages[: len(short_history.messages) - len(short_history.tail)])
    )
    return max(tokens - removed_tokens + added_tokens, 0)


def _tail(window: int) -> int:
    return max(min(window // _TAIL_SHARE, _TAIL_TOKENS), 1)


def _summarizing(model: Model, *, keep_messages: int = 1, keep_tokens: int | None = None) -> SummarizingCompaction[Any]:
    return SummarizingCompaction(
        model=model,
        max_messages=1,  # never used: this module decides when
        keep_messages=keep_messages,
        keep_tokens=keep_tokens,
        instructions=SUMMARISE,
        preserve_first_user_message=False,
        # The model is called as always, as a stream.
        event_stream_handler=drain_summary_events,
        summarization_capabilities=[_WholeAnswer(), UnicodeFilter()],
    )


def _sliding(keep_tokens: int) -> SlidingWindowCompaction[Any]:
    return SlidingWindowCompaction(max_messages=1, keep_tokens=keep_tokens, preserve_first_user_message=False)


@dataclass
class _WholeAnswer(AbstractCapability[None]):
    """Raises an error for a partial summary, which is useless."""

    async def after_model_request(
        self, ctx: RunContext[None], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        model = request_context.model
        while isinstance(model, WrapperModel):
            model = model.wrapped
        if response.finish_reason != "stop" and not isinstance(model, FunctionModel):
            raise UnexpectedModelBehavior(f"The summary was cut off ({response.finish_reason or 'no reason given'})")
        return response


async def _shortened(
    strategy: CompactionStrategy[Any], messages: list[ModelMessage], places: Places, ctx: RunContext[Any]
) -> ShortenedHistory | None:
    return _history_of(await strategy.compact(list(messages), ctx), messages, places)


def _history_of(
    result: Sequence[ModelMessage], messages: Sequence[ModelMessage], places: Places
) -> ShortenedHistory | None:
    """The result of a strategy for `messages`; `None` if the model would not receive less than before.

    Only parts that the record of a session can express are used: a summary, the turn's prompt, and the end.
    """
    boundary = len(messages)
    for old, new in zip(reversed(messages), reversed(result), strict=False):
        if old is not new:
            break
        boundary -= 1
    begins = places.begin_of(messages, boundary) if boundary < len(messages) else None
    if begins is None or begins <= places.begins:
        return None
    tail = [without_usage(message) for message in messages[boundary:]]
    summary = _summary(result[: len(result) - len(tail)]) or _left_out(messages[:boundary])
    return ShortenedHistory(summary, [summary, *places.prompt_before(begins), *tail], begins, tail)


def _summary(messages: Sequence[ModelMessage]) -> ModelRequest | None:
    summaries = [part for message in messages for part in message.parts if is_summary_part(part)]
    return ModelRequest(parts=[summaries[-1]]) if summaries else None


def _left_out(messages: Sequence[ModelMessage]) -> ModelRequest:
    """The replacement for messages without a summary: the last summary, and a note about the missing part."""
    before = _summary(messages)
    part = before.parts[0] if before is not None else None
    text = f"{part.content}\n\n{_LEFT_OUT}" if isinstance(part, CompactionPart) else _LEFT_OUT
    return summary_request(text)
