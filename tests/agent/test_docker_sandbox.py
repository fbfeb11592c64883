"""`DockerSandbox` and `SessionManager`: whose containers there are, when they end, and that none is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_ai.workspaces import SupportsCommands
from pydantic_ai_backends.backends.docker.session import SessionLimitExceeded

from deepctl import (
    DeepAgentDeps,
    DockerSandbox,
    FileCheckpointStore,
    LocalBackend,
    SessionManager,
    create_deep_agent,
)
from deepctl.errors import BadName, BadPath, Refused, UsageError
from deepctl.sandbox import container
from tests.support import docker
from tests.support.docker import IMAGE, until


@pytest.fixture
def real(tmp_path: Path) -> Iterator[None]:
    """A daemon; no container of the test's directories is left at its end."""
    docker.require()
    yield
    assert _containers(tmp_path) == []


def _containers(place: Path | str, *, running: bool = False) -> list[str]:
    """The names of the containers for directories whose paths contain a text."""
    words = ["ps", "--format", '{{.Names}} {{.Label "deepctl.profile"}}', *([] if running else ["--all"])]
    lines = [line.split() for line in docker.docker(*words, "--filter", "label=deepctl.profile").splitlines()]
    return [name for name, *label in lines if str(place) in " ".join(label)]


async def _ran(sandbox: DockerSandbox, command: str) -> str:
    return (await sandbox.run(command, shell=True)).stdout


@pytest.mark.usefixtures("real")
def test_an_idle_container_is_removed_without_a_call_and_made_again_by_a_command(tmp_path: Path) -> None:
    released: list[str] = []

    async def story() -> None:
        manager = SessionManager(tmp_path / "w", image=IMAGE, default_idle_timeout=1, on_release=released.append)
        sandbox = await manager.get_or_create("alice")
        assert await _ran(sandbox, "echo kept > a; sleep 2.5; cat a") == "kept\n", "it is in use while a command runs"
        assert len(_containers(tmp_path, running=True)) == 1
        await asyncio.to_thread(until, lambda: _containers(tmp_path) == [], 20, "no container is left")
        assert (released, "alice" in manager) == (["alice"], False)
        assert await _ran(sandbox, "cat a") == "kept\n", "a run that goes on has another container"
        again = await manager.get_or_create("alice")
        assert again is not sandbox
        assert await _ran(again, "cat a") == "kept\n"
        await asyncio.to_thread(until, lambda: len(manager) == 0, 20, "this one is stopped")
        await asyncio.to_thread(until, lambda: _containers(tmp_path) == [], 20, "both are removed")
        assert await manager.shutdown() == 0
        assert manager._cleanup_task is None

    asyncio.run(story())
    assert (tmp_path / "w/alice/workspace/a").read_text() == "kept\n"


@pytest.mark.usefixtures("real")
def test_workers_and_roots_have_containers_of_their_own(tmp_path: Path) -> None:
    async def story() -> None:
        managers = [SessionManager(tmp_path / root, image=IMAGE) for root in ("one", "one", "two")]
        sandboxes = await asyncio.gather(*(manager.get_or_create("alice") for manager in managers))
        commands = [_ran(sandbox, f"sleep 1; echo {number} >> a; cat a") for number, sandbox in enumerate(sandboxes)]
        first, second, other = await asyncio.gather(*commands)
        assert sorted((first + second).split()) in (["0", "0", "1"], ["0", "1", "1"], ["0", "0", "1", "1"])
        assert other == "2\n"
        names = _containers(tmp_path, running=True)
        assert len(names) == 3
        assert len({name.rpartition("-")[0] for name in names}) == 2, "one beginning per directory"
        assert [await manager.shutdown() for manager in managers] == [1, 1, 1]

    asyncio.run(story())


_KILLED = """
import asyncio, os, signal, sys
from deepctl import SessionManager
async def main():
    manager = SessionManager(sys.argv[1], image=sys.argv[2])
    for user in ("alice", "bob"):
        await (await manager.get_or_create(user)).run("echo x > a", shell=True)
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("end", ["killed", "ended"])
def test_the_end_of_a_process_leaves_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "w"), IMAGE, end], check=False)
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0)
    if end == "killed":
        assert len(_containers(tmp_path)) == 2
        until(lambda: _containers(tmp_path, running=True) == [], 20, "they end with the process")

        async def carol() -> int:
            async with SessionManager(tmp_path / "w", image=IMAGE) as manager:
                await manager.get_or_create("carol")
                count = len(_containers(tmp_path))
                monkeypatch.setattr(container, "_JUST_NOW", -1)
            async with SessionManager(tmp_path / "other", image=IMAGE) as manager:
                await manager.get_or_create("carol")
                assert len(_containers(tmp_path)) == count, "those of another root stay"
            async with SessionManager(tmp_path / "w", image=IMAGE) as manager:
                await manager.get_or_create("carol")
            return count

        assert asyncio.run(carol()) == 2, "a process may start a container that has just ended"
    assert (tmp_path / "w/alice/workspace/a").read_text() == "x\n"


@pytest.mark.usefixtures("real")
def test_a_sandbox_without_a_directory_has_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def story() -> None:
        sandbox = DockerSandbox(image=IMAGE)
        assert isinstance(sandbox, SupportsCommands)
        assert not sandbox.is_alive()
        sandbox.start()
        assert sandbox.is_alive()
        assert await _ran(sandbox, "echo x > a; cat a; ls /workspace") == "x\na\n"
        assert Path(sandbox.root_dir, "a").exists()
        sandbox.stop()
        assert not sandbox.is_alive()
        assert _containers(tmp_path) == []
        assert list(tmp_path.glob("deepctl-*")) == []
        assert await _ran(sandbox, "ls -A | head -1") in ("", ".deep\n"), "it can be used again, and is empty"
        sandbox.stop()
        del sandbox
        unused = DockerSandbox(image=IMAGE)
        assert os.path.isdir(unused.root_dir)
        del unused
        assert list(tmp_path.glob("deepctl-*")) == []

    asyncio.run(story())


@pytest.mark.usefixtures("real")
def test_users_are_apart_and_one_manager_serves_several_event_loops(tmp_path: Path) -> None:
    agent = create_deep_agent("offline")
    manager = SessionManager(tmp_path / "w", image=IMAGE, max_sessions=2, default_idle_timeout=600)

    async def say(user: str, message: str) -> str:
        sandbox = await manager.get_or_create(user)
        deps = DeepAgentDeps(backend=sandbox, checkpoint_store=FileCheckpointStore(tmp_path / "c" / user.lower()))
        return (await agent.run(message, deps=deps)).output

    async def story() -> None:
        answers = await asyncio.gather(say("Alice", "run echo hers > f; cat f"), say("bob", "run echo his > f; cat f"))
        assert ["hers" in answers[0], "his" in answers[1], "his" in answers[0]] == [True, True, False], answers
        assert await manager.get_or_create("alice") is await manager.get_or_create("ALICE")
        assert "alice" in manager
        assert "Alice" in manager
        with pytest.raises(SessionLimitExceeded):
            await manager.get_or_create("carol")
        looked = await say("bob", "run ls -A / /workspace; cat /workspace/../alice/f")
        assert "hers" not in looked
        store = FileCheckpointStore(tmp_path / "c" / "bob")
        before = (await store.list_all())[0]
        assert await store.rewind(before.id, tmp_path / "w/bob/workspace", by_agent=True) == ["f"]

    async def later() -> None:
        assert "hers" in await say("alice", "run cat f")
        assert len(_containers(tmp_path, running=True)) == 2
        assert await manager.release("Alice")
        assert not await manager.release("alice")
        assert len(_containers(tmp_path)) == 1
        assert await manager.shutdown() == 1

    asyncio.run(story())
    asyncio.run(later())
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["alice", "bob"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "w").glob("*")} == {0o700}


@pytest.mark.parametrize("name", ["../bob", "/etc", "", ".", "a/b", "con", "ä", "x" * 65])
def test_a_bad_name_creates_nothing(tmp_path: Path, name: str) -> None:
    manager = SessionManager(tmp_path / "w")
    for method in (manager.get_or_create, manager.release):
        with pytest.raises(BadName):
            asyncio.run(method(name))
    assert not (tmp_path / "w").exists()
    for root in (f"{tmp_path}/w/{name}/..", f"{tmp_path}//w"):
        with pytest.raises(BadPath):
            SessionManager(root)


def test_without_a_daemon_the_error_says_so_and_the_next_try_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")

    async def story() -> None:
        async with SessionManager(tmp_path / "w") as manager:
            for _ in range(2):
                with pytest.raises(Refused, match="docker sandbox cannot be used: No Docker daemon answers") as caught:
                    await manager.get_or_create("alice")
                assert (caught.value.code, caught.value.exit_code) == ("sandbox_unavailable", 6)
                assert "Start the Docker daemon" in str(caught.value.hint)
            assert len(manager) == 0
            with pytest.raises(UsageError):
                await manager.get_or_create("alice", "python-datascience")

    asyncio.run(story())
    sandbox = DockerSandbox(tmp_path / "x")
    assert isinstance(sandbox, LocalBackend)
    sandbox.stop()
