"""The examples work as they stand."""

from __future__ import annotations

import asyncio
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

_EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(_EXAMPLES / script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
        timeout=120,
        check=False,
    )


def test_the_unattended_job_keeps_what_is_good_undoes_what_is_not_and_leaves_nothing(
    home: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    done = _run("unattended.sh", str(archive))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "kept:   write app.toml: port = 9090",
        "turns taken back: 1",
        "undone: write app.toml: port = = oops",
    ]
    assert "app.toml" in done.stdout.splitlines()[3]
    assert archive.stat().st_size > 1000
    transcript = Path(f"{archive}.md").read_text()
    assert "port = 9090" in transcript
    assert "oops" not in transcript, "what was undone is in no transcript"
    assert os.listdir(home / "profiles") == [], "the profile is wiped"


def test_the_unattended_job_that_fails_keeps_what_it_did(home: Path, tmp_path: Path) -> None:
    failed = _run("unattended.sh", str(tmp_path / "archive"), DEEPCTL_MODEL="nonsense:x")
    assert failed.returncode != 0
    assert "the profile nightly is kept" in failed.stderr
    assert os.listdir(home / "profiles") == ["nightly"]


def test_the_unattended_job_overwrites_no_archive(home: Path, tmp_path: Path) -> None:
    (tmp_path / "archive.md").write_text("last night's")
    refused = _run("unattended.sh", str(tmp_path / "archive"))
    assert (refused.returncode, refused.stderr) == (1, f"{tmp_path}/archive is there already\n")
    assert (tmp_path / "archive.md").read_text() == "last night's"
    assert not home.exists(), "nothing was begun"


def test_the_unattended_job_touches_no_profile_that_is_there(home: Path, tmp_path: Path) -> None:
    first = _run("unattended.sh", str(tmp_path / "archive"))
    assert first.returncode == 0, first.stderr
    subprocess.run([sys.executable, "-m", "deepctl", "profiles", "create", "nightly"], check=True, capture_output=True)
    refused = _run("unattended.sh", str(tmp_path / "again"))
    assert refused.returncode == 1
    assert "not this script's to wipe" in refused.stderr
    assert os.listdir(home / "profiles") == ["nightly"]
    assert not (tmp_path / "again").exists()


_SITE = "http://test"


class Site:
    """The web application, started anew in this process."""

    def __init__(self) -> None:
        self._app = runpy.run_path(str(_EXAMPLES / "fastapi_app.py"))["app"]

    async def ask(self, user: str, path: str, message: str | None = None) -> Any:
        """A request of a user's: what comes back as JSON, or the status of an error."""
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url=_SITE, headers={"X-User": user}) as client:
            if path == "/checkpoints":
                answer = await client.get(path)
            else:
                answer = await client.post(path, json={"message": message})
        return answer.json() if answer.is_success else answer.status_code

    async def says(self, user: str, message: str) -> str:
        answer: str = (await self.ask(user, "/chat", message))["response"]
        return answer


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_users_of_the_web_application_share_nothing_and_lose_nothing_with_a_restart(state: Path) -> None:
    async def visit() -> None:
        site = Site()
        await site.says("alice", "remember tea\nwrite a.txt: hers")
        assert "can see 1 earlier turn " in await site.says("Alice", "hello"), "it is she, however she spells it"
        assert "hers" not in await site.says("bob", "read a.txt")
        assert "tea" not in await site.says("bob", "recall tea")
        await site.says("bob", "write ../alice/workspace/a.txt: his")
        assert (state / "alice/workspace/a.txt").read_text() == "hers"
        assert await site.ask("bob", f"/rewind/{(await site.ask('alice', '/checkpoints'))[-1]['id']}") == 404
        for bad in ("..", "a/b", "", "con", "x" * 65):
            assert await site.ask(bad, "/chat", "hello") in (400, 422)
        again = Site()
        assert "can see 2 earlier turns " in await again.says("alice", "hello")
        assert "tea" in await again.says("alice", "recall tea")

    asyncio.run(visit())
    assert {path.name for path in state.iterdir()} == {"alice", "bob"}


def test_a_user_of_the_web_application_goes_back_and_other_turns_run_meanwhile(state: Path) -> None:
    async def visit() -> None:
        site = Site()
        await site.says("alice", "write a.txt: one")
        first = (await site.ask("alice", "/checkpoints"))[-1]["id"]
        said = await asyncio.gather(*(site.says(user, "write a.txt: two\nremember tea") for user in ("alice", "bob")))
        assert all("Remembered." in one for one in said)
        changed = (await site.ask("alice", f"/rewind/{first}"))["changed"]
        assert {".deep/memory/main/MEMORY.md", "a.txt"} <= set(changed)
        assert (state / "alice/workspace/a.txt").read_text() == "one"
        assert (state / "bob/workspace/a.txt").read_text() == "two"
        assert "can see 1 earlier turn " in await Site().says("alice", "hello"), "after a restart, too"
        await site.says("alice", "write a.txt: three")
        (state / "alice/workspace/a.txt").write_text("somebody's")
        assert await site.ask("alice", f"/rewind/{first}") == 409
        assert (state / "alice/workspace/a.txt").read_text() == "somebody's"

    asyncio.run(visit())


def test_turns_of_one_user_run_one_after_another(state: Path) -> None:
    async def visit() -> None:
        site = Site()
        await asyncio.gather(*(site.says("alice", f"remember {number}") for number in range(5)))
        assert "can see 5 earlier turns " in await site.says("alice", "hello")

    asyncio.run(visit())
