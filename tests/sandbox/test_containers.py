"""A profile's container, on a real daemon: how it is confined, and that its life is bound to its holder's."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepctl import distribution
from deepctl.sandbox import container
from deepctl.sandbox.container import Spec
from deepctl.sandbox.policy import Unavailable
from tests.support import docker, processes

MIB = 1 << 20

HOLDER = """
import sys, time
from deepctl.sandbox import container
name, image, workspace = sys.argv[1:]
spec = container.Spec(name, image, workspace, False, 256 << 20, 64, 1 << 30, 16 << 20, "alice")
held = container.open_container(spec)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spec]:
    """A container to open. Whatever a test opens is closed after it: one that fails makes no other fail."""
    docker.require()
    opened: list[container.RunningContainer] = []
    open_container = container.open_container

    def kept(spec: Spec) -> container.RunningContainer:
        opened.append(open_container(spec))
        return opened[-1]

    monkeypatch.setattr(container, "open_container", kept)
    workspace = tmp_path / "profile" / "workspace"
    workspace.mkdir(parents=True)
    name = container.container_name(str(workspace.parent))
    yield Spec(name, docker.IMAGE, str(workspace), False, 256 * MIB, 64, 1024 * MIB, 16 * MIB, "alice")
    for held in opened:
        held.close()
    container.remove(name)


@pytest.fixture
def sleeper() -> list[str]:
    """A command that sleeps, with a command line no other test has."""
    return ["sleep", str(random.randrange(10**7, 10**8))]


def running(name: str) -> bool:
    return docker.inspected(name, "{{.State.Running}}") == "true"


def start_sleepers(name: str, sleeper: list[str]) -> None:
    """Three that a polite end would miss: one deaf to signals, and one in a session of its own."""
    line = " ".join(sleeper)
    docker.detached(name, f"setsid {line} & trap '' TERM INT HUP; {line} & {line}")
    docker.until(lambda: len(processes.with_command(*sleeper)) == 3, 10, "three sleepers")


# What it is called


def test_the_name_is_of_the_directory_itself(tmp_path: Path) -> None:
    one, other, link = tmp_path / "one", tmp_path / "other", tmp_path / "link"
    one.mkdir()
    link.symlink_to(one)
    name = container.container_name(str(one))
    assert re.fullmatch("deepctl-[0-9a-f]{16}", name)
    assert container.container_name(str(link)) == name == container.container_name(f"{one}/")
    assert container.container_name(str(other)) != name


# How it is confined


def test_what_runs_in_it_has_no_privileges_and_sees_its_workspace_only(spec: Spec) -> None:
    Path(spec.workspace, "note").write_text("hello")
    held = container.open_container(spec)
    status = docker.inside(spec.name, "cat /proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert docker.inside(spec.name, "id -u; id -g; pwd; hostname").split() == [
        str(os.getuid()), str(os.getgid()), "/workspace", "workspace",
    ]  # fmt: skip
    assert docker.inside(spec.name, "cat note; echo bye > note; ls") == "hellonote"
    assert Path(spec.workspace, "note").read_text() == "bye\n"
    for place in ("/", "/etc", "/usr/bin", "/proc/sys/kernel"):
        assert docker.inside(spec.name, f"touch {place}/x || echo no", check=False) == "no"
    assert docker.inside(spec.name, "ls /sys/class/net") == "lo"
    held.close()


def test_the_environment_is_three_variables(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "docker"
    configuration.mkdir()
    proxies = {"proxies": {"default": {"httpProxy": "http://me:secret@proxy:3128"}}}
    (configuration / "config.json").write_text(json.dumps(proxies))
    monkeypatch.setenv("DOCKER_CONFIG", str(configuration))
    container.open_container(spec).close()
    assert sorted(json.loads(docker.inspected(spec.name, "{{json .Config.Env}}"))) == [
        "HOME=/workspace/.deep/home",
        "LANG=C.UTF-8",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]


def test_its_limits_hold(spec: Spec) -> None:
    held = container.open_container(spec._replace(memory=64 * MIB, tmp=4 * MIB))
    for place in ("/tmp", "/dev/shm"):
        docker.inside(spec.name, f"head -c 9000000 /dev/zero > {place}/x", check=False)
        assert docker.inside(spec.name, f"stat -c %s {place}/x; rm {place}/x") == str(4 * MIB)
    assert docker.inside(spec.name, "cp /bin/true /tmp/program && /tmp/program && echo ran") == "ran"
    eater = "perl -e 'my $x = \"a\" x (200 << 20); print length $x'; echo $?"
    assert docker.inside(spec.name, eater) == "137"
    forks = "for i in $(seq 100); do sleep 5 & done; echo all"
    assert "all" not in docker.inside(spec.name, forks, check=False)
    held.close()
    host = json.loads(docker.inspected(spec.name, "{{json .HostConfig}}"))
    assert host["Memory"] == host["MemorySwap"] == 64 * MIB
    assert host["PidsLimit"] == spec.processes
    assert host["ShmSize"] == 4 * MIB
    assert host["IpcMode"] == "private"
    assert host["LogConfig"]["Type"] == "none"


def test_the_user_is_the_caller(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(os, "getgid", lambda: 23456)
    os.chown(spec.workspace, 12345, 23456)
    held = container.open_container(spec)
    said: list[tuple[bytes, bytes]] = []
    script = "touch made; stat -c %u:%g made; touch /tmp/x && echo tmp; echo wrong >&2; exit 3"

    def sink(out: bytes, err: bytes) -> bool:
        said.append((out, err))
        return True

    assert held.execute(["sh", "-c", script], {}, sink) == 3
    # Two streams: the daemon keeps the order within each, not between them.
    assert [b"".join(one) for one in zip(*said, strict=True)] == [b"12345:23456\ntmp\n", b"wrong\n"]
    held.close()


def test_what_a_command_prints_is_not_lost_where_it_comes_with_the_head_of_the_answer(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where deepctl is late to read what the daemon has said."""
    begin = http.client.HTTPResponse.begin

    def late(response: http.client.HTTPResponse) -> None:
        time.sleep(0.3)
        begin(response)

    held = container.open_container(spec)
    monkeypatch.setattr(http.client.HTTPResponse, "begin", late)
    printed: list[bytes] = []

    def sink(out: bytes, err: bytes) -> bool:
        printed.append(out or err)
        return True

    for number in range(3):
        assert held.execute(["sh", "-c", f"echo {number}"], {}, sink) == 0
    assert held.execute(["sh", "-c", "head -c 300000 /dev/zero"], {}, sink) == 0
    assert b"".join(printed) == b"0\n1\n2\n" + bytes(300_000)
    held.close()


@pytest.mark.parametrize(("network", "mode"), [(False, "none"), (True, "bridge")])
def test_the_network_is_what_was_asked(spec: Spec, network: bool, mode: str) -> None:
    container.open_container(spec._replace(network=network)).close()
    assert docker.inspected(spec.name, "{{.HostConfig.NetworkMode}}") == mode


def test_any_path_can_be_a_workspace(spec: Spec, tmp_path: Path) -> None:
    odd = tmp_path / "a:b, 'c' ü"
    odd.mkdir()
    (odd / "here").touch()
    held = container.open_container(spec._replace(workspace=str(odd)))
    assert docker.inside(spec.name, "ls") == "here"
    held.close()


# Its life


def test_close_ends_everything_and_keeps_the_container(spec: Spec, sleeper: list[str]) -> None:
    held = container.open_container(spec)
    identity = docker.inspected(spec.name, "{{.Id}}")
    start_sleepers(spec.name, sleeper)
    held.close()
    assert processes.with_command(*sleeper) == []
    assert not running(spec.name)
    held.close()
    held.kill_all()
    assert not running(spec.name)
    for _ in range(5):
        again = container.open_container(spec)
        assert running(spec.name)
        again.close()
        assert not running(spec.name)
    assert docker.inspected(spec.name, "{{.Id}}") == identity


def test_when_the_holder_is_killed_everything_ends(spec: Spec, sleeper: list[str]) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", HOLDER, spec.name, spec.image, spec.workspace]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            start_sleepers(spec.name, sleeper)
            attached = subprocess.Popen(["docker", "exec", spec.name, *sleeper])
            docker.until(lambda: len(processes.with_command(*sleeper)) == 4, 10, "the command")
            holder.send_signal(signal.SIGKILL)
            docker.until(lambda: processes.with_command(*sleeper) == [], 5, "the end of the commands")
            attached.wait(10)
    # Opened at once, perhaps while it is still ending.
    held = container.open_container(spec)
    assert docker.inside(spec.name, "echo works") == "works"
    held.close()


def test_a_container_left_running_is_ended_and_taken_over(spec: Spec, sleeper: list[str]) -> None:
    left = container.open_container(spec)
    start_sleepers(spec.name, sleeper)
    held = container.open_container(spec)
    assert processes.with_command(*sleeper) == []
    assert docker.inside(spec.name, "echo works") == "works"
    held.close()
    left.close()


def test_started_by_anyone_else_it_ends_by_itself(spec: Spec) -> None:
    container.open_container(spec).close()
    docker.docker("start", spec.name)
    docker.until(lambda: not running(spec.name), 15, "the end of a container nobody holds")


def test_kill_all_leaves_it_empty_and_ready(spec: Spec, sleeper: list[str]) -> None:
    held = container.open_container(spec)
    identity = docker.inspected(spec.name, "{{.Id}}")
    for _ in range(3):
        start_sleepers(spec.name, sleeper)
        docker.inside(spec.name, "touch /tmp/left")
        held.kill_all()
        assert processes.with_command(*sleeper) == []
        assert docker.inside(spec.name, "ls -A /tmp; echo works") == "works"
    assert docker.inspected(spec.name, "{{.Id}}") == identity
    held.close()
    assert not running(spec.name)


def test_kill_all_gets_through_where_no_process_fits(spec: Spec, sleeper: list[str]) -> None:
    held = container.open_container(spec)
    line = " ".join(sleeper)
    docker.detached(spec.name, f"while :; do {line} & done")
    docker.until(lambda: len(processes.with_command(*sleeper)) > spec.processes - 16, 20, "a full container")
    held.kill_all()
    assert processes.with_command(*sleeper) == []
    assert docker.inside(spec.name, "echo works") == "works"
    held.close()


def test_threads_may_end_it_at_once(spec: Spec) -> None:
    held = container.open_container(spec)
    threads = [threading.Thread(target=each) for each in (held.kill_all, held.close, held.kill_all, held.close)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not running(spec.name)


def test_a_paused_container_is_made_anew(spec: Spec) -> None:
    left = container.open_container(spec)
    docker.docker("pause", spec.name)
    held = container.open_container(spec)
    assert docker.inside(spec.name, "echo works") == "works"
    held.close()
    left.close()


# Which container it is


@pytest.mark.parametrize(
    "change", [{"network": True}, {"memory": 128 * MIB}, {"processes": 32}, {"tmp": 8 * MIB}, {"profile": "bob"}]
)
def test_another_spec_is_another_container(spec: Spec, change: dict[str, Any]) -> None:
    container.open_container(spec).close()
    identity = docker.inspected(spec.name, "{{.Id}}")
    for _ in range(2):
        container.open_container(spec._replace(**change)).close()
    changed = docker.inspected(spec.name, "{{.Id}}")
    container.open_container(spec._replace(**change)).close()
    assert identity != changed == docker.inspected(spec.name, "{{.Id}}")


def test_a_container_of_somebody_else_is_not_touched(spec: Spec) -> None:
    foreign = docker.docker("run", "--detach", "--network=none", "--name", spec.name, docker.IMAGE, "sleep", "600")
    try:
        with pytest.raises(Unavailable) as opened:
            container.open_container(spec)
        assert "deepctl did not create" in opened.value.reason
        assert spec.name in opened.value.fix
        with pytest.raises(Unavailable):
            container.remove(spec.name)
        assert docker.inspected(spec.name, "{{.Id}} {{.State.Running}}") == f"{foreign} true"
    finally:
        docker.docker("rm", "--force", foreign)


def test_remove(spec: Spec, sleeper: list[str]) -> None:
    assert not container.remove(spec.name)
    held = container.open_container(spec)
    start_sleepers(spec.name, sleeper)
    Path(spec.workspace, "kept").touch()
    assert container.remove(spec.name)
    assert processes.with_command(*sleeper) == []
    assert not docker.exists(spec.name)
    assert Path(spec.workspace, "kept").exists()
    held.close()
    assert not container.remove(spec.name)


# When there is none to be had


def test_check_tells_the_version(spec: Spec) -> None:
    assert container.check(spec.image)[0].isdigit()


def test_nothing_is_pulled(spec: Spec) -> None:
    for attempt in (
        lambda: container.check("deepctl-no-such-image:1"),
        lambda: container.open_container(spec._replace(image="deepctl-no-such-image:1")),
    ):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert caught.value.reason == "The image deepctl-no-such-image:1 is not on this machine"
        assert caught.value.fix == "Download it: docker pull deepctl-no-such-image:1"
    assert not docker.exists(spec.name)


def test_without_its_workspace_it_is_refused(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not exist"):
        container.open_container(spec._replace(workspace=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_an_image_that_cannot_wait(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAIN", "no-such-command && echo held")
    with pytest.raises(Unavailable, match="ended at once"):
        container.open_container(spec)


def test_an_image_that_does_not_answer(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAIN", "cat >/dev/null")
    monkeypatch.setattr(container, "_SECONDS_TO_END", 1)
    with pytest.raises(Unavailable, match="in time"):
        container.open_container(spec)
    docker.until(lambda: not running(spec.name), 5, "the end of a container whose start failed")


@pytest.mark.parametrize("is_greeted", [False, True])
def test_a_container_that_ends_before_it_reads_the_greeting_has_ended_at_once(is_greeted: bool) -> None:
    class Daemon:
        """Closes the connection once the container is started: at once, or with the greeting unread."""

        def attach_socket(self, identity: str, params: dict[str, int]) -> socket.socket:
            ours, self._theirs = socket.socketpair()
            return ours

        def start(self, identity: str) -> None:
            if not is_greeted:
                self._theirs.close()
                return
            threading.Thread(target=self._end).start()

        def _end(self) -> None:
            select.select([self._theirs], [], [], 10)
            self._theirs.close()

    with pytest.raises(Unavailable, match="ended at once"):
        container._start(Daemon(), "deepctl-0123", "0123")


@pytest.fixture
def without_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("without_daemon")
def test_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"unix://{tmp_path}/none.sock"
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(Unavailable) as caught:
        container.check(docker.IMAGE)
    assert caught.value.reason == f"No Docker daemon answers at {address}"
    assert caught.value.fix.startswith("Start the Docker daemon")


@pytest.mark.usefixtures("without_daemon")
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ConnectionRefusedError(111, "refused"), "No Docker daemon answers at"),
        (PermissionError(13, "denied"), "You may not use the Docker daemon at"),
        (TimeoutError("timed out"), "did not answer in time"),
        (OSError(5, "broken"), "cannot be reached"),
    ],
)
def test_a_daemon_out_of_reach(failure: OSError, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise failure

    monkeypatch.setenv("DOCKER_HOST", "unix:///run/docker.sock")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(Unavailable, match=reason):
        container.remove("deepctl-0123456789abcdef")


@pytest.mark.usefixtures("without_daemon")
def test_a_daemon_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "SECONDS", 1)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("silent")
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/silent")
        with pytest.raises(Unavailable, match="did not answer in time"):
            container.check(docker.IMAGE)


@pytest.mark.usefixtures("without_daemon")
@pytest.mark.parametrize(
    "address",
    [
        *("nonsense://x", "unix:///etc/passwd", "tcp://127.0.0.1:1", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:x"),
        *("http://::1:80/", "http://[::1/", "\x1b[31mred", "unix://[x]", "ssh://me@127.0.0.1:x", "fd://", "/x"),
    ],
)
def test_an_address_of_no_daemon(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(Unavailable) as caught:
        container.check(docker.IMAGE)
    assert address in caught.value.reason
    assert "HTTP" not in caught.value.reason


@pytest.mark.usefixtures("without_daemon")
@pytest.mark.parametrize("text", ["[]", "1", "null", '{"proxies": []}', '{"proxies": {"default": 1}}'])
def test_settings_of_docker_that_it_cannot_have_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("silent")
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/silent")
        with pytest.raises(Unavailable, match="The settings of Docker"):
            container.check(docker.IMAGE)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(Unavailable) as caught:
        container.check(docker.IMAGE)
    assert caught.value.fix == f"Install it with: {distribution.to_install('docker')}"


def test_the_package_is_imported_only_when_needed() -> None:
    code = (
        "import sys, deepctl.sandbox.container\n"
        "print([name for name in ('docker', 'requests', 'pydantic', 'typer', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# With the library that runs the commands
