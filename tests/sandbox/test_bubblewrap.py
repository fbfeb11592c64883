"""The bubblewrap sandbox by itself: what is closed there, what is limited, and that it fails closed."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepctl.sandbox import bubblewrap, cgroups
from deepctl.sandbox.policy import Limits, Unavailable
from tests.support import processes

_CLOSED = {
    "syslog": 103,
    "ptrace": 101,
    "keyctl": 250,
    "add_key": 248,
    "request_key": 249,
    "process_vm_readv": 310,
    "pidfd_getfd": 438,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "chroot": 161,
    "unshare": 272,
    "setns": 308,
    "open_tree": 428,
    "fsopen": 430,
    "mount_setattr": 442,
}


@pytest.fixture
def policy(tmp_path: Path) -> bubblewrap.Policy:
    workspace = tmp_path / "work"
    workspace.mkdir()
    return bubblewrap.Policy(bubblewrap.find({}), str(workspace), Limits(), network=False)


def _run(policy: bubblewrap.Policy, script: str, *, groups: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    with bubblewrap.pipe() as alive:
        return subprocess.run(
            policy.command(["/bin/sh", "-c", script], alive, groups=groups),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
            check=False,
        )


@pytest.mark.parametrize("network", [False, True])
def test_system_calls_that_reach_out_are_refused(policy: bubblewrap.Policy, network: bool) -> None:
    assert platform.machine() == "x86_64", "the numbers below are those of x86_64"
    numbers = ",".join(str(number) for number in _CLOSED.values())
    done = _run(
        policy._replace(network=network), f"perl -e 'for({numbers}){{syscall($_,0,0,0,0,0);print 0+$!,chr(10)}}'"
    )
    assert dict(zip(_CLOSED, done.stdout.split(), strict=True)) == dict.fromkeys(_CLOSED, "1"), "EPERM"


def test_a_process_of_another_abi_is_killed(policy: bubblewrap.Policy) -> None:
    # x32's getpid: the filter knows only the numbers of the processor itself.
    done = _run(policy, "perl -e 'syscall(0x40000000+39); print qq(lives)'")
    assert "lives" not in done.stdout
    assert done.returncode == 128 + signal.SIGSYS


def test_clone3_is_missing_so_that_flags_can_be_seen(policy: bubblewrap.Policy) -> None:
    assert _run(policy, "perl -e 'syscall(435,0,0); print 0+$!'").stdout == "38", "ENOSYS"


def test_pairs_of_sockets_stay(policy: bubblewrap.Policy) -> None:
    script = "socketpair(A,B,PF_UNIX,SOCK_STREAM,0) or die; syswrite(A,q(hi)); sysread(B,$x,2); print $x"
    assert _run(policy, f"perl -MSocket -e '{script}'").stdout == "hi"
    datagram = "print socketpair(A,B,PF_UNIX,SOCK_DGRAM,0) ? 1 : 0+$!"
    for kind in ("SOCK_DGRAM", "SOCK_RAW"):
        for network in (False, True):
            script = datagram.replace("SOCK_DGRAM", kind)
            assert _run(policy._replace(network=network), f"perl -MSocket -e '{script}'").stdout == "1", "EPERM"


def test_every_filter_is_a_program_the_kernel_takes() -> None:
    for machine in ("x86_64", "aarch64"):
        for network in (False, True):
            raw = bubblewrap.filter_program(machine, network=network)
            assert len(raw) % 8 == 0
            assert 0 < len(raw) // 8 < 256, "jumps of one byte reach everything"


def test_only_the_workspace_and_what_is_temporary_can_be_written(policy: bubblewrap.Policy) -> None:
    done = _run(
        policy,
        "find / -xdev -maxdepth 1 -writable; for d in / /dev /proc /run /var /etc /usr /bin /home /root /srv; do "
        "[ -w $d ] && echo can-write $d; done; touch x /tmp/x /dev/shm/x && echo wrote",
    )
    assert "can-write" not in done.stdout
    assert done.stdout.rstrip().endswith("wrote")
    assert os.listdir(str(policy.workspace)) == ["x"]


def test_nothing_but_the_system_and_the_workspace_is_there(policy: bubblewrap.Policy) -> None:
    found = set(_run(policy, "ls -A /").stdout.split())
    assert found <= {"bin", "sbin", "lib", "lib32", "lib64", "libx32"} | {
        *("dev", "etc", "proc", "run", "tmp", "usr", "var", "workspace")
    }
    assert _run(policy, "ls -A /run /tmp /dev/shm").stdout.split() == ["/dev/shm:", "/run:", "/tmp:"]
    assert "shadow" not in _run(policy, "ls -A /etc").stdout
    assert _run(policy, "cat /etc/resolv.conf").returncode != 0


def test_the_environment_is_what_is_listed(policy: bubblewrap.Policy) -> None:
    names = {line.split("=")[0] for line in _run(policy, "env").stdout.splitlines()}
    assert names == {"HOME", "LANG", "PATH", "PWD"}


@pytest.mark.parametrize("moment", [0.0, 0.002, 0.004, 0.006, 0.008, 0.012, 0.02] * 4)
def test_a_kill_at_any_moment_of_the_start_leaves_nothing(policy: bubblewrap.Policy, moment: float) -> None:
    """`bwrap` asks to be ended with its parent; before it has asked, the parent may be gone."""
    mark = f"sleep 58.{os.getpid()}"
    code = (
        "import os, sys, time, subprocess\n"
        "from deepctl.sandbox import bubblewrap, policy\n"
        f"made = bubblewrap.Policy({policy.program!r}, {policy.workspace!r}, policy.Limits(), network=False)\n"
        "alive = bubblewrap.pipe().__enter__()\n"
        f"subprocess.Popen(made.command(['/bin/sh', '-c', 'exec {mark}'], alive), start_new_session=True)\n"
        f"time.sleep({moment})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL)
    assert killed.returncode == -9
    end = time.monotonic() + 5
    while processes.with_command(*mark.split()) or processes.with_argument(str(policy.workspace)):
        assert time.monotonic() < end, "something is still there"
        time.sleep(0.02)


def test_the_devices_of_this_machine_cannot_be_changed(policy: bubblewrap.Policy) -> None:
    before = [os.stat(f"/dev/{name}") for name in ("null", "zero", "full")]
    done = _run(
        policy,
        "for d in /dev/null /dev/zero /dev/full /proc/self/fd/0; do chmod 666 $d; touch -d 2001-01-01 $d; done; "
        "echo works > /dev/null && head -c1 /dev/zero | wc -c",
    )
    assert done.stdout == "1\n", done
    assert done.stderr.count("chmod: ") == 4
    after = [os.stat(f"/dev/{name}") for name in ("null", "zero", "full")]
    assert [one.st_mtime_ns for one in before] == [one.st_mtime_ns for one in after]
    assert [one.st_ctime_ns for one in before] == [one.st_ctime_ns for one in after]


def test_state_that_lies_among_the_system_s_files_is_not_shown(policy: bubblewrap.Policy) -> None:
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            os.mkdir("/usr/deepctl-test")
        return
    root = Path(f"/usr/local/share/deepctl-test-{os.getpid()}")
    (root / "profiles/alice/workspace").mkdir(parents=True)
    (root / "profiles/bob").mkdir()
    try:
        hiding = policy._replace(workspace=str(root / "profiles/alice/workspace"), hidden_paths=(str(root),))
        assert _run(hiding, f"ls {root} {root}/profiles; touch here").stdout == f"{root}:\n"
        assert (root / "profiles/alice/workspace/here").exists()
    finally:
        shutil.rmtree(root)


def test_limits_are_set(policy: bubblewrap.Policy) -> None:
    limits = Limits(memory=512 << 20, processes=33, disk=64 << 20)
    shown = _run(policy._replace(limits=limits), "cat /proc/self/limits; cat /proc/self/oom_score_adj").stdout
    rows = {line[:26].strip(): line[26:].split()[:2] for line in shown.splitlines()}
    assert rows["Max data size"] == [str(512 << 20)] * 2
    assert rows["Max file size"] == [str(64 << 20)] * 2
    assert rows["Max processes"] == ["33", "33"]
    assert rows["Max core file size"] == ["0", "0"]
    assert shown.splitlines()[-1] == "1000", "where memory runs out, the sandbox is what the kernel ends first"


def test_control_groups_hold_all_processes_together(policy: bubblewrap.Policy) -> None:
    if not cgroups.available():
        assert os.geteuid() != 0, "tests run as root make control groups"
        return
    group = cgroups.ControlGroup(memory=128 << 20, processes=10)
    script = "perl -e 'for(1..50){$p=fork; last if !defined $p; if(!$p){sleep 2;exit} $n++} print $n'"
    made = _run(policy, script, groups=tuple(group.directories))
    assert int(made.stdout) < 10
    # Two that would each be allowed, and together are not.
    hungry = "perl -e '$x=q(x)x(80<<20); sleep 1; print qq(got)' & "
    assert _run(policy, f"{hungry}{hungry}wait", groups=tuple(group.directories)).stdout != "gotgot"
    directories = list(group.directories)
    group.close()
    assert not any(os.path.exists(directory) for directory in directories)


def test_a_group_left_by_a_killed_process_is_removed_by_the_next() -> None:
    if not cgroups.available():
        assert os.geteuid() != 0, "tests run as root make control groups"
        return
    code = (
        "from deepctl.sandbox.cgroups import ControlGroup; print(*ControlGroup(memory=1<<30, processes=9).directories)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # Not waited for yet: its number is still taken, so nobody else's sandbox removes them.
        left = process.stdout.read().split()
        assert left
        assert all(os.path.isdir(directory) for directory in left)
    cgroups.ControlGroup(memory=1 << 30, processes=9).close()
    assert not any(os.path.exists(directory) for directory in left)


def test_it_is_not_taken_from_path_nor_from_where_agents_write(tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    assert bubblewrap.find({"PATH": str(tmp_path)}) != str(fake)
    assert bubblewrap.find({"DEEPCTL_BWRAP": str(fake)}) == str(fake)
    with pytest.raises(Unavailable, match="where agents can write"):
        bubblewrap.find({"DEEPCTL_BWRAP": str(fake)}, excluded_directories=(str(tmp_path),))
    link = tmp_path / "elsewhere"
    link.symlink_to(fake)
    with pytest.raises(Unavailable, match="where agents can write"):
        bubblewrap.find({"DEEPCTL_BWRAP": str(link)}, excluded_directories=(str(tmp_path),))
    # An agent could replace the link.
    planted = tmp_path / "workspace" / "bwrap"
    planted.parent.mkdir()
    planted.symlink_to("/bin/true")
    with pytest.raises(Unavailable, match="where agents can write"):
        bubblewrap.find({"DEEPCTL_BWRAP": str(planted)}, excluded_directories=(str(planted.parent),))
    for bad in ("bwrap", "", str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(Unavailable, match="not a program"):
            bubblewrap.find({"DEEPCTL_BWRAP": bad})


@pytest.mark.parametrize(
    ("script", "reason", "fix"),
    [
        ("exec /usr/bin/bwrap-that-is-missing", "bwrap-that-is-missing", "Install bubblewrap"),
        ("echo 'bwrap: Unknown option --size' >&2; exit 1", "Unknown option", "too old"),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "namespace", "user.max_user_namespaces"),
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "does not work", "Install"),
        ("exit 0", "ended with 0", "Install"),
        ("echo works", "", ""),
    ],
)
def test_one_that_does_not_isolate_is_no_sandbox(tmp_path: Path, script: str, reason: str, fix: str) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    policy = bubblewrap.Policy(str(fake), None, Limits(), network=False)
    if script == "echo works":
        bubblewrap.check(policy)  # what a user names is theirs to answer for
        return
    with pytest.raises(Unavailable, match=reason) as raised:
        bubblewrap.check(policy)
    assert fix in raised.value.fix


def test_where_namespaces_are_forbidden_it_says_which_setting_helps() -> None:
    code = (
        "from deepctl.sandbox import bubblewrap, policy\n"
        "try: bubblewrap.check(bubblewrap.Policy(bubblewrap.find({}), None, policy.Limits(), network=False))\n"
        "except policy.Unavailable as error: print(error.reason, error.fix)\n"
    )
    # The setting is one of each user namespace, so forbidding it in one harms nobody else.
    script = f"echo 0 > /proc/sys/user/max_user_namespaces; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "-r", "sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "does not work here" in done.stdout
    assert "user.max_user_namespaces" in done.stdout
