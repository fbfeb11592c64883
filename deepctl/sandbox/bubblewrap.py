"""Commands in a bubblewrap sandbox: what they can see, as arguments of `bwrap`, and how it is started.

The list contains what a command sees, not what is hidden from it: the programs and libraries of the system, read-only;
a few files of `/etc`; a `/tmp` and a `/dev` of its own; and the workspace. A command can write only to the workspace
and `/tmp`. So everything else on this machine (homes, other profiles, `/run`, `/srv`) does not exist there.

Source: bwrap(1). The kernel ends everything in the sandbox with its command, and with this process, however it ends:
`bwrap` is started directly, so its `--die-with-parent` means this process.

Namespaces hide files and processes. A filter of system calls closes the rest: kernel keyrings, which a process
inherits, new namespaces (most recent kernel vulnerabilities need one), tracing, typing into a terminal, and sockets.
Without the network, connecting and listening are impossible, Unix sockets by path included. With it, Unix sockets stay
closed, because abstract ones belong to the network and would reach the host's.

The filter is a classic BPF program as `bwrap --seccomp` reads it. Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and
`scripts/syscall.tbl` of Linux. The denied calls follow the filters of Flatpak (`common/flatpak-run.c`) and, without the
network, of the harness' bubblewrap sandbox.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from deepctl.files import ownership
from deepctl.sandbox import project as projects
from deepctl.sandbox.policy import COMMAND_PATH, MOUNT, VARIABLES, Limits, Unavailable
from deepctl.sandbox.project import ProjectLayout
from deepctl.sandbox.read_only import Bind

VARIABLE = "DEEPCTL_BWRAP"
"""The environment variable that names the program."""

_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/sbin")
_PROBE_SECONDS = 20.0
_PROBE = "test -w . && test $$ -lt 9 && ! test -w / && ! test -w /proc/sys/kernel/hostname && echo works"
_INSTALL = "Install bubblewrap (the package is called `bubblewrap`), or choose another sandbox."

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    *(
        "alternatives",
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "localtime",
        "timezone",
        "os-release",
        "lsb-release",
    ),
    *("debian_version", "redhat-release", "passwd", "group", "nsswitch.conf", "host.conf", "hosts", "protocols"),
    *("services", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted", "ca-certificates"),
    *(
        "ca-certificates.conf",
        "crypto-policies",
        "mime.types",
        "magic",
        "magic.mime",
        "fonts",
        "terminfo",
        "locale.conf",
    ),
    *("bash.bashrc", "profile", "profile.d", "inputrc", "perl", "xml"),
)
"""The files of `/etc` that programs need and that are not secret: root in the sandbox could read every file of root."""
_ETC_VERSIONED = ("python3", "java-")
_ETC_NETWORK = ("resolv.conf", "gai.conf")

# Root of the sandbox is the system's root for files that root owns, so only the workspace, /tmp and /dev/shm are
# writable: /proc/sys above all is not.
_SEALED = ("/dev", "/proc", "/")

_LIMITED = (
    "( ( while read -r _ <&4; do :; done; kill -9 $$ ) >/dev/null 2>&1 </dev/null & ); exec 4<&-\n"
    'ulimit -c 0 && ulimit -d "$1" && ulimit -f "$2" || exit 126\n'
    'if (ulimit -u "$3") 2>/dev/null; then ulimit -u "$3"; else ulimit -p "$3"; fi || exit 126\n'
    'shift 3; exec "$@"'
)
"""Inside: a guard, which is not a child of the command, ends the command and so the sandbox when our process has closed
its end of descriptor 4, or died. (`bwrap` does that too, but only from a moment on at which our process may be dead
already.) Then the limits: bash counts processes with -u, dash with -p. They are set inside, because only the sandbox's
own processes must count.
"""

_LAUNCH = (
    'exec 3<"$1" 4<"$2" || exit 126\n'
    "{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null\n"
    'for group in $3; do echo 0 > "$group/cgroup.procs" || exit 126; done\n'
    'shift 3; exec "$@"'
)
"""Outside: the filter on descriptor 3, the sign of life on 4, then `bwrap` replaces this shell."""

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_OWN_DEVICES = (
    f"for name in {' '.join(_DEVICES)}; do mount -o bind,ro /dev/$name /dev/$name || exit 126; done\n"
    'exec </dev/null; exec "$@"'
)
"""For root, who owns the devices of the sandbox: read-only, because a command could change their modes."""


class Policy(NamedTuple):
    """A sandbox for the commands of one workspace, or of none, for a test. `program` is the path of `bwrap`.

    In a project, `workspace` is the project's real path, and `command` gets its mounts, which change with its files.
    """

    program: str
    workspace: str | None
    limits: Limits
    network: bool
    hidden_paths: tuple[str, ...] = ()
    """Directories that must stay hidden, even inside the visible parts of the system."""
    read_only: tuple[Bind, ...] = ()
    """Further directories and files of this machine."""
    variables: Mapping[str, str] = {}
    """Further variables of commands, and other values of the usual ones."""

    def arguments(self, layout: ProjectLayout | None = None) -> list[str]:
        """The arguments of `bwrap`, up to the command."""
        tmp = str(self.limits.tmp)
        hidden_places = self._in_the_way(is_project=layout is not None)
        variables = {**VARIABLES, **self.variables}
        return [
            *("--die-with-parent", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
            *("--unshare-cgroup-try", "--hostname", "workspace", "--cap-drop", "ALL", "--seccomp", "3"),
            *([] if self.network else ["--unshare-net"]),
            "--clearenv",
            *(word for name, value in variables.items() for word in ("--setenv", name, value)),
            *("--ro-bind", "/usr", "/usr"),
            *(word for directory in hidden_places for word in ("--tmpfs", directory)),
            *(word for directory in _SYSTEM for word in _system(directory)),
            *(word for name in _etc_names(self.network) for word in _etc(name)),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--perms", "1777", "--size", tmp, "--tmpfs", "/dev/shm"),
            *("--perms", "1777", "--size", tmp, "--tmpfs", "/tmp"),
            *("--dir", "/run", "--dir", "/var"),
            *self._var_tmp(layout),
            *(word for bind in self.read_only for word in _bind(bind)),
            *self._work(layout),
            *(word for place in (*hidden_places, *_SEALED) for word in ("--remount-ro", place)),
            *("--chdir", MOUNT if layout is None else layout.root),
        ]

    def _var_tmp(self, layout: ProjectLayout | None) -> list[str]:
        binds = (*self.read_only, *(layout.binds if layout is not None else ()))
        if any(bind.target.startswith("/var/tmp/") for bind in binds):
            # Nothing can be mounted behind a link.
            return ["--perms", "1777", "--size", str(self.limits.tmp), "--tmpfs", "/var/tmp"]
        return ["--symlink", "/tmp", "/var/tmp"]

    def _work(self, layout: ProjectLayout | None) -> list[str]:
        if layout is None:
            return [*(("--bind", self.workspace) if self.workspace is not None else ("--tmpfs",)), MOUNT]
        # A link and not a second mount: a mount cannot be entered by a rename from another one.
        alias = ["--symlink", layout.root, MOUNT] if projects.has_alias(layout.root) else []
        return [*(word for bind in layout.binds for word in _bind(bind)), *alias]

    def _in_the_way(self, *, is_project: bool) -> list[str]:
        # What lies beside a project is not deepctl's to hide: the user chose the directory.
        beside = [os.path.dirname(self.workspace)] if self.workspace is not None and not is_project else []
        hidden_directories = [*self.hidden_paths, *beside]
        real = {os.path.realpath(directory) for directory in hidden_directories}
        directories = sorted(
            directory for directory in real if directory.startswith("/usr/") and os.path.isdir(directory)
        )
        return [
            directory
            for directory in directories
            if not any(directory.startswith(f"{parent}/") for parent in directories)
        ]

    def command(
        self,
        argv: Sequence[str],
        read_end: int,
        *,
        groups: Sequence[str] = (),
        variables: Sequence[str] = (),
        layout: ProjectLayout | None = None,
    ) -> list[str]:
        """The command line that runs `argv` in the sandbox, in these control groups.

        `read_end` is the reading end of a pipe of this process: the sandbox ends when the other end is closed, by this
        process or by its death. `variables` are more arguments of `bwrap`: `--setenv NAME VALUE`. This process has to
        start it.
        """
        return [
            *("/bin/sh", "-c", _LAUNCH, "sh", _filter_path(network=self.network), f"/proc/{os.getpid()}/fd/{read_end}"),
            " ".join(groups),
            *(("unshare", "--mount", "--propagation", "private", "sh", "-c", _OWN_DEVICES, "sh") if _is_root() else ()),
            *(self.program, *self.arguments(layout), *variables, "--"),
            *("/bin/sh", "-c", _LIMITED, "sh"),
            str(_bound(resource.RLIMIT_DATA, self.limits.memory) // 1024),
            str(_bound(resource.RLIMIT_FSIZE, self.limits.disk) // 512),
            str(_bound(resource.RLIMIT_NPROC, self.limits.processes)),
            *argv,
        ]


def _bind(bind: Bind) -> list[str]:
    return ["--bind" if bind.writable else "--ro-bind", bind.source, bind.target]


def _is_root() -> bool:
    return os.geteuid() == 0


@contextmanager
def pipe() -> Iterator[int]:
    """The reading end of a pipe. The launcher of a command ends with its parent, because the other end closes then."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(write_end)
        os.close(read_end)


def _bound(resource_id: int, limit: int) -> int:
    """`limit`, or less if this process has a lower limit, because a limit cannot be raised."""
    hard = resource.getrlimit(resource_id)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def _system(directory: str) -> list[str]:
    if os.path.islink(directory):
        return ["--symlink", os.readlink(directory), directory]
    return ["--ro-bind", directory, directory] if os.path.isdir(directory) else []


def _etc_names(network: bool) -> list[str]:
    versioned_names = [name for name in sorted(os.listdir("/etc")) if name.startswith(_ETC_VERSIONED)]
    return [*_ETC, *versioned_names, *(_ETC_NETWORK if network else ())]


def _etc(name: str) -> list[str]:
    path = f"/etc/{name}"
    if os.path.islink(path) and os.path.realpath(path).startswith("/usr/"):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind-try", path, path]


def find(variables: Mapping[str, str], *, excluded_directories: Sequence[str] = ()) -> str:
    """The path of `bwrap`: `$DEEPCTL_BWRAP`, else from the system's own directories, never from `$PATH`.

    `excluded_directories` are directories that agents can write; a program below one is refused. Raises `Unavailable`.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable("bubblewrap exists on Linux only", "Use --sandbox docker, or none.")
    if not _has_filter():
        raise Unavailable("there is no system call filter for this kind of processor", "Use --sandbox docker, or none.")
    program = variables.get(VARIABLE)
    if program is None:
        for directory in _DIRECTORIES:
            path = os.path.join(directory, "bwrap")
            if _runnable(path):
                return path
        raise Unavailable(f"no `bwrap` in {', '.join(_DIRECTORIES)}", _INSTALL)
    if not os.path.isabs(program) or not _runnable(program):
        raise Unavailable(
            f"${VARIABLE} is {program!r}, which is not a program", "Set it to the absolute path of `bwrap`."
        )
    steps = [os.path.realpath(program), *ownership.entries_on(program)]
    for directory in map(os.path.realpath, excluded_directories):
        if any(step.startswith(directory.rstrip("/") + "/") for step in steps):
            raise Unavailable(
                f"${VARIABLE} names a program below {directory}, where agents can write", "Move it elsewhere."
            )
    return program


def _runnable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def check(policy: Policy) -> None:
    """Run a command in the sandbox with all features. Raises `Unavailable` with the reason."""
    try:
        with pipe() as read_end:
            probe = subprocess.run(
                policy.command(["/bin/sh", "-c", _PROBE], read_end),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_SECONDS,
                start_new_session=True,
                env={"PATH": COMMAND_PATH},
            )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"bubblewrap did not finish within {_PROBE_SECONDS:g} s", _INSTALL) from None
    except OSError as error:
        raise Unavailable(f"bubblewrap cannot be started: {error}", _INSTALL) from None
    if probe.returncode == 0 and probe.stdout == b"works\n":
        return
    lines = probe.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = lines[-1] if lines else f"it ended with {probe.returncode}"
    raise Unavailable(f"bubblewrap does not work here: {reason}", _fix(reason))


def _fix(reason: str) -> str:
    if "Unknown option" in reason:
        return "This `bwrap` is too old: 0.6 or later is needed."
    symptoms = ("namespace", "Operation not permitted", "Permission denied", "uid map", "loopback", "No space left")
    if any(word in reason for word in symptoms):
        return (
            "Allow users to create namespaces: `sysctl user.max_user_namespaces` must not be 0. Where they "
            "exist, `kernel.unprivileged_userns_clone` must be 1 and "
            "`kernel.apparmor_restrict_unprivileged_userns` 0 (or an AppArmor profile must allow bwrap). In a "
            "container, the container must allow it."
        )
    return _INSTALL


_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_DENIED = {
    "x86_64": {
        "tracing": (101, 310, 311, 312, 438),  # ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_getfd
        "keyrings": (248, 249, 250),  # add_key, request_key, keyctl
        "kernel": (103, 298, 321, 323, 425, 426, 427),  # syslog, perf_event_open, bpf, userfaultfd, io_uring
        "namespaces": (155, 161, 165, 166, 272, 308),  # pivot_root, chroot, mount, umount2, unshare, setns
    },
    "aarch64": {
        "tracing": (117, 270, 271, 272, 438),
        "keyrings": (217, 218, 219),
        "kernel": (116, 241, 280, 282, 425, 426, 427),
        "namespaces": (39, 40, 41, 51, 97, 268),
    },
}
_MOUNTING = (428, 429, 430, 431, 432, 433, 442)
"""open_tree, move_mount, fsopen, fsconfig, fsmount, fspick and mount_setattr, the same everywhere."""
_CLONE3 = 435
_CLONE = {"x86_64": 56, "aarch64": 220}
_IOCTL = {"x86_64": 16, "aarch64": 29}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
_REACHING = {
    # connect, accept, accept4, bind, listen, getpeername, getsockname, shutdown, sendto, sendmmsg, recvmmsg,
    # getsockopt, setsockopt
    "x86_64": (42, 43, 288, 49, 50, 52, 51, 48, 44, 307, 299, 55, 54),
    "aarch64": (203, 202, 242, 200, 201, 205, 204, 210, 206, 269, 243, 209, 208),
}
_CLONE_NEWUSER = 0x10000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE_MASK = 1, 5, 0xF

_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; of the arguments, the lower halves (both machines are little-endian)."""

_LOAD, _JEQ, _JGE, _JSET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def _fail(number: int) -> int:
    return 0x00050000 | number


_Instruction = tuple[int, str, str, int]
"""`(code, target if true, target if false, operand)`; an empty name is the next instruction."""


def _assembled(lines: list[_Instruction | str]) -> bytes:
    """The program; a bare string is a label for the next instruction. Jumps of classic BPF go forward only."""
    places: dict[str, int] = {}
    instructions: list[_Instruction] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)
    return b"".join(
        struct.pack(
            "<HBBI",
            code,
            places[true] - index if true else 0,
            places[false] - index if false else 0,
            operand,
        )
        for index, (code, true, false, operand) in enumerate(instructions, 1)
    )


def _has_filter(machine: str | None = None) -> bool:
    """Whether there is a filter for this kind of processor."""
    return (machine or platform.machine()) in _AUDIT_ARCH


def filter_program(machine: str, *, network: bool) -> bytes:
    """The filter for one kind of processor; a process that uses another call interface is killed."""
    denied_calls = [number for group in _DENIED[machine].values() for number in group] + list(_MOUNTING)
    lines: list[_Instruction | str] = [
        (_LOAD, "", "", _ARCH),
        (_JEQ, "", "kill", _AUDIT_ARCH[machine]),
        (_LOAD, "", "", _NR),
        (_JGE, "kill", "", _X32),
        (_JEQ, "missing", "", _CLONE3),  # its flags lie in memory; without it, libraries use clone
        *((_JEQ, "deny", "", number) for number in denied_calls),
        *((_JEQ, "deny", "", number) for number in (() if network else _REACHING[machine])),
        (_JEQ, "socket", "", _SOCKET[machine]),
        (_JEQ, "pair", "", _SOCKETPAIR[machine]),
        (_JEQ, "ioctl", "", _IOCTL[machine]),
        (_JEQ, "clone", "", _CLONE[machine]),
        (_RETURN, "", "", _ALLOW),
        "clone",
        (_LOAD, "", "", _ARG0),
        (_JSET, "deny", "allow", _CLONE_NEWUSER),
        "ioctl",
        (_LOAD, "", "", _ARG1),
        (_JEQ, "deny", "", _TIOCSTI),
        (_JEQ, "deny", "allow", _TIOCLINUX),
        "socket",
        (_LOAD, "", "", _ARG0),
    ]
    if network:
        lines += [
            (_JEQ, "allow", "", _AF_INET),
            (_JEQ, "allow", "", _AF_INET6),
            (_JEQ, "allow", "deny", _AF_NETLINK),
        ]
    else:
        # An unconnectable stream socket is harmless, and some runtimes create one at their start.
        lines += [(_JEQ, "stream", "deny", _AF_UNIX)]
    lines += [
        "pair",
        (_LOAD, "", "", _ARG0),
        (_JEQ, "stream", "deny", _AF_UNIX),
        "stream",
        # With a datagram or raw socket, `sendmsg`, which passes descriptors, names any path without `connect`.
        (_LOAD, "", "", _ARG1),
        (_AND, "", "", _SOCK_TYPE_MASK),
        (_JEQ, "allow", "", _SOCK_STREAM),
        (_JEQ, "allow", "deny", _SOCK_SEQPACKET),
        "allow",
        (_RETURN, "", "", _ALLOW),
        "deny",
        (_RETURN, "", "", _fail(errno.EPERM)),
        "missing",
        (_RETURN, "", "", _fail(errno.ENOSYS)),
        "kill",
        (_RETURN, "", "", _KILL),
    ]
    return _assembled(lines)


@functools.cache
def _in_memory(network: bool) -> int:
    descriptor = os.memfd_create("deepctl-seccomp")
    os.write(descriptor, filter_program(platform.machine(), network=network))
    return descriptor


def _filter_path(*, network: bool) -> str:
    """A path from which a child of this process can read the filter; no file is written for it."""
    return f"/proc/{os.getpid()}/fd/{_in_memory(network)}"
