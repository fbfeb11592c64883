"""What commands load: those that only read start without the agent stack, and when piped without Rich."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from deepctl.cli.main import COMMANDS, app
from tests.support.command import InProcess
from tests.support.prepared import prepare

READERS = [
    ("profiles", "list"),
    ("profiles", "show", "alice"),
    ("profiles", "path", "alice"),
    ("sessions", "list", "--user", "alice"),
    ("sessions", "show", "--user", "alice"),
    ("memory", "show", "--user", "alice"),
    ("memory", "list", "--user", "alice"),
    ("config", "show", "--user", "alice"),
    ("config", "get", "model"),
    ("config", "path"),
    ("sandbox", "show", "--user", "alice"),
    ("models", "--user", "alice"),
    ("doctor", "--user", "alice"),
    ("memory", "show", "--at", "~0", "--user", "alice"),
    ("memory", "search", "tea", "--user", "alice"),
    ("memory", "history", "--user", "alice"),
    ("memory", "diff", "~1", "--user", "alice"),
    ("memory", "forget", "tea", "--dry-run", "--user", "alice"),
    ("sessions", "search", "tea", "--user", "alice"),
    ("sessions", "export", "--user", "alice"),
    ("sessions", "delete", "main", "--dry-run", "--user", "alice"),
    ("checkpoints", "prune", "--keep", "1", "--dry-run", "--user", "alice"),
    ("wipe", "--dry-run", "--user", "alice"),
]
HEAVY = ("pydantic", "pydantic_ai", "pydantic_ai_backends", "pydantic_ai_harness", "rich", "prompt_toolkit", "tomlkit")

_RUN = f"""
import sys
from deepctl.cli.main import main
code = main(sys.argv[1:])
print("loaded:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize("extra", [(), ("--json",)], ids=["text", "json"])
def test_a_command_that_reads_loads_nothing_heavy(
    deepctl: InProcess, home: Path, command: tuple[str, ...], extra: tuple[str, ...]
) -> None:
    prepare(home, "start", lambda: deepctl("chat", "--user", "alice", "remember tea").ok())
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *command, *extra], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.splitlines()[-1] == "loaded:"
    assert done.stdout


_HELP = """
import sys
from deepctl.cli.main import main
code = main(["--help"])
print("loaded:", *sorted(name for name in sys.modules if name.startswith(("deepctl.", "rich"))), file=sys.stderr)
sys.exit(code)
"""


def test_help_loads_none_of_the_commands() -> None:
    done = subprocess.run([sys.executable, "-c", _HELP], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines()[-1] == "loaded: deepctl.cli deepctl.cli.main deepctl.errors"


def test_help_says_of_every_command_what_the_command_says_of_itself() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {name: command.get_short_help_str(1000) for name, command in commands.items()} == COMMANDS
