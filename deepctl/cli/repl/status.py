"""`/status`: how things are in a conversation."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.cli.options import UNNAMED
from deepctl.cli.profile_chat import ProfileChat
from deepctl.cli.repl import run_cli_command, settings_commands
from deepctl.domain import budget, settings
from deepctl.errors import DeepctlError
from deepctl.output.render import show
from deepctl.output.text import home, printable, tinted, width
from deepctl.quantities import counted, size
from deepctl.store import session_catalogue

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation


_LEAST = 20
"""Columns for a value, at least."""


class Status(NamedTuple):
    """What there is to say, line by line: what it is, and how it is."""

    rows: list[tuple[str, str]]

    def document(self) -> dict[str, Any]:
        return dict(self.rows)

    def print(self) -> None:
        behind = max(len(name) for name, _ in self.rows)
        for name, value in self.rows:
            print(f"{tinted(f'{name:<{behind}}', 'faint')}  {_beside(printable(value), behind + 2)}")


def _beside(value: str, indent: int) -> str:
    """`value` at a terminal broken between words, its further lines below the first."""
    room = width()
    if room is None:
        return value
    lines = textwrap.wrap(value, max(room - indent, _LEAST), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def status(conversation: Conversation, rest: str) -> None:
    """Show profile, session, model, what commands may, and what has been used."""
    talk = conversation.talk
    rows: list[tuple[str, str]] = []
    if isinstance(talk, ProfileChat):
        rows += _of_profile(conversation)
    else:
        rows.append(("Profile", "none; nothing of this conversation is kept"))
    model = settings_commands.in_force(conversation, "model")
    approve = settings_commands.in_force(conversation, "approve")
    rows.append(("Model", f"{model.value or 'offline'} ({settings_commands.source(model)})"))
    rows.append(("Questions", f"{approve.value} ({settings_commands.source(approve)})"))
    try:
        rows.append(("Sandbox", settings_commands.where(conversation)))
    except DeepctlError as error:
        rows.append(("Sandbox", f"not known: {error.message}"))
    if isinstance(talk, ProfileChat):
        rows.append(("MCP servers", _servers(conversation)))
    rows += _used(conversation)
    show(Status(rows), as_json=False)


def _of_profile(conversation: Conversation) -> list[tuple[str, str]]:
    paths = run_cli_command.profile(conversation)
    rows = [("Profile", f"{paths.name}, {home(paths.directory)}")]
    if conversation.new is not None:
        name = "a new one" if conversation.new == UNNAMED else conversation.new
        rows.append(("Session", f"{name}; your next prompt begins it"))
    else:
        session = run_cli_command.at_hand_if_any(conversation)
        if session is None:
            rows.append(("Session", f"{conversation.session or session_catalogue.FIRST}; your next prompt begins it"))
        else:
            rows.append(
                ("Session", f"{session.name}, {counted(session_catalogue.summary(paths, session.name).turns, 'turn')}")
            )
    rows.append(("Checkpoints", size(budget.checkpoint_bytes(paths))))
    return rows


def _servers(conversation: Conversation) -> str:
    try:
        found = settings.load(os.environ, run_cli_command.profile(conversation)).mcp_servers()
    except DeepctlError as error:
        return f"not known: {error.message}"
    return ", ".join(f"{one.name}{'' if one.enabled else ' (off)'}" for one in found) or "none"


def _used(conversation: Conversation) -> list[tuple[str, str]]:
    used = conversation.talk.counts.total
    rows = [("Tokens", f"{used.input_tokens:,} sent, {used.output_tokens:,} received in this conversation")]
    if used.cost is None:
        rows.append(("Cost", "not known: there is no price for the model"))
    elif used.cost:
        rows.append(("Cost", f"${used.cost:.4f}"))
    context = conversation.talk.counts.of(conversation.session).context
    if context is not None:
        rows.append(("Context", f"{context:.0%} of the model's window"))
    return rows
