"""The places of keys: a variable, a file, a command and the keyring of the desktop.

`KeyProblem` is the rest of a sentence about the reference. It never contains what was read.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from select import POLLIN, poll
from typing import Any

from deepctl import cancellation, distribution
from deepctl.domain import mcp_servers
from deepctl.domain.addresses import header_problem
from deepctl.files import atomic, ownership

SECONDS = 10.0
"""The time limit of a command."""
MAX_BYTES = 64 << 10
"""The longest accepted key, with the line break after it."""
_POLL_SECONDS = 0.05
_RESULTS: dict[tuple[str, str], str] = {}
"""The output of commands, and entries of the keyring, for the life of this process."""
_LOCKS: dict[tuple[str, str], threading.Lock] = {}


class KeyProblem(Exception):
    """The reason why a key cannot be read, as the rest of a sentence, and a remedy."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.hint = hint


def checked(raw: str, *, first_line: bool = False) -> str:
    """A key without the blanks around it. Raises `KeyProblem` if it cannot be sent in a header."""
    text = raw.strip()
    if first_line:
        text = text.partition("\n")[0].strip()
    if not text:
        raise KeyProblem("is empty")
    if "\n" in text or "\r" in text:
        raise KeyProblem("has more than one line", "A key is one line.")
    problem = header_problem(text)
    if problem is None and "\t" in text:
        problem = "contains a tab"
    if problem is not None:
        raise KeyProblem(problem, "Copy it again, without quotation marks or other extra characters.")
    return text


def of_variable(variable: str, environment: Mapping[str, str]) -> str:
    """The key in a variable of the environment."""
    if variable not in environment:
        raise KeyProblem(f"names ${variable}, which is not set", "Set the variable, or change the reference.")
    return checked(environment[variable])


def of_file(path: str, environment: Mapping[str, str]) -> str:
    """The key in a private file of the user."""
    path = _at_home(path, environment)
    _check_place(path, environment)
    try:
        descriptor = os.open(path, atomic.OPEN_FILE)
    except OSError as error:
        if os.path.islink(path):
            raise KeyProblem("is a symbolic link", f"Name the file itself: {os.path.realpath(path)}") from None
        raise KeyProblem(f"cannot be opened: {(error.strerror or 'unknown error').lower()}") from None
    try:
        _check_status(path, os.fstat(descriptor))
        raw = os.read(descriptor, MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_BYTES:
        raise KeyProblem("is too large for a key")
    return checked(_decoded(raw))


def _check_place(path: str, environment: Mapping[str, str]) -> None:
    """Refuse a path that other users or agents can replace."""
    directory = os.path.dirname(path)
    if (finding := ownership.examine(directory)) is not None:
        raise KeyProblem(f"is not safe: {finding.problem}", f"Remove the access of others to {directory}.")
    if mcp_servers.is_where_agents_write(path, environment):
        raise KeyProblem("is not safe: an agent can read it", "Move it out of the profiles and projects.")


def _check_status(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyProblem("is not a regular file")
    if status.st_uid != os.geteuid():
        raise KeyProblem(f"belongs to another user (uid {status.st_uid})", "A key file must be your own.")
    if status.st_mode & 0o077:
        raise KeyProblem(
            f"is not safe: other users have access to it (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 600 {shlex.quote(path)}",
        )


def of_command(command: str, environment: Mapping[str, str]) -> str:
    """The first line that a command prints. It runs once in a process, without a shell and without stdin.

    Its variables are those of the user, and its directory is the home directory. Raises `KeyProblem`, and the reason
    that stops this process's own work.
    """
    argv = check_command(command, environment)
    return _once(("command", command), lambda: checked(_output(argv, environment), first_line=True))


def check_command(command: str, environment: Mapping[str, str]) -> list[str]:
    """The words of a command, with the path of its program. Raises `KeyProblem` if it cannot be run safely."""
    words = shlex.split(command)
    # A relative directory of $PATH would depend on the current directory, and could belong to an agent.
    directories = [entry for entry in environment.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(entry)]
    program = shutil.which(_at_home(words[0], environment), path=os.pathsep.join(directories))
    if program is None:
        raise KeyProblem("has a program that was not found", "Install it and add it to $PATH, or give its full path.")
    if mcp_servers.is_where_agents_write(program, environment):
        raise KeyProblem("is not safe: an agent can write its program", "Move it out of the profiles and projects.")
    return [program, *words[1:]]


def _output(argv: list[str], environment: Mapping[str, str]) -> str:
    home = _at_home("~/", environment)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=home if os.path.isdir(home) else "/",
            env=dict(environment),
            process_group=0,
        )
    except OSError as error:
        raise KeyProblem(f"cannot be run: {(error.strerror or 'unknown error').lower()}") from None
    with _ended(process):
        raw = _read(process, time.monotonic() + SECONDS)
    if process.returncode:
        ended = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        raise KeyProblem(f"failed with {ended}", "Run the command yourself to see why. No shell runs it.")
    return _decoded(raw)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Inside this context a command runs; if it has to be stopped, its child processes are stopped too."""
    try:
        yield
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert process.stdout is not None
    raw = b""
    poller = poll()  # `select` fails in a process with a thousand open files
    poller.register(process.stdout, POLLIN)
    while True:
        cancellation.look()
        if time.monotonic() >= deadline:
            raise KeyProblem(f"took longer than {SECONDS:g} s", "Unlock what it needs first, then try again.")
        has_ended = process.poll() is not None
        if poller.poll(0 if has_ended else _POLL_SECONDS * 1000):
            piece = os.read(process.stdout.fileno(), MAX_BYTES)
            raw += piece
            if len(raw) > MAX_BYTES:
                raise KeyProblem("printed too much for a key")
            if not piece:
                break
        elif has_ended:
            break  # a daemon that it started, such as the agent of a password manager, has its output open
    while process.poll() is None:
        cancellation.look()
        if time.monotonic() >= deadline:
            raise KeyProblem(f"took longer than {SECONDS:g} s", "Unlock what it needs first, then try again.")
        time.sleep(_POLL_SECONDS / 5)
    return raw


def _once(key: tuple[str, str], make: Callable[[], str]) -> str:
    """The result of `make`, which is kept. A failure is not kept, so that a later request can succeed."""
    lock = _LOCKS.setdefault(key, threading.Lock())
    while not lock.acquire(timeout=_POLL_SECONDS):
        cancellation.look()
    try:
        if key not in _RESULTS:
            _RESULTS[key] = make()
        return _RESULTS[key]
    finally:
        lock.release()


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeyProblem("is not UTF-8 text") from None


def _at_home(path: str, environment: Mapping[str, str]) -> str:
    home = environment.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, path[2:]) if path.startswith("~/") else path


def of_keyring(service: str, name: str) -> str:
    """The password of a service in the keyring: that of the user `name`, else the only one of the service."""
    keyring = check_keyring()

    def read() -> str:
        try:
            text = keyring.get_password(service, name)
            if text is None:
                credential = keyring.get_credential(service, None)
                text = credential.password if credential is not None else None
        except Exception as error:  # every backend has its own exceptions, whose text may contain anything
            raise _locked(error) from None
        if text is None:
            raise KeyProblem("is not in the keyring", f"To store it: keyring set {shlex.quote(service)} {name}")
        return checked(text)

    return _once(("keyring", f"{service}\0{name}"), read)


def _locked(error: Exception) -> KeyProblem:
    return KeyProblem(
        f"cannot be read: the keyring failed ({type(error).__name__})", "Unlock the keyring, then try again."
    )


def check_keyring() -> Any:
    """The module `keyring`. Raises `KeyProblem` if it is not installed."""
    try:
        import keyring
    except ImportError:
        raise KeyProblem(
            "needs the package keyring, which is not installed",
            f"Install it with: {distribution.to_install('keyring')}",
        ) from None
    return keyring


def usable_keyring() -> Any | None:
    """The module `keyring` if it is installed and has a backend that encrypts what it stores; else `None`."""
    try:
        keyring = check_keyring()
        # Backends below 1 are those that store nothing, or in plain text.
        return keyring if keyring.get_keyring().priority >= 1 else None
    except Exception:  # a backend may fail in any way, for example without a desktop
        return None


def change_keyring(service: str, name: str, text: str | None) -> None:
    """Store a password in the keyring, or delete it (`None`). Raises `KeyProblem`."""
    keyring = check_keyring()
    _RESULTS.pop(("keyring", f"{service}\0{name}"), None)
    try:
        if text is not None:
            keyring.set_password(service, name, text)
        elif keyring.get_password(service, name) is not None:
            keyring.delete_password(service, name)
    except Exception as error:  # every backend has its own exceptions, whose text may contain anything
        raise KeyProblem(
            f"cannot be changed: the keyring failed ({type(error).__name__})", "Unlock the keyring, then try again."
        ) from None
