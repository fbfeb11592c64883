"""Tokens of the first request of a new user with the prompt `hello`, of deepctl and of other tools.

Each tool runs in a new home directory and an empty working directory, and talks to a server on 127.0.0.1 that records
the request. Counted are the o200k tokens of all that the model reads: instructions, tools, messages.

The other tools are measured if `$DEEPCTL_BENCH_VENVS` names the virtual environments that have them, separated by
colons. They are not installed here: together they take 1 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import promise
from tests.support.loopback import Text, provider
from tests.support.tokens import request_tokens

_PEERS: dict[str, tuple[str, ...]] = {
    "clai": ("clai", "--model", "openai-chat:loopback", "hello"),
    # Its browser is on by default, but fails without the download of a browser.
    "pydantic-deep": ("pydantic-deep", "run", "--no-browser", "--model", "openai-chat:loopback", "hello"),
    # Without a list of allowed commands, it has no shell.
    "deepagents-code": ("dcode", "--model", "openai:loopback", "--shell-allow-list", "all", "-n", "hello"),
}
"""The command of each package, with the tools that its interactive chat has by default."""
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def _first_request(*commands: Sequence[str]) -> dict[str, Any]:
    """The first request of these commands, which have one new home directory."""
    with tempfile.TemporaryDirectory() as home, provider(Text(["Hello."]), repeat_last=True) as server:
        workspace = Path(home, "work")
        workspace.mkdir()
        environment = {
            "HOME": home,
            "PATH": os.environ["PATH"],
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": f"{server.address}/v1",
            "DEEPAGENTS_CODE_OFFLINE": "1",  # else it downloads ripgrep
        }
        for command in commands:
            done = subprocess.run(
                command, cwd=workspace, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        # Some end with an error after the request, because the server only streams.
        assert server.requests, done.stdout + done.stderr
        return server.requests[0]


def _deepctl(tools: str) -> dict[str, Any]:
    deepctl = str(Path(sys.executable).parent / "deepctl")
    user = ("--user", "alice")
    chat = (deepctl, "chat", *user, "--sandbox", "bubblewrap", "--model", "openai-chat:loopback", "hello")
    return _first_request(
        (deepctl, "profiles", "create", "alice"), (deepctl, "config", "set", "tools", tools, *user), chat
    )


def _peers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name with version, and the first request, of each other tool that is there."""
    for place in filter(None, os.environ.get("DEEPCTL_BENCH_VENVS", "").split(os.pathsep)):
        programs = Path(place).absolute() / "bin"
        for package, (program, *arguments) in _PEERS.items():
            if (programs / program).exists():
                asked = (str(programs / "python"), "-c", _VERSION, package)
                version = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
                yield f"{package} {version}", _first_request((str(programs / program), *arguments))


def _print(name: str, request: dict[str, Any]) -> int:
    """Print one request; its tokens."""
    count = sum(request_tokens(request).values())
    print(f"  {name:<28} {len(request.get('tools', [])):3} tools {count:7,} tokens")
    return count


def run() -> bool:
    """Measure and print; whether every promise holds."""
    print("The first hello (o200k tokens of the first request):")
    full, lean = (_print(f"deepctl, {tools}", _deepctl(tools)) for tools in ("full", "lean"))
    for name, request in _peers():
        _print(name, request)
    return all(
        [
            promise("tokens of the first hello, full / 3,000", full / 3000, 1.0),
            promise("tokens of the first hello, lean / 1,500", lean / 1500, 1.0),
        ]
    )


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
