"""What is shown of a conversation's state: the toolbar under the prompt, `/status`, `/cost` and `/todo`."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deepctl.cli.chat_session import ProfileChat, UsageTotals
from deepctl.cli.repl import settings_commands
from deepctl.cli.repl.state import ReplState
from deepctl.domain import profiles, provider_keys, providers, settings, usage_report
from deepctl.domain.addresses import without_passwords
from deepctl.domain.budgets import BudgetState, dollars
from deepctl.errors import DeepctlError
from deepctl.layout import UNNAMED
from deepctl.output.render import cells, clip, home, printable, show, terminal_width, tint
from deepctl.output.sessions import print_todo
from deepctl.output.usage import dollars as dollars_or_dash
from deepctl.quantities import counted, size
from deepctl.store import session_catalogue, todo
from deepctl.store.todo import TodoItem

NO_SANDBOX, NEW_SESSION = "no sandbox", "new session"
_GAP = "   "
_MAX_TOKENS, _MAX_DOLLARS = 999 * 10**9, 999_999.0
"""The largest numbers that are shown; larger ones are shown as these."""
_MIN_VALUE_WIDTH = 20
"""Columns for a value of `/status`, at least."""


class Toolbar(NamedTuple):
    """The values in the toolbar. `sandbox` is `None` until it is known; `context` is a share from 0 to 1; `tokens` are
    those sent and received so far; `cost` is in US dollars. They are `None` where they are not known. `note` is for
    messages that pass. `project` is the directory in which the agent works, `None` for the private workspace. `budget`
    is what is spent of the budget that is nearest to its end, `None` without budgets.
    """

    profile: str
    session: str | None
    model: str
    sandbox: str | None
    context: float | None
    tokens: tuple[int, int] | None
    cost: float | None
    note: str = ""
    project: str | None = None
    budget: str | None = None


def toolbar(state: ReplState, latest_session: Callable[[], str | None], note: str) -> Toolbar:
    """The toolbar of a conversation; `latest_session` is asked where no session is chosen."""
    facts = state.chat.facts(state.session)
    sandbox = None
    if facts.commands is not None:
        sandbox = facts.commands.sandbox or "no shell"
        sandbox = NO_SANDBOX if sandbox == "none" else f"{sandbox} with network" if facts.commands.network else sandbox
    session = facts.session or latest_session()
    usage = state.chat.counts.of(state.session)
    if state.new is not None:
        session = NEW_SESSION if state.new == UNNAMED else f"{state.new} (new)"
        usage = UsageTotals()
    tokens = (usage.input_tokens, usage.output_tokens)
    return Toolbar(
        facts.profile,
        session,
        facts.model,
        sandbox,
        usage.context,
        tokens if any(tokens) else None,
        usage.cost or None,
        note,
        facts.project,
        _budget(state.chat.budgets),
    )


def _budget(states: Sequence[BudgetState]) -> str | None:
    """The budget that is nearest to its end, for the toolbar: `$1.20 of $5.00 today`."""
    if not states:
        return None
    budget, spent = nearest = max(states, key=lambda state: state.share)
    text = _dollars if nearest.budget.is_money else lambda number: _count(int(number))
    whose = "" if budget.profile is not None else ", all profiles"
    return f"{text(spent)} of {text(float(budget.limit))} {budget.when}{whose}"


def fit_toolbar(bar: Toolbar, width: int) -> str:
    """The toolbar in at most `width` cells: the least important value is left out first, and the last one is cut."""
    names = {
        "profile": printable(bar.profile),
        "project": printable(home(bar.project)) if bar.project is not None else "",
        "session": _session(bar),
        # The user chose the model and knows its provider.
        "model": printable(bar.model.partition(":")[2] or bar.model),
        "sandbox": printable(bar.sandbox or ""),
    }
    numbers = {
        "context": f"context {_percent(bar.context)}" if bar.context is not None else "",
        "tokens": f"{_count(bar.tokens[0])} in {_count(bar.tokens[1])} out" if bar.tokens is not None else "",
        "cost": _dollars(bar.cost) if bar.cost is not None else "",
        "budget": printable(bar.budget or ""),
    }
    note = printable(bar.note)
    line = _joined(names, numbers, note)
    least_first = ["cost", "tokens", "session", "context", "budget", "model", "project", "note"]
    # That commands run unsandboxed is the most important value.
    least_first.insert(len(least_first) if bar.sandbox == NO_SANDBOX else 2, "sandbox")
    for least in least_first:
        if cells(line) <= width:
            return line
        names.pop(least, None)
        numbers.pop(least, None)
        line = _joined(names, numbers, "" if least == "note" else note)
    return _cut(line, width)


def _session(bar: Toolbar) -> str:
    if bar.session is None:
        return ""
    return bar.session if bar.session == NEW_SESSION else f"session {printable(bar.session)}"


def _joined(names: dict[str, str], numbers: dict[str, str], note: str) -> str:
    names_part = " · ".join(text for text in names.values() if text)
    numbers_part = "  ".join(text for text in numbers.values() if text)
    # The note stays apart from the names.
    return _GAP.join(part for part in (names_part, numbers_part, note) if part)


def _cut(line: str, width: int) -> str:
    if cells(line) <= width:
        return line
    return f"{clip(line, width - 1)}…" if width > 0 else ""


def _percent(share: float) -> str:
    return f"{min(max(share, 0.0), 9.99):.0%}"


def _count(tokens: int) -> str:
    """A number of tokens in at most four characters and the sign of its unit."""
    tokens = min(tokens, _MAX_TOKENS)
    for factor, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if tokens >= factor:
            number = tokens / factor
            return f"{number:.1f}{unit}" if number < 10 else f"{number:.0f}{unit}"
    return str(tokens)


def _dollars(cost: float) -> str:
    cost = min(cost, _MAX_DOLLARS)
    if 0 < cost < 0.01:
        return "<$0.01"
    return f"${cost:.2f}" if cost < 100 else f"${cost:.0f}"


class _Status(NamedTuple):
    """Name and value, line by line."""

    rows: list[tuple[str, str]]

    def document(self) -> dict[str, Any]:
        return dict(self.rows)

    def print(self) -> None:
        name_width = max(len(name) for name, _ in self.rows)
        for name, value in self.rows:
            print(f"{tint(f'{name:<{name_width}}', 'faint')}  {_indented(printable(value), name_width + 2)}")


def _indented(value: str, indent: int) -> str:
    """`value`, at a terminal broken between words, its further lines below the first."""
    room = terminal_width()
    if room is None:
        return value
    lines = textwrap.wrap(value, max(room - indent, _MIN_VALUE_WIDTH), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def show_status(state: ReplState, arguments: str) -> None:
    """Show profile, session, model, what commands may do, and the usage so far."""
    is_kept = isinstance(state.chat, ProfileChat)
    rows = _profile_rows(state) if is_kept else [("Profile", "none; this chat is not stored")]
    model = settings_commands.in_force(state, "model")
    approve = settings_commands.in_force(state, "approve")
    rows.append(("Model", f"{model.value or 'offline'} ({settings_commands.source(model)})"))
    servers = providers.own_servers(os.environ, state.chat.setup.settings)
    kind = provider_keys.provider(model.value or provider_keys.OFFLINE)
    rows += [("Server", str(without_passwords(server.url))) for server in servers if server.kind == kind]
    for name, key in (("Thinking", "model_settings.thinking"), ("Tools", "tools")):
        value = settings_commands.in_force(state, key)
        if value.value is not None:
            rows.append((name, f"{value.value} ({settings_commands.source(value)})"))
    rows.append(("Approval", f"{approve.value} ({settings_commands.source(approve)})"))
    try:
        rows.append(("Sandbox", settings_commands.sandbox_sentence(state)))
    except DeepctlError as error:
        rows.append(("Sandbox", f"unknown: {error.message}"))
    if is_kept:
        rows.append(("MCP servers", _servers(state)))
    if state.files:
        rows.append(("Attached", ", ".join(map(home, state.files))))
    rows += _usage_rows(state)
    show(_Status(rows), as_json=False)


def show_cost(state: ReplState, arguments: str) -> None:
    """Show tokens and cost of this chat, of the session and of today, and the budgets."""
    rows = _usage_rows(state)
    session = state.current_session_if_any() if isinstance(state.chat, ProfileChat) else None
    if session is not None:
        counts = usage_report.of_session(state.profile(), session.id)
        cost = f", {dollars_or_dash(counts.cost)}" if counts.requests else ""
        text = f"{session.name}: {counted(counts.requests, 'request')}, {counts.tokens:,} tokens{cost}"
        rows.insert(next((place for place, row in enumerate(rows) if row[0] == "Today"), len(rows)), ("Session", text))
    show(_Status(rows), as_json=False)


def show_todo(state: ReplState, arguments: str) -> None:
    """Show the to-do list of the session."""
    session = state.current_session_if_any()
    steps = todo.read(state.profile(), session) if session is not None else []
    if steps:
        show(_TodoList(steps), as_json=False)
        return
    state.chat.display.notice("The to-do list cannot be read." if steps is None else "The session has no to-do list.")


class _TodoList(NamedTuple):
    """The to-do list of a session, in short for `/todo`."""

    steps: list[TodoItem]

    def document(self) -> dict[str, Any]:
        return {"todo": [step._asdict() for step in self.steps]}

    def print(self) -> None:
        print_todo(self.steps)


def _profile_rows(state: ReplState) -> list[tuple[str, str]]:
    paths = state.profile()
    project = state.project()
    place = ("Project", home(project)) if project is not None else ("Workspace", home(paths.workspace))
    rows = [("Profile", f"{paths.name}, {home(paths.directory)}"), place]
    if state.new is not None:
        name = "a new one" if state.new == UNNAMED else state.new
        rows.append(("Session", f"{name}; your next prompt starts it"))
    else:
        session = state.current_session_if_any()
        if session is None:
            name = state.profile_chat().directory.next_name(paths, state.session)
            rows.append(("Session", f"{name}; your next prompt starts it"))
        else:
            turns = session_catalogue.summary(paths, session.name).turns
            rows.append(("Session", f"{session.name}, {counted(turns, 'turn')}"))
    rows.append(("Checkpoints", size(profiles.checkpoint_bytes(paths))))
    return rows


def _servers(state: ReplState) -> str:
    try:
        servers = settings.load(os.environ, state.profile()).mcp_servers()
    except DeepctlError as error:
        return f"unknown: {error.message}"
    return ", ".join(f"{server.name}{'' if server.enabled else ' (off)'}" for server in servers) or "none"


def _usage_rows(state: ReplState) -> list[tuple[str, str]]:
    usage = state.chat.counts.total
    share = usage.cached_tokens / usage.input_tokens if usage.input_tokens else 0
    cached = f" ({_percent(min(share, 1))} from the cache)" if usage.cached_tokens else ""
    tokens = f"{usage.input_tokens:,} sent{cached}, {usage.output_tokens:,} received since the chat started"
    rows = [("Tokens", tokens)]
    if usage.cost is None:
        rows.append(("Cost", "unknown: there is no price for the model"))
    elif usage.cost:
        rows.append(("Cost", f"${usage.cost:.4f}"))
    if (spending := state.chat.spending) is not None:
        day = spending.sums().day
        rows.append(("Today", f"{day.tokens:,} tokens, ${dollars(day.cost)}"))
        rows += [("Budget", budget.row()) for budget in spending.states()]
    context, window = state.chat.counts.of(state.session).context, state.chat.window
    if context is not None or window is not None:
        part = f"{context:.0%} of the model's window" if context is not None else "the model's window"
        rows.append(("Context", f"{part}, {window:,} tokens" if window is not None else part))
    return rows
