"""`FileCheckpointStore` and `InMemoryCheckpointStore`, as an application uses them, and the agent's own tools."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from deepctl import (
    Checkpoint,
    DeepAgentDeps,
    FileCheckpointStore,
    InMemoryCheckpointStore,
    LocalBackend,
    RewindRequested,
    StateBackend,
    create_deep_agent,
    offline_model,
)
from deepctl.agent import file_checkpoint_store
from deepctl.agent.checkpoint_stores import CheckpointFrequency, CheckpointStore
from deepctl.errors import Damaged, Locked, Refused
from deepctl.locks import Lock
from deepctl.store.message_chains import MessageChains
from deepctl.store.rewind import RewindConflicts
from tests.support.command import InProcess

_BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def _conversation(turns: int, flavour: str = "") -> list[ModelMessage]:
    found: list[ModelMessage] = []
    for number in range(turns):
        found.append(
            ModelRequest(parts=[UserPromptPart(f"prompt {number}{flavour}", timestamp=_BEGAN)], timestamp=_BEGAN)
        )
        found.append(ModelResponse(parts=[TextPart(f"answer {number}")], timestamp=_BEGAN))
    return found


def _checkpoint(identity: str, turns: int, label: str = "", flavour: str = "") -> Checkpoint:
    conversation = _conversation(turns, flavour)
    return Checkpoint(
        identity, label, turns, conversation, len(conversation), _BEGAN + timedelta(minutes=turns), {"n": turns}
    )


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return InMemoryCheckpointStore() if request.param == "memory" else FileCheckpointStore(tmp_path / "store")


def _run(operation: Any) -> Any:
    return asyncio.run(operation)


def test_a_store_keeps_lists_and_removes(store: CheckpointStore) -> None:
    async def story() -> None:
        for identity, turns, label in (("c", 3, "auto"), ("a", 1, "auto"), ("b", 2, "before refactor")):
            await store.save(_checkpoint(identity, turns, label))
        assert await store.count() == 3
        assert [found.id for found in await store.list_all()] == ["a", "b", "c"], (
            "oldest first, whatever was saved first"
        )
        found = await store.get("b")
        assert found is not None
        assert (found.label, found.turn, found.message_count) == ("before refactor", 2, 4)
        assert found.messages == _conversation(2)
        assert found.created_at == _BEGAN + timedelta(minutes=2)
        assert found.metadata["n"] == 2
        by_label = await store.get_by_label("auto")
        assert by_label is not None
        assert by_label.id == "a", "the oldest of that label"
        assert await store.get("nope") is None
        assert await store.get_by_label("nope") is None
        found.messages.clear()
        again = await store.get("b")
        assert again is not None
        assert len(again.messages) == 4, "what a caller does to its list is its own business"
        await store.save(_checkpoint("b", 2, "renamed"))
        assert (await store.count(), await store.get_by_label("before refactor")) == (3, None)
        assert await store.remove("c") is True, "a library removes any, the newest too"
        assert await store.remove("c") is False
        assert await store.remove_oldest() is True
        assert [one.label for one in await store.list_all()] == ["renamed"]
        await store.clear()
        assert (await store.count(), await store.list_all(), await store.remove_oldest()) == (0, [], False)

    _run(story())


def test_what_was_saved_is_there_for_the_next_process_and_for_others_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        one, other = FileCheckpointStore(tmp_path / "s"), FileCheckpointStore(tmp_path / "s")
        await one.save(_checkpoint("a", 1))
        await other.save(_checkpoint("b", 2))
        await one.save(_checkpoint("c", 3))
        await asyncio.gather(*(store.save(_checkpoint(f"{n}", n)) for n, store in enumerate([one, other] * 5, 4)))
        for store in (one, other, FileCheckpointStore(tmp_path / "s")):
            found = await store.list_all()
            assert [checkpoint.turn for checkpoint in found] == list(range(1, 14))
            assert all(checkpoint.messages == _conversation(checkpoint.turn) for checkpoint in found)
            assert await store.damaged() == []

    _run(story())
    logs = [path for path in (tmp_path / "s" / "messages").iterdir() if path.suffix == ".jsonl"]
    assert len(logs) == 1, "one conversation that goes on is one log, whoever saves it"
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "s").rglob("*")} == {"0o600", "0o700"}


def test_conversations_that_part_share_what_they_have_in_common(tmp_path: Path) -> None:
    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        for number in range(1, 20):
            await store.save(_checkpoint(f"x{number}", number))
            await store.save(_checkpoint(f"y{number}", number, flavour="" if number < 3 else " other"))
        fork = _conversation(10)[:7] + _conversation(9, " other")[7:]
        await store.save(Checkpoint("fork", "", 9, fork, len(fork), _BEGAN))
        for again in (store, FileCheckpointStore(tmp_path / "s")):
            found = {one.id: one.messages for one in await again.list_all()}
            assert found["x19"] == _conversation(19)
            assert found["y19"] == _conversation(19, " other")
            assert found["fork"] == fork

    _run(story())
    size = sum(path.stat().st_size for path in (tmp_path / "s" / "messages").iterdir())
    assert size < 80 * 700, "each message once"


def test_a_message_that_was_changed_in_place_is_saved_as_it_is_now(tmp_path: Path) -> None:
    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        conversation = _conversation(2)
        await store.save(Checkpoint("a", "", 2, conversation, 4, _BEGAN))
        conversation[-1].parts[0].content = "changed"  # type: ignore[union-attr,misc]
        await store.save(Checkpoint("b", "", 2, conversation, 4, _BEGAN))
        found = await store.get("b")
        assert found is not None
        assert found.messages[-1].parts[0] == TextPart("changed")
        before = await store.get("a")
        assert before is not None
        assert before.messages == _conversation(2)

    _run(story())


def test_what_pydantic_deep_wrote_is_read_and_a_bad_file_takes_only_itself_down(tmp_path: Path) -> None:
    def write(identity: str, turns: int) -> None:
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        document = {
            "id": identity,
            "label": f"turn-{turns}",
            "turn": turns,
            "messages": ModelMessagesTypeAdapter.dump_python(_conversation(turns), mode="json"),
            "message_count": turns * 2,
            "created_at": (_BEGAN + timedelta(minutes=turns)).isoformat(),
            "metadata": {"last_tool": "x"},
        }
        (tmp_path / f"{identity}.json").write_text(json.dumps(document))

    async def story() -> None:
        write("old-1", 1)
        write("old-2", 2)
        (tmp_path / "bad.json").write_bytes(b'{"id": "ba')
        (tmp_path / "other.json").write_text('{"id": "../other"}')
        store = FileCheckpointStore(tmp_path)
        await store.save(_checkpoint("new", 3))
        assert [one.id for one in await store.list_all()] == ["old-1", "old-2", "new"]
        found = await store.get_by_label("turn-2")
        assert found is not None
        assert (found.messages, found.metadata["last_tool"]) == (_conversation(2), "x")
        assert {problem.id for problem in await store.damaged()} == {"bad", "other"}
        with pytest.raises(Damaged):
            await store.get("bad")
        assert await store.remove("../other") is False
        assert await store.remove_oldest()
        assert not (tmp_path / "old-1.json").exists()
        await store.save(_checkpoint("old-2", 2, "taken over"))
        assert not (tmp_path / "old-2.json").exists()
        assert [one.label for one in await store.list_all()] == ["taken over", ""]
        assert (tmp_path / "bad.json").exists(), "unreadable never means deletable"

    _run(story())


def test_one_damaged_message_takes_down_only_the_checkpoints_after_it(tmp_path: Path) -> None:
    async def story() -> None:
        store = FileCheckpointStore(tmp_path)
        for number in range(1, 6):
            await store.save(_checkpoint(f"c{number}", number))
        (path,) = (path for path in (tmp_path / "messages").iterdir())
        lines = path.read_bytes().splitlines(keepends=True)
        lines[5] = lines[5].replace(b"prompt", b"promqt")
        path.write_bytes(b"".join(lines))
        fresh = FileCheckpointStore(tmp_path)
        assert [one.id for one in await fresh.list_all()] == ["c1", "c2"]
        assert {problem.id for problem in await fresh.damaged()} == {"c3", "c4", "c5"}
        assert await fresh.count() == 5
        await fresh.save(_checkpoint("c6", 6))
        found = await FileCheckpointStore(tmp_path).get("c6")
        assert found is not None
        assert found.messages == _conversation(6)

    _run(story())


def test_files_are_kept_and_only_the_agents_work_is_taken_back(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()

    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        (place / "a.txt").write_text("one")
        await store.save(_checkpoint("first", 1), workspace=place, by_agent=False)
        (place / "a.txt").write_text("two")
        (place / "agent.txt").write_text("x")
        await store.save(_checkpoint("second", 2), workspace=place)
        (place / "mine.txt").write_text("mine")
        await store.save(_checkpoint("third", 3), workspace=place, by_agent=False)
        assert await store.rewind("first", place) == ["a.txt", "agent.txt"]
        assert {path.name: path.read_text() for path in place.iterdir()} == {"a.txt": "one", "mine.txt": "mine"}
        assert await store.rewind("first", place) == []
        assert await store.count() == 4, "what was before has been kept"
        (place / "a.txt").write_text("the user's")
        await store.save(_checkpoint("fourth", 4), workspace=place, by_agent=False)
        with pytest.raises(RewindConflicts):
            await store.rewind("second", place)
        assert (place / "a.txt").read_text() == "the user's"
        await store.save(_checkpoint("words", 4))
        with pytest.raises(Refused):
            await store.rewind("words", place)
        found = await store.get("words")
        assert found is not None
        assert not found.has_files
        assert "no directory" in found.no_files_reason

    _run(story())


def _agent(*answers: list[tuple[str, dict[str, Any]]] | str) -> tuple[FunctionModel, list[list[ModelMessage]]]:
    """A model that gives these answers in turn: tool calls, or text. And the histories it was sent."""
    seen: list[list[ModelMessage]] = []
    left = list(answers)

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        seen.append(list(messages))
        answer = left.pop(0)
        if isinstance(answer, str):
            yield answer
            return
        for number, (name, arguments) in enumerate(answer):
            yield {
                number: DeltaToolCall(name=name, json_args=json.dumps(arguments), tool_call_id=f"c{len(left)}-{number}")
            }

    return FunctionModel(stream_function=stream), seen


def _results(messages: list[ModelMessage]) -> list[str]:
    return [
        str(part.content)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]


def test_an_applications_runs_make_checkpoints_and_its_agent_goes_back(tmp_path: Path) -> None:
    store = FileCheckpointStore(tmp_path / "s")
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=store)
    model, seen = _agent(
        [("write_file", {"path": "a.txt", "content": "good"}), ("save_checkpoint", {"label": "good"})],
        [("write_file", {"path": "a.txt", "content": "bad"}), ("list_checkpoints", {})],
        [("rewind_to", {"checkpoint": "good", "reason": "bad was worse"})],
        [("rewind_to", {"checkpoint": "good"})],
        "Done.",
    )
    agent = create_deep_agent(model)

    async def story() -> None:
        with pytest.raises(RewindRequested) as caught:
            await agent.run("improve it", deps=deps)
        assert (tmp_path / "work" / "a.txt").read_text() == "good"
        assert caught.value.label == "good"
        prompt = caught.value.prompt("improve it")
        result = await agent.run(prompt, deps=deps, message_history=caught.value.messages)
        assert result.output == "Done."

    _run(story())
    assert "good turn 1" in _results(seen[2])[-1]
    assert "once for this request" in _results(seen[-1])[-1]
    assert "bad was worse" in str(seen[3])
    found = _run(store.list_all())
    assert [one.metadata.get("kind") for one in found][:3] == ["turn", "tool", "manual"]
    assert found[0].messages == []
    assert all(one.has_files and one.no_files_reason == "" for one in found)


def test_two_users_share_an_agent_and_nothing_else(tmp_path: Path) -> None:
    agent = create_deep_agent(offline_model())
    users = {
        name: DeepAgentDeps(
            backend=LocalBackend(tmp_path / name / "work"), checkpoint_store=FileCheckpointStore(tmp_path / name / "s")
        )
        for name in ("alice", "bob")
    }

    async def story() -> None:
        await asyncio.gather(*(agent.run(f"write {name}.txt: {name}", deps=deps) for name, deps in users.items()))

    _run(story())
    for name in users:
        kept = b"".join(path.read_bytes() for path in (tmp_path / name / "s").rglob("*") if path.is_file())
        other = {"alice": b"bob", "bob": b"alice"}[name]
        assert name.encode() in kept
        assert other not in kept


@pytest.mark.parametrize("make", [InMemoryCheckpointStore, lambda: FileCheckpointStore("store")])
def test_without_a_directory_conversations_alone_are_kept(make: Callable[[], CheckpointStore], tmp_path: Path) -> None:
    previous = Path.cwd()
    os.chdir(tmp_path)
    try:
        store = make()
        agent = create_deep_agent(offline_model(), checkpoint_frequency="every_turn")
        _run(agent.run("write a.txt: x", deps=DeepAgentDeps(backend=StateBackend(), checkpoint_store=store)))
        found = _run(store.list_all())
    finally:
        os.chdir(previous)
    assert [one.label for one in found] == ["turn-0", "turn-1"]
    assert len(found[1].messages) == 4


def test_a_profiles_checkpoints_can_be_read_as_a_library(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "write a.txt: x", "--user", "alice").ok()
    store = FileCheckpointStore(home / "profiles/alice/checkpoints")
    found = _run(store.list_all())
    assert [len(one.messages) for one in found] == [0, 3, 4]
    _run(store.save(_checkpoint("mine", 2, "mine")))
    listed = deepctl("checkpoints", "list", "--user", "alice", "--json").ok().json
    assert "mine" in {one["id"] for one in listed["checkpoints"]}
    assert listed["damaged"] == []
    assert deepctl("checkpoints", "verify", "--user", "alice").code == 0
    shown = deepctl("checkpoints", "show", "mine", "--user", "alice", "--json").ok().json
    assert len(shown["messages"]) == 4


def test_a_rewind_with_nothing_to_do_leaves_nothing_that_later_saves_rely_on(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    (place / "b.log").write_text("precious")

    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        await store.save(_checkpoint("a", 1), workspace=place, exclude=["*.log"])
        assert await store.rewind("a", place, exclude=[]) == []
        await store.save(_checkpoint("b", 2), workspace=place)
        again = FileCheckpointStore(tmp_path / "s")
        (place / "b.log").unlink()
        assert await again.rewind("b", place, by_agent=True) == ["b.log"]

    _run(story())
    assert (place / "b.log").read_text() == "precious"


def test_a_save_that_failed_elsewhere_does_not_get_into_another_conversation(tmp_path: Path) -> None:
    async def story() -> None:
        one, other = FileCheckpointStore(tmp_path / "s"), FileCheckpointStore(tmp_path / "s")
        await one.save(_checkpoint("a", 1))
        with pytest.raises(OSError, match="nonexistent"):
            await other.save(_checkpoint("b", 2, flavour=" other"), workspace=tmp_path / "nonexistent")
        await one.save(_checkpoint("c", 2))
        found = await one.get("c")
        assert found is not None
        assert found.messages == _conversation(2)

    _run(story())


@pytest.mark.parametrize("written", ["a save that failed", "half a line"])
def test_a_log_that_another_process_wrote_to_and_did_not_finish_is_read_again(tmp_path: Path, written: str) -> None:
    """The ledger says nothing of it: the process failed or was killed before it came to that."""

    async def story() -> None:
        one, other = FileCheckpointStore(tmp_path / "s"), FileCheckpointStore(tmp_path / "s")
        await one.save(_checkpoint("a", 1))
        (log,) = (tmp_path / "s" / "messages").glob("*.jsonl")
        if written == "half a line":
            log.write_bytes(log.read_bytes() + b'{"v":')
        else:
            with pytest.raises(OSError, match="nonexistent"):
                await other.save(_checkpoint("b", 2), workspace=tmp_path / "nonexistent")
        size = log.stat().st_size
        await one.save(_checkpoint("c", 2))
        await one.save(_checkpoint("d", 3))
        if written == "a save that failed":
            assert log.read_bytes().count(b"prompt 1") == 1, "what it wrote is used"
        assert log.stat().st_size > size
        again = FileCheckpointStore(tmp_path / "s")
        for store in (one, again):
            assert [found.messages for found in await store.list_all()] == [_conversation(turns) for turns in (1, 2, 3)]
            assert await store.damaged() == []

    _run(story())


def test_an_id_that_is_saved_again_means_the_later_state(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()

    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        for text, identity, label in (("v1", "a", "old"), ("v2", "a", ""), ("v3", "b", "")):
            (place / "f").write_text(text)
            await store.save(_checkpoint(identity, 1, label), workspace=place)
        await store.rewind("a", place)
        assert await store.get_by_label("old") is None

    _run(story())
    assert (place / "f").read_text() == "v2"


def test_what_changed_since_the_last_save_is_somebody_elses_unless_said_otherwise(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()

    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        (place / "f").write_text("before")
        await store.save(_checkpoint("a", 1), workspace=place, by_agent=False)
        (place / "f").write_text("agent")
        await store.save(_checkpoint("b", 2), workspace=place)
        (place / "f").write_text("the user's")
        with pytest.raises(RewindConflicts):
            await store.rewind("a", place)
        assert (place / "f").read_text() == "the user's"
        assert await store.rewind("a", place, by_agent=True) == ["f"]

    _run(story())


def test_what_was_excluded_is_never_taken_for_deleted(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    (place / "b.log").write_text("log")

    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        (place / "f").write_text("one")
        await store.save(_checkpoint("a", 1), workspace=place, exclude=["*.log"], by_agent=False)
        (place / "f").write_text("two")
        await store.save(_checkpoint("b", 2), workspace=place, exclude=["*.log"])
        await store.rewind("a", place, exclude=[])
        await store.save(_checkpoint("c", 3), workspace=place, exclude=["*.log"])
        (place / "b.log").write_text("the user's")
        await store.rewind("a", place, exclude=[])

    _run(story())
    assert (place / "b.log").read_text() == "the user's"


def test_a_rewind_that_was_killed_is_finished_before_anything_else(tmp_path: Path) -> None:
    from tests.store.faults import in_child, kill

    place = tmp_path / "work"
    place.mkdir()

    def again() -> FileCheckpointStore:
        return FileCheckpointStore(tmp_path / "s")

    async def story() -> None:
        for number in range(2):
            for name in "fg":
                (place / name).write_text(f"{name}{number}")
            await again().save(_checkpoint(f"c{number}", 1), workspace=place, by_agent=bool(number))

    _run(story())
    killed = 0
    for at in range(40, 140, 7):
        for name in "fg":
            (place / name).write_text(f"{name}1")
        _run(again().save(_checkpoint("c1", 1), workspace=place))
        killed += in_child(lambda: _run(again().rewind("c0", place)), at, kill) == "killed"
        _run(again().save(_checkpoint(f"later-{at}", 1)))
        assert {path.read_text() for path in place.iterdir()} in ({"f0", "g0"}, {"f1", "g1"})
        assert _run(again().damaged()) == []
    assert killed > 5


def test_what_is_cleared_is_in_no_file_any_more(tmp_path: Path) -> None:
    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        (tmp_path / "s" / "package.json").write_text("{}")
        await store.save(_checkpoint("a", 1, flavour=" canary-1"))
        await store.save(_checkpoint("b", 1, flavour=" canary-2"))
        assert await store.count() == 3, "what cannot be read counts, too"
        assert await store.remove("package") is False
        await store.remove("a")
        found = await store.get("b")
        assert found is not None
        await store.save(_checkpoint("c", 2, flavour=" canary-2"))
        await store.clear()

    _run(story())
    kept = b"".join(
        path.read_bytes() for path in (tmp_path / "s").rglob("*") if "messages" in str(path) and path.is_file()
    )
    assert b"canary" not in kept
    assert (tmp_path / "s" / "package.json").exists()


def test_what_changes_between_two_tool_calls_of_a_run_is_not_the_agents(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    answers = 0

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        nonlocal answers
        answers += 1
        if answers == 3:
            yield "Done."
            return
        (work / f"mine-{answers}.txt").write_text("the user's, while the model was thinking")
        arguments = json.dumps({"path": f"agents-{answers}.txt", "content": "x"})
        yield {0: DeltaToolCall(name="write_file", json_args=arguments, tool_call_id=f"c{answers}")}

    store = FileCheckpointStore(tmp_path / "s")
    deps = DeepAgentDeps(backend=LocalBackend(work), checkpoint_store=store)
    _run(create_deep_agent(FunctionModel(stream_function=stream)).run("go", deps=deps))
    first = _run(store.list_all())[0]
    assert _run(store.rewind(first.id, work)) == ["agents-1.txt", "agents-2.txt"]
    assert sorted(path.name for path in work.iterdir()) == ["mine-1.txt", "mine-2.txt"]


@pytest.mark.parametrize("objects", ["one object", "an object a request"])
def test_a_users_requests_that_wait_for_a_lock_hold_up_nobody_else(tmp_path: Path, objects: str) -> None:
    """Of the threads that work is done in there are forty, for all users."""
    shared = FileCheckpointStore(tmp_path / "alice")
    done: list[int] = []

    async def alices(number: int) -> None:
        store = shared if objects == "one object" else FileCheckpointStore(tmp_path / "alice")
        await store.save(_checkpoint(f"c{number}", number))
        done.append(number)

    async def story() -> None:
        with Lock(str(tmp_path / "alice" / ".lock"), profile="alice", command="another process"):
            waiting = [asyncio.create_task(alices(number)) for number in range(50)]
            await asyncio.sleep(0)
            bobs = DeepAgentDeps(
                backend=LocalBackend(tmp_path / "work"), checkpoint_store=FileCheckpointStore(tmp_path / "bob")
            )
            agent = create_deep_agent(offline_model())
            result = await asyncio.wait_for(agent.run("write a.txt: x", deps=bobs), 20)
            assert "Wrote" in result.output
            assert done == []
        await asyncio.gather(*waiting)
        assert done == list(range(50)), "in the order in which they came"

    _run(story())


def test_a_store_whose_lock_nobody_lets_go_says_who_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepctl.agent.file_checkpoint_store._WAIT_SECONDS", 0.1)
    store = FileCheckpointStore(tmp_path / "s")
    with (
        Lock(str(tmp_path / "s" / ".lock"), profile="s", command="checkpoints verify"),
        pytest.raises(Locked, match="checkpoints verify"),
    ):
        _run(store.count())
    assert _run(store.count()) == 0


def _killing_itself(tmp_path: Path, frequency: CheckpointFrequency, calls: int) -> None:
    """In a process of its own, a run whose one answer makes this many calls, killed in the last of them."""
    arguments = [("write_file", {"path": f"{number}.txt", "content": "agent"}) for number in range(1, calls)]
    model, _ = _agent([*arguments, ("die", {})], "Done.")
    agent = create_deep_agent(model, checkpoint_frequency=frequency)

    @agent.tool_plain
    def die() -> str:
        (tmp_path / "work" / "last.txt").write_text("agent")
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    _run(agent.run("go", deps=_deps(tmp_path)))


def _deps(tmp_path: Path) -> DeepAgentDeps:
    store = FileCheckpointStore(tmp_path / "s")
    return DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=store)


@pytest.mark.parametrize("frequency", ["every_tool", "every_turn"])
@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("then", ["a run", "a save", "nothing"])
def test_what_a_killed_run_changed_is_a_conflict_whatever_is_done_next(
    tmp_path: Path, frequency: CheckpointFrequency, calls: int, then: str
) -> None:
    from tests.store.faults import in_child, kill

    assert in_child(lambda: _killing_itself(tmp_path, frequency, calls), 0, kill) == "killed"
    (tmp_path / "work" / "mine.txt").write_text("the user's")
    if then == "a run":
        agent = create_deep_agent(_agent("Hello.")[0], checkpoint_frequency=frequency)
        _run(agent.run("hello", deps=_deps(tmp_path)))
    elif then == "a save":
        _run(FileCheckpointStore(tmp_path / "s").save(_checkpoint("saved", 1), workspace=tmp_path / "work"))
    store = FileCheckpointStore(tmp_path / "s")
    began = _run(store.get_by_label("turn-0"))
    with pytest.raises(RewindConflicts) as caught:
        _run(store.rewind(began.id, tmp_path / "work"))
    assert {b"last.txt", b"mine.txt"} <= set(caught.value.paths)
    assert {"last.txt", "mine.txt"} <= {path.name for path in (tmp_path / "work").iterdir()}


@pytest.mark.parametrize("frequency", ["every_tool", "every_turn"])
def test_after_a_run_that_failed_or_was_cancelled_an_edit_is_the_users(
    tmp_path: Path, frequency: CheckpointFrequency
) -> None:
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        if not _results(messages):
            arguments = json.dumps({"path": "a.txt", "content": "agent"})
            yield {0: DeltaToolCall(name="write_file", json_args=arguments, tool_call_id="c")}
            return
        if "fail" in str(messages):
            raise RuntimeError("the provider failed")
        yield {0: DeltaToolCall(name="wait", json_args="{}", tool_call_id="w")}

    agent = create_deep_agent(FunctionModel(stream_function=stream), checkpoint_frequency=frequency)
    waiting = asyncio.Event()

    @agent.tool_plain
    async def wait() -> str:
        (tmp_path / "work" / "b.txt").write_text("agent")
        waiting.set()
        await asyncio.sleep(60)
        return ""

    async def story() -> None:
        deps = _deps(tmp_path)
        with pytest.raises(RuntimeError, match="failed"):
            await agent.run("fail", deps=deps)
        (tmp_path / "work" / "one.txt").write_text("the user's")
        running = asyncio.create_task(agent.run("be stopped", deps=deps))
        await waiting.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        (tmp_path / "work" / "two.txt").write_text("the user's")
        store = FileCheckpointStore(tmp_path / "s")
        first = (await store.list_all())[0]
        await store.rewind(first.id, tmp_path / "work")

    _run(story())
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"one.txt", "two.txt"}


def test_without_checkpoints_of_their_own_runs_never_take_an_edit_for_theirs(tmp_path: Path) -> None:
    model, _ = _agent([("save_checkpoint", {"label": "good"})], [("rewind_to", {"checkpoint": "good"})], "Done.")
    agent = create_deep_agent(model, checkpoint_frequency="manual_only")
    deps = _deps(tmp_path)
    (tmp_path / "work").mkdir(exist_ok=True)
    store = FileCheckpointStore(tmp_path / "s")

    async def story() -> None:
        await store.save(_checkpoint("before", 1), workspace=tmp_path / "work")
        (tmp_path / "work" / "mine.txt").write_text("the user's")
        with contextlib.suppress(RewindRequested):
            await agent.run("go", deps=deps)
        with pytest.raises(RewindConflicts):
            await store.rewind("before", tmp_path / "work")

    _run(story())
    assert (tmp_path / "work" / "mine.txt").read_text() == "the user's"


def test_what_a_store_forgets_is_not_taken_for_the_agents(tmp_path: Path) -> None:
    notebook = tmp_path / "work" / ".deep/memory/main/MEMORY.md"
    notebook.parent.mkdir(parents=True)

    async def story() -> None:
        store = FileCheckpointStore(tmp_path / "s")
        text = ""
        for number, by_agent in enumerate((False, True, False, True, True)):
            await store.save(_checkpoint(f"c{number}", number), workspace=tmp_path / "work", by_agent=by_agent)
            text += f"- {'agent' if number in (0, 2) else 'user'} {number}\n"
            notebook.write_text(text)
        for number in (2, 1, 3):
            await store.remove(f"c{number}")
        with pytest.raises(RewindConflicts):
            await store.rewind("c0", tmp_path / "work")
        assert notebook.read_text() == text

    _run(story())


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_application_can_use_more_stores_than_a_process_may_have_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    monkeypatch.setattr(file_checkpoint_store, "_MOST_OPEN", 3)
    kept = [FileCheckpointStore(tmp_path / str(number)) for number in range(8)] if is_kept else []

    def store_of(number: int) -> FileCheckpointStore:
        return kept[number] if kept else FileCheckpointStore(tmp_path / str(number))

    async def save_and_read() -> None:
        for number in range(8):
            await store_of(number).save(_checkpoint(f"one-{number}", 1))
            assert _open_ledgers(tmp_path) <= 3
        await asyncio.gather(*(store_of(number).save(_checkpoint("two", 2)) for number in range(8)))
        for number in range(8):
            assert [checkpoint.id for checkpoint in await store_of(number).list_all()] == [f"one-{number}", "two"]
            assert _open_ledgers(tmp_path) <= 3

    asyncio.run(save_and_read())
    assert _open_ledgers(tmp_path) > 0


def test_a_new_store_for_each_request_reads_the_conversations_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0
    read = MessageChains.__init__

    def counted(self: MessageChains, directory: str) -> None:
        nonlocal opened
        opened += 1
        read(self, directory)

    monkeypatch.setattr(MessageChains, "__init__", counted)

    async def requests() -> None:
        for number in range(1, 6):
            store = FileCheckpointStore(tmp_path / "store")
            newest = await store.newest()
            assert (newest.turn if newest is not None else 0) == number - 1
            await store.save(_checkpoint(f"c{number}", number))
        assert opened == 1
        # Another process removes a checkpoint, and saves two.
        script = "import asyncio, pickle, sys; from deepctl import FileCheckpointStore\n"
        script += "store = FileCheckpointStore(sys.argv[1]); checkpoints = pickle.load(sys.stdin.buffer)\n"
        script += "asyncio.run(store.remove('c5'))\n"
        script += "for checkpoint in checkpoints: asyncio.run(store.save(checkpoint))"
        checkpoints = [_checkpoint("d6", 6, flavour="!"), _checkpoint("d7", 7, flavour="!")]
        command = [sys.executable, "-c", script, str(tmp_path / "store")]
        subprocess.run(command, input=pickle.dumps(checkpoints), check=True)
        store = FileCheckpointStore(tmp_path / "store")
        await store.save(_checkpoint("c8", 8, flavour="!"))
        assert opened == 2
        messages = {checkpoint.id: checkpoint.messages for checkpoint in await store.list_all()}
        assert list(messages) == ["c1", "c2", "c3", "c4", "d6", "d7", "c8"]
        assert messages["c4"] == _conversation(4)
        assert messages["d7"] == _conversation(7, "!")
        assert messages["c8"] == _conversation(8, "!")

    _run(requests())
    logs = (tmp_path / "store/messages").iterdir()
    assert sum(path.read_bytes().count(b"prompt 5!") for path in logs) == 1, "stored without repetition"


def test_the_files_of_a_deleted_store_are_closed_and_it_can_be_made_again(tmp_path: Path) -> None:
    async def story() -> None:
        await FileCheckpointStore(tmp_path / "alice").save(_checkpoint("secret", 3))
        shutil.rmtree(tmp_path / "alice")
        await FileCheckpointStore(tmp_path / "bob").save(_checkpoint("b", 1))
        assert _open_ledgers(tmp_path) == 1
        store = FileCheckpointStore(tmp_path / "alice")
        assert await store.newest() is None
        await store.save(_checkpoint("new", 3))
        assert [checkpoint.id for checkpoint in await FileCheckpointStore(tmp_path / "alice").list_all()] == ["new"]
        assert [checkpoint.messages for checkpoint in await store.list_all()] == [_conversation(3)]

    _run(story())


def test_the_digests_of_long_conversations_do_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_checkpoint_store, "_MOST_MESSAGES", 30)

    async def story() -> None:
        for number in range(8):
            await FileCheckpointStore(tmp_path / str(number)).save(_checkpoint("c", 5))
            assert _open_ledgers(tmp_path) <= 4

    _run(story())


def _open_ledgers(place: Path) -> int:
    names = (os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number))
    return sum(name.startswith(str(place)) and "ledger.jsonl" in name for name in names)


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")
