"""What an attacker would want: secrets all over a machine, processes to reach, and state that must stay as it is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from deepctl import DeepAgentDeps, LocalBackend, create_deep_agent, layout
from deepctl.agent.sandboxes import Sandbox
from deepctl.domain import profiles
from deepctl.layout import ProfilePaths, Root
from deepctl.sandbox.policy import Limits
from tests.support.sockets import server

Call = tuple[str, dict[str, Any]]

LIMITS = Limits(seconds=6, memory=256 << 20, processes=64, tmp=16 << 20, disk=64 << 20)

_VICTIM = """
import os, sys, time
secret = open(sys.argv[1])
print("ready", flush=True)
time.sleep(600)
"""


class Seen(NamedTuple):
    """What an attempt came to: the texts that the model got back, and what it was told before."""

    results: list[str]
    instructions: str


class Scene:
    """Two profiles, the home of the user they belong to, and processes of that user."""

    def __init__(self, directory: Path) -> None:
        self.canary = f"canary-{secrets.token_hex(12)}"
        self.directory = directory
        self.root = Root(str(directory / "root"))
        self.alice = self._profile("alice")
        self.bob = self._profile("bob")
        self.home = directory / "home"
        bob = Path(self.bob.workspace)
        self._write(bob / "secret.txt")
        self._write(bob / layout.MEMORY_DIRECTORY / layout.AGENT / layout.NOTEBOOK)
        self._write(self.home / ".ssh/id_rsa")
        self._write(self.home / ".bashrc")
        self._write(self.home / "config.toml")
        self.loose = directory / "loose.txt"
        self._write(self.loose)
        self._write(Path(self.alice.checkpoints) / "ledger.jsonl")
        self._write(Path(self.alice.lock))
        self.workspace = Path(self.alice.workspace)
        self._started = contextlib.ExitStack()
        self.victim = self._victim()
        self.port = self._server(socket.AF_INET, ("127.0.0.1", 0))[1]
        self.port6 = self._server(socket.AF_INET6, ("::1", 0))[1]
        self.socket = str(directory / "socket")
        self._server(socket.AF_UNIX, self.socket)
        self.abstract = f"deepctl-{secrets.token_hex(6)}"
        self._server(socket.AF_UNIX, f"\0{self.abstract}")
        self._keep_in_keyring()

    def _profile(self, name: str) -> ProfilePaths:
        with profiles.lock(self.root, name, command="test", wait=5):
            return profiles.create(self.root, name)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{self.canary}\n")

    def _victim(self) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(self.home / ".ssh/id_rsa")],
            stdout=subprocess.PIPE,
            env={"VICTIM": self.canary},
            cwd=self.bob.workspace,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        self._started.callback(process.stdout.close)
        self._started.callback(process.wait)
        self._started.callback(process.kill)
        self._process = process
        return process.pid

    def _server(self, family: socket.AddressFamily, address: Any) -> Any:
        """A server that tells the secret to whoever connects; for IPv6 nothing, where there is none."""
        try:
            return self._started.enter_context(server(family, address, self.canary))
        except OSError:
            assert family == socket.AF_INET6
            return ("::1", 9)

    def _keep_in_keyring(self) -> None:
        """A key in the keyring that children inherit, where the machine has keyrings."""
        libc = ctypes.CDLL(None, use_errno=True)
        add_key = {"x86_64": 248, "aarch64": 217}.get(os.uname().machine)
        if add_key is not None:
            secret = self.canary.encode()
            libc.syscall(add_key, b"user", b"deepctl-canary", secret, len(secret), -3)

    def close(self) -> None:
        self._started.close()

    def values(self) -> dict[str, Any]:
        """What the words in braces of an attempt stand for."""
        return {
            "bob": self.bob.workspace,
            "profiles": self.root.profiles,
            "profile": self.alice.directory,
            "checkpoints": self.alice.checkpoints,
            "lock": self.alice.lock,
            "home": self.home,
            "loose": self.loose,
            "victim": self.victim,
            "port": self.port,
            "port6": self.port6,
            "socket": self.socket,
            "abstract": self.abstract,
        }

    def run(self, backend: LocalBackend, calls: list[Call]) -> Seen:
        """Have an agent make these calls, one after the other, and return what came back."""
        script = _Script([(tool, _filled(arguments, self.values())) for tool, arguments in calls])
        agent = create_deep_agent(include_execute=True, approve="auto", environment={})
        deps = DeepAgentDeps(backend=backend)
        result = asyncio.run(
            agent.run("Do what you are here for.", deps=deps, model=FunctionModel(stream_function=script))
        )
        results = [
            part.content if isinstance(part.content, str) else json.dumps(part.content, default=str)
            for message in result.all_messages()
            if isinstance(message, ModelRequest)
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        ]
        return Seen(results, script.instructions)

    def outside(self) -> dict[str, str]:
        """Everything that is not alice's workspace, to be the same afterwards."""
        return {
            str(path): _described(path)
            for path in sorted(self.directory.rglob("*"))
            if not path.is_relative_to(self.workspace) and "backend" not in path.parts
        }

    def victim_lives(self) -> bool:
        """Whether it does, a moment later: a signal takes its time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        return self._process.poll() is None

    def empty_workspace(self) -> None:
        """Take away what an attempt left, so that the next one begins afresh."""
        import shutil

        for path in self.workspace.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _described(path: Path) -> str:
    status = path.lstat()
    text = f"{stat.filemode(status.st_mode)} {status.st_uid} {status.st_nlink if path.is_file() else ''}"
    if stat.S_ISREG(status.st_mode):
        text += hashlib.sha256(path.read_bytes()).hexdigest()
    if stat.S_ISLNK(status.st_mode):
        text += os.readlink(path)
    return text


def _filled(arguments: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            for word, meaning in values.items():
                value = value.replace(f"{{{word}}}", str(meaning))
        return value

    return {name: filled(value) for name, value in arguments.items()}


class _Script:
    """A model that makes its calls one an answer, whatever comes back."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = list(calls)
        self.instructions = ""

    async def __call__(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        self.instructions = f"{info.instructions or ''}\n{messages!r}"
        if not self._calls:
            yield "done"
            return
        tool, arguments = self._calls.pop(0)
        yield {0: DeltaToolCall(tool, json.dumps(arguments), tool_call_id=f"c{len(self._calls)}")}


@contextlib.contextmanager
def opened(scene: Scene, sandbox: Sandbox) -> Iterator[LocalBackend]:
    """Alice's workspace with a sandbox."""
    backend = LocalBackend(scene.workspace, sandbox=sandbox)
    try:
        yield backend
    finally:
        backend.close()
