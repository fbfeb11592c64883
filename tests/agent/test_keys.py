"""Two people with two keys for each of two providers: every request has the key of its own profile.

`make soak` sends five hundred requests and more, a test of every day a hundred.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from deepctl import create_deep_agent, open_profile
from tests.support.command import Command, InProcess
from tests.support.loopback import Answer, Provider, Status, Text, ToolCalls
from tests.support.terminal import Terminal

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_TURNS = 130 if _SOAK else 20
"""Turns of each profile in the application."""
_PEOPLE = ("alice", "bob")
_MODELS = {"openai": "openai-chat:m", "anthropic": "anthropic:m"}
_LOOK = "env; tr '\\0' '\\n' < /proc/self/environ; cat /proc/*/environ; printenv OPENAI_API_KEY ANTHROPIC_API_KEY"


def _canary(person: str, name: str) -> str:
    return f"canary-{person}-{name}-0123456789"


_CANARIES = [_canary(person, name) for person in (*_PEOPLE, "environment") for name in _MODELS]


class _Moody(Provider):
    """A provider that is too busy now and then, and whose answers call tools now and then."""

    def __init__(self) -> None:
        super().__init__([], repeat_last=False)
        self._numbers = itertools.count(1)
        self.answers: Counter[str] = Counter()

    def _answer(self, body: dict[str, Any]) -> Answer:
        number = next(self._numbers)
        answer: Answer = Text(["All right."])
        if number % 7 == 0:
            answer = Status(503, "too busy", {"retry-after": "0"})
        elif number % 2 == 0 and body.get("tools"):  # a summary needs a text
            answer = ToolCalls([("execute", {"command": _LOOK})] if number % 12 == 0 else [("ls", {"path": "."})])
        self.answers[type(answer).__name__] += 1
        return answer


@contextmanager
def _providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, _Moody]]:
    servers = {name: _Moody() for name in _MODELS}
    for server in servers.values():
        server.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"{servers['openai'].address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", servers["anthropic"].address)
    try:
        yield servers
    finally:
        for server in servers.values():
            server.stop()


@pytest.fixture
def people(deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two profiles with references of all kinds and an MCP server each. Returns the directory of the key files."""
    secrets = tmp_path / "secrets"
    secrets.mkdir(0o700)
    for name in _MODELS:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", _canary("environment", name))
        header = f"Authorization: Bearer {_canary('environment', name)}"
        monkeypatch.setenv(f"{name.upper()}_CUSTOM_HEADERS", header)
    for person, other in zip(_PEOPLE, reversed(_PEOPLE), strict=True):
        path = Path(deepctl("profiles", "create", person, "--json").ok().json["path"])
        for name in (*_MODELS, "mcp"):
            file = secrets / f"{person}-{name}"
            file.write_text(_canary(person, name))
            file.chmod(0o600)
        first, second = ("openai", "anthropic") if person < other else ("anthropic", "openai")
        stored = ("keys", "set", f"{first.upper()}_API_KEY", "--user", person, "--store", "file")
        deepctl(*stored, stdin=_canary(person, first).encode()).ok()
        kind, place = ("file", "{}") if person < other else ("command", "cat {}")
        server = Path(__file__).parents[1] / "support" / "mcp_stdio_server.py"
        with (path / "profile.toml").open("a") as settings:
            settings.write(
                f'model = "{_MODELS["openai"]}"\napprove = "auto"\nmax_requests = 1000\n[keys]\n'
                f'{second.upper()}_API_KEY = {{ {kind} = "{place.format(secrets / f"{person}-{second}")}" }}\n'
                f'DOCS_TOKEN = {{ file = "{secrets / f"{person}-mcp"}" }}\n'
                f'[mcp_servers.docs]\ncommand = "{sys.executable}"\nenv_vars = ["DOCS_TOKEN"]\n'
                f'args = ["{server}", "--report", "{secrets / f"{person}-report"}"]\n'
            )
    return secrets


class _Watch:
    """Looks for canaries in the variables of all processes, again and again."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.looks = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        mine = [canary.encode() for canary in _CANARIES if "environment" not in canary]
        while not self._ends.wait(0.5):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*/environ"):
                try:
                    variables = path.read_bytes()
                except OSError:
                    continue
                self.found += [f"{path}: {canary!r}" for canary in mine if canary in variables]


async def _in_an_application(person: str) -> None:
    """Turns that switch between agents of the application and that of the profile."""
    async with open_profile(person) as profile:
        agents = [None, *(create_deep_agent(model, approve="auto") for model in _MODELS.values())]
        for number in range(_TURNS):
            agent = agents[number % 3]
            await profile.run(agent, f"I am person-{person}, turn {number}.", new=number % 10 == 0)


def _in_conversations(person: str) -> None:
    """A conversation that switches its model, and commands of the shell."""
    terminal = Terminal("chat", "--user", person, "--new", "typed", "--wait", "60")
    try:
        terminal.prompt(name=person)
        for number, model in enumerate(itertools.islice(itertools.cycle(_MODELS.values()), 4 if _SOAK else 2)):
            terminal.type(f"/model {model}\r")
            terminal.expect(f"{model}", times=1)
            terminal.type(f"I am person-{person}, typed {number}.\r")
            terminal.expect("All right.", times=number + 1)
        terminal.leave()
    finally:
        terminal.close()


def _in_the_shell(person: str, command: Command) -> None:
    for model in _MODELS.values() if _SOAK else [_MODELS["anthropic"]]:
        done = command("chat", "--user", person, "--model", model, "--wait", "60", f"I am person-{person}.")
        assert done.code == 0, done
    done = command("sessions", "compact", "--user", person, "--wait", "60")
    assert done.code == 0, done


@pytest.mark.timeout(900)
def test_every_request_has_the_key_of_its_profile_and_no_key_is_anywhere_else(
    people: Path, home: Path, tmp_path: Path, process: Command, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCTL_DEBUG", "1")
    errors: list[BaseException] = []

    def guarded(work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)

    async def applications() -> None:
        await asyncio.gather(*map(_in_an_application, _PEOPLE))

    with _providers(monkeypatch) as servers, _Watch() as watch:
        threads = [threading.Thread(target=guarded, args=(_in_the_shell, person, Command())) for person in _PEOPLE]
        threads += [threading.Thread(target=guarded, args=(_in_conversations, person)) for person in _PEOPLE]
        for thread in threads:
            thread.start()
        asyncio.run(applications())
        for thread in threads:
            thread.join()
    assert errors == []

    mixed, by_key = [], Counter[str]()
    for name, server in servers.items():
        for body, headers in server.exchanges:
            text = json.dumps(body)
            [person] = [person for person in _PEOPLE if f"person-{person}" in text]
            key = headers["authorization"].removeprefix("Bearer ")
            by_key[key] += 1
            if key != _canary(person, name) or "canary-environment" in str(headers):
                mixed.append((person, name, key))
            assert not [canary for canary in _CANARIES if canary in text], "in a request, with results of commands"
    total = sum(by_key.values())
    answers = sum((server.answers for server in servers.values()), Counter[str]())
    print(f"{total} requests, {len(mixed)} with another key; {dict(by_key)}; {dict(answers)}; {watch.looks} looks")
    assert mixed == []
    assert total >= (500 if _SOAK else 100)
    assert set(by_key) == {_canary(person, name) for person in _PEOPLE for name in _MODELS}
    assert answers["Status"] >= 10
    assert answers["ToolCalls"] >= 10
    assert watch.found == []
    assert watch.looks > 5
    for person in _PEOPLE:
        report = json.loads((people / f"{person}-report").read_text())
        assert report["env"]["DOCS_TOKEN"] == _canary(person, "mcp")
        assert not [canary for canary in _CANARIES if canary in json.dumps(report)]
    _is_nowhere_else(deepctl, home, tmp_path)


def _is_nowhere_else(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    """No canary is in a file of the profiles, or in what exports and commands write."""
    places = []
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.relative_to(home).parts[0] != "keys":
            content = path.read_bytes()
            places += [f"{path}: {canary}" for canary in _CANARIES if canary.encode() in content]
    assert places == []
    for person in _PEOPLE:
        archive = tmp_path / f"{person}.tgz"
        deepctl("profiles", "export", str(archive), "--user", person).ok()
        unpacked = subprocess.run(["gzip", "-dc", archive], capture_output=True, check=True).stdout
        with tarfile.open(archive) as members:
            names = members.getnames()
        commands = (
            "sessions export --format json",
            "sessions export --format markdown",
            "checkpoints list --json",
            "checkpoints diff",
            "memory show",
            "config show",
            "keys list --json",
            "models --all --json",
            "usage --json",
            "doctor",
        )
        outputs = [deepctl(*line.split(), "--user", person) for line in commands]
        text = "".join(result.stdout + result.stderr for result in outputs)
        assert not [canary for canary in _CANARIES if canary.encode() in unpacked or canary in text]
        assert not [name for name in names if name.endswith("_API_KEY")]
