"""What is recorded of requests to models: each of them once, with what the provider has reported, or as an estimate."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.models import Model

from deepctl import create_deep_agent, open_profile
from deepctl.agent import model_wrappers
from deepctl.cli.chat_setup import ChatSetup
from deepctl.domain import settings
from deepctl.errors import BudgetReached
from deepctl.layout import Root
from deepctl.store import usage_log
from deepctl.store.usage_log import UsageEntry
from tests.support.command import Command, InProcess
from tests.support.loopback import Answer, Broken, Provider, Stalled, Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal

KINDS = {"chat": "openai-chat:gpt-4o", "responses": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-4-6"}
LIST = ToolCalls([("ls", {"path": "."})], used=(500, 20))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_wrappers, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")


def point(server: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)


def entries(home: Path, user: str = "default") -> list[UsageEntry]:
    return usage_log.read(Root(str(home)).profile(user)).entries


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_recorded_with_what_the_provider_reports(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(LIST, Text(["Done."], used=(2000, 300), cached=1200)) as server:
        point(server, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS[kind], "look around").ok()
    first, second = entries(home)
    assert (first.input, first.cached, first.output, first.estimated) == (500, 0, 20, False)
    assert (second.input, second.cached, second.output, second.estimated) == (2000, 1200, 300, False)
    assert {(entry.model, entry.purpose, entry.turn) for entry in (first, second)} == {(KINDS[kind], "answer", 1)}
    assert first.session == json.loads((home / "profiles/default/sessions/main/session.json").read_text())["id"]
    assert first.cost is not None
    assert second.cost is not None
    assert round(first.cost + second.cost, 6) == pytest.approx(result.events[-1]["cost"])
    assert (home / "profiles/default/usage.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", KINDS)
def test_every_attempt_is_a_request(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    answers: list[Answer] = [Status(503), Broken("refused"), Broken("reset"), Text(["Here."], used=(40, 3))]
    with provider(*answers) as server:
        point(server, monkeypatch)
        deepctl("chat", "--model", KINDS[kind], "hello").ok()
        assert len(server.requests) == 4
    refused, in_stream, reset, whole = entries(home)
    assert (refused.input, refused.output, refused.cost, refused.estimated) == (0, 0, 0.0, True)
    for entry in (in_stream, reset):
        # The provider may have read the request, so its input counts.
        assert entry.estimated
        assert entry.input > 100 or kind == "anthropic"
    assert (whole.input, whole.output, whole.estimated) == (40, 3, False)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        *((kind, Broken("cut", ["Half an answer "] * 20)) for kind in KINDS),
        # The form of Anthropic always has a report.
        *((kind, Text(["No report. "] * 20, used=None)) for kind in KINDS if kind != "anthropic"),
    ],
)
def test_an_answer_without_a_report_is_an_estimate(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, answer: Answer
) -> None:
    with provider(answer) as server:
        point(server, monkeypatch)
        deepctl("chat", "--model", KINDS[kind], "hello")
    (entry,) = entries(home)
    assert entry.estimated
    assert entry.output > 20
    assert entry.cost is not None
    assert entry.cost > 0


def test_a_request_that_reaches_no_server_costs_nothing(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(Text(["x"])) as server:
        point(server, monkeypatch)
    assert deepctl("chat", "--model", KINDS["chat"], "hello").code == 7
    found = entries(home)
    assert len(found) == 4, "three retries"
    assert {(entry.input, entry.cost, entry.estimated) for entry in found} == {(0, 0.0, True)}


def test_a_cancelled_answer_counts_with_what_has_arrived(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(Stalled(["Many words have arrived. "] * 10)) as server:
        point(server, monkeypatch)
        assert deepctl("chat", "--timeout", "1", "--model", KINDS["chat"], "hello").code == 124
    (entry,) = entries(home)
    assert (entry.estimated, entry.is_open) == (True, False)
    assert entry.input > 100
    assert entry.output >= 50


def test_a_killed_request_counts_with_its_input(
    deepctl: InProcess, process: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(LIST, Stalled(["Half"]), Text(["Whole."], used=(77, 5))) as server:
        point(server, monkeypatch)
        running = process.start("chat", "--model", KINDS["chat"], "hello")
        until(lambda: len(server.requests) == 2)
        running.kill()
        running.wait()
        first, killed = entries(home)
        assert (first.input, first.output, first.estimated) == (500, 20, False), "recorded before the tool ran"
        assert (killed.estimated, killed.is_open, killed.output) == (True, True, 0)
        assert killed.input >= 500
        with open(home / "profiles/default/usage.jsonl", "ab") as file:
            file.write(b'{"v":1,"id":"to')  # a kill in the middle of a line
        deepctl("chat", "--model", KINDS["chat"], "go on").ok()
    assert [entry.input for entry in entries(home)] == [500, killed.input, 77]
    assert deepctl("checkpoints", "verify").code == 0
    shown = deepctl("usage", "--json").ok().json["total"]
    assert (shown["requests"], shown["estimated"]["requests"], shown["estimated"]["input_tokens"]) == (
        3,
        1,
        killed.input,
    )


def test_checks_and_summaries_are_recorded(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("models", "--check", "--model", "offline").ok()
    assert not home.exists(), "a check creates no profile"
    with provider(Text(["An answer. " * 50], used=(900, 90)), repeat_last=True) as server:
        point(server, monkeypatch)
        chat = ("chat", "--model", KINDS["chat"])
        deepctl(*chat, "one " * 200).ok()
        deepctl(*chat, "two " * 200).ok()
        monkeypatch.setenv("DEEPCTL_MODEL", KINDS["chat"])
        deepctl("models", "--check").ok()
        deepctl("sessions", "compact").ok()
        assert len(server.requests) == len(entries(home))
    purposes = [entry.purpose for entry in entries(home)]
    assert purposes[:3] == ["answer", "answer", "check"]
    assert set(purposes[3:]) == {"compaction"}
    check, summary = entries(home)[2:4]
    assert (check.session, check.turn) == (None, None)
    assert summary.session == entries(home)[0].session


def test_a_summary_in_a_turn_is_recorded_as_one(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", "hello").ok()
    for key, value in (("context_window", "20000"), ("compact_at", "50")):
        deepctl("config", "set", key, value).ok()
    with provider(Text(["Long. " * 2000], used=(9000, 5000)), repeat_last=True) as server:
        point(server, monkeypatch)
        for _ in range(3):
            deepctl("chat", "--model", KINDS["chat"], "more " * 500).ok()
        assert len(server.requests) == len(entries(home)) - 1
    assert "compaction" in [entry.purpose for entry in entries(home)]


def test_a_full_disk_loses_no_answer_and_the_request_is_recorded_later(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", "hello").ok()
    real = usage_log.append
    is_full = [True]

    def append(*arguments: Any) -> int:
        if is_full[0]:
            raise OSError(errno.ENOSPC, "No space left on device", "usage.jsonl")
        return real(*arguments)

    monkeypatch.setattr(usage_log, "append", append)

    def answered(text: str) -> None:
        is_full[0] = text == "one"

    with provider(ToolCalls([("ls", {"path": "."})], used=(101, 1)), Text(["Here."], used=(102, 2))) as server:
        point(server, monkeypatch)
        count = len(server.requests)
        original = server._next

        def following() -> Answer:
            answered("one" if len(server.requests) == count + 1 else "two")
            return original()

        monkeypatch.setattr(server, "_next", following)
        result = deepctl("chat", "--json", "--model", KINDS["chat"], "hello").ok()
    assert result.events[-1]["output"] == "Here."
    notices = [event["message"] for event in result.events if event["type"] == "notice"]
    assert len([text for text in notices if "not stored yet" in text and "the disk is full" in text]) == 1, notices
    assert [(entry.input, entry.estimated) for entry in entries(home)][-2:] == [(101, False), (102, False)]


def test_an_ephemeral_chat_records_nothing_and_a_budget_holds_for_it(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", "--user", "alice", "hello").ok()
    before = (home / "profiles/alice/usage.jsonl").read_bytes()
    with provider(ToolCalls(LIST.calls, used=(40_000, 10)), repeat_last=True) as server:
        point(server, monkeypatch)
        ephemeral = ("chat", "--ephemeral", "--json", "--model", KINDS["chat"])
        deepctl("config", "set", "max_tokens_day", "100000").ok()
        refused = deepctl(*ephemeral, "look around")
        assert (refused.code, refused.events[-1]["code"]) == (7, "budget")
        assert len(server.requests) == 2, "its own requests count in its process"
        deepctl("config", "unset", "max_tokens_day").ok()
        deepctl("config", "set", "max_tokens_day", "30", "--user", "alice").ok()
        assert deepctl(*ephemeral, "--user", "alice", "look around").events[-1]["code"] == "budget"
        assert len(server.requests) == 2
    assert (home / "profiles/alice/usage.jsonl").read_bytes() == before
    assert sorted(os.listdir(home / "profiles")) == ["alice"]


def test_an_application_is_refused_by_the_budget_of_the_profile(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "max_tokens_day", "60000", "--user", "alice").ok()
    deepctl("config", "set", "model", KINDS["chat"], "--user", "alice").ok()

    async def work() -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        async with open_profile("alice", root=home) as profile:
            await profile.run(None, "hello")
            with pytest.raises(BudgetReached, match="max_tokens_day") as refused:
                await profile.run(None, "again")
            assert (refused.value.code, refused.value.exit_code) == ("budget", 7)
            deepctl("config", "set", "max_tokens_day", "120000", "--user", "alice").ok()
            async for event in profile.stream(None, "once more"):
                events.append(event)
        return events

    with provider(Text(["Yes."], used=(59_000, 10)), repeat_last=True) as server:
        point(server, monkeypatch)
        events = asyncio.run(work())
        assert len(server.requests) == 2
    assert events[-1]["type"] == "result"
    (warning,) = [event for event in events if "budget" in event]
    assert warning["budget"] == {
        "setting": "max_tokens_day",
        "profile": "alice",
        "limit": 120_000,
        "spent": 118_020,
    }
    assert [entry.estimated for entry in entries(home, "alice")] == [False, False]


def test_a_profile_that_an_application_deletes_is_recorded_nowhere(home: Path, deepctl: InProcess) -> None:
    async def work() -> None:
        async with open_profile("alice", root=home) as profile:
            await profile.run(None, "hello")
            await profile.wipe()
            await profile.run(None, "hello")

    asyncio.run(work())
    assert len(entries(home, "alice")) == 1


def test_a_request_of_a_tool_to_the_model_of_its_turn_is_recorded_apart(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    agent = create_deep_agent(tools="lean")

    @agent.tool
    async def ask(ctx: RunContext[Any], question: str) -> str:
        """Ask another agent."""

        async def read(_: object, events: Any) -> None:
            async for _event in events:
                pass

        helper: Agent[None, str] = Agent(cast("Model", ctx.model))
        return (await helper.run(question, event_stream_handler=read)).output

    async def work() -> None:
        async with open_profile("alice", root=home) as profile:
            await profile.run(agent, "ask it")

    deepctl("config", "set", "model", KINDS["chat"], "--user", "alice").ok()
    calls = ToolCalls([("ask", {"question": "why?"})], used=(11, 1))
    with provider(calls, Text(["So."], used=(22, 2)), Text(["Done."], used=(33, 3))) as server:
        point(server, monkeypatch)
        asyncio.run(work())
    assert [(entry.purpose, entry.input, entry.estimated) for entry in entries(home, "alice")] == [
        ("answer", 11, False),
        ("subagent", 22, False),
        ("answer", 33, False),
    ]


def test_a_chat_shows_what_is_spent_of_a_budget(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "max_cost_day", "2", "--user", "alice").ok()
    deepctl("config", "set", "max_tokens_day", "9000000").ok()
    with provider(Text(["Yes."], used=(680_000, 10)), repeat_last=True) as server:
        point(server, monkeypatch)
        terminal = Terminal("chat", "--user", "alice", "--model", KINDS["chat"], columns=140)
        terminal.prompt(name="alice")
        terminal.type("hello\r")
        terminal.expect("Yes.")
        terminal.expect("85% of a budget is spent: profile 'alice' has spent 1.70 USD today")
        terminal.expect("$1.70 of $2.00 today")
        terminal.prompt(name="alice")
        terminal.type("/status\r")
        terminal.expect("1.70 USD of 2.00 USD today (max_cost_day)")
        terminal.expect("680,010 tokens of 9,000,000 tokens today (max_tokens_day, all profiles)")
        terminal.prompt(name="alice")
        terminal.type("again\r")
        terminal.expect("The budget is used up: profile 'alice' has spent 1.70 USD today")
        terminal.prompt(name="alice")
        terminal.type("/usage --by model\r")
        terminal.expect("openai-chat:gpt-4o")
        terminal.prompt(name="alice")
        terminal.type("/usage --all\r")
        terminal.expect("PROFILE")
        terminal.prompt(name="alice")
        deepctl("config", "set", "max_cost_day", "9", "--user", "alice").ok()
        terminal.type("once more\r")
        terminal.expect("$3.40 of $9.00 today")
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert len(server.requests) == 2


def test_titles_of_a_model_count_and_are_not_written_beyond_a_budget(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "max_tokens_day", "20000", "-u", "alice").ok()
    paths = Root(str(home)).profile("alice")
    setup = ChatSetup("alice", settings.load(os.environ, paths))
    with provider(*[Text([f"Title {number}"], used=(9_900, 20)) for number in range(3)]) as server:
        point(server, monkeypatch)
        with closing(setup.titler(Root(str(home)), paths, KINDS["chat"])) as runner:
            assert [runner.title(f"s{number}", "plan a trip") for number in range(2)] == ["Title 0", "Title 1"]
            with pytest.raises(BudgetReached):
                runner.title("s2", "plan a trip " * 40)
            assert len(server.requests) == 2
        # What titles have spent is missing for answers.
        refused = deepctl("chat", "-u", "alice", "--model", KINDS["chat"], "--json", "hello")
        assert refused.events[-1]["code"] == "budget"
        assert len(server.requests) == 2
    assert [(entry.purpose, entry.session, entry.input, entry.output) for entry in entries(home, "alice")] == [
        ("title", session, 9_900, 20) for session in ("s0", "s1")
    ]
