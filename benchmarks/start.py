"""How long commands take to start, against a bare Typer app and against importing what the agent needs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.measure import medians, promise

BARE_TYPER = """
import typer
app = typer.Typer()
@app.command()
def one(name: str = "x") -> None:
    print(name)
@app.command()
def two(count: int = 1) -> None:
    print(count)
app()
"""
_IMPORTS = """
from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel
from pydantic_ai_backends import ConsoleCapability
from pydantic_ai_harness.memory import FileStore, Memory
from pydantic_ai_harness.planning import Planning
from pydantic_ai_harness.repo_context import RepoContext
from pydantic_ai_harness.tool_output_limits import ToolOutputLimits
"""
_READERS = {
    "memory show": ("memory", "show", "--user", "alice"),
    "checkpoints list": ("checkpoints", "list", "--user", "alice"),
    "sessions list": ("sessions", "list", "--user", "alice"),
    "profiles list": ("profiles", "list"),
}


def run() -> bool:
    """Measure and print; whether every promise holds."""
    deepctl = str(Path(sys.executable).parent / "deepctl")
    with tempfile.TemporaryDirectory() as place:
        environment = {"DEEPCTL_HOME": f"{place}/state", "DEEPCTL_CONFIG": f"{place}/config.toml"}
        for said in ("remember I like tea", "write a.txt: hello", "hello"):
            medians({"": (deepctl, "chat", "--user", "alice", said)}, rounds=1, environment=environment)
        (Path(place) / "bare.py").write_text(BARE_TYPER)
        commands = {
            "bare Python": (sys.executable, "-c", "pass"),
            "bare Typer": (sys.executable, f"{place}/bare.py", "one"),
            "--help": (deepctl, "--help"),
            **{name: (deepctl, *arguments) for name, arguments in _READERS.items()},
        }
        quick = medians(commands, rounds=20, environment=environment)
        slow = medians(
            {
                "imports": (sys.executable, "-c", _IMPORTS),
                "chat": (deepctl, "chat", "--user", "alice", "--model", "offline", "hello"),
            },
            rounds=10,
            environment=environment,
        )
    print("Start of commands (medians in one run):")
    print(
        f"  bare Python {quick['bare Python'] * 1000:.0f} ms, bare Typer {quick['bare Typer'] * 1000:.0f} ms, ", end=""
    )
    print(f"imports of the agent {slow['imports'] * 1000:.0f} ms")
    held = [
        promise(f"{name} / bare two-command Typer app", quick[name] / quick["bare Typer"], 1.5) for name in _READERS
    ]
    held.append(promise("--help / bare two-command Typer app", quick["--help"] / quick["bare Typer"], 1.2))
    held.append(promise("chat, offline model / only importing what it needs", slow["chat"] / slow["imports"], 1.4))
    return all(held)
