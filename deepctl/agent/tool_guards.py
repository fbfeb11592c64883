"""What stands around every tool call: order, failures that stay failures of the tool, and secrets kept out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import (
    AbstractCapability,
    CapabilityOrdering,
    WrapToolExecuteHandler,
)
from pydantic_ai.exceptions import ModelRetry, ToolFailed, UserError
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
from pydantic_ai.workspaces import WorkspaceError
from pydantic_ai_backends import PermissionAskError, PermissionDeniedError

from deepctl.agent.backend import told
from deepctl.redaction import redact
from deepctl.unicode import whole, whole_value

UNLIMITED_RETRIES = 1_000_000
"""More than any turn has requests: pydantic-ai ends a run at the limit, and has no word for none."""


_FAILURES = (
    OSError,
    MemoryError,
    RecursionError,
    ValueError,
    UserError,
    WorkspaceError,
    PermissionAskError,
    PermissionDeniedError,
)


def _text(error: Exception, workspace: object) -> str:
    """What the model is told of a failure."""
    return told(error, workspace) or type(error).__name__


@dataclass
class SequentialTools(AbstractCapability[Any]):
    """Tool calls run one after another, in the model's order.

    In parallel, a read was seen to overtake the write before it.
    """

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        return [replace(definition, sequential=True) for definition in tool_defs]


@dataclass
class ToolErrorsAsResults(AbstractCapability[Any]):
    """A tool that fails, or is refused, tells the model so; it never ends the run.

    Without this, a workspace error or a denial raised in a tool ends the run, and so does asking for a retry once
    more often than the tool allows. What bounds a run are its usage limits.
    """

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="outermost")

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return _WithoutRetryLimit(toolset)

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
        except _FAILURES as error:
            raise ToolFailed(_text(error, ctx.workspace)) from error


@dataclass
class _WithoutRetryLimit(WrapperToolset[Any]):
    """Every toolset has a limit of its own, most of them 1; here a model may be wrong as often as it has requests."""

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        return {
            name: replace(tool, max_retries=UNLIMITED_RETRIES) for name, tool in (await super().get_tools(ctx)).items()
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """A tool that asks for another call has failed: `TestModel` obeys without end."""
        try:
            return await super().call_tool(name, tool_args, ctx, tool)
        except ModelRetry as error:
            raise ToolFailed(error.message) from error


@dataclass
class RedactSecrets(AbstractCapability[Any]):
    """What a tool returns is told to the model, logged and shown as valid text without the keys in this process's
    environment.

    Commands do not get them; where nothing is around commands, one can still find them, in `/proc` for instance.
    """

    environment: Mapping[str, str]

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return _RedactedErrors(toolset, self.environment)

    async def after_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any], result: Any
    ) -> Any:
        """Here, because eviction to a file happens here too, after this: later capabilities come first."""
        return redact(whole(result), self.environment) if isinstance(result, str) else whole_value(result)


@dataclass
class _RedactedErrors(WrapperToolset[Any]):
    """The same for what a tool says when it fails.

    A capability comes too late: pydantic-ai has made a result of a failure by the time it hears of it.
    """

    environment: Mapping[str, str]

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        try:
            return await super().call_tool(name, tool_args, ctx, tool)
        except (ToolFailed, ModelRetry) as error:
            raise type(error)(redact(whole(error.message), self.environment)) from error
        except _FAILURES as error:
            raise ToolFailed(redact(whole(_text(error, ctx.workspace)), self.environment)) from error
