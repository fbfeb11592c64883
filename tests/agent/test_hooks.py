"""Hooks of a profile: before a tool, after one, and at the end of a turn, through real chats."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from deepctl.agent.hooks import CommandHooks
from deepctl.domain.hooks import Hook, parse, risk
from deepctl.errors import BadSetting
from deepctl.layout import Root
from tests.support.command import Command, InProcess, Result
from tests.support.loopback import Text, ToolCalls, provider


@pytest.fixture
def workspace(deepctl: InProcess, home: Path) -> Path:
    deepctl("profiles", "create", "alice").ok()
    return Path(Root(str(home)).profile("alice").workspace)


def hooks(home: Path, text: str) -> None:
    with open(Root(str(home)).profile("alice").settings, "a") as file:
        file.write(f"\n[hooks]\n{text}\n")


def notices(result: Result) -> list[str]:
    return [event["message"] for event in result.events if event["type"] == "notice" and "Hook" in event["message"]]


def results(result: Result) -> list[tuple[bool, str]]:
    return [(event["ok"], event["content"]) for event in result.events if event["type"] == "tool_result"]


def chat(deepctl: InProcess, *prompt: str) -> Result:
    return deepctl("chat", "-u", "alice", "--json", "\n".join(prompt)).ok()


def test_a_hook_sees_the_arguments_and_refuses(deepctl: InProcess, home: Path, workspace: Path) -> None:
    script = """
        input=$(cat); printf '%s' "$input" >seen.json
        case $input in *'"tool": "write_file"'*secret*) printf 'no \\033[31msecrets\\n' >&2; exit 2;; esac"""
    hooks(home, f"before_tool = [{{ command = '''{script}''', tools = ['write_*', 'execute'] }}]")
    done = chat(deepctl, "write a.txt: one", "write b.txt: secret", "read a.txt")
    assert results(done)[0][0]
    assert results(done)[1] == (
        False,
        "A hook of the user refused this call; it was not done. no secrets",
    )
    assert not (workspace / "b.txt").exists()
    seen = json.loads((workspace / "seen.json").read_text())
    assert (seen["event"], seen["tool"], seen["workspace"]) == ("before_tool", "write_file", "/workspace")
    assert seen["arguments"] == {"path": "b.txt", "content": "secret"}
    shown = notices(done)
    assert len(shown) == 2  # reading has no hook
    assert shown[1].startswith("Hook before_tool write_file: ")
    assert "→ refused: no secrets" in shown[1]
    assert not list((workspace / ".deep/home").glob(".deepctl*"))


@pytest.mark.parametrize(
    ("command", "warning"),
    [
        ("exit 3", "Warning: exit code 3"),
        ("no-such-program-here", "Warning: exit code 127"),
        ("sleep 30", "Warning: it took longer than 1 s and was ended"),
        ("kill -9 $$", "Warning: exit code"),
        ("sleep 30 & exit 3", "Warning: exit code 3"),
    ],
)
@pytest.mark.parametrize("sandbox", ["true", "false"])
def test_another_end_is_a_warning_and_the_turn_goes_on(
    deepctl: InProcess, home: Path, workspace: Path, command: str, warning: str, sandbox: str
) -> None:
    hooks(home, f'before_tool = [{{ command = "{command}", timeout = 1, sandbox = {sandbox} }}]')
    done = chat(deepctl, "write a.txt: one")
    assert results(done)[0][0]
    (notice,) = notices(done)
    assert warning in notice


def test_a_hook_after_a_tool_tells_the_model(deepctl: InProcess, home: Path, workspace: Path) -> None:
    hooks(
        home,
        """after_tool = [{ command = "grep -q 'a.txt' && { echo 'line too long'; exit 2; }", tools = "write_file" },
                       { command = "exit 2" },
                       { command = "cat >after.json" }]""",
    )
    done = chat(deepctl, "write a.txt: one", "write b.txt: two", "read missing")
    first, second, missing = results(done)
    assert first[0]
    assert first[1].endswith("\n\nA hook of the user says: line too long")
    assert "hook" not in second[1]
    seen = json.loads((workspace / "after.json").read_text())
    assert (seen["event"], seen["tool"]) == ("after_tool", "read_file")
    assert seen["result"] == missing[1]


def test_what_a_hook_changes_is_taken_back_with_the_turn(deepctl: InProcess, home: Path, workspace: Path) -> None:
    hooks(
        home,
        """before_tool = [{ command = "echo x >>before.txt", tools = "write_file" }]
after_tool = [{ command = "tr a-z A-Z <a.txt >b && mv b a.txt", tools = "write_file" }]
turn_end = [{ command = "cat >end.json" }]""",
    )
    (workspace / "mine.txt").write_text("mine\n")
    chat(deepctl, "write a.txt: one")
    assert (workspace / "a.txt").read_text() == "ONE"
    assert json.loads((workspace / "end.json").read_text())["event"] == "turn_end"
    rewound = deepctl("checkpoints", "rewind", "~1", "-u", "alice", "--json").ok().json
    assert rewound["files"]["conflicts"] == []
    assert sorted(path.name for path in workspace.iterdir() if path.name != ".deep") == ["mine.txt"]


def test_an_unsandboxed_hook_runs_at_home_without_keys(
    deepctl: InProcess, home: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = tmp_path / "person"
    person.mkdir()
    monkeypatch.setenv("HOME", str(person))
    monkeypatch.setenv("SOME_API_KEY", "sk-canary-0123456789abcdef")
    hooks(home, 'turn_end = [{ command = "cat >seen.json; env >env", sandbox = false }]')
    chat(deepctl, "hello")
    seen = json.loads((person / "seen.json").read_text())
    assert seen["workspace"] == str(workspace)
    assert "canary" not in (person / "env").read_text()


def test_an_unsandboxed_hook_does_not_run_a_file_of_the_agent(deepctl: InProcess, home: Path, workspace: Path) -> None:
    script = workspace / "evil.sh"
    script.write_text("#!/bin/sh\ntouch ran\n")
    script.chmod(0o755)
    hooks(home, f'turn_end = [{{ command = "sh {script}", sandbox = false }}]')
    (notice,) = notices(chat(deepctl, "hello"))
    assert "the agent can change a file that it names" in notice
    report = deepctl("doctor", "-u", "alice", "--json")
    assert any(check["name"] == "hooks" and check["status"] == "problem" for check in report.json["checks"])


def test_an_imported_hook_does_not_run(deepctl: InProcess, home: Path, workspace: Path, tmp_path: Path) -> None:
    hooks(home, 'turn_end = [{ command = "touch ran" }]')
    archive = tmp_path / "alice.tar"
    deepctl("profiles", "export", str(archive), "-u", "alice").ok()
    deepctl("profiles", "import", str(archive), "--as", "bob").ok()
    deepctl("chat", "-u", "bob", "hello").ok()
    bob = Path(Root(str(home)).profile("bob").workspace)
    assert not (bob / "ran").exists()
    shown = deepctl("config", "show", "-u", "bob", "--json").json
    (item,) = [item for item in shown["untrusted"] if item["key"].startswith("hooks")]
    assert item["reason"] == "it runs these commands in every turn, where commands of the agent run"
    assert shown["hooks"] == []
    assert deepctl("profiles", "trust", "bob", "--json").error["code"] == "needs_yes"
    deepctl("profiles", "trust", "bob", "--json", "--yes").ok()
    deepctl("chat", "-u", "bob", "hello").ok()
    assert (bob / "ran").exists()
    deepctl("profiles", "copy", "alice", "carol").ok()
    assert "hooks" not in Path(Root(str(home)).profile("carol").settings).read_text()


def test_sandboxed_hooks_do_not_run_where_the_sandbox_is_missing(
    deepctl: InProcess, home: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks(home, 'turn_end = [{ command = "touch ran" }]')
    monkeypatch.setenv("DEEPCTL_BWRAP", "/nonexistent")
    deepctl("chat", "-u", "alice", "hello").ok()
    assert not (workspace / "ran").exists()
    report = deepctl("doctor", "-u", "alice", "--json")
    assert any(check["name"] == "hooks" and check["status"] == "problem" for check in report.json["checks"])


@pytest.mark.parametrize(("event", "sandbox"), [("before_tool", "true"), ("after_tool", "false")])
def test_ctrl_c_ends_a_hook(
    process: Command, deepctl: InProcess, home: Path, workspace: Path, tmp_path: Path, event: str, sandbox: str
) -> None:
    started = workspace / "started" if sandbox == "true" else tmp_path / "started"
    target = "started" if sandbox == "true" else started
    hooks(home, f'{event} = [{{ command = "echo $$ >{target}; sleep 300 & wait", sandbox = {sandbox} }}]')
    running = process.start("chat", "-u", "alice", "write a.txt: one")
    end = time.monotonic() + 30
    while not started.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    if sandbox == "false":
        time.sleep(0.2)
        with pytest.raises(ProcessLookupError):
            os.kill(int(started.read_text()), 0)
    # A hook after a tool finds the work of the tool done, and Ctrl-C does not take it back.
    assert (workspace / "a.txt").exists() == (event == "after_tool")
    assert not list((workspace / ".deep/home").glob(".deepctl*"))
    rewound = deepctl("checkpoints", "rewind", "~1", "-u", "alice", "--json").ok().json
    assert rewound["files"]["conflicts"] == []
    assert not (workspace / "a.txt").exists()


def test_an_interruption_at_any_moment_ends_an_unsandboxed_hook(tmp_path: Path) -> None:
    hook = Hook(
        "turn_end",
        f"echo $$ >>{tmp_path}/pids; sleep 300 & echo $! >>{tmp_path}/pids; wait",
        timeout=60.0,
        is_sandboxed=False,
    )
    runner = CommandHooks([hook], dict(os.environ))

    async def stopped(seconds: float) -> None:
        async with asyncio.timeout(10):
            running = asyncio.ensure_future(runner._outside(hook, "x" * 200_000))
            await asyncio.sleep(seconds)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    for milliseconds in range(20):
        asyncio.run(stopped(milliseconds / 1000))
    processes = (tmp_path / "pids").read_text().split()
    assert processes
    end = time.monotonic() + 5
    while any(map(_is_running, processes)):
        assert time.monotonic() < end
        time.sleep(0.02)


def _is_running(process: str) -> bool:
    """Whether there is such a process that is no zombie. One whose parent is gone can stay a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_hooks_hold_for_a_sub_agent_which_ends_no_turn(
    deepctl: InProcess, home: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "subagents", "on", "-u", "alice").ok()
    hooks(
        home,
        """before_tool = [{ command = "cat >seen.json; exit 2", tools = "write_file" }]
after_tool = [{ command = "echo x >>after" }]
turn_end = [{ command = "echo x >>ends" }]""",
    )
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    write = ToolCalls([("write_file", {"path": "a.txt", "content": "a"})])
    task = ToolCalls([("delegate_task", {"agent_name": "self", "task": "Write a.txt."})])
    with provider(task, write, Text(["Refused."]), Text(["Well."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        done = deepctl("chat", "-u", "alice", "--model", "openai-chat:gpt-4o", "--json", "go").ok()
        refusal = server.requests[2]["messages"][-1]["content"]
    assert "A hook of the user refused this call; it was not done." in refusal
    assert not (workspace / "a.txt").exists()
    assert json.loads((workspace / "seen.json").read_text())["agent"] == "self"
    assert (workspace / "ends").read_text() == "x\n"
    assert (workspace / "after").read_text() == "x\n"
    assert [notice.split(":")[0] for notice in notices(done)] == [
        "Hook before_tool write_file",
        "Hook after_tool delegate_task",
        "Hook turn_end",
    ]


def test_hooks_are_shown_with_their_source(deepctl: InProcess, home: Path, workspace: Path) -> None:
    config = Path(os.environ["DEEPCTL_CONFIG"])
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[hooks]\nturn_end = [{ command = "curl https://me:secret@mail.test", sandbox = false }]\n')
    hooks(home, "before_tool = [{ command = '''\nfirst\nsecond''', tools = 'execute', timeout = 5 }]")
    shown = deepctl("config", "show", "-u", "alice", "--json").ok()
    assert [(hook["event"], hook["source"], hook["sandbox"]) for hook in shown.json["hooks"]] == [
        ("turn_end", "config", False),
        ("before_tool", "profile", True),
    ]
    assert (shown.json["hooks"][1]["tools"], shown.json["hooks"][1]["timeout"]) == (["execute"], 5)
    table = deepctl("config", "show", "-u", "alice").ok().stdout
    assert "secret" not in shown.stdout + table
    assert re.search(r"hooks.before_tool\tfirst …\tprofile", table)
    assert re.search(r"hooks.turn_end\t.*\(unsandboxed\)\tconfig", table)


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"before": []},
        {"before_tool": {"command": "x"}},
        {"before_tool": [{"tools": "x"}]},
        {"before_tool": [{"command": "x", "tool": "y"}]},
        {"turn_end": [{"command": "x", "tools": "y"}]},
        {"before_tool": [{"command": "x", "timeout": 0}]},
        {"before_tool": [{"command": "x", "timeout": 601}]},
        {"before_tool": [{"command": "x", "sandbox": "no"}]},
        {"before_tool": [{"command": "x", "tools": []}]},
        {"before_tool": [{"command": "a\0b"}]},
    ],
    ids=str,
)
def test_a_misspelled_hook_is_an_error(table: Any) -> None:
    with pytest.raises(BadSetting) as caught:
        parse(table, "profile.toml")
    assert "profile.toml" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("entry", [{"command": "x", "sandbox": False}, {"command": "x", "sandbox": "true"}, "x"])
def test_a_hook_that_may_be_unsandboxed_is_called_so(entry: Any) -> None:
    assert risk([{"command": "x"}, entry]).endswith("unsandboxed, with your rights")


def test_tools_are_selected_by_patterns() -> None:
    (hook,) = parse({"before_tool": [{"command": "x", "tools": ["mcp__*", "execute"]}]}, "")
    names = ("execute", "mcp__a", "write_file", "executed")
    assert [hook.is_for("before_tool", name) for name in names] == [True, True, False, False]
    assert not hook.is_for("after_tool", "execute")


def test_a_key_with_colours_in_it_is_removed_from_the_output_of_a_hook() -> None:
    hooks = CommandHooks((), {"OPENAI_API_KEY": "sk-canary-0123456789abcdef"})
    text = hooks._clean("the key sk-canary-\x1b[31m0123456789\x1b[mabc\x01def is here")
    assert text.startswith("the key ")
    assert text.endswith(" is here")
    assert "0123456789" not in text
