"""The code of the guide to applications with many users runs with only the names of its packages replaced.

Each block runs in a process with its own `/workspaces` and `/checkpoints`, with the offline model, for several users at
once. `tests/agent/test_guide.py` has the same patterns in deepctl's own words, for a machine without the guide.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.projects import guide
from tests.projects.guide import USERS, canary
from tests.support import docker, own_root

_HERE = Path(__file__).parents[2]
_BLOCKS = guide.blocks(next(iter(guide.texts().values()))) if guide.is_there() else {}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root; CI is root")


def _words(tmp_path: Path, words: list[str], places: dict[str, Path | None]) -> list[str]:
    (tmp_path / "root_of_block").mkdir()
    return own_root.command(tmp_path / "root_of_block", places, words)


def _environment() -> dict[str, str]:
    return {**os.environ, "DEEPCTL_MODEL": "offline", "PYTHONPATH": str(_HERE)}


def _run(heading: str, tmp_path: Path, places: dict[str, Path | None] | None = None) -> dict[str, Any]:
    """What several users saw who used the code of a block at once."""
    words = [sys.executable, "-W", "error", "-m", "tests.projects.guide", heading]
    done = subprocess.run(
        _words(tmp_path, words, places or {"workspaces": None, "checkpoints": None}),
        input=guide.ours(_BLOCKS[heading]),
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _own_only(answers: dict[str, str]) -> None:
    """Each user sees the own canary, and no other."""
    for user, answer in answers.items():
        assert [name for name in USERS if canary(name) in answer] == [user], (user, answer)


def test_the_guide_has_five_blocks_and_every_copy_the_same_ones() -> None:
    copies = [guide.blocks(text) for text in guide.texts().values()]
    assert all(copy == copies[0] for copy in copies)
    assert len(copies[0]) == 5
    assert all("deepctl" in guide.ours(code) and "pydantic_" not in guide.ours(code) for code in copies[0].values())


@needs_root
def test_one_backend_is_one_state(tmp_path: Path) -> None:
    seen = _run("The Problem", tmp_path)["seen"]
    for user in USERS:
        assert all(canary(name) in seen[user] for name in USERS)


@needs_root
def test_pattern_a_has_nothing_of_an_earlier_request(tmp_path: Path) -> None:
    result = _run("Pattern A: Fresh StateBackend per Session", tmp_path)
    for user in USERS:
        assert "Remembered" in result["stored"][user]
        assert "CANARY" not in result["seen"][user]
    assert (result["files"], result["checkpoints"]) == ({}, {})


def _stored_apart(result: dict[str, Any], workspace: str) -> None:
    """Files, memory and checkpoints of each user have the own canary only."""
    _own_only(result["seen"])
    for user in USERS:
        own = {path: text for path, text in result["files"].items() if path.startswith(f"/workspaces/{user}/")}
        assert canary(user) in own[f"/workspaces/{user}{workspace}/{user}.txt"]
        assert canary(user) in own[f"/workspaces/{user}{workspace}/.deep/memory/main/MEMORY.md"]
        _own_only({user: "".join(own.values())})
    assert all(path.split("/")[2] in USERS for path in result["files"])
    assert sorted(result["checkpoints"]) == sorted(USERS)
    _own_only({user: stored["text"] for user, stored in result["checkpoints"].items()})
    assert all(stored["count"] >= 6 for stored in result["checkpoints"].values())


@needs_root
def test_pattern_b_stores_everything_apart_and_refuses_ids_that_are_paths(tmp_path: Path) -> None:
    result = _run("Pattern B: LocalBackend with User Prefix", tmp_path)
    _stored_apart(result, "")
    assert len(result["refused"]) == 6
    assert all(error.startswith("BadPath: ") for error in result["refused"].values()), result["refused"]
    assert result["created"] == []
    assert "alice" in result["nested"]["alice/x"]


@needs_root
def test_pattern_c_runs_commands_in_a_container_per_user(tmp_path: Path) -> None:
    docker.require()
    # The daemon has to see the directories of the workspaces.
    places = {name: tmp_path / name for name in ("workspaces", "checkpoints")}
    for place in places.values():
        place.mkdir()
    with docker.tagged("python:3.12-slim"):
        result = _run("Pattern C: DockerSandbox + SessionManager", tmp_path, dict(places))
    _stored_apart(result, "/workspace")
    _own_only(result["ran"])
    for user, answer in result["ran"].items():
        assert "workspace\n" in answer
        assert "/workspaces: No such file" in answer or "'/workspaces': No such file" in answer, answer
        assert "/etc/made" in answer
        assert f"/workspaces/{user}/workspace/made" in result["files"]
    assert (result["running"], result["stopped"], result["left"]) == (3, 3, [])
    assert len(result["refused"]) == 6
    assert all(error.startswith(("BadName: ", "BadPath: ")) for error in result["refused"].values())
    assert result["created"] == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _served(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the application, under uvicorn, with its own `/workspaces`."""
    place = tmp_path / "application"
    place.mkdir()
    (place / "application.py").write_text(guide.ours(_BLOCKS[guide.APPLICATION]))
    (tmp_path / "workspaces").mkdir()
    port = _free_port()
    words = ["uvicorn", "--app-dir", str(place), "--host", "127.0.0.1", "--port", str(port), "application:app"]
    places = {"workspaces": tmp_path / "workspaces", "checkpoints": None}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            _words(tmp_path, [sys.executable, "-m", *words], places), env=_environment(), stdout=log, stderr=log
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                deadline = time.monotonic() + 60
                while True:
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    try:
                        client.get("/openapi.json")
                        break
                    except httpx.TransportError:
                        time.sleep(0.1)
                yield client
        finally:
            server.terminate()
            server.wait(30)


@needs_root
def test_the_application_answers_over_http_and_keeps_users_apart(tmp_path: Path) -> None:
    def say(client: httpx.Client, user: str, message: str) -> str:
        answer = client.post(f"/chat/{user}", params={"message": message})
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["response"]
        return text

    with _served(tmp_path) as client:
        for user in USERS:
            assert "Remembered" in say(client, user, f"remember {canary(user)}\nwrite {user}.txt: {canary(user)}")
        _own_only({user: say(client, user, "recall\nlist") for user in USERS})
        assert "2 earlier turns" in say(client, "alice", "hello")
        assert "0 earlier turns" in say(client, "dave", "hello")
        before = sorted(path.name for path in tmp_path.iterdir())
        for name in ("..", "%2e%2e", ".", "%00"):
            # httpx would send another path.
            connection = HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=30)
            connection.request("POST", f"/chat/{name}?message=list")
            assert connection.getresponse().status >= 400, name
            connection.close()
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    names = sorted(path.name for path in (tmp_path / "workspaces").iterdir())
    assert names == ["alice", "bob", "carol", "dave"]
    for user in USERS:
        files = [path for path in (tmp_path / "workspaces" / user).rglob("*") if path.is_file()]
        _own_only({user: "".join(path.read_text() for path in files)})
