"""Commands in a bubblewrap sandbox: what they can see, as arguments of `bwrap`, and how it is started.

What a command finds is listed here, not what is hidden from it: the programs and libraries of the system, read-only; a
few files of `/etc`; a `/tmp` and a `/dev` of its own; and the workspace, which is all it can write to besides `/tmp`.
So whatever else lies on this machine (homes, other profiles, `/run`, `/srv`) does not exist there.

Source: bwrap(1). The kernel ends everything in the sandbox with its command, and with this process, however that ends:
`bwrap` is started directly, so its `--die-with-parent` means this process.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from deepctl.sandbox import seccomp
from deepctl.sandbox.policy import COMMAND_PATH, HOME_DIRECTORY, MOUNT, Limits, Unavailable, environment

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
"""Of `/etc`, what programs need and nobody minds: root in the sandbox could read every file that is root's."""
_ETC_VERSIONED = ("python3", "java-")
_ETC_NETWORK = ("resolv.conf", "gai.conf")

# Root of the sandbox is the system's root to files that are only owned by it, so nothing but the workspace, /tmp and
# /dev/shm can be written: /proc/sys above all.
_SEALED = ("/dev", "/proc", "/")

_LIMITED = (
    "( ( while read -r _ <&4; do :; done; kill -9 $$ ) >/dev/null 2>&1 </dev/null & ); exec 4<&-\n"
    'ulimit -c 0 && ulimit -d "$1" && ulimit -f "$2" || exit 126\n'
    'if (ulimit -u "$3") 2>/dev/null; then ulimit -u "$3"; else ulimit -p "$3"; fi || exit 126\n'
    'shift 3; exec "$@"'
)
"""Inside: a guard, no child of the command, that ends it, and so the sandbox, once our process has closed its end of
descriptor 4, or died. (`bwrap` does that too, but from a moment on only at which we may be dead already.) Then the
limits: bash counts processes with -u, dash with -p; set there, because only the sandbox's own are to count.
"""

_LAUNCH = (
    'exec 3<"$1" 4<"$2" || exit 126\n'
    "{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null\n"
    'for group in $3; do echo 0 > "$group/cgroup.procs" || exit 126; done\n'
    'shift 3; exec "$@"'
)
"""Outside: the filter on descriptor 3, what tells that we live on 4, then `bwrap` in the place of this shell."""

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_OWN_DEVICES = (
    f"for name in {' '.join(_DEVICES)}; do mount -o bind,ro /dev/$name /dev/$name || exit 126; done\n"
    'exec </dev/null; exec "$@"'
)
"""For root, to whom the devices belong that the sandbox is given: read-only, or a command could change their modes."""


class Policy(NamedTuple):
    """A sandbox for the commands of one workspace, or of none, to try it. `program` is the path of `bwrap`."""

    program: str
    workspace: str | None
    limits: Limits
    network: bool
    hidden: tuple[str, ...] = ()
    """Directories that must not be seen, should they lie in what is shown of the system."""

    def arguments(self) -> list[str]:
        """What `bwrap` is told, up to the command."""
        tmp = str(self.limits.tmp)
        variables = environment(f"{MOUNT}/{HOME_DIRECTORY}")
        return [
            *("--die-with-parent", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
            *("--unshare-cgroup-try", "--hostname", "workspace", "--cap-drop", "ALL", "--seccomp", "3"),
            *([] if self.network else ["--unshare-net"]),
            "--clearenv",
            *(word for name, value in variables.items() for word in ("--setenv", name, value)),
            *("--ro-bind", "/usr", "/usr"),
            *(word for directory in self._in_the_way() for word in ("--tmpfs", directory, "--remount-ro", directory)),
            *(word for directory in _SYSTEM for word in _system(directory)),
            *(word for name in _etc_names(self.network) for word in _etc(name)),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--perms", "1777", "--size", tmp, "--tmpfs", "/dev/shm"),
            *("--perms", "1777", "--size", tmp, "--tmpfs", "/tmp"),
            *("--dir", "/run", "--dir", "/var", "--symlink", "/tmp", "/var/tmp"),
            *(("--bind", self.workspace) if self.workspace is not None else ("--tmpfs",)),
            MOUNT,
            *(word for place in _SEALED for word in ("--remount-ro", place)),
            *("--chdir", MOUNT),
        ]

    def _in_the_way(self) -> list[str]:
        hidden = [*self.hidden, *([os.path.dirname(self.workspace)] if self.workspace is not None else [])]
        real = {os.path.realpath(directory) for directory in hidden}
        shown = sorted(one for one in real if one.startswith("/usr/") and os.path.isdir(one))
        return [one for one in shown if not any(one.startswith(f"{other}/") for other in shown)]

    def command(
        self, argv: Sequence[str], alive: int, *, groups: Sequence[str] = (), variables: Sequence[str] = ()
    ) -> list[str]:
        """The command line that runs `argv` in the sandbox, in these control groups.

        `alive` is the reading end of a pipe of this process: the sandbox ends when the other end is closed, by this
        process or by its death. `variables` are more arguments of `bwrap`: `--setenv NAME VALUE`. This process has to
        start it.
        """
        return [
            *("/bin/sh", "-c", _LAUNCH, "sh", seccomp.path(network=self.network), f"/proc/{os.getpid()}/fd/{alive}"),
            " ".join(groups),
            *(("unshare", "--mount", "--propagation", "private", "sh", "-c", _OWN_DEVICES, "sh") if _is_root() else ()),
            *(self.program, *self.arguments(), *variables, "--"),
            *("/bin/sh", "-c", _LIMITED, "sh"),
            str(_bound(resource.RLIMIT_DATA, self.limits.memory) // 1024),
            str(_bound(resource.RLIMIT_FSIZE, self.limits.disk) // 512),
            str(_bound(resource.RLIMIT_NPROC, self.limits.processes)),
            *argv,
        ]


def _is_root() -> bool:
    return os.geteuid() == 0


@contextmanager
def pipe() -> Iterator[int]:
    """The `alive` of a command that runs within."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(writing)
        os.close(reading)


def _bound(which: int, wanted: int) -> int:
    """`wanted`, or less where this process may not use as much itself: a limit cannot be raised."""
    hard = resource.getrlimit(which)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _system(directory: str) -> list[str]:
    if os.path.islink(directory):
        return ["--symlink", os.readlink(directory), directory]
    return ["--ro-bind", directory, directory] if os.path.isdir(directory) else []


def _etc_names(network: bool) -> list[str]:
    versioned = [name for name in sorted(os.listdir("/etc")) if name.startswith(_ETC_VERSIONED)]
    return [*_ETC, *versioned, *(_ETC_NETWORK if network else ())]


def _etc(name: str) -> list[str]:
    path = f"/etc/{name}"
    if os.path.islink(path) and os.path.realpath(path).startswith("/usr/"):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind-try", path, path]


def find(variables: Mapping[str, str], *, outside: Sequence[str] = ()) -> str:
    """The path of `bwrap`: `$DEEPCTL_BWRAP`, else from the system's own directories, never from `$PATH`.

    `outside` are directories below which agents write; a program there is refused. Raises `Unavailable`.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable("bubblewrap exists on Linux only", "Use --sandbox docker, or none.")
    if not seccomp.supported():
        raise Unavailable("there is no system call filter for this kind of processor", "Use --sandbox docker, or none.")
    named = variables.get(VARIABLE)
    if named is None:
        for directory in _DIRECTORIES:
            path = os.path.join(directory, "bwrap")
            if _runnable(path):
                return path
        raise Unavailable(f"no `bwrap` in {', '.join(_DIRECTORIES)}", _INSTALL)
    if not os.path.isabs(named) or not _runnable(named):
        raise Unavailable(f"${VARIABLE} is {named!r}, which is no program", "Give it the absolute path of `bwrap`.")
    for directory in map(os.path.realpath, outside):
        if os.path.realpath(named).startswith(directory.rstrip("/") + "/"):
            raise Unavailable(
                f"${VARIABLE} names a program below {directory}, where agents write", "Keep it elsewhere."
            )
    return named


def _runnable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def check(policy: Policy) -> None:
    """Run a command in the sandbox, with all it has. Raises `Unavailable`, saying what stands in the way."""
    try:
        with pipe() as alive:
            done = subprocess.run(
                policy.command(["/bin/sh", "-c", _PROBE], alive),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_SECONDS,
                start_new_session=True,
                env={"PATH": COMMAND_PATH},
            )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"bubblewrap did not come to an end within {_PROBE_SECONDS:g} s", _INSTALL) from None
    except OSError as error:
        raise Unavailable(f"bubblewrap cannot be started: {error}", _INSTALL) from None
    if done.returncode == 0 and done.stdout == b"works\n":
        return
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = said[-1] if said else f"it ended with {done.returncode}"
    raise Unavailable(f"bubblewrap does not work here: {reason}", _fix(reason))


def _fix(reason: str) -> str:
    if "Unknown option" in reason:
        return "This `bwrap` is too old: 0.6 or later is needed."
    refused = ("namespace", "Operation not permitted", "Permission denied", "uid map", "loopback", "No space left")
    if any(word in reason for word in refused):
        return (
            "Let users make namespaces: `sysctl user.max_user_namespaces` must not be 0, and where they exist "
            "`kernel.unprivileged_userns_clone` must be 1 and `kernel.apparmor_restrict_unprivileged_userns` 0 (or an "
            "AppArmor profile must allow bwrap). In a container, the container has to allow it."
        )
    return _INSTALL
