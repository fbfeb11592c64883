"""What the agent itself can do with checkpoints: `save_checkpoint`, `list_checkpoints` and `rewind_to`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, runtime_checkable

from pydantic_ai import FunctionToolset, RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, TextContent, UserContent

from deepctl.agent.backend import told
from deepctl.errors import DeepctlError

READ_ONLY_TOOLS = frozenset(
    {
        "glob",
        "grep",
        "list_checkpoints",
        "ls",
        "read_file",
        "read_memory",
        "read_plan",
        "read_tool_result",
        "save_checkpoint",
        "search_memory",
    }
)
"""Tools after which the workspace is as it was before."""


class RewindRequested(Exception):
    """The agent wants to go back to a checkpoint: its run has ended, and whoever started it starts it again from there.

    `deepctl chat` does so by itself. An application catches it around `agent.run`; the files are as they were at the
    checkpoint already, if it has any.

    Attributes:
        checkpoint_id: The checkpoint.
        label: Its label, which may be empty.
        messages: The conversation up to it, for `message_history`.
        reason: What the agent wants to remember of what it gave up.
    """

    def __init__(self, checkpoint_id: str, label: str, messages: list[ModelMessage], reason: str = "") -> None:
        super().__init__(f"Rewind requested to checkpoint {label or checkpoint_id!r}")
        self.checkpoint_id = checkpoint_id
        self.label = label
        self.messages = messages
        self.reason = reason

    def prompt(self, prompt: str) -> list[UserContent]:
        """The prompt to start again with: what the user said, and a note on what was given up."""
        note = f"You rewound to checkpoint {self.label or self.checkpoint_id}; what you did after it is undone."
        if self.reason:
            note += f" You noted: {self.reason}"
        return [prompt, TextContent(content=note, metadata={"deepctl": "rewound"})]


@runtime_checkable
class AgentCheckpoints(Protocol):
    """The checkpoints of a run as its agent reaches them. Methods raise `DeepctlError` for what cannot be done."""

    async def tool_starts(self, ctx: RunContext[Any], name: str) -> None:
        """A tool is about to run: what has changed by now is not its work."""
        ...

    async def save_labelled(self, ctx: RunContext[Any], label: str) -> str:
        """Make a checkpoint called `label`; returns its id."""
        ...

    async def describe_all(self, ctx: RunContext[Any]) -> list[str]:
        """A line for each checkpoint, oldest first."""
        ...

    async def rewind(self, ctx: RunContext[Any], reference: str, reason: str) -> NoReturn:
        """Raises `RewindRequested`."""
        ...


def _checkpoints(ctx: RunContext[Any]) -> AgentCheckpoints:
    checkpoints = ctx.deps.checkpoints
    if checkpoints is None:
        raise ToolFailed("There are no checkpoints in this run.")
    return checkpoints  # type: ignore[no-any-return]


@contextmanager
def _failing(ctx: RunContext[Any]) -> Iterator[None]:
    """What cannot be done is the tool's failure."""
    try:
        yield
    except DeepctlError as error:
        raise ToolFailed(told(error.message, ctx.workspace)) from error


def checkpoints_toolset() -> FunctionToolset[Any]:
    """The toolset with the three tools."""
    toolset: FunctionToolset[Any] = FunctionToolset(id="checkpoints")

    @toolset.tool
    async def save_checkpoint(ctx: RunContext[Any], label: str) -> str:
        """Save the conversation and the workspace as they are, before something risky, to be able to go back.

        Args:
            ctx: The run context.
            label: A short name: letters, digits, dashes and dots.
        """
        with _failing(ctx):
            return f"Saved checkpoint {await _checkpoints(ctx).save_labelled(ctx, label)} as {label}"

    @toolset.tool
    async def list_checkpoints(ctx: RunContext[Any]) -> str:
        """List the checkpoints there are, oldest first."""
        with _failing(ctx):
            return "\n".join(await _checkpoints(ctx).describe_all(ctx)) or "There are no checkpoints yet."

    @toolset.tool
    async def rewind_to(ctx: RunContext[Any], checkpoint: str, reason: str = "") -> str:
        """Go back to a checkpoint: what you did since then, in files, memory and conversation, is undone.

        This ends what you are doing; the user's request is then put to you again.

        Args:
            ctx: The run context.
            checkpoint: The id or the label of the checkpoint.
            reason: What you learned and should do differently; it is all you will remember of what is undone.
        """
        with _failing(ctx):
            await _checkpoints(ctx).rewind(ctx, checkpoint, reason)

    return toolset
