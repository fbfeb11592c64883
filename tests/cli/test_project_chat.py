"""A chat in a project, from the command line: what is written where, said when, and taken back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import InProcess, Result
from tests.support.loopback import Status, ToolCalls, provider
from tests.support.ordinary import as_ordinary


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=root, check=True)
    (root / ".gitignore").write_text("node_modules/\n")
    (root / "node_modules").mkdir()
    (root / "node_modules" / "a").write_text("1")
    return root


def _profile(home: Path) -> Path:
    return home / "profiles" / "default"


def _say(deepctl: InProcess, shop: Path, *lines: str) -> Result:
    return deepctl("chat", "-C", str(shop), "--json", "\n".join(lines)).ok()


def _of(result: Result, kind: str) -> list[dict[str, Any]]:
    return [event for event in result.events if event["type"] == kind]


def _notices(result: Result) -> list[str]:
    return [event["message"] for event in _of(result, "notice")]


def test_every_store_is_in_the_profile(deepctl: InProcess, home: Path, shop: Path) -> None:
    (shop / "big.txt").write_text("word " * 30_000)
    result = _say(
        deepctl,
        shop,
        "write src/a.py: a = 1",
        "read big.txt",
        "list",
        "run pwd; cat src/a.py; touch /profile/from-command",
        "remember tea",
        "plan Trip: pack; go",
        "write /profile/n.txt: hi",
        "read /profile/n.txt",
    )
    contents = {event["name"]: event["content"] for event in _of(result, "tool_result")}
    assert sorted(os.listdir(shop)) == [".git", ".gitignore", "big.txt", "node_modules", "src"]
    assert contents["execute"] == f"{shop}\na = 1"
    assert "src/" in contents["ls"]
    assert "tea" in (_profile(home) / "workspace/.deep/memory/main/MEMORY.md").read_text()
    assert contents["save_plan"].startswith("Saved the plan as /profile/plans/trip-")
    assert (_profile(home) / "workspace/from-command").exists()
    assert (_profile(home) / "workspace/n.txt").read_text().strip() == "hi"
    (evicted,) = (_profile(home) / "workspace/large_tool_results").iterdir()
    assert any(
        f"/profile/large_tool_results/{evicted.name}" in event["content"] for event in _of(result, "tool_result")
    )


def test_what_the_agent_did_is_taken_back_and_what_the_user_did_stays(
    deepctl: InProcess, home: Path, shop: Path
) -> None:
    (shop / "a.py").write_text("a = 1\n")
    (shop / "mine.py").write_text("old\n")
    _say(deepctl, shop, "list")
    _say(deepctl, shop, "write a.py: x", "run echo b > b.py; rm -f .gitignore; git init -q sub", "remember tea")
    (shop / "mine.py").write_text("new\n")
    before = (shop / ".git" / "HEAD").stat()
    deepctl("checkpoints", "rewind", "-C", str(shop), "--json").ok()
    assert (shop / "a.py").read_text() == "a = 1\n"
    assert (shop / "mine.py").read_text() == "new\n"
    assert not (shop / "b.py").exists()
    assert (shop / ".gitignore").exists()
    assert (shop / ".git" / "HEAD").stat() == before
    notebook = _profile(home) / "workspace/.deep/memory/main/MEMORY.md"
    assert not notebook.exists() or "tea" not in notebook.read_text()
    deepctl("checkpoints", "undo", "-C", str(shop), "--json").ok()
    assert (shop / "b.py").read_text() == "b\n"
    assert "tea" in notebook.read_text()


def test_changes_that_no_checkpoint_covers_are_said(
    deepctl: InProcess, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _say(deepctl, shop, "run echo 2 > node_modules/a; echo 3 > node_modules/b; git init -q sub")
    last = _of(result, "checkpoint")[-1]
    assert last["not_covered"] == ["node_modules/a", "node_modules/b", "sub/"]
    assert last["not_covered_count"] == 3
    shown = deepctl("checkpoints", "show", last["id"], "--json").ok().json
    assert shown["not_covered"] == last["not_covered"]
    assert "not_covered" not in _of(_say(deepctl, shop, "run echo x > covered.py"), "checkpoint")[-1]

    text = deepctl("chat", "-C", str(shop), "run echo 4 > node_modules/a; git init -q other").ok()
    # A nested repository is named once.
    assert text.stderr.splitlines()[-2:] == [
        "Changed, and not covered by checkpoints: node_modules/a.",
        "Nested repositories, whose files checkpoints do not cover: other.",
    ]
    monkeypatch.setattr("deepctl.store.not_covered.look.__defaults__", (2,))
    for name in "cdefgh":
        (shop / "node_modules" / name).write_text(name)
    result = _say(deepctl, shop, "run echo 5 > node_modules/a")
    assert "node_modules" in _of(result, "checkpoint")[-1]["not_looked_at"]
    text = deepctl("chat", "-C", str(shop), "list").ok()
    assert "Not looked at: node_modules" in text.stderr.splitlines()[-1]


def test_a_file_that_is_too_large_is_named_once(deepctl: InProcess, home: Path, shop: Path) -> None:
    _say(deepctl, shop, "list")
    deepctl("config", "set", "snapshot.max_file", "1K", "--user", "default").ok()
    text = deepctl("chat", "-C", str(shop), "run head -c 2000 /dev/zero > big.bin; touch node_modules/c").ok()
    about_files = [line for line in text.stderr.splitlines() if "checkpoints" in line]
    assert about_files == [
        "Not stored in checkpoints: big.bin (larger than snapshot.max_file).",
        "Changed, and not covered by checkpoints: node_modules/c.",
    ]
    text = deepctl("chat", "-C", str(shop), "run head -c 3000 /dev/zero > big.bin").ok()
    assert text.stderr.splitlines()[-1] == "Changed, and not covered by checkpoints: big.bin."


def test_a_failed_turn_names_what_checkpoints_do_not_cover(
    deepctl: InProcess, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ToolCalls([("execute", {"command": "echo 4 > node_modules/a"})])
    with provider(command, Status(400)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        failed = deepctl("chat", "-C", str(shop), "--model", "openai-chat:loopback", "clean up")
    assert failed.code == 7
    assert "Changed, and not covered by checkpoints: node_modules/a." in failed.stderr.splitlines()


def test_a_repository_that_git_cannot_read_is_said(deepctl: InProcess, shop: Path) -> None:
    assert not any("tracked files" in notice for notice in _notices(_say(deepctl, shop, "list")))
    (shop / ".git" / "index").write_bytes(b"damaged")
    problem = f"git cannot list the tracked files of {shop} ("
    (notice,) = [notice for notice in _notices(_say(deepctl, shop, "list")) if notice.startswith(problem)]
    assert notice.endswith(f"`git -C {shop} ls-files` says more.")
    checks = deepctl("doctor", "--json", "--user", "default").json["checks"]
    found = [(check["status"], check["found"]) for check in checks if check["name"] == "project"]
    assert found == [("ok", "1 project"), ("warning", notice)]


def test_deleted_entries_that_no_checkpoint_contained_are_said(deepctl: InProcess, shop: Path) -> None:
    os.mkfifo(shop / "pipe")
    (shop / "locked").write_text("x")
    (shop / "locked").chmod(0)

    def story() -> None:
        deepctl("chat", "-C", str(shop), "list").ok()
        text = deepctl("chat", "-C", str(shop), "run rm -f pipe locked").ok()
        assert text.stderr.splitlines()[-1] == "Changed, and not covered by checkpoints: locked, pipe."

    as_ordinary(story)


def test_a_repository_that_a_command_makes_of_the_project_is_not_nested(deepctl: InProcess, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    text = deepctl("chat", "-C", str(plain), "run git init -q . && git init -q inner").ok()
    assert (plain / ".git").is_dir()
    assert text.stderr.splitlines()[-2:] == [
        "The project is a git repository now. Checkpoints do not cover what git ignores.",
        "Nested repositories, whose files checkpoints do not cover: inner.",
    ]


def test_a_repository_that_a_command_destroys_is_said_once(deepctl: InProcess, shop: Path) -> None:
    note = "The project is no longer a git repository. A rewind does not bring its .git back."
    text = deepctl("chat", "-C", str(shop), "run rm -rf .git/objects").ok()
    assert text.stderr.splitlines()[-1] == note
    assert note not in deepctl("chat", "-C", str(shop), "run true").ok().stderr


def test_names_of_what_is_not_covered_stay_on_their_line(deepctl: InProcess, shop: Path) -> None:
    (shop / "make.sh").write_text("printf x > \"$(printf 'node_modules/a\\nError: \\033[2J')\"\n")
    text = deepctl("chat", "-C", str(shop), "run sh make.sh").ok()
    assert text.stderr.splitlines()[-1] == (
        "Changed, and not covered by checkpoints: node_modules/a\\nError: \\x1b[2J."
    )


def test_what_a_repository_has_for_agents_is_said_and_off(deepctl: InProcess, shop: Path) -> None:
    (shop / "AGENTS.md").write_text("Use tabs.")
    skill = shop / ".claude" / "skills" / "deploy" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text("---\ndescription: Ships.\n---\n")
    command = f"deepctl projects trust {shop} --user default"
    off = f"Off: 1 extension of the repository (.claude/skills/deploy/SKILL.md). `{command}` turns them on."
    sent = "AGENTS.md (9 B) is sent to the model as the repository's text."
    assert _notices(_say(deepctl, shop, "list"))[-2:] == [sent, off]
    deepctl("projects", "trust", str(shop), "--yes", "--json").ok()
    assert _notices(_say(deepctl, shop, "list")) == [sent]
    skill.write_text("---\ndescription: Evil.\n---\n")
    assert _notices(_say(deepctl, shop, "list"))[-1].startswith("Off, because of a change since you trusted them: 1")


def test_nothing_in_a_repository_is_a_setting(deepctl: InProcess, home: Path, shop: Path) -> None:
    planted = {
        "profile.toml": 'approve = "auto"\nsandbox = "none"\ninstructions = "PLANTED"\n',
        "config.toml": 'sandbox = "none"\n',
        ".deepctl/profile.toml": 'sandbox = "none"\n',
        ".mcp.json": json.dumps({"mcpServers": {"x": {"command": "touch", "args": [str(shop / "RAN")]}}}),
        ".claude/settings.json": json.dumps({"hooks": {"SessionStart": [{"command": f"touch {shop}/RAN"}]}}),
        ".envrc": f"touch {shop}/RAN\nexport DEEPCTL_MODEL=evil:model\n",
        ".env": "DEEPCTL_MODEL=evil:model\nOPENAI_API_KEY=PLANTED\n",
        "untrusted.toml": 'sandbox = "none"\n',
    }
    for name, content in planted.items():
        (shop / name).parent.mkdir(exist_ok=True)
        (shop / name).write_text(content)
    result = _say(deepctl, shop, "run env")
    start = _of(result, "start")[0]
    assert (start["sandbox"], start["model"]) == ("bubblewrap", "offline")
    assert "PLANTED" not in result.stdout
    assert not (shop / "RAN").exists()


def test_protected_files_are_refused_without_a_terminal(deepctl: InProcess, shop: Path) -> None:
    result = _say(deepctl, shop, "write .envrc: x", "write deploy/key: y", "run echo z > .envrc")
    assert [event["ok"] for event in _of(result, "tool_result")] == [False, True, False]
    assert not (shop / ".envrc").exists()
    deepctl("config", "set", "protected", "deploy", "--user", "default").ok()
    result = _say(deepctl, shop, "write .envrc: x", "write deploy/key: z")
    assert [event["ok"] for event in _of(result, "tool_result")] == [True, False]
    assert (shop / "deploy" / "key").read_text().strip() == "y"


def test_errors_name_no_other_path_of_this_machine(deepctl: InProcess, home: Path, shop: Path) -> None:
    (shop / "out").symlink_to(home)
    for path in ("/profile/gone", "gone", "out/x", f"{home}/x", "../x", "/"):
        (event,) = _of(_say(deepctl, shop, f"read {path}"), "tool_result")
        assert not event["ok"]
        assert str(shop.parent) not in event["content"].replace(path, "").replace(str(shop), ""), event
        assert "outside the workspace" not in event["content"]
        assert ("outside the project" in event["content"]) == ("gone" not in path), event
