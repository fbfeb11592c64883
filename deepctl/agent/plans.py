"""`save_plan`: plans as Markdown files in the workspace, `plans/<slug>-<uuid>.md`."""

from __future__ import annotations

import posixpath
import re
import uuid
from typing import Any

from pydantic_ai import FunctionToolset, RunContext

from deepctl import layout
from deepctl.agent.workspace_stores import files_of

_MAX_SLUG = 50


def slug(title: str) -> str:
    """`title` as a file name: ASCII letters, digits and dashes, at most 50 characters."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:_MAX_SLUG].strip("-") or "plan"


def plans_toolset() -> FunctionToolset[Any]:
    """The toolset with `save_plan`."""
    toolset: FunctionToolset[Any] = FunctionToolset(id="plans")

    @toolset.tool
    async def save_plan(ctx: RunContext[Any], title: str, content: str) -> str:
        """Save a plan for the user as a Markdown file, to be read and followed later.

        Args:
            ctx: The run context.
            title: What the plan is for, in a few words.
            content: The plan as Markdown, without the title.
        """
        path = posixpath.join(layout.PLANS_DIRECTORY, f"{slug(title)}-{uuid.uuid4()}.md")
        heading = " ".join(title.split())
        await files_of(ctx.workspace).write_bytes(path, f"# {heading}\n\n{content.rstrip()}\n".encode())
        return f"Saved the plan as {path}"

    return toolset
