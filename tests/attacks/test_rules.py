"""What a profile's rules deny stays denied through a whole chat, however a file or a command is spelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider

CANARY = "canary-c0ffee-b1ab1a"
_RULES = """
[permissions.read]
rules = [{ pattern = "guard/**", action = "deny" }, { pattern = "**.sql", action = "deny" }]
[permissions.write]
rules = [{ pattern = "guard/**", action = "deny" }]
[permissions.edit]
rules = [{ pattern = "guard/**", action = "deny" }]
[permissions.execute]
default = "allow"
rules = [{ pattern = "git push**", action = "deny" }]
"""


@pytest.fixture
def workspace(deepctl: InProcess, home: Path) -> Iterator[Path]:
    """Of a profile with these rules, and what they are about."""
    deepctl("profiles", "create", "alice").ok()
    with (home / "profiles/alice/profile.toml").open("a") as settings:
        settings.write(_RULES)
    made = home / "profiles/alice/workspace"
    for name in ("guard/a\nb", "guard/\n", "dump-2026-01-01T10:30:00.sql", "a:1:\nb.sql"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(f"x\n{CANARY}\n")
    before = sorted(made.rglob("*"))
    yield made
    assert sorted(path for path in made.rglob("*") if ".deep" not in path.parts) == before


def test_no_tool_shows_or_changes_a_file_that_is_denied_for_what_is_in_its_name(
    deepctl: InProcess, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        *(("read_file", {"path": str(path.relative_to(workspace))}) for path in workspace.rglob("*") if path.is_file()),
        ("read_file", {"path": "./guard//a\nb"}),
        ("read_file", {"path": "/workspace/guard/a\nb"}),
        ("write_file", {"path": "guard/c\nd", "content": "x"}),
        ("write_file", {"path": "guard/a\nb", "content": "x"}),
        ("edit_file", {"path": "guard/a\nb", "old_string": "x", "new_string": "y"}),
        *(("grep", {"pattern": "canary-", "output_mode": mode, "path": path}) for path in (".", "guard")
          for mode in ("content", "count")),
        ("grep", {"pattern": "canary-", "output_mode": "content", "path": "dump-2026-01-01T10:30:00.sql"}),
        ("grep", {"pattern": "canary-", "output_mode": "content", "glob_pattern": "*.sql"}),
    ]  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    with provider(ToolCalls(calls), Text(["done"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        chat = deepctl("chat", "-u", "alice", "--model", "openai-chat:loopback", "--json", "go").ok()
    results = [event for event in chat.events if event["type"] == "tool_result"]
    assert len(results) == len(calls)
    assert CANARY not in json.dumps(server.requests)
    assert {(workspace / name).read_text() for name in ("guard/a\nb", "guard/\n")} == {f"x\n{CANARY}\n"}


HIDDEN = (
    "./git push",
    "X=1 ./git push",
    "env ./git push",
    "nohup ./git -C . push",
    '"./g"it push',
    "./g[i]t push",
    "{ ./git push; }",
    "if true; then ./git push; fi",
    "sh -c './git push'",
    'eval "./git push"',
    "echo push | xargs ./git",
    "$(echo ./git) push",
    "x=push; ./git $x",
    "cat <(./git push)",
    "find . -name git -exec {} push \\;",
)


def test_no_spelling_of_a_denied_command_runs_it_in_a_chat(deepctl: InProcess, workspace: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    git = workspace / "guard" / "git"
    git.write_text(f"#!/bin/sh\necho \"$@\" >> '{ran}'\n")
    git.chmod(0o755)
    prompt = "\n".join(f"run cd guard && {command}" for command in ("./git status", *HIDDEN))
    deepctl("chat", "-u", "alice", "--sandbox", "none", prompt).ok()
    assert ran.read_text() == "status\n"
    git.unlink()
