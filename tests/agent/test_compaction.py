"""Long conversations: a summary before the window is full, nothing lost, and the same to go on with everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic_ai.messages import ModelMessagesTypeAdapter, repair_messages

from deepctl.agent import message_filters, model_wrappers
from deepctl.agent.chat import Chat, EphemeralChat, TurnRunner
from deepctl.agent.compaction import CompactionResult
from deepctl.agent.limits import COMPACT_AT, MOST, ConfiguredLimits, LimitReached, window_of
from deepctl.agent.models import resolve
from deepctl.agent.offline import SUMMARISE
from deepctl.agent.profile_turn import TurnResult
from deepctl.agent.turn import to_json
from deepctl.agent.turn_engine import Options
from deepctl.domain import profiles, settings
from deepctl.errors import DeepctlError, ModelFailed, NotFound
from deepctl.layout import ProfilePaths, Root
from deepctl.store import log_file, lookup, session_catalogue, session_log
from deepctl.store.repository import Repository
from tests.store.faults import count, in_child, kill
from tests.store.scene import Scene
from tests.support.command import InProcess
from tests.support.loopback import Answer, Broken, Provider, Status, Text, ToolCalls, provider

WINDOW = 4000
OFFLINE = Options("offline", compact_at=50, context_window=3000)
LONG = "word " * 400


class Alice:
    """Alice's profile, in which every turn is one of a new process, as far as the state goes."""

    def __init__(self, paths: ProfilePaths, options: Options) -> None:
        self.paths = paths
        self.options = options
        self.events: list[dict[str, Any]] = []

    @contextmanager
    def chat(self) -> Iterator[Chat]:
        with closing(TurnRunner(self.options, environment=os.environ)) as running:
            yield Chat(running)

    def say(self, prompt: str, session: str = "main") -> TurnResult:
        with Repository.open(self.paths) as work, self.chat() as chat:
            if session_catalogue.stored_name(self.paths, session) is None:
                session_catalogue.start(self.paths, session)
            return chat.turn(work, session, prompt, self.events.append)

    def compact(self, focus: str | None = None) -> CompactionResult:
        with Repository.open(self.paths) as work, self.chat() as chat:
            return chat.compact(work, "main", focus, self.events.append)

    def conversation(self, session: str = "main") -> log_file.MessageList:
        return session_catalogue.read(session_catalogue.find(self.paths, session))

    def seen(self, session: str = "main") -> list[dict[str, Any]]:
        """What the next turn is going to send, but for its own prompt."""
        return to_json(message_filters.history_of(self.conversation(session)).messages)

    def compactions(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == "compaction"]

    def notices(self) -> str:
        return "\n".join(event["message"] for event in self.events if event["type"] == "notice")


@pytest.fixture
def paths(home: Path) -> ProfilePaths:
    return profiles.create(Root(str(home)), "alice")


@pytest.fixture
def offline(paths: ProfilePaths) -> Alice:
    return Alice(paths, OFFLINE)


@contextmanager
def _provided(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, *answers: Answer, kind: str = "openai", **options: Any
) -> Iterator[tuple[Alice, Provider]]:
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")
        model = "openai-chat:loopback" if kind == "openai" else "anthropic:loopback"
        given: dict[str, Any] = {"compact_at": 50, "context_window": WINDOW, "retries": 0, **options}
        yield Alice(paths, Options(model, **given)), server


class _Honest(list[Answer]):
    """Answers that say how long the request was, and a summary for whoever asks for one."""

    def __init__(self, server: Provider, answers: list[Answer]) -> None:
        super().__init__(answers)
        self._server = server

    def pop(self, index: Any = 0) -> Answer:
        request = self._server.requests[-1]
        answer = Text([f"gist {len(self)}"]) if _is_summary(request) else super().pop(index)
        assert isinstance(answer, Text | ToolCalls)
        return replace(answer, used=(len(_text(request)) // 4, 20))


def _text(request: dict[str, Any]) -> str:
    return json.dumps(request["messages"])


def _flat(request: dict[str, Any]) -> list[tuple[str, str]]:
    """What a request says, role by role, however it is put together in messages: role and text, or a call's id."""
    found: list[tuple[str, str]] = []
    for message in request["messages"]:
        if message["role"] in ("system", "developer"):
            continue
        content = message.get("content")
        items = content if isinstance(content, list) else [content] if content else []
        for item in items:
            if isinstance(item, dict):
                item.pop("cache_control", None)
            found.append((message["role"], item if isinstance(item, str) else item.get("text") or json.dumps(item)))
        for call in message.get("tool_calls") or []:
            found.append(("call", call["id"] + call["function"]["arguments"]))
        if message["role"] == "tool":
            found.append(("result", message["tool_call_id"]))
    return found


def _paired(request: dict[str, Any]) -> None:
    """Every result follows its call, and every call has its result."""
    open_calls: list[str] = []
    for message in request["messages"]:
        if message["role"] == "tool":
            assert message["tool_call_id"] in open_calls, "a result without its call"
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, "a call without its result"
        open_calls += [call["id"] for call in message.get("tool_calls") or []]
    assert not open_calls


def _is_summary(request: dict[str, Any]) -> bool:
    return SUMMARISE in json.dumps(request)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_conversation_is_summarised_before_a_turn_that_would_pass_the_share(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    answers = [
        Text(["first answer"], used=(900, 20)),
        Text(["second answer"], used=(1800, 20)),
        Text(["the gist: ", "seats by the window"], used=(1900, 30)),
        Text(["third answer"], used=(1200, 10)),
        Text(["fourth answer"], used=(1250, 10)),
    ]
    with _provided(paths, monkeypatch, *answers, kind=kind) as (alice, server):
        alice.say("first question")
        alice.say(f"second question {'y' * 400}")
        assert alice.compactions() == []
        done = alice.say(f"third question {'x' * 1200}")
        (event,) = alice.compactions()
        assert event["summary"] == "the gist: seats by the window"
        assert event["messages_before"] > event["messages_after"]
        assert event["tokens_before"] > 2000 > event["tokens_after"]
        assert "summarising" in alice.notices()
        _, _, summary, third = server.requests
        assert _is_summary(summary)
        assert "first question" in _text(summary)
        assert "first question" not in _text(third)
        assert "the gist: seats by the window" in _text(third)
        assert "third question" in _text(third)
        assert done.outcome.usage == (1900 + 1200, 0, 30 + 10, 2), "a summary is paid for as well"
        assert done.outcome.context.window == WINDOW
        alice.say("fourth question")
        fourth = server.requests[-1]
        before, after = _flat(third), _flat(fourth)
        assert after[: len(before)] == before, "another process goes on with what this one sent"
        assert after[len(before) :] == [("assistant", "third answer"), ("user", "fourth question")]
    said = [text for one in alice.conversation().messages if (text := log_file.prompt(one.message)) is not None]
    assert [text[:5] for text in said] == ["first", "secon", "third", "fourt"]


def test_a_summary_is_made_without_the_context_which_is_sent_again(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _provided(paths, monkeypatch) as (alice, server):
        calls = [ToolCalls([("write_memory", {"content": f"- note {number} {LONG}"})]) for number in range(3)]
        server._answers = _Honest(server, [Text(["first answer"]), *calls, Text(["done"]), Text(["all"])])
        alice.say("first question")
        alice.say("note it")
        alice.say("and now?")
        summaries = [request for request in server.requests if _is_summary(request)]
        assert summaries
        assert "first question" in _text(summaries[0])
        for request in summaries:
            assert "<context" not in _text(request)
            assert "<memory>" not in _text(request)
        sent = [_text(request) for request in server.requests if not _is_summary(request)]
        assert "<memory>" in sent[-1]
        assert all(text.count('<context kind=\\"environment\\">') == 1 for text in sent)


def test_a_turn_of_many_tools_is_compacted_in_the_middle(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt stays, calls stay with their results, and nothing that was recorded is lost or there twice."""
    names = [f"f{number}.txt" for number in range(12)]
    calls = [("write_file", {"path": name, "content": "y" * 500}) for name in names]
    with _provided(paths, monkeypatch) as (alice, server):
        server._answers = _Honest(
            server,
            [Text(["hello"]), *(ToolCalls([call, call]) for call in calls), Text(["all written"]), Text(["and on"])],
        )
        alice.say("first question")
        done = alice.say("write all those files, please")
        assert done.outcome.output == "all written"
        compactions = alice.compactions()
        assert len(compactions) >= 2
        sent = [request for request in server.requests[1:] if not _is_summary(request)]
        for request in sent:
            _paired(request)
            assert _text(request).count("write all those files, please") == 1
        summaries = [request for request in server.requests if _is_summary(request)]
        assert len(summaries) == len(compactions)
        assert "previous-summary" in _text(summaries[1]), "a summary is brought up to date, not summarised"
        assert "first question" not in _text(sent[-1])
        alice.say("go on")
        before, after = _flat(sent[-1]), _flat(server.requests[-1])
        assert after[: len(before)] == before
    conversation = alice.conversation()
    parts = [part for one in conversation.messages for part in one.message["parts"]]
    made = [json.loads(part["args"])["path"] for part in parts if part["part_kind"] == "tool-call"]
    returned = [part for part in parts if part["part_kind"] == "tool-return"]
    assert made == [name for name in names for _ in range(2)]
    assert len(returned) == len(made)
    assert conversation.damage == []
    assert len(conversation.compactions) == len(compactions)
    record = session_catalogue.read_ledger(paths).records[lookup.heads(paths)[session_catalogue.find(paths, "main").id]]
    assert record.message_count == len(conversation.messages)


def _filling(then: Answer, *rest: Answer) -> list[Answer]:
    return [Text(["first"], used=(900, 20)), Text(["second"], used=(1990, 20)), then, *rest]


@pytest.mark.parametrize(
    "broken", [Status(500), Status(400), Status(401), Broken("clean"), Broken("json"), Text(["  "])], ids=repr
)
def test_a_summary_that_fails_costs_neither_the_turn_nor_the_conversation(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, broken: Answer
) -> None:
    failing = [broken, broken] if isinstance(broken, Text) else [broken]
    answers = _filling(failing[0], *failing[1:], Text(["third"], used=(2100, 10)))
    with _provided(paths, monkeypatch, *answers) as (alice, server):
        alice.say("one")
        alice.say("two")
        done = alice.say("three")
        assert done.outcome.output == "third"
        assert alice.compactions() == []
        assert "could not be summarised" in alice.notices()
        assert "sk-canary" not in alice.notices()
        assert "one" in [line for _, text in _flat(server.requests[-1]) for line in text.splitlines()]
    assert alice.conversation().compactions == []
    assert alice.conversation().damage == []


def test_when_no_summary_can_be_had_and_the_window_is_full_the_beginning_is_left_out(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Answer] = [
        Text(["first"], used=(1000, 10)),
        Text(["second"], used=(1900, 10)),
        Status(503),
        Text(["third"], used=(3900, 10)),
        Status(503),
        Text(["fourth"], used=(2900, 10)),
        Text(["fifth"], used=(2950, 10)),
    ]
    with _provided(paths, monkeypatch, *answers) as (alice, server):
        for prompt in ("one", "two", f"three {LONG}", "four"):
            alice.say(prompt)
        (event,) = alice.compactions()
        assert "left out" in event["summary"]
        assert "no longer sees its beginning" in alice.notices()
        sent = [line for _, text in _flat(server.requests[-1]) for line in text.splitlines()]
        assert "one" not in sent
        assert sent[-1] == "four"
        assert any("left out here" in text for text in sent), "the model is told"
        alice.options = alice.options._replace(compact_at=None)
        alice.say("five")
        assert _flat(server.requests[-1])[: len(_flat(server.requests[-2]))] == _flat(server.requests[-2])
    said = [text for one in alice.conversation().messages if (text := log_file.prompt(one.message)) is not None]
    assert [text[:4] for text in said] == ["one", "two", "thre", "four", "five"]


def test_a_limit_of_the_turn_holds_for_summaries_too(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = _filling(Text(["gist"], used=(900, 10)), Text(["third"], used=(900, 10)))
    with _provided(paths, monkeypatch, *answers, limits=ConfiguredLimits(requests=1)) as (alice, _):
        alice.say("one")
        alice.say("two")
        with pytest.raises(DeepctlError) as raised:
            alice.say("three")
        assert isinstance(raised.value.__cause__, LimitReached)
    assert [one.message["kind"] for one in alice.conversation().messages][-1] == "request"
    assert alice.conversation().damage == []


def test_a_conversation_goes_on_whose_log_has_an_absurd_count(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Text(["first"], used=(10**400, 10**400)), *[Text(["next"], used=(900, 20))] * 3]
    with _provided(paths, monkeypatch, *answers) as (alice, _):
        with monkeypatch.context() as patched:
            patched.setattr(model_wrappers, "bounded_usage", lambda usage: usage)
            assert alice.say("one").outcome.cost is None, "it is beyond what decimals are reckoned with"
        assert alice.conversation().messages[-1].message["usage"]["input_tokens"] == 10**400
        assert alice.seen()[-1]["usage"]["input_tokens"] == MOST
        alice.say("two")
        assert alice.say("three").outcome.context.tokens == 920


def test_never_is_never(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Text(["first"], used=(900, 20)), Text(["second"], used=(3990, 20)), Text(["third"], used=(4100, 5))]
    with _provided(paths, monkeypatch, *answers, compact_at=None) as (alice, server):
        for prompt in ("one", "two", "three"):
            alice.say(prompt)
        assert len(server.requests) == 3
    assert alice.compactions() == []


def test_a_conversation_that_cannot_get_shorter_is_not_summarised_again_and_again(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One giant prompt is beyond the share by itself; nothing but it could be summarised."""
    with _provided(paths, monkeypatch, context_window=5000) as (alice, server):
        server._answers = _Honest(server, [*[ToolCalls([("ls", {"path": "."})])] * 12, Text(["done"])])
        done = alice.say(LONG * 5)
        assert done.outcome.output == "done"
        assert sum(_is_summary(request) for request in server.requests) <= 1
        assert all(LONG * 5 in _text(request) for request in server.requests if not _is_summary(request))


class TestOffline:
    """The same with the offline model, which counts tokens as they are estimated."""

    def test_it_goes_on_and_on(self, offline: Alice) -> None:
        for number in range(14):
            offline.say(f"write f{number}.txt: {LONG}")
            messages = message_filters.history_of(offline.conversation()).messages
            assert messages == repair_messages(messages)
        assert len(offline.compactions()) >= 4
        assert len(list(Path(offline.paths.workspace).glob("f*.txt"))) == 14
        last = offline.say("hello").outcome
        assert last.context.tokens < 3000
        assert "can see" in last.output
        assert "can see 14" not in last.output
        typed = [one for one in offline.conversation().messages if log_file.prompt(one.message) is not None]
        assert len(typed) == 15

    def test_memory_is_in_sight_after_a_compaction(self, offline: Alice) -> None:
        offline.say("remember I like oolong")
        for number in range(4):
            offline.say(f"write f{number}.txt: {LONG}")
        assert offline.compactions()
        assert json.dumps(offline.seen()).count("oolong") >= 1

    def test_by_hand_it_is_a_message_and_a_checkpoint_of_its_own(self, offline: Alice) -> None:
        offline.say("write a.txt: one")
        offline.say("write b.txt: two")
        whole = offline.seen()
        messages = len(offline.conversation().messages)
        done = offline.compact("the {tea}")
        assert (done.messages_before, done.messages_after) == (len(whole), 5)
        assert "4 earlier messages" in done.summary
        assert "focus" in done.summary
        assert offline.compactions() == [done.event()]
        kept = [message["parts"] for message in offline.seen()[1:]]
        assert kept == [message["parts"] for message in whole[5:]], "the last turn is there word by word"
        assert len(offline.conversation().messages) == messages + 1
        records = session_catalogue.read_ledger(offline.paths).records
        assert done.checkpoint in records
        scene = Scene(Path(offline.paths.directory).parent.parent)
        undone = scene.rewind(done.checkpoint or "")
        assert undone.safety is not None
        assert offline.seen() == whole
        assert scene.files()["b.txt"] == "two", "the files were the same before"
        scene.undo()
        assert json.dumps(offline.seen()).count("earlier messages") == 1
        scene.rewind("~1")
        assert "a.txt" in json.dumps(offline.seen())
        assert "b.txt" not in scene.files()

    def test_what_was_said_after_it_goes_back_alone(self, offline: Alice) -> None:
        offline.say("write a.txt: one")
        offline.say("write b.txt: two")
        offline.compact()
        compacted = offline.seen()
        offline.say("write c.txt: three")
        scene = Scene(Path(offline.paths.directory).parent.parent)
        scene.rewind("~1")
        assert offline.seen() == compacted
        assert sorted(scene.files()) == ["a.txt", "b.txt"]

    def test_a_turn_alone_becomes_its_summary_and_its_answer(self, offline: Alice) -> None:
        offline.say("write a.txt: one")
        done = offline.compact()
        assert done.messages_after == 2
        assert len(offline.seen()) == 2
        size = os.path.getsize(log_file.log_path(*_log(offline)))
        with pytest.raises(NotFound, match="nothing to compact"):
            offline.compact()
        assert os.path.getsize(log_file.log_path(*_log(offline))) == size

    def test_there_is_nothing_to_compact_where_nothing_was_said(self, offline: Alice) -> None:
        session_catalogue.start(offline.paths, "main")
        with pytest.raises(NotFound, match="nothing to compact"):
            offline.compact()

    def test_a_long_last_turn_is_compacted_too(self, offline: Alice) -> None:
        offline.options = OFFLINE._replace(compact_at=None)
        offline.say("hello")
        offline.say("\n".join(f"write f{number}.txt: {LONG}" for number in range(5)))
        before = len(json.dumps(offline.seen()))
        offline.compact()
        assert len(json.dumps(offline.seen())) < before * 0.6, "the calls stay with their results, the prompt does not"

    def test_after_a_killed_turn_it_can_be_compacted(self, offline: Alice) -> None:
        offline.say("write a.txt: one")
        directory, name = _log(offline)
        writer = session_log.LogWriter(directory, name, 2)
        writer.message({"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "cut short"}]})
        call = {"part_kind": "tool-call", "tool_name": "ls", "tool_call_id": "1", "args": "{}"}
        writer.message({"kind": "response", "parts": [call]})
        writer.close()
        offline.compact()
        offline.say("hello")
        assert "cut short" in json.dumps(offline.seen())
        assert len(offline.conversation().compactions) == 1

    def test_in_memory_it_is_the_same(self) -> None:
        events: list[dict[str, Any]] = []
        with closing(TurnRunner(OFFLINE, environment={}, note=None)) as running:
            chat = EphemeralChat(running)
            with pytest.raises(NotFound):
                chat.compact(None, events.append)
            for number in range(8):
                chat.turn(f"write f{number}.txt: {LONG}", events.append)
            assert [event for event in events if event["type"] == "compaction"]
            done = chat.compact("x", events.append)
            assert done.tokens_after < done.tokens_before
            said = chat.turn("hello", events.append).output
            assert "can see 0 earlier turns" in said, "the prompt of the last turn was long, and is in the summary"


def _log(alice: Alice) -> tuple[str, str]:
    session = session_catalogue.find(alice.paths, "main")
    return session.directory, session.log


def test_by_hand_the_messages_alone_are_counted_and_a_useless_summary_is_not_paid_for(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Text(["word " * 400], used=(9000, 400)), Text(["Short."], used=(9500, 4)), Text(["A summary."])]
    with _provided(paths, monkeypatch, *answers) as (alice, server):
        alice.options = alice.options._replace(compact_at=None, context_window=100_000)
        alice.say("hello")
        alice.say("Short, please.")
        done = alice.compact()
        assert 400 < done.tokens_before < 1500, "without tools and instructions"
        assert done.tokens_after < 100
        assert 0.9 < done.share < 1, "tools and instructions stay"
        with pytest.raises(NotFound, match="nothing to compact"):
            alice.compact()
        assert len(server.requests) == 3


def test_by_hand_a_failing_model_changes_nothing(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Answer] = [Text(["first"]), Text(["second"]), Status(500), Text(["gist"])]
    with _provided(paths, monkeypatch, *answers) as (alice, _):
        alice.say("one")
        alice.say("two")
        before = alice.conversation()
        records = len(session_catalogue.read_ledger(paths).records)
        with pytest.raises(ModelFailed):
            alice.compact()
        assert alice.conversation() == before
        assert len(session_catalogue.read_ledger(paths).records) == records
        alice.compact()
        assert alice.conversation().messages[:-1] == before.messages


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_kill_leaves_the_conversation_as_before_or_as_after(
    paths: ProfilePaths, tmp_path: Path, by_hand: bool
) -> None:
    """SIGKILL before calls of the file system all over a turn that is compacted, and a compaction by hand."""
    import shutil

    alice = Alice(paths, OFFLINE._replace(compact_at=None))
    for number in range(3):
        alice.say(f"write f{number}.txt: {LONG}")
    base = tmp_path / "base"
    shutil.copytree(paths.directory, base, symlinks=True)
    whole = alice.conversation()

    def operation() -> None:
        again = Alice(paths, OFFLINE)
        again.compact() if by_hand else again.say("read f0.txt")

    calls = count(operation)
    assert len(alice.conversation().compactions) == 1
    found = set()
    for at in range(1, calls + 1, max(1, calls // 12)):
        shutil.rmtree(paths.directory)
        shutil.copytree(base, paths.directory, symlinks=True)
        assert in_child(operation, at, kill) == "killed"
        after = alice.conversation()
        assert after.messages[: len(whole.messages)] == whole.messages
        assert all(damage.torn for damage in after.damage)
        seen = session_log.compacted_context(after)
        assert (seen.summary is not None) == bool(after.compactions)
        found.add(seen.summary is not None)
        messages = ModelMessagesTypeAdapter.validate_python([after.messages[place].message for place in seen.places])
        assert repair_messages(messages)
        done = Alice(paths, OFFLINE).say("hello")
        assert "offline model" in done.outcome.output
        assert alice.conversation().messages[: len(whole.messages)] == whole.messages
    assert found == {False, True}, "the kills missed the compaction; aim again"


class TestWindows:
    def test_the_setting_comes_before_what_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
        for name, window in (("anthropic:claude-sonnet-4-5", 200_000), ("offline", None)):
            model = resolve(name, base_url=None, environment=os.environ).model
            assert window_of(model) == window
            assert window_of(model, 9000) == 9000

    @pytest.mark.parametrize("value", ["10", "80", "95", "never"])
    def test_shares_that_can_be_set(self, value: str, tmp_path: Path) -> None:
        path = str(tmp_path / "config.toml")
        settings.change(path, "compact_at", value)
        assert settings.validate("compact_at", value) == value
        assert str(settings.read("profile", path).checked()["compact_at"]) == value

    @pytest.mark.parametrize("value", ["0", "9", "96", "100", "80%", "Never", "-5", "8e1"])
    def test_shares_that_cannot(self, value: str) -> None:
        with pytest.raises(DeepctlError):
            settings.validate("compact_at", value)

    def test_a_window_is_a_number_of_tokens(self) -> None:
        assert settings.validate("context_window", "32768") == "32768"
        for value in ("32K", "999", "never", "0"):
            with pytest.raises(DeepctlError):
                settings.validate("context_window", value)

    def test_the_default_is_one(self) -> None:
        assert settings.SETTINGS["compact_at"].default == str(COMPACT_AT)
        assert Options("offline").compact_at == COMPACT_AT


class TestAtTheCommandLine:
    """Settings, events, and what other commands make of a conversation that was compacted."""

    @pytest.fixture(autouse=True)
    def alice(self, deepctl: InProcess) -> None:
        deepctl("profiles", "create", "alice").ok()
        deepctl("config", "set", "context_window", "2000", "--user", "alice").ok()
        deepctl("config", "set", "compact_at", "60", "--user", "alice").ok()

    def test_a_chat_tells_of_it_as_an_event_that_is_described(self, deepctl: InProcess) -> None:
        chat = ("chat", "--json", "--user", "alice")
        for number in range(3):
            events = deepctl(*chat, f"write f{number}.txt: {LONG}").ok().events
        found, *_ = [event for event in events if event["type"] == "compaction"]
        schema = json.loads((Path(__file__).parents[2] / "docs/schemas.json").read_text())
        validator = Draft202012Validator({**schema["$defs"]["chat"], "$defs": schema["$defs"]})
        validator.validate(found)
        broken = {key: value for key, value in found.items() if key != "summary"}
        assert not validator.is_valid(broken)
        assert found["summary"] in deepctl("sessions", "show", "--user", "alice").ok().stdout
        assert events[-1]["type"] == "result"

    def test_never_is_never(self, deepctl: InProcess) -> None:
        deepctl("config", "set", "compact_at", "never", "--user", "alice").ok()
        for number in range(3):
            said = deepctl("chat", "--json", "--user", "alice", f"write f{number}.txt: {LONG}").ok()
            assert '"compaction"' not in said.stdout

    def test_other_commands_still_have_everything(self, deepctl: InProcess, tmp_path: Path) -> None:
        user = ("--user", "alice")
        deepctl("chat", *user, "remember I like oolong").ok()
        for number in range(3):
            deepctl("chat", *user, f"write f{number}.txt: {LONG}").ok()
        shown = deepctl("sessions", "show", *user, "--json").ok().json
        prompts = [log_file.prompt(entry["message"]) for entry in shown["messages"]]
        assert prompts[0] == "remember I like oolong"
        kinds = {part["part_kind"] for entry in shown["messages"] for part in entry["message"]["parts"]}
        assert "compaction" in kinds
        found = deepctl("sessions", "search", "earlier messages", *user, "--json").json["matches"]
        assert {match["part"] for match in found} == {"summary"}
        exported = deepctl("sessions", "export", *user).ok().stdout
        (tmp_path / "main.json").write_text(exported)
        deepctl("sessions", "import", str(tmp_path / "main.json"), "--as", "again", *user).ok()
        again = deepctl("sessions", "export", "again", *user).ok().json
        before = json.loads(exported)
        assert (again["messages"], again["format"]) == (before["messages"], before["format"])
        assert "earlier messages" in deepctl("sessions", "export", "--format", "markdown", *user).ok().stdout
        assert deepctl("checkpoints", "verify", *user).code == 0
        purged = deepctl("memory", "forget", "oolong", "--purge", "--yes", "--json", *user).ok().json
        assert "oolong" not in deepctl("memory", "show", *user).ok().stdout
        assert {one["name"] for one in purged["still_in"] if one["place"] == "session"} == {"main", "again"}
        main = (*user, "--session", "main")
        deepctl("chat", *main, "hello").ok()
        deepctl("checkpoints", "rewind", "~2", *main, "--json").ok()
        deepctl("checkpoints", "undo", *main, "--json").ok()
        assert deepctl("doctor", "--json", *user).code == 0

    def test_a_profile_keeps_it_on_another_machine(self, deepctl: InProcess, tmp_path: Path) -> None:
        for number in range(3):
            deepctl("chat", "--user", "alice", f"write f{number}.txt: {LONG}").ok()
        file = str(tmp_path / "alice.deepctl")
        deepctl("profiles", "export", file, "--user", "alice").ok()
        deepctl("profiles", "import", file, "--as", "bob").ok()
        shown = [
            deepctl("sessions", "show", "--user", user, "--json").ok().json["messages"] for user in ("alice", "bob")
        ]
        assert shown[0] == shown[1]
        said = deepctl("chat", "--user", "bob", "hello").ok().stdout
        assert "can see 3" not in said
