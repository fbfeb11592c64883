"""The guide to applications with many users that deepctl follows: its code, and two users who use it.

The guide is part of pydantic-deep and never of this repository. It is `$DEEPCTL_TEST_GUIDE`, else the file in
`../shared/seed` beside this checkout, else the page in the source distribution that `make projects` downloads.

`python -m tests.projects.guide HEADING` runs one block for two users, in a place of its own, and prints what they saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.projects import sdists

_NAMED = os.environ.get("DEEPCTL_TEST_GUIDE")  # read now: tests run without any DEEPCTL_ variable
_BESIDE = Path(__file__).parents[3] / "shared" / "seed" / "multi-user-applications.md"
_DISTRIBUTION, _PAGE = "pydantic_deep-0.3.32", "docs/advanced/multi-user.md"
_BLOCK = re.compile(r"^#+ (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)

USERS = ("alice", "bob", "carol")

Handle = Callable[[str, str], Awaitable[str]]


def is_there() -> bool:
    """Whether this machine has the guide. `tests.support.preflight` skips its tests otherwise, which CI refuses."""
    return bool(_places()) or sdists.archive(_DISTRIBUTION) is not None


def _places() -> list[Path]:
    return [path for path in (Path(_NAMED) if _NAMED else None, _BESIDE) if path is not None and path.exists()]


def texts() -> dict[str, str]:
    """The guide by the place where it was found, the first one first."""
    found = {str(path): path.read_text() for path in _places()}
    if sdists.archive(_DISTRIBUTION) is not None:
        found[_DISTRIBUTION] = sdists.text(_DISTRIBUTION, _PAGE)
    assert found, "the guide is missing: `make projects` downloads it"
    return found


def blocks(text: str) -> dict[str, str]:
    """The Python blocks by the heading before them."""
    found: dict[str, str] = {}
    heading = ""
    for match in _BLOCK.finditer(text):
        if match["code"] is None:
            heading = match["heading"]
        else:
            assert heading not in found, heading
            found[heading] = match["code"]
    return found


def ours(code: str) -> str:
    """A block with the names of the packages replaced, and nothing else."""
    return code.replace("pydantic_deep", "deepctl").replace("pydantic_ai_backends", "deepctl")


def canary(user: str) -> str:
    """A word that only this user says."""
    return f"CANARY-{user}-{user[::-1]}"


async def _say(handle: Handle, prompts: Callable[[str], str]) -> dict[str, str]:
    """The answers to a prompt of each user, all at once."""
    answers = await asyncio.gather(*(handle(user, prompts(user)) for user in USERS))
    return dict(zip(USERS, answers, strict=True))


async def _at_once(handle: Handle) -> dict[str, Any]:
    stored = await _say(handle, lambda user: f"remember {canary(user)}\nwrite {user}.txt: {canary(user)}")
    return {"stored": stored, "seen": await _say(handle, lambda user: "recall\nlist")}


async def _stored_checkpoints() -> dict[str, Any]:
    """The conversations and labels in each user's store."""
    from deepctl import FileCheckpointStore

    stored = {}
    for user in sorted(os.listdir("/checkpoints")):
        checkpoints = await FileCheckpointStore(f"/checkpoints/{user}").list_all()
        stored[user] = {"count": len(checkpoints), "text": repr([one.messages for one in checkpoints])}
    return stored


def _files() -> dict[str, str]:
    """The text files of all workspaces."""
    paths = [path for path in Path("/workspaces").rglob("*") if path.is_file()]
    return {str(path): path.read_text(errors="replace") for path in paths}


async def _refused(handle: Handle, names: list[str]) -> dict[str, str]:
    """The errors for bad user ids, and what there is at the top of the machine afterwards."""
    errors = {}
    for name in names:
        try:
            await handle(name, "write x.txt: x")
        except Exception as error:  # its name is compared
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


async def _isolated(names: dict[str, Any]) -> dict[str, Any]:
    seen = await _at_once(names["handle_request"])
    return {**seen, "files": _files(), "checkpoints": await _stored_checkpoints()}


async def _persistent(names: dict[str, Any]) -> dict[str, Any]:
    before = sorted(os.listdir("/"))
    errors = await _refused(names["handle_request"], ["../escaped", "/escaped", "", ".", "alice/../bob", "nul\0"])
    new = sorted(set(os.listdir("/")) - set(before))
    created = os.listdir("/workspaces") + os.listdir("/checkpoints")
    seen = await _isolated(names)
    nested = await _refused(names["handle_request"], ["alice/x"])
    return {**seen, "refused": errors, "created": [*new, *created], "nested": nested}


def _containers_of_users(*options: str) -> list[str]:
    """The labels of containers of these users. The daemon also runs those of tests beside this one."""
    command = ["docker", "ps", *options, "--format", '{{.Label "deepctl.profile"}}']
    labels = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [label for label in labels if label.startswith(os.path.realpath("/workspaces") + "/")]


async def _containers(names: dict[str, Any]) -> dict[str, Any]:
    handle, manager = names["handle_request"], names["session_manager"]
    before = sorted(os.listdir("/"))
    errors = await _refused(handle, ["../escaped", "/escaped", "", ".", "alice/x", "nul\0"])
    created = sorted(set(os.listdir("/")) - set(before)) + os.listdir("/workspaces")
    seen = await _isolated(names)
    script = "cat *.txt; hostname; id -u; ls -A /workspaces ../.. ; echo $$ > made; touch /etc/made"
    ran = await _say(handle, lambda user: f"run {script}")
    running = _containers_of_users()
    stopped = await manager.shutdown()
    left = _containers_of_users("--all")
    result = {"ran": ran, "running": len(running), "stopped": stopped, "left": left}
    return {**seen, **result, "refused": errors, "created": created, "files": _files()}


async def _shared(names: dict[str, Any]) -> dict[str, Any]:
    async def handle(user: str, prompt: str) -> str:
        result = await names["agent"].run(prompt, deps=names["deps"])
        return str(result.output)

    return await _at_once(handle)


_SCENARIOS = {
    "The Problem": _shared,
    "Pattern A: Fresh StateBackend per Session": _isolated,
    "Pattern B: LocalBackend with User Prefix": _persistent,
    "Pattern C: DockerSandbox + SessionManager": _containers,
}

APPLICATION = "Complete Example (FastAPI)"


def main() -> None:
    """Run the block on stdin."""
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(sys.stdin.read(), "guide", "exec"), names)
    json.dump(asyncio.run(_SCENARIOS[sys.argv[1]](names)), sys.stdout)


if __name__ == "__main__":
    main()
