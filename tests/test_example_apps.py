"""The web applications in examples/, under uvicorn, over HTTP. `test_web_soak.py` has more users and more turns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepctl import locks, open_profile
from tests.support import docker
from tests.support.loopback import Provider, Stalled, Text, ToolCalls, provider
from tests.support.web_server import WebServer, served

_TIMEOUT = 60.0


def _client(server: WebServer, user: str = "") -> httpx.Client:
    headers = {"X-User": user} if user else {}
    return httpx.Client(base_url=server.url, headers=headers, timeout=_TIMEOUT)


def _say(server: WebServer, user: str, message: str) -> str:
    with _client(server, user) as client:
        answer = client.post("/chat", json={"message": message})
    assert answer.status_code == 200, answer.text
    response: str = answer.json()["response"]
    return response


def test_pattern_a_has_a_workspace_in_memory_per_session(tmp_path: Path) -> None:
    with served("pattern_a:app", tmp_path / "log", {}) as server, _client(server) as client:
        alice, bob = (client.post("/sessions").json()["session"] for _ in range(2))

        def say(session: str, message: str) -> str:
            answer: str = client.post(f"/sessions/{session}", json={"message": message}).json()["response"]
            return answer

        say(alice, "remember tea\nwrite a.txt: hers")
        answer = say(alice, "recall tea\nread a.txt")
        assert "tea" in answer
        assert "hers" in answer
        assert "can see 2 earlier turns " in say(alice, "hello")
        assert "hers" not in say(bob, "read a.txt")
        assert "tea" not in say(bob, "recall tea")
        assert client.delete(f"/sessions/{alice}").status_code == 204
        assert client.post(f"/sessions/{alice}", json={"message": "hello"}).status_code == 404
    assert {path.name for path in tmp_path.iterdir()} <= {"cwd", "log", "user"}, "nothing is on disk"


def test_pattern_b_has_a_directory_per_user_that_survives_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with served("pattern_b:app", tmp_path / "log", {"STATE": str(state)}) as server:
        _say(server, "alice", "remember tea\nwrite a.txt: hers")
        assert "can see 1 earlier turn " in _say(server, "Alice", "hello"), "it is she, however she spells it"
        assert "hers" not in _say(server, "bob", "read a.txt\nread ../../alice/workspace/a.txt")
        for name in ("..", "a/b", "con", "x" * 65):
            with _client(server, name) as client:
                assert client.post("/chat", json={"message": "hello"}).status_code == 400, name
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: _say(server, "bob", f"remember {number}"), range(4)))
        assert "can see 5 earlier turns " in _say(server, "bob", "hello"), "turns of one user wait for each other"
    with served("pattern_b:app", tmp_path / "log", {"STATE": str(state)}) as server:
        assert "can see 2 earlier turns " in _say(server, "alice", "hello")
        assert "tea" in _say(server, "alice", "recall tea")
    assert sorted(path.name for path in state.iterdir()) == ["alice", "bob"]
    assert (state / "alice/workspace/a.txt").read_text() == "hers"


def test_pattern_c_has_a_container_per_user_and_leaves_none(tmp_path: Path) -> None:
    docker.require()
    state = tmp_path / "state"
    with served("pattern_c:app", tmp_path / "log", {"STATE": str(state), "IMAGE": docker.IMAGE}) as server:
        for user in ("alice", "bob"):
            _say(server, user, f"run echo {user} >mine.txt; echo {user} >/tmp/mine.txt")
        assert len(_containers(state)) == 2
        answer = _say(server, "bob", "run cat /tmp/mine.txt mine.txt; ls -a /workspace / /workspace/..; ls /root /home")
        assert "bob" in answer
        assert "alice" not in answer
        assert "can see 2 earlier turns " in _say(server, "bob", "hello")
    assert (state / "workspaces/alice/workspace/mine.txt").read_text() == "alice\n"
    assert _containers(state) == []


def _containers(state: Path) -> list[str]:
    """The labels of the containers with directories below `state`, also of those that do not run."""
    labels = docker.docker("ps", "--all", "--format", '{{.Label "deepctl.profile"}}').split()
    return [label for label in labels if label.startswith(str(state))]


def test_pattern_c_without_a_docker_daemon_answers_with_the_error(tmp_path: Path) -> None:
    environment = {"STATE": str(tmp_path / "state"), "DOCKER_HOST": f"unix://{tmp_path}/missing.sock"}
    with served("pattern_c:app", tmp_path / "log", environment) as server:
        for user, status, code in (("alice", 503, "sandbox_unavailable"), ("..", 400, "bad_name")):
            with _client(server, user) as client:
                answer = client.post("/chat", json={"message": "hello"})
            assert (answer.status_code, _error(answer)["code"]) == (status, code)
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebServer, Path]]:
    """The application with two workers, for tests with users of their own; and the directory of its state."""
    place = tmp_path_factory.mktemp("fastapi_app")
    with served("fastapi_app:app", place / "log", {"STATE": str(place / "state")}, workers=2) as server:
        yield server, place / "state"
        assert "Traceback" not in server.log, server.log


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) >= {"code", "message", "hint", "exit_code", "retryable"}
    return error


def _events(server: WebServer, user: str, message: str) -> list[dict[str, Any]]:
    """The events of a turn, as a client of server-sent events reads them."""
    events = []
    with _client(server, user) as client, client.stream("POST", "/stream", json={"message": message}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                events.append(json.loads(value))
                assert events[-1]["type"] == kind
    return events


def test_workers_share_the_state_of_a_user_and_no_state_of_two(shared: tuple[WebServer, Path]) -> None:
    server, state = shared
    assert len(server.pids) == 2
    with ThreadPoolExecutor(8) as pool:
        turns = [(f"user{user}", f"remember tea{user}{turn}") for turn in range(4) for user in range(2)]
        list(pool.map(lambda turn: _say(server, *turn), turns))
    for user in range(2):
        assert "can see 4 earlier turns " in _say(server, f"user{user}", "hello")
        answer = _say(server, f"user{user}", "recall tea")
        assert all(f"tea{user}{turn}" in answer for turn in range(4))
        assert f"tea{1 - user}" not in answer
    _say(server, "user0", "write ../../user1/workspace/a.txt: his")
    assert not (state / "profiles/user1/workspace/a.txt").exists()


def test_events_of_a_turn_arrive_one_by_one_and_end_with_the_result(shared: tuple[WebServer, Path]) -> None:
    events = _events(shared[0], "stream", "write a.txt: streamed\nread a.txt")
    kinds = [event["type"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "result"
    assert kinds.count("tool_call") == kinds.count("tool_result") == 2
    assert "".join(event["delta"] for event in events if event["type"] == "text") == events[-1]["output"]
    assert "streamed" in events[-1]["output"]
    assert events[-1]["checkpoint"] == next(event["id"] for event in reversed(events) if event["type"] == "checkpoint")


def test_a_rewind_has_the_id_that_undoes_it_and_keeps_edits_of_the_user(shared: tuple[WebServer, Path]) -> None:
    server, state = shared
    file = state / "profiles/rewinder/workspace/a.txt"
    with _client(server, "rewinder") as client:
        _say(server, "rewinder", "write a.txt: one")
        (latest, *_) = client.get("/checkpoints").json()
        _say(server, "rewinder", "write a.txt: two\nremember tea")
        rewound = client.post("/rewind", json={"to": latest["id"]}).json()
        assert rewound["rewound_to"] == latest["id"]
        assert "a.txt" in rewound["restored_paths"]
        assert file.read_text() == "one"
        assert "can see 1 earlier turn " in _say(server, "rewinder", "hello")
        assert "tea" not in _say(server, "rewinder", "recall tea")
        undone = client.post("/rewind", json={"to": rewound["safety"]})
        assert undone.status_code == 200, undone.text
        assert file.read_text() == "two"
        file.write_text("edited")
        refused = client.post("/rewind", json={"to": latest["id"]})
        assert (refused.status_code, _error(refused)["code"]) == (409, "conflicts")
        assert file.read_text() == "edited"
        missing = client.post("/rewind", json={"to": "nothing"})
        assert (missing.status_code, _error(missing)["code"]) == (404, "checkpoint_not_found")
        with _client(server, "other") as other:
            assert other.post("/rewind", json={"to": latest["id"]}).status_code == 404


def test_requests_of_the_wrong_form_or_size_are_errors_in_json_and_create_nothing(
    shared: tuple[WebServer, Path],
) -> None:
    server, state = shared

    def refused(user: str, body: object, status: int) -> dict[str, Any]:
        with _client(server, user) as client:
            raw = body if isinstance(body, (bytes, Iterator)) else json.dumps(body).encode()
            answer = client.post("/chat", content=raw, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        return _error(answer)

    for name in ("..", "a/b", "con", "x" * 65):
        assert refused(name, {"message": "hello"}, 400)["code"] == "bad_name"
    assert "x-user" in refused("", {"message": "hello"}, 422)["message"]
    assert "message" in refused("wrong", {}, 422)["message"]
    assert refused("wrong", b"{", 422)["code"] == "http_422"
    assert "16384" in refused("wrong", {"message": "x" * 20_000}, 422)["message"]
    assert refused("wrong", {"message": "x" * 100_000}, 413)["code"] == "http_413"
    assert refused("wrong", iter([b"x" * 40_000] * 3), 413)["code"] == "http_413"
    with _client(server) as client:
        assert _error(client.get("/nothing"))["code"] == "http_404"
    assert not (state / "profiles/wrong").exists()


def test_a_user_can_be_deleted_and_starts_again(shared: tuple[WebServer, Path]) -> None:
    server, state = shared
    _say(server, "gone", "remember tea\nwrite a.txt: secret")
    with _client(server, "gone") as client:
        assert client.delete("/user").status_code == 204
        assert not (state / "profiles/gone").exists()
        answer = client.delete("/user")
        assert (answer.status_code, _error(answer)["code"]) == (404, "profile_not_found")
    assert "can see 0 earlier turns " in _say(server, "gone", "hello")
    assert "tea" not in _say(server, "gone", "recall tea")


def test_the_command_line_shows_and_continues_the_user_of_the_application(shared: tuple[WebServer, Path]) -> None:
    server, state = shared

    def command(*words: str) -> str:
        environment = {**os.environ, "DEEPCTL_HOME": str(state)}
        done = subprocess.run(
            [sys.executable, "-m", "deepctl", *words, "--user", "both"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
        return done.stdout

    _say(server, "both", "remember tea")
    assert command("memory", "show") == "- tea\n"
    command("chat", "remember coffee")
    assert "can see 2 earlier turns " in _say(server, "both", "hello")
    assert "coffee" in _say(server, "both", "recall coffee")


_WRITES = ToolCalls([("write_file", {"path": "a.txt", "content": "kept"})])
_HANGS = Stalled(["Half an "])


def _with_model(model: Provider, state: Path) -> dict[str, str]:
    """The environment of an application with that model."""
    return {
        "STATE": str(state),
        "DEEPCTL_MODEL": "openai-chat:model",
        "OPENAI_BASE_URL": f"{model.address}/v1",
        "OPENAI_API_KEY": "none",
    }


def _verify(state: Path, user: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepctl", "checkpoints", "verify", "--user", user],
        env={**os.environ, "DEEPCTL_HOME": str(state)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _process_of_turn(state: Path, user: str, model: Provider) -> int:
    """The process that runs the first turn of a user, once the model has sent half of its answer."""
    deadline = time.monotonic() + _TIMEOUT
    while len(model.requests) < 2:
        assert time.monotonic() < deadline, model.requests
        time.sleep(0.02)
    holder = locks.holder(str(state / "locks" / user))
    assert holder is not None, "the lock is held during a turn"
    return holder.pid


def test_a_killed_worker_and_a_client_that_leaves_lose_nothing_that_is_complete(tmp_path: Path) -> None:
    state = tmp_path / "state"
    broken: list[Exception] = []
    with (
        provider(_WRITES, _HANGS, _WRITES, _HANGS, Text(["Done."])) as model,
        served("fastapi_app:app", tmp_path / "log", _with_model(model, state), workers=2) as server,
    ):

        def say() -> None:
            try:
                _say(server, "alice", "go on")
            except (httpx.HTTPError, AssertionError) as error:
                broken.append(error)

        thread = threading.Thread(target=say)
        thread.start()
        worker = _process_of_turn(state, "alice", model)
        assert worker in server.pids
        os.kill(worker, signal.SIGKILL)
        thread.join(_TIMEOUT)
        assert [type(error) for error in broken] == [httpx.RemoteProtocolError], broken
        # The client leaves in the middle of a turn, which is cancelled: the next request gets the lock.
        with _client(server, "bob") as client:
            with client.stream("POST", "/stream", json={"message": "go on"}) as answer:
                for line in answer.iter_lines():
                    assert "error" not in line
                    if "Half an" in line:
                        break
            assert (state / "profiles/bob/workspace/a.txt").read_text() == "kept"
            assert client.post("/rewind", json={"to": "~1"}).json()["deleted_paths"] == ["a.txt"]
        # The user of the killed worker goes on, with all that was complete.
        assert _say(server, "alice", "and now?") == "Done."
        sent = json.dumps(model.requests[-1])
        assert "go on" in sent
        assert "write_file" in sent
    for user in ("alice", "bob"):
        _verify(state, user)


def test_a_turn_that_takes_too_long_ends_with_an_error_and_is_stored(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with (
        provider(Text(["Hello."]), _WRITES, _HANGS) as model,
        served("fastapi_app:app", tmp_path / "log", {"MAX_SECONDS": "10", **_with_model(model, state)}) as server,
        _client(server, "carol") as client,
    ):
        _say(server, "carol", "hello")  # the first turn of a process imports for a time
        answer = client.post("/chat", json={"message": "go on"})
        assert (answer.status_code, _error(answer)["code"]) == (504, "timeout")
        assert (state / "profiles/carol/workspace/a.txt").read_text() == "kept"
        assert client.post("/rewind", json={"to": "~1"}).json()["deleted_paths"] == ["a.txt"], "the lock is free"
    _verify(state, "carol")


def test_the_end_of_the_server_ends_turns_and_streams_and_stores_their_ends(tmp_path: Path) -> None:
    """The server cancels requests at its end, and does not wait for them."""
    state, log = tmp_path / "state", tmp_path / "log"
    users = ("alice", "bob", "carol", "dave")
    answers: dict[str, str] = {}

    def chat(server: WebServer, user: str) -> None:
        with _client(server, user) as client:
            answer = client.post("/chat", json={"message": "go on"})
            answers[user] = f"{answer.status_code} {_error(answer)['code']}"

    def stream(server: WebServer, user: str) -> None:
        events = _events(server, user, "go on")
        answers[user] = f"{events[-1]['type']} {events[-1]['code']}"

    with provider(_HANGS, repeat_last=True) as model:
        with served("fastapi_app:app", log, _with_model(model, state), workers=2) as server:
            requests = [chat, chat, stream, stream]
            threads = [threading.Thread(target=requests[n], args=(server, user)) for n, user in enumerate(users)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + _TIMEOUT
            while len(model.requests) < len(users):
                assert time.monotonic() < deadline, model.requests
                time.sleep(0.02)
            time.sleep(0.5)  # until half of each answer has arrived
        for thread in threads:
            thread.join(_TIMEOUT)
    assert answers == {**dict.fromkeys(users[:2], "503 server_ends"), **dict.fromkeys(users[2:], "error server_ends")}
    assert "Traceback" not in log.read_text()
    for user in users:
        assert locks.holder(str(state / "locks" / user)) is None
        _verify(state, user)
        history, turns = asyncio.run(_stored(state, user))
        assert "Half an" in history
        assert turns == [1, 0]


async def _stored(state: Path, user: str) -> tuple[str, list[int]]:
    """The conversation of a user as text, and the turns of the checkpoints, newest first."""
    async with open_profile(user, root=state) as profile:
        return str(await profile.history()), [checkpoint.turn for checkpoint in await profile.checkpoints()]


def test_a_rewind_waits_for_the_turn_of_another_request(tmp_path: Path) -> None:
    state, may_end = tmp_path / "state", threading.Event()

    def gate() -> None:
        may_end.wait(_TIMEOUT)

    with (
        provider(Text(["Hello."]), _WRITES, Text(["Do", "ne."], gate)) as model,
        served("fastapi_app:app", tmp_path / "log", _with_model(model, state), workers=2) as server,
        _client(server, "alice") as client,
        ThreadPoolExecutor(2) as threads,
    ):
        _say(server, "alice", "hello")
        turn = threads.submit(_say, server, "alice", "go on")
        deadline = time.monotonic() + _TIMEOUT
        while len(model.requests) < 3:
            assert time.monotonic() < deadline, model.requests
            time.sleep(0.02)
        assert (state / "profiles/alice/workspace/a.txt").exists()
        rewind = threads.submit(client.post, "/rewind", json={"to": "~1"})
        time.sleep(1)
        assert not rewind.done()
        assert (state / "profiles/alice/workspace/a.txt").exists()
        may_end.set()
        assert turn.result(_TIMEOUT) == "Done."
        assert rewind.result(_TIMEOUT).json()["deleted_paths"] == ["a.txt"]
    _verify(state, "alice")
