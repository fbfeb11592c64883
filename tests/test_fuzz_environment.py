"""No variable of the environment makes a command end with exit 1, and one that is wrong is named.

A sample in every run, the same each time; with DEEPCTL_SOAK=1 every variable with every value, with every command,
and every value with every command.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deepctl.domain import env_variables, provider_keys
from tests.support.command import Command, InProcess
from tests.support.loopback import Provider, Text, provider

SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
SAMPLE = 60

COMMANDS = (
    ("chat", "--user", "alice", "remember something"),
    ("chat", "--user", "alice", "--model", "openai-chat:m", "hello"),
    ("chat", "--user", "alice", "--model", "anthropic:m", "hello"),
    ("chat", "--ephemeral", "hello"),
    ("checkpoints", "list", "--user", "alice"),
    ("checkpoints", "rewind", "~1", "--dry-run", "--user", "alice"),
    ("sessions", "list", "--user", "alice"),
    ("memory", "show", "--user", "alice"),
    ("memory", "add", "a note", "--user", "alice"),
    ("profiles", "list"),
    ("config", "show"),
    ("models",),
    ("doctor", "--user", "alice"),
)
_OF_MODELS = [command for command in COMMANDS if "--model" in command or command[0] in ("models", "doctor")]

VALUES = (
    "",
    " ",
    "\t",
    "“quoted”",
    "'quoted'",
    "cut…",
    "clé",
    "ends\r",
    "ends\n",
    "\tbegins",
    "two\nlines",
    "\x1b[31mred",
    "\x7f",
    "\u200bhidden",
    "\ufeffmarked",
    "bytes \udcff\udc80",
    "x" * 70_000,
    "None",
    "0",
    "-1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:9",
    "http://x y/",
    "http://::1:80/",
    "http://[::1/",
    "http://",
    "https://me:p@ss@127.0.0.1:9/",
    "http://me:secret@127.0.0.1:9/",
    "socks5://127.0.0.1:9",
    "socks4://127.0.0.1:9",
    "file:///etc/passwd",
    "127.0.0.1:9",
    "~",
    "~nobody-of-this-name/x",
    "/proc/nonexistent/x",  # where root cannot make anything either
    "/dev/null",
    "/dev/null/x",
    "/proc/self/mem",
    "PLACE",
    "PLACE/file",
    "PLACE/unreadable",
    "relative/path",
    "..",
)
"""`PLACE` is a directory."""

VARIABLES = (
    *sorted(
        {name for names in (provider_keys.VARIABLES["openai"], provider_keys.VARIABLES["anthropic"]) for name in names}
    ),
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_CUSTOM_HEADERS",
    "OLLAMA_BASE_URL",
    "OLLAMA_HOST",
    "OPENAI_BASE_URL",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
    *env_variables.PROXIES,
    *(name.lower() for name in env_variables.PROXIES),
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSLKEYLOGFILE",
    "REQUESTS_CA_BUNDLE",
    "HOME",
    "XDG_DATA_HOME",
    "XDG_CONFIG_HOME",
    "DEEPCTL_HOME",
    "DEEPCTL_CONFIG",
    "DEEPCTL_USER",
    "DEEPCTL_MODEL",
    "DEEPCTL_BWRAP",
    "DEEPCTL_DEBUG",
    "DOCKER_HOST",
    "LANG",
    "LC_ALL",
    "TERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "PATH",
    "TMPDIR",
    "SHELL",
    "EDITOR",
    "USER",
)
_ADDRESSES = tuple(one for one in VARIABLES if one.lower().endswith(("_url", "_proxy", "_key", "_token", "_host")))


def _everything(names: Sequence[str] = VARIABLES) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(variable, value, command) for variable in names for value in VALUES for command in _commands(variable)]


def _pairs(name: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Every value once, and every command with some of them: all with all takes an hour.

    The commands move on by one from variable to variable, so every value meets every command.
    """
    commands = _commands(name)
    first = VARIABLES.index(name)
    return [(name, value, commands[(first + number) % len(commands)]) for number, value in enumerate(VALUES)]


def _commands(variable: str) -> Sequence[tuple[str, ...]]:
    return _OF_MODELS if variable in _ADDRESSES else COMMANDS


def _sample() -> list[tuple[str, str, tuple[str, ...]]]:
    return random.Random(20261128).sample(_everything(), SAMPLE)


@pytest.fixture
def server() -> Iterator[Provider]:
    with provider(Text(["Hello."]), repeat_last=True) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deepctl: InProcess) -> Path:
    """A directory to be in, with a file in it and one that may not be read; alice has a turn and a note."""
    found = tmp_path / "place"
    found.mkdir()
    (found / "file").write_text("text")
    (found / "unreadable").touch(mode=0)
    monkeypatch.chdir(found)
    deepctl("chat", "--user", "alice", "remember this").ok()
    deepctl("config", "set", "retries", "0").ok()
    return found


def _tried(
    deepctl: InProcess,
    server: Provider,
    place: Path,
    variable: str,
    value: str,
    command: tuple[str, ...],
) -> str | None:
    """What is wrong with how a command ends with a variable of this value, if anything is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        patch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        patch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        patch.setenv("ANTHROPIC_BASE_URL", server.address)
        patch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")
        patch.setenv("HOME", str(place))
        if variable == "HOME":
            patch.delenv("DEEPCTL_HOME")
            patch.delenv("DEEPCTL_CONFIG")
            patch.setenv("XDG_DATA_HOME", str(place))
            patch.setenv("XDG_CONFIG_HOME", str(place))
        if variable.startswith("XDG_"):
            patch.delenv("DEEPCTL_HOME" if "DATA" in variable else "DEEPCTL_CONFIG")
        patch.setenv(variable, value.replace("PLACE", str(place)))
        result = deepctl(*command)
    said = result.stdout + result.stderr
    if result.code not in (0, 2, 3, 5, 6, 7, 8):
        return f"exit {result.code}: {result.stderr}"
    if "bug in deepctl" in said or ("Traceback" in said and variable != "DEEPCTL_DEBUG"):
        return f"a bug: {said}"
    if result.code == 2 and variable not in result.stderr:
        return f"not named: {result.stderr}"
    return None


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", VARIABLES if SOAK else ["a sample of all"])
def test_no_variable_makes_a_command_fail_as_if_deepctl_were_wrong(
    deepctl: InProcess, server: Provider, place: Path, name: str
) -> None:
    wrong = []
    for variable, value, command in _pairs(name) if SOAK else _sample():
        if (problem := _tried(deepctl, server, place, variable, value, command)) is not None:
            wrong.append(f"{variable}={ascii(value)[:60]} deepctl {' '.join(command)}: {problem[:300]}")
    assert not wrong, "\n".join(wrong)


LIMITS = {
    "RLIMIT_NOFILE": (3, 8, 12, 20, 40),
    "RLIMIT_FSIZE": (0, 1, 4096),
    "RLIMIT_AS": (1 << 28, 1 << 29),
}
LIMITED = (("profiles", "list"), ("memory", "add", "a note", "--user", "alice"), ("doctor",))


@pytest.mark.parametrize("command", LIMITED if SOAK else LIMITED[1:2], ids=" ".join)
@pytest.mark.parametrize(
    ("limit", "value"),
    [(limit, value) for limit, values in LIMITS.items() for value in (values if SOAK else values[-1:])],
)
def test_no_limit_makes_a_command_fail_as_if_deepctl_were_wrong(
    process: Command, place: Path, limit: str, value: int, command: tuple[str, ...]
) -> None:
    def confine() -> None:
        resource.setrlimit(getattr(resource, limit), (value, value))

    running = process.start(*command, preexec_fn=confine)
    out, err = running.communicate(timeout=60)
    with contextlib.suppress(UnicodeDecodeError):
        assert b"bug in deepctl" not in out + err, err.decode()
    is_traceback = err.startswith((b"Fatal Python error", b"Traceback")) and b"deepctl/cli/main.py" not in err
    if is_traceback or b"error while loading shared libraries" in err:
        return  # Python itself has not come up
    assert running.returncode in (0, 2, 3, 5, 6, 7, 8, -signal.SIGXFSZ), (running.returncode, err.decode())


@pytest.mark.parametrize("variables_", [{"LC_ALL": "C"}, {"LC_ALL": "xx_YY.nonsense", "TERM": "no-such-terminal"}])
def test_no_locale_makes_a_command_fail(process: Command, place: Path, variables_: dict[str, str]) -> None:
    result = process("chat", "--user", "alice", "remember the café", env=variables_)
    assert result.code == 0, result
    assert sys.getfilesystemencoding()
