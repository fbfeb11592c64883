"""The system calls that commands in a bubblewrap sandbox do without.

Namespaces hide files and processes; this closes what they do not cover: kernel keyrings, which a process inherits,
new namespaces (most of the kernel's recent holes need one), tracing, typing into a terminal, and sockets. Without the
network nothing can be connected to or listened on, Unix sockets by path included; with it, Unix sockets stay closed,
because abstract ones belong to the network and would reach the host's.

A classic BPF program as `bwrap --seccomp` reads it. Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and
`scripts/syscall.tbl` of Linux. What is denied follows the filters of Flatpak (`common/flatpak-run.c`) and, without the
network, of the harness' bubblewrap sandbox.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import struct

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
"""`(code, where to if true, where to if false, operand)`; an empty name is the next instruction."""


def _assembled(lines: list[_Instruction | str]) -> bytes:
    """The program; a bare string is a label for what follows it. Jumps of classic BPF go forward only."""
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
            places[true] - here if true else 0,
            places[false] - here if false else 0,
            operand,
        )
        for here, (code, true, false, operand) in enumerate(instructions, 1)
    )


def supported(machine: str | None = None) -> bool:
    """Whether there is a filter for this kind of processor."""
    return (machine or platform.machine()) in _AUDIT_ARCH


def program(machine: str, *, network: bool) -> bytes:
    """The filter for one kind of processor; a process that calls in any other way is killed."""
    denied = [number for group in _DENIED[machine].values() for number in group] + list(_MOUNTING)
    lines: list[_Instruction | str] = [
        (_LOAD, "", "", _ARCH),
        (_JEQ, "", "kill", _AUDIT_ARCH[machine]),
        (_LOAD, "", "", _NR),
        (_JGE, "kill", "", _X32),
        (_JEQ, "missing", "", _CLONE3),  # its flags lie in memory; without it, libraries use clone
        *((_JEQ, "deny", "", number) for number in denied),
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
        # A stream that nothing can be connected to is harmless, and some runtimes make one at their start.
        lines += [(_JEQ, "stream", "deny", _AF_UNIX)]
    lines += [
        "pair",
        (_LOAD, "", "", _ARG0),
        (_JEQ, "stream", "deny", _AF_UNIX),
        "stream",
        # With a datagram socket, as a raw one is too, `sendmsg`, which passes descriptors, names any path without
        # `connect`.
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
    os.write(descriptor, program(platform.machine(), network=network))
    return descriptor


def path(*, network: bool) -> str:
    """Where a child of this process can open the filter, from its first byte; no file is written for it."""
    return f"/proc/{os.getpid()}/fd/{_in_memory(network)}"
