"""Compaction: before a long conversation exceeds the model's context window, the messages for the model are shortened.

The strategies are the harness'. The oldest messages become a summary that the model itself writes; the latest messages
stay, and so does the prompt of the turn. A request for a summary must fit into the window too, so a long text is
summarised in pieces. Context blocks are left out of it, because they are sent again. If the summary cannot be written,
the turn continues with all messages, and the oldest ones are left out only when the window would overflow.

The estimate of a request can be too low, and the window can be unknown. So if the model's server refuses a request
because it is too long, the conversation is compacted, and the request is sent once more. A server can also cut off the
beginning of a request without an error. Then the number of tokens that it reports is too low, and the user is told.

Nothing is removed from the stored conversation: see `deepctl.store.session_log`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import (
    CompactionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.usage import RunUsage
from pydantic_ai_harness.compaction import (
    DEFAULT_CONTEXT_WINDOW,
    ClearToolResults,
    CompactionStrategy,
    SlidingWindowCompaction,
    SummarizingCompaction,
    compact_now,
    drain_summary_events,
    estimate_message_tokens,
    estimate_token_count,
)
from pydantic_ai_harness.compaction._summarizing_compaction import format_transcript, user_prompt_text, write_summary
from pydantic_ai_harness.compaction._summary import WrittenSummary, is_summary_part, summary_request

from deepctl.agent.limits import (
    MOST,
    CompactionPolicy,
    context_tokens,
    forget_window,
    has_own_server,
    is_scripted,
    sent_tokens,
)
from deepctl.agent.message_filters import Places, SentHistory, is_prompt, without_usage
from deepctl.agent.metering import purpose
from deepctl.agent.model_wrappers import UnicodeFilter
from deepctl.agent.offline import SUMMARISE
from deepctl.agent.turn_context import without_blocks
from deepctl.errors import CONTEXT_OVERFLOW, BudgetReached, DeepctlError, NotFound

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestContext

_TAIL_SHARE, _TAIL_TOKENS = 8, 20_000
"""The unchanged part: an eighth of the window, and at most this many tokens."""

_FULL = 0.95
"""The share of the window beyond which a conversation that cannot be summarised is cut."""

_AGAIN = 0.05
"""The share of the window by which a conversation has to grow before a failed compaction is repeated."""

_FEWEST = 0.75
"""The fewest tokens of a text, as a share of their estimate by `sent_tokens`. The estimate is four characters a token;
English prose has up to 5.3, and other scripts and code have fewer.
"""

_CUT_SHARE, _CUT_TOKENS, _REPORTED = 0.5, 1000, 256
"""A server has cut a prompt if it reports less than half of the estimated tokens, and 1,000 fewer: the margin below
`_FEWEST` is for chat templates that write tools in a shorter form. If the prompt cannot fit into the window, `_FEWEST`
is enough. A cut prompt still fills most of a window, so a number below `_REPORTED` does not count the prompt: some
servers report only what they had not cached.
"""

_LITTLE = 100
"""Tokens after a summary that are too few for another summary, which has a paragraph for them; also those of a prompt
whose turn failed.
"""

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
    share: float = 1.0
    """The share of the context that remains, with the tools and the instructions."""

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

    def document(self) -> dict[str, Any]:
        """The fields of a document about a compaction."""
        return {
            **{key: value for key, value in self.event().items() if key != "type"},
            "checkpoint": self.checkpoint,
            "usage": {
                "input_tokens": self.usage.input_tokens,
                "cached_tokens": self.usage.cache_read_tokens,
                "output_tokens": self.usage.output_tokens,
                "requests": self.usage.requests,
            },
            "cost": self.cost,
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

    async def compacting(
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
    policy: CompactionPolicy
    explain: Callable[[Exception], DeepctlError | None]
    notify: Callable[[str], None]
    least: float = field(default=0, init=False)
    """Tokens that the conversation must reach before another compaction is tried."""
    _gave_up: bool = field(default=False, init=False)
    _overflow: Exception | None = field(default=None, init=False)
    _refused: ModelRequest | None = field(default=None, init=False)
    _limit: int | None = field(default=None, init=False)
    """Tokens of a request that was too long."""
    _is_cut: bool = field(default=False, init=False)

    async def before_request(self, ctx: RunContext[Any], request_context: ModelRequestContext) -> ModelRequestContext:
        """Shorten the history, in the request and in the run, if the request would exceed the policy's share."""
        if self.policy.share is None:
            return request_context
        refused_request, self._refused = self._refused, None
        if refused_request is not None:
            # The node has appended its request to the history a second time.
            del ctx.messages[max(index for index, message in enumerate(ctx.messages) if message is refused_request)]
        tokens = context_tokens(ctx.messages, request_context.model_request_parameters)
        # A refused request is long, however few its estimated tokens are.
        asked_for = MOST if refused_request is not None else tokens
        window = await self.policy.window_of(self.model, asked_for) or DEFAULT_CONTEXT_WINDOW
        if refused_request is not None:
            self._limit = tokens
        window = min(window, self._limit or window)
        if refused_request is None and tokens <= max(window * self.policy.share / 100, self.least):
            return request_context
        short_history = await self._compact(
            ctx, list(ctx.messages), tokens, window, is_refused=refused_request is not None
        )
        if short_history is None and refused_request is not None and self._overflow is not None:
            raise self._overflow
        return replace(request_context, messages=list(ctx.messages))

    def may_repeat(self, request: ModelRequest, error: Exception) -> bool:
        """Whether a request that failed before its answer began is sent once more, with a compacted history.

        Only once in a turn: if the compacted request is refused too, the rest of it does not fit.
        """
        failure = self.explain(error) if self.policy.share is not None and self._overflow is None else None
        if failure is None or failure.code != CONTEXT_OVERFLOW:
            return False
        forget_window(self.model)
        self._overflow, self._refused = error, request
        return True

    async def check_report(self, request_context: ModelRequestContext, response: ModelResponse) -> None:
        """Notify the user, once in a turn, if the server has not counted the whole prompt."""
        counted_tokens = response.usage.input_tokens
        if self._is_cut or counted_tokens < _REPORTED or not has_own_server(self.model):
            return
        estimate = sent_tokens(request_context.messages, request_context.model_request_parameters)
        window = await self.policy.window_of(self.model)
        share = _FEWEST if window is not None and estimate * _FEWEST > window else _CUT_SHARE
        self._is_cut = counted_tokens < estimate * share and estimate - counted_tokens > _CUT_TOKENS
        if self._is_cut:
            of_window = f", and its context window has {window:,}" if window is not None else ""
            self.notify(
                f"The model did not see the whole prompt: of about {estimate:,} tokens, its server has counted "
                f"{counted_tokens:,}{of_window}. Give the server a larger context (Ollama: num_ctx, or "
                "$OLLAMA_CONTEXT_LENGTH), or set context_window to its window."
            )

    async def _compact(
        self, ctx: RunContext[Any], messages: list[ModelMessage], tokens: int, window: int, *, is_refused: bool
    ) -> ShortenedHistory | None:
        self.least = tokens + window * _AGAIN
        short_history = await self._shorten(ctx, messages, tokens, window, is_refused=is_refused)
        if short_history is None:
            return None
        after = _tokens_after(tokens, messages, short_history)
        self.least = after + window * _AGAIN
        result = CompactionResult(
            len(messages), len(short_history.messages), tokens, after, short_history.text, RunUsage()
        )
        # The recorder knows the old history, so it must be informed before the run uses the new one.
        await self.recorder.compacting(messages, short_history, result.event())
        ctx.messages[:] = short_history.messages
        if ctx.usage_limits is not None:
            # The request was allowed before the summary was paid for.
            ctx.usage_limits.check_before_request(ctx.usage)
        return short_history

    async def _shorten(
        self, ctx: RunContext[Any], messages: list[ModelMessage], tokens: int, window: int, *, is_refused: bool
    ) -> ShortenedHistory | None:
        places = self.recorder.places
        # Instructions and tools take their part of the window in every request.
        room = max(window - max(tokens - sum(estimate_message_tokens(messages)), 0), window // _TAIL_SHARE)
        tail = _tail(room if is_refused else window)
        if not self._gave_up:
            try:
                # The strategy's result does not show it, and a useless summary must not be paid for.
                if is_refused and not await _has_content(tail, messages, places, ctx):
                    tail = 1  # the last message
                    if not await _has_content(tail, messages, places, ctx):
                        return None
                if (await _shortened(_sliding(tail), messages, places, ctx)) is None:
                    return None
                why = "does not fit into" if is_refused else f"takes {tokens / window:.0%} of"
                self.notify(f"The conversation {why} the model's context: summarising it.")
                with purpose("compaction"):
                    return await _shortened(_summarizing(self.model, window, keep_tokens=tail), messages, places, ctx)
            except (UsageLimitExceeded, BudgetReached):
                raise
            except Exception as error:  # as in `TurnRunner.run`: every client has its own exceptions
                failure = self.explain(error)
                if failure is None:
                    raise
                self._gave_up = True
                self.notify(f"The conversation could not be summarised. {failure.message}")
        if tokens <= window * _FULL and not is_refused:
            return None
        why = "does not fit into" if is_refused else "almost exceeds"
        self.notify(f"It {why} the context of the model, so the model no longer sees its beginning.")
        return await _shortened(_sliding(room // 2), messages, places, ctx)


async def by_hand(
    model: Model, history: SentHistory, policy: CompactionPolicy, focus: str | None = None
) -> tuple[CompactionResult, ShortenedHistory]:
    """Summarise a conversation between two turns: all but the last turn, or all but the end of that if it is long.

    `focus` is the most important subject of the summary. Raises `NotFound` if there is nothing to summarise, and the
    errors of the model.
    """
    messages, places, usage = history.messages, Places(history), RunUsage()
    window = await policy.window_of(model) or DEFAULT_CONTEXT_WINDOW
    tail = _tail(window)
    last = max((index for index, message in enumerate(messages) if is_prompt(message)), default=0)
    whole = len(messages) - last
    strategies = [_summarizing(model, window, keep_messages=keep) for keep in (whole, 1) if keep < len(messages)]
    if strategies and estimate_token_count(messages[last:]) > tail:
        strategies.insert(0, _summarizing(model, window, keep_tokens=tail))
    for strategy in strategies:
        ctx = RunContext[Any](deps=None, model=model, usage=usage)
        sliding = SlidingWindowCompaction[Any](
            max_messages=1,
            keep_messages=strategy.keep_messages,
            keep_tokens=strategy.keep_tokens,
            preserve_first_user_message=False,
        )
        shorter = await _shortened(sliding, messages, places, ctx)
        if shorter is None or _saves_little(messages[: len(messages) - len(shorter.tail)]):
            continue
        result = await compact_now(strategy, messages, model=model, focus=focus, usage=usage)
        short_history = _history_of(result, messages, places)
        if short_history is not None:
            # A reported number includes tools and instructions, and the shorter history has no such number. So the
            # tokens of the result are estimates for the messages alone, and the next compaction begins with them.
            before, after = (sum(estimate_message_tokens(history)) for history in (messages, short_history.messages))
            context = context_tokens(messages)
            share = _tokens_after(context, messages, short_history) / context if context else 1.0
            report = CompactionResult(
                len(messages), len(short_history.messages), before, after, short_history.text, usage, share=share
            )
            return report, short_history
    raise NotFound(
        "There is nothing to compact: the model already sees little more than a summary and the last answer.",
        code="nothing_to_compact",
    )


def _saves_little(removed_messages: Sequence[ModelMessage]) -> bool:
    """Whether the messages are a summary and so little else that a new summary would not be shorter."""
    others = [
        replace(message, parts=[part for part in message.parts if not is_summary_part(part)])  # type: ignore[arg-type]
        for message in removed_messages
    ]
    has_summary = any(is_summary_part(part) for message in removed_messages for part in message.parts)
    return has_summary and sum(estimate_message_tokens([without_blocks(message) for message in others])) < _LITTLE


async def _has_content(tail: int, messages: list[ModelMessage], places: Places, ctx: RunContext[Any]) -> bool:
    """Whether the messages before the last `tail` tokens have an answer, or a prompt that is longer than a summary.
    Context that is sent again does not count.
    """
    remainder = await _shortened(_sliding(tail), messages, places, ctx)
    summarized_messages = (
        [without_blocks(message) for message in messages[: len(messages) - len(remainder.tail)]] if remainder else []
    )
    has_answer = any(isinstance(message, ModelResponse) and message.parts for message in summarized_messages)
    return has_answer or sum(estimate_message_tokens(summarized_messages)) >= _LITTLE


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


def _summarizing(
    model: Model, window: int, *, keep_messages: int = 1, keep_tokens: int | None = None
) -> SummarizingCompaction[Any]:
    return _PiecewiseSummary(
        model=model,
        piece=max(window // 2, 1),
        max_messages=1,  # never used: this module decides when
        keep_messages=keep_messages,
        keep_tokens=keep_tokens,
        instructions=SUMMARISE,
        preserve_first_user_message=False,
        # The model is called as always, as a stream.
        event_stream_handler=drain_summary_events,
        summarization_capabilities=[_WholeAnswer(), UnicodeFilter()],
    )


@dataclass
class _PiecewiseSummary(SummarizingCompaction[Any]):
    """Writes a summary of a long conversation in pieces: each summary is an update of the one before."""

    piece: int = DEFAULT_CONTEXT_WINDOW
    """The longest text to summarise at once, in tokens. It leaves room for the summary before it and the new one."""

    async def _summarize(
        self, messages: list[ModelMessage], ctx: RunContext[Any], *, previous_summary: str | None = None
    ) -> WrittenSummary:
        messages = [without_blocks(message) for message in messages]  # they are sent again, as they are then
        if _transcript_bytes(messages) > self.piece * _BYTES:
            # What a tool returned or received is the least important part, and can be read again.
            strategy = ClearToolResults[Any](max_messages=1, keep_pairs=0, clear_tool_inputs=True)
            messages = await strategy.compact(messages, ctx)
        summary = previous_summary or ""
        for piece in _pieces(messages, self.piece * _BYTES):
            summary = await write_summary(self, piece, ctx, previous_summary=summary or None)
        return WrittenSummary(summary, datetime.now(UTC))


if not hasattr(SummarizingCompaction, "_summarize"):
    raise ImportError("deepctl does not support how this version of the harness writes a summary")

_BYTES = 4
"""Bytes of UTF-8 per token. Bytes and not characters, because other scripts have about a token for each character."""


def _transcript_bytes(messages: Sequence[ModelMessage]) -> int:
    return len(format_transcript(messages).encode(errors="replace"))


def _pieces(messages: Sequence[ModelMessage], most: int) -> Iterator[list[ModelMessage]]:
    """The messages in order, in lists whose transcripts have at most `most` bytes; a longer text is divided."""
    piece: list[ModelMessage] = []
    size = 0
    for message in messages:
        message_parts = [message] if _transcript_bytes([message]) <= most else list(_divided(message, most // 2))
        for part in message_parts:
            part_size = _transcript_bytes([part]) + 1
            if piece and size + part_size > most:
                yield piece
                piece, size = [], 0
            piece.append(part)
            size += part_size
    if piece:
        yield piece


def _divided(message: ModelMessage, most: int) -> Iterator[ModelMessage]:
    """The parts of a message one by one; a text of more than `most` bytes in several."""
    step = max(most // _BYTES, 1)  # a character has at most four bytes
    for part in message.parts:
        text = ""
        if isinstance(part, UserPromptPart):
            text = user_prompt_text(part)
        elif isinstance(part, TextPart):
            text = part.content
        changes: list[dict[str, str]] = [{"content": text[start : start + step]} for start in range(0, len(text), step)]
        for change in changes or [{}]:
            yield replace(message, parts=[replace(part, **change)])  # type: ignore[arg-type]


def _sliding(keep_tokens: int) -> SlidingWindowCompaction[Any]:
    return SlidingWindowCompaction(max_messages=1, keep_tokens=keep_tokens, preserve_first_user_message=False)


@dataclass
class _WholeAnswer(AbstractCapability[None]):
    """Raises an error for a partial summary, which is useless."""

    async def after_model_request(
        self, ctx: RunContext[None], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        if response.finish_reason != "stop" and not is_scripted(request_context.model):
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
    prompt = places.prompt_before(begins)
    if all(any(message is prompt_message for prompt_message in prompt) for message in messages[:boundary]):
        return None
    tail = [without_usage(message) for message in messages[boundary:]]
    summary = _summary(result[: len(result) - len(tail)]) or _left_out(messages[:boundary])
    return ShortenedHistory(summary, [summary, *prompt, *tail], begins, tail)


def _summary(messages: Sequence[ModelMessage]) -> ModelRequest | None:
    summaries = [part for message in messages for part in message.parts if is_summary_part(part)]
    return ModelRequest(parts=[summaries[-1]]) if summaries else None


def _left_out(messages: Sequence[ModelMessage]) -> ModelRequest:
    """The replacement for messages without a summary: the last summary, and a note about the missing part."""
    before = _summary(messages)
    part = before.parts[0] if before is not None else None
    text = f"{part.content}\n\n{_LEFT_OUT}" if isinstance(part, CompactionPart) else _LEFT_OUT
    return summary_request(text)
