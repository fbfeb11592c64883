"""What stands around every tool call: order, approval, and failures that stay failures of the tool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.capabilities import (
    AbstractCapability,
    CapabilityOrdering,
    RawToolArgs,
    WrapToolExecuteHandler,
    WrapToolValidateHandler,
)
from pydantic_ai.exceptions import ModelRetry, ToolFailed, UserError
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.workspaces import WorkspaceError
from pydantic_ai_backends import PermissionAskError, PermissionDeniedError

Approve = Literal["ask", "auto", "never"]
Ask = Callable[[str], Awaitable[bool]]
"""Shows a command to the person at the terminal and returns the answer."""


@dataclass
class OneAtATime(AbstractCapability[Any]):
    """Tool calls run one after another, in the model's order.

    In parallel, a read was seen to overtake the write before it.
    """

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        return [replace(definition, sequential=True) for definition in tool_defs]


@dataclass
class FailuresAreResults(AbstractCapability[Any]):
    """A tool that fails, or is refused, tells the model so; it never ends the run.

    Without this, a workspace error or a denial raised in a tool ends the run, and so does asking for a retry once
    more often than the tool allows.
    """

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="outermost")

    async def wrap_tool_validate(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: RawToolArgs,
        handler: WrapToolValidateHandler,
    ) -> dict[str, Any]:
        try:
            return await handler(args)
        except (ModelRetry, ValidationError) as error:
            if ctx.last_attempt:
                raise ToolFailed(f"The arguments are wrong: {error}") from error
            raise

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        try:
            return await handler(args)
        except ModelRetry as error:
            if ctx.last_attempt:
                raise ToolFailed(error.message) from error
            raise
        except (
            OSError,
            MemoryError,
            RecursionError,
            ValueError,
            UserError,
            WorkspaceError,
            PermissionAskError,
            PermissionDeniedError,
        ) as error:
            raise ToolFailed(str(error) or type(error).__name__) from error


@dataclass
class Approvals(AbstractCapability[Any]):
    """Commands need a yes: asked for inside the call, so that nothing after it runs before it.

    `approve` is `auto` (yes), `never` (no) or `ask`, which uses `ask` and, without one, means no.
    """

    approve: Approve = "ask"
    ask: Ask | None = None
    tools: tuple[str, ...] = ("execute",)

    async def before_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        if call.tool_name not in self.tools or self.approve == "auto":
            return args
        if self.approve == "ask" and self.ask is not None and await self.ask(str(args.get("command", ""))):
            return args
        who = "The user did not allow" if self.approve == "ask" and self.ask is not None else "Nobody is there to allow"
        if self.approve == "never":
            who = "The settings do not allow"
        raise ToolFailed(f"{who} this command; it did not run. Go on without it.")
