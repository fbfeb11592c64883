"""`chat --sandbox`, `sandbox` and `doctor`: where commands run, and that nothing fails open."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.sandbox import container
from tests.support import docker, processes
from tests.support.command import Command, InProcess
from tests.support.sockets import server
from tests.support.terminal import Terminal

MISSING = "/nonexistent/bwrap"
BUBBLEWRAP = ("--sandbox", "bubblewrap")
DOCKER = ("--sandbox", "docker")


def _results(events: list[dict[str, Any]]) -> list[str]:
    return [event["content"] for event in events if event["type"] == "tool_result"]


def _workspace(home: Path, user: str = "default") -> Path:
    return home / "profiles" / user / "workspace"


def test_by_default_commands_run_in_bubblewrap_without_a_question(deepctl: InProcess, home: Path) -> None:
    result = deepctl("chat", "--json", "run pwd; id -u; touch made; ls /; ls /proc | grep -c '^[0-9]'").ok()
    start = result.events[0]
    assert (start["sandbox"], start["network"], start["questions"], start["notice"]) == (
        *("bubblewrap", False, "denied"),
        None,
    )
    lines = _results(result.events)[0].split()
    assert lines[:2] == ["/workspace", str(os.getuid())]
    assert "home" not in lines
    assert int(lines[-1]) < 9, "only its own processes"
    assert (_workspace(home) / "made").stat().st_uid == os.getuid()


def test_a_sandbox_that_was_asked_for_and_is_missing_is_exit_6(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCTL_BWRAP", MISSING)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    for sandbox, reason, fix in (
        (BUBBLEWRAP, MISSING, "absolute path"),
        (DOCKER, "No Docker daemon", "Start the Docker daemon"),
    ):
        result = deepctl("chat", *sandbox, "run touch made")
        assert (result.code, result.stdout) == (6, "")
        assert reason in result.stderr
        assert fix in result.stderr
        error = deepctl("chat", "--json", *sandbox, "run touch made").events[-1]
        assert (error["type"], error["code"], error["exit_code"]) == ("error", "sandbox_unavailable", 6)
    assert not home.exists(), "nothing was created"


def test_auto_without_a_sandbox_offers_no_commands_where_nobody_can_be_asked(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCTL_BWRAP", MISSING)
    for approve in ("ask", "auto"):
        result = deepctl("chat", "--json", "--approve", approve, "run touch made").ok()
        assert result.events[0]["sandbox"] is None
        assert MISSING in result.events[0]["notice"]
        assert "no tool 'execute'" in result.events[-1]["output"]
    assert "No shell" in deepctl("chat", "hello").ok().stderr
    assert not (_workspace(home) / "made").exists()


def test_auto_without_a_sandbox_asks_about_every_command_at_a_terminal(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCTL_BWRAP", MISSING)
    terminal = Terminal("chat", "--user", "alice", "--approve", "auto")
    terminal.prompt()
    terminal.expect("each after an approval request")
    terminal.type("run touch one\r")
    terminal.expect("Allow it?")
    terminal.type("t")
    terminal.expect("Reason for the agent?")
    terminal.type("because of reasons\r")
    terminal.expect("The reason: because of reasons")
    terminal.prompt()
    terminal.type("run touch two\r")
    terminal.expect("Allow it?", times=2)
    terminal.type("y\r")
    terminal.expect("no output")
    terminal.prompt()
    assert terminal.leave() == 0
    assert [name for name in ("one", "two") if (_workspace(home, "alice") / name).exists()] == ["two"]


def test_a_planted_bwrap_is_never_run(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "#!/bin/sh\ntouch {}/owned\n"
    deepctl(
        "chat", f"write bwrap: {script}\nrun mkdir -p bin .deep/home/bin; cp bwrap bin; chmod +x bwrap bin/bwrap"
    ).ok()
    workspace = _workspace(home)
    monkeypatch.setenv("PATH", f"{workspace}:{workspace}/bin:{os.environ['PATH']}")
    assert "/workspace" in deepctl("chat", "run pwd").ok().stdout
    monkeypatch.setenv("DEEPCTL_BWRAP", str(workspace / "bwrap"))
    result = deepctl("chat", *BUBBLEWRAP, "run pwd")
    assert result.code == 6
    assert "where agents can write" in result.stderr


def test_the_settings_choose_the_sandbox_and_its_limits(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "limits.processes", "17", "--user", "alice").ok()
    deepctl("config", "set", "limits.tmp", "1M", "--user", "alice").ok()
    shown = deepctl("chat", "--user", "alice", "run grep processes /proc/self/limits; df -k /tmp | tail -1").ok().stdout
    assert "17" in shown
    assert " 1024 " in shown
    deepctl("config", "set", "sandbox", "none", "--user", "alice").ok()
    assert deepctl("chat", "--json", "--user", "alice", "hello").ok().events[0]["sandbox"] == "none"


def test_nobody_to_ask_is_said_at_the_start(deepctl: InProcess) -> None:
    result = deepctl("chat", "--json", "--sandbox", "none", "run true").ok()
    assert result.events[0]["questions"] == "denied"
    assert "refused" in result.events[0]["notice"]
    assert "refused" in deepctl("chat", "--sandbox", "none", "hello").ok().stderr
    allowed = deepctl("chat", "--json", "--sandbox", "none", "--approve", "auto", "run true").ok()
    assert allowed.events[0]["questions"] == "allowed"
    assert "without approval requests" in allowed.events[0]["notice"]


def test_the_network_is_there_only_if_asked_for(deepctl: InProcess) -> None:
    with server(socket.AF_INET, ("127.0.0.1", 0), "reached") as (_, port):
        command = f"run bash -c 'head -c 7 </dev/tcp/127.0.0.1/{port}'"
        assert "reached" not in deepctl("chat", command).ok().stdout
        result = deepctl("chat", "--json", "--network", command).ok()
        assert result.events[0]["network"] is True
        assert "reached" in _results(result.events)[0]


def test_with_the_network_abstract_sockets_stay_closed(deepctl: InProcess) -> None:
    with server(socket.AF_UNIX, f"\0deepctl-{os.getpid()}", "reached"):
        script = (
            "socket(S,PF_UNIX,SOCK_STREAM,0) or die $!; "
            f'connect(S,pack("Sa*",1,"\\0deepctl-{os.getpid()}")) or die $!; print scalar <S>'
        )
        assert "reached" not in deepctl("chat", "--network", f"run perl -MSocket -e '{script}'").ok().stdout


def _there(*commands: str) -> list[str]:
    """Which of these commands, told by their arguments, some process is at."""
    return [command for command in commands if processes.with_command(*command.split())]


def _until_there(*commands: str) -> None:
    docker.until(lambda: len(_there(*commands)) == len(commands), 20, "the commands have started")


def _until_gone(*commands: str) -> None:
    docker.until(lambda: not _there(*commands), 10, "the commands are gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_sandboxed_processes_are_gone_when_deepctl_is(process: Command, number: signal.Signals) -> None:
    own, other = f"sleep 51.{os.getpid()}", f"sleep 52.{os.getpid()}"
    running = process.start("chat", "--json", *BUBBLEWRAP, f"run setsid {other} & {own}")
    _until_there(own, other)
    running.send_signal(number)
    running.wait(timeout=20)
    _until_gone(own, other)
    assert process("chat", "hello").code == 0, "the lock is free"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_giants_in_the_workspace_cannot_keep_a_turn_from_being_ended(
    process: Command, home: Path, number: signal.Signals
) -> None:
    """Files of nothing but holes cost the agent nothing, and a checkpoint minutes."""
    running = process.start("chat", "--json", *BUBBLEWRAP, "run truncate -s 9G a b c d e f")
    docker.until(lambda: (_workspace(home) / "f").exists(), 20, "the giants are there")
    time.sleep(1)
    began = time.monotonic()
    running.send_signal(number)
    running.wait(timeout=60)
    assert time.monotonic() - began < 10
    for name in "abcdef":
        (_workspace(home) / name).unlink()
    assert process("chat", "hello").code == 0, "the lock is free"


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "limits.seconds", "1", "--user", "alice").ok()
    own, other = f"sleep 53.{os.getpid()}", f"sleep 54.{os.getpid()}"
    result = deepctl("chat", "--json", "--user", "alice", f"run setsid {other} & {own}\nwrite a.txt: x").ok()
    assert "timed out" in _results(result.events)[0]
    assert _results(result.events)[1].startswith("Wrote"), "the turn goes on"
    _until_gone(own, other)


def test_sandbox_show_tells_what_holds(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    with open(home / "profiles/alice/profile.toml", "a") as file:
        file.write('\n[permissions.execute]\nrules = [{ pattern = "rm **", action = "deny" }]\n')
    found = deepctl("sandbox", "show", "--user", "alice", "--json").ok().json
    assert (found["profile"], found["sandbox"], found["limits"]["processes"]) == ("alice", "auto", 256)
    assert found["permissions"]["execute"]["rules"][0]["pattern"] == "rm **"
    assert "deny  rm **" in deepctl("sandbox", "show", "--user", "alice").ok().stdout
    assert deepctl("sandbox", "show", "--user", "bob").code == 3


def test_doctor_tries_the_sandbox(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    found = deepctl("doctor", "--json").ok().json
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert checks["bubblewrap"]["status"] == "ok"
    monkeypatch.setenv("DEEPCTL_BWRAP", MISSING)
    without = {check["name"]: check for check in deepctl("doctor", "--json").ok().json["checks"]}
    assert (without["bubblewrap"]["status"], without["sandbox"]["status"]) == ("warning", "warning")
    assert MISSING in deepctl("doctor").ok().stdout
    deepctl("config", "set", "sandbox", "bubblewrap").ok()
    asked_for = deepctl("doctor", "--json")
    assert asked_for.code == 5
    assert json.loads(asked_for.stdout)["ok"] is False


def test_doctor_reports_settings_that_cannot_be_read(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('sandbox = "cardboard"\n')
    result = deepctl("doctor")
    assert result.code == 5
    assert "cardboard" in result.stdout


class TestDocker:
    """The same with a container: the guide's pattern C, from the command line."""

    @pytest.fixture(autouse=True)
    def alice(self, deepctl: InProcess, home: Path) -> Iterator[str]:
        """A profile whose commands run in a container; the container's name."""
        docker.require()
        deepctl("profiles", "create", "alice").ok()
        for key, value in (("sandbox", "docker"), ("docker.image", docker.IMAGE), ("limits.memory", "128M")):
            deepctl("config", "set", key, value, "--user", "alice").ok()
        name = container.container_name(layout.Root(str(home)).profile("alice").directory)
        yield name
        container.remove(name)

    def test_commands_run_in_one_container_that_is_kept(self, deepctl: InProcess, home: Path, alice: str) -> None:
        result = deepctl(
            "chat", "--json", "--user", "alice", "run pwd; hostname; echo made > made; cat /proc/1/comm"
        ).ok()
        assert (result.events[0]["sandbox"], result.events[0]["notice"]) == ("docker", None)
        assert _results(result.events)[0].split()[:2] == ["/workspace", "workspace"]
        made = _workspace(home, "alice") / "made"
        assert (made.read_text(), made.stat().st_uid, made.stat().st_gid) == ("made\n", os.getuid(), os.getgid())
        first = docker.inspected(alice, "{{.Id}} {{.State.Running}}").split()
        assert first[1] == "false", "it does not run between turns"
        assert "made" in deepctl("chat", "--user", "alice", "run cat made").ok().stdout
        assert docker.inspected(alice, "{{.Id}}") == first[0]
        assert docker.inspected(alice, "{{.HostConfig.NetworkMode}} {{.HostConfig.Memory}}") == f"none {128 << 20}"

    def test_checkpoints_memory_and_large_results_are_as_ever(self, deepctl: InProcess, home: Path, alice: str) -> None:
        workspace = _workspace(home, "alice")
        deepctl("chat", "--user", "alice", "remember tea\nrun echo one > a; mkdir d; echo x > d/x; chmod 640 a").ok()
        deepctl("chat", "--user", "alice", "remember coffee\nrun rm -r a d; echo two > b; seq 10000").ok()
        (large,) = (workspace / layout.EVICTED_DIRECTORY).iterdir()
        assert large.read_text().startswith("1\n2\n")
        deepctl("checkpoints", "rewind", "~1", "--user", "alice").ok()
        assert (workspace / "a").read_text() == "one\n"
        assert (workspace / "a").stat().st_mode & 0o777 == 0o640
        assert (workspace / "d/x").exists()
        assert not (workspace / "b").exists()
        assert not large.exists()
        memory = deepctl("memory", "show", "--user", "alice").ok().stdout
        assert "tea" in memory
        assert "coffee" not in memory
        assert "one" in deepctl("chat", "--user", "alice", "run cat a").ok().stdout, "the container sees it at once"

    @pytest.mark.parametrize("command", [("wipe", "--yes"), ("wipe", "--only", "workspace", "--yes")])
    def test_a_wipe_takes_it_along(self, deepctl: InProcess, home: Path, alice: str, command: tuple[str, ...]) -> None:
        deepctl("chat", "--user", "alice", "run echo secret > /workspace/file").ok()
        assert docker.inspected(alice, "{{.Name}}") == f"/{alice}"
        planned = deepctl(*command[:-1], "--dry-run", "--user", "alice", "--json").ok().json
        assert docker.inspected(alice, "{{.Name}}") == f"/{alice}", "a plan changes nothing"
        assert planned["dry_run"]
        assert deepctl(*command, "--user", "alice", "--json").ok().json["container"] == alice
        assert not container.remove(alice), "it is gone already"

    def test_a_rename_takes_it_along_and_the_next_chat_makes_another(
        self, deepctl: InProcess, home: Path, alice: str
    ) -> None:
        deepctl("chat", "--user", "alice", "run echo one > file").ok()
        assert deepctl("profiles", "rename", "alice", "carol", "--json").ok().json["container"] == alice
        assert not container.remove(alice), "it is gone already"
        assert "one" in deepctl("chat", "--user", "carol", "run cat file").ok().stdout
        assert deepctl("wipe", "--yes", "--user", "carol", "--json").ok().json["container"]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_its_processes_are_gone_when_deepctl_is(self, process: Command, alice: str, number: signal.Signals) -> None:
        own, other = f"sleep 55.{os.getpid()}", f"sleep 56.{os.getpid()}"
        # What keeps the container up cannot be stopped or ended from inside.
        stop = "for p in 1 2 3 4 5 6 7 8 9; do kill -STOP $p; kill -9 $p; done 2>/dev/null"
        running = process.start("chat", "--json", "--user", "alice", f"run {stop}; setsid {other} & {own}")
        _until_there(own, other)
        running.send_signal(number)
        running.wait(timeout=20)
        _until_gone(own, other)
        assert "again" in process("chat", "--user", "alice", "run echo again").ok().stdout

    def test_what_a_command_leaves_running_ends_with_it(self, deepctl: InProcess, alice: str) -> None:
        other = f"sleep 57.{os.getpid()}"
        began = time.monotonic()
        result = deepctl(
            "chat", "--json", "--user", "alice", f"run setsid {other} >/dev/null 2>&1 &\nrun ps; echo $?"
        ).ok()
        assert time.monotonic() - began < 20
        assert _there(other) == []
        assert len(_results(result.events)) == 2

    def test_an_image_that_is_missing_is_exit_6_and_says_how_to_get_it(self, deepctl: InProcess) -> None:
        deepctl("config", "set", "docker.image", "nobody/nothing:1", "--user", "alice").ok()
        result = deepctl("chat", "--user", "alice", "run true")
        assert result.code == 6
        assert "docker pull nobody/nothing:1" in result.stderr

    def test_sandbox_remove_takes_the_container_away(self, deepctl: InProcess, home: Path, alice: str) -> None:
        deepctl("chat", "--user", "alice", "run echo kept > kept").ok()
        assert docker.exists(alice)
        removed = deepctl("sandbox", "remove", "--user", "alice", "--json").ok().json
        assert (removed["profile"], removed["container"], removed["removed"]) == ("alice", alice, True)
        assert not docker.exists(alice)
        assert deepctl("sandbox", "remove", "--user", "alice", "--json").ok().json["removed"] is False
        assert (_workspace(home, "alice") / "kept").exists()

    def test_a_container_of_somebody_elses_is_never_touched(self, deepctl: InProcess, alice: str) -> None:
        docker.docker("create", "--name", alice, docker.IMAGE, "true")
        try:
            assert "did not create" in deepctl("chat", "--user", "alice", "run true").ok().stdout
            refused = deepctl("sandbox", "remove", "--user", "alice")
            assert refused.code == 6
            assert "did not create" in refused.stderr
            assert docker.exists(alice)
        finally:
            docker.docker("rm", alice)

    def test_without_the_package_it_says_what_to_install(
        self, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "docker", None)
        result = deepctl("chat", "--user", "alice", "run true")
        assert result.code == 6
        assert "-m pip install 'docker" in result.stderr
        monkeypatch.undo()
