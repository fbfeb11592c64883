"""Every command reads each settings file at most once; the exceptions are listed with their reasons."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deepctl.cli import checkpoints, keys, memory, profiles, projects, sessions, wipe
from deepctl.cli.repl import pickers
from deepctl.layout import SETTINGS, UNTRUSTED
from tests.support.command import InProcess
from tests.support.runs import ALICE, KEY, RUNS, Run, World, made_world, untrusted
from tests.support.tree import commands

_CONFIG = "config.toml"
_IMPORTED = "bob"


class _Opened:
    """Counts how often settings files are opened for reading, by the directory and name of the file."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._is_on = False
        sys.addaudithook(self._audit)  # a hook cannot be removed, so there is one for all tests

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on or event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path = os.fsdecode(arguments[0])
        name = os.path.basename(path)
        if name in (_CONFIG, SETTINGS, UNTRUSTED) and (arguments[2] or 0) & os.O_ACCMODE != os.O_WRONLY:
            directory = os.path.basename(os.path.dirname(path))
            # Until an imported profile is complete, the name of its directory begins with a dot.
            profile = _IMPORTED if directory[:1] == "." else directory
            self.counts[name if name == _CONFIG else f"{profile}/{name}"] += 1

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        self.counts = Counter()
        self._is_on = True
        try:
            yield self.counts
        finally:
            self._is_on = False


_OPENED = _Opened()


def _say(*arguments: str) -> Run:
    return lambda world: arguments


def _archive(world: World) -> tuple[str, ...]:
    """An archive with settings that need trust."""
    world.run("config", "set", "sandbox", "none", "--user", "alice")
    world.run("config", "set", "model", "offline", "--user", "alice")
    return ("profiles", "import", world.exported("profiles", "export", "--user", "alice"), "--as", "bob", "--json")


_MORE: dict[str, list[Run]] = {
    "chat": [_say("chat", "hello", *ALICE), _say("chat", "hello", "--new", "other", *ALICE)],
    "help": [_say("help", "checkpoints")],
    "doctor": [_say("doctor", *ALICE), _say("doctor", "--json"), untrusted("doctor")],
    "sandbox remove": [_say("sandbox", "remove", *ALICE)],
    "wipe": [_say("wipe", "--all", "--yes", "--json"), _say("wipe", "--only", "workspace", "--yes", *ALICE)],
    "profiles import": [_archive, lambda world: (*_archive(world), "--trust", "--yes")],
    "checkpoints prune": [_say("checkpoints", "prune", "--keep", "1", "--dry-run", *ALICE)],
    "memory add": [_say("memory", "add", "note", "--file", "new.md", *ALICE)],
    "config set": [_say("config", "set", "instructions", "text", "--json")],
}
"""Runs besides those of `RUNS`."""


class _Reread(NamedTuple):
    """A command that reads files more often than once: the number for each file, and the reason."""

    is_meant: Callable[[str, bool], bool]
    """For a command line, and whether it names the profile."""
    counts: dict[str, int]
    reason: str


_REREADS = [
    _Reread(
        lambda line, _: line.startswith("memory forget") and "--purge" in line,
        {"alice/profile.toml": 2},
        "The report of a purge searches the files that are on disk after the purge for the text.",
    ),
    _Reread(
        lambda line, _: line.startswith("profiles trust"),
        {"alice/profile.toml": 2, "alice/untrusted.toml": 2},
        "Under the lock, both files must be as they were when the person saw them.",
    ),
    _Reread(
        lambda line, _: line.startswith("profiles import") and "--trust" in line,
        {"bob/profile.toml": 2},
        "The same. Before that, the import reads the profile.toml of the archive, and writes untrusted.toml from it.",
    ),
    _Reread(
        lambda line, _: line.startswith("keys unset"),
        {"alice/profile.toml": 2},
        "Under the lock, the reference that the person saw must still be there.",
    ),
    _Reread(
        lambda line, names_user: line.startswith("memory edit") and not names_user,
        {"config.toml": 2},
        "The editor may be open for hours; the checkpoint after it must not contain what is excluded by then.",
    ),
    _Reread(
        lambda line, _: line.startswith("config edit"),
        {"config.toml": 2, "alice/profile.toml": 2},
        "The editor may be open for hours; under the lock, the file must be as it was before.",
    ),
    _Reread(
        lambda line, _: line.startswith("wipe") and "--dry-run" not in line and "--yes" not in line,
        {"alice/profile.toml": 2, "carol/profile.toml": 2},
        "No lock is held during the question, so another process may change the sandbox of the profile meanwhile.",
    ),
]
"""The commands that may read a file again."""


_ASKING = (
    "keys unset",
    "memory forget",
    "profiles import",
    "profiles trust",
    "projects forget",
    "projects trust",
    "sessions delete",
    "wipe",
)
"""Commands that ask without `--yes`."""


def _cases() -> Iterator[Any]:
    for name, command in commands().items():
        has_user = any(parameter.name == "user" for parameter in command.params)
        variants = ["named", *(["default"] if has_user else []), *(["asked"] if name in _ASKING else [])]
        for number, run in enumerate([*RUNS[name], *_MORE.get(name, [])]):
            for variant in variants:
                yield pytest.param(run, variant, id=f"{name}-{number}-{variant}")


def test_every_command_is_measured() -> None:
    assert {command for command in commands() if RUNS[command] or _MORE.get(command)} == set(commands())


def _without(arguments: tuple[str, ...], option: str, length: int) -> tuple[str, ...]:
    at = arguments.index(option)
    return (*arguments[:at], *arguments[at + length :])


@pytest.mark.parametrize(("run", "variant"), list(_cases()))
def test_each_settings_file_is_read_at_most_once(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, variant: str
) -> None:
    world = made_world(deepctl, home, tmp_path, monkeypatch)
    config = Path(os.environ["DEEPCTL_CONFIG"])
    config.parent.mkdir()
    config.write_text('default_user = "alice"\nmodel = "offline"\n')
    deepctl("profiles", "create", "carol").ok()
    arguments = run(world)
    if variant == "default" and "--user" in arguments:
        arguments = _without(arguments, "--user", 2)
    if variant == "asked" and "--yes" in arguments:
        arguments = _without(arguments, "--yes", 1)
        for module in (keys, memory, profiles, projects, sessions, wipe):
            monkeypatch.setattr(module, "confirm", lambda *_, **__: None)
        monkeypatch.setattr(profiles, "check_can_ask", lambda *_, **__: None)
    with _OPENED.counted() as counts:
        result = deepctl(*arguments, stdin=KEY if arguments[:2] == ("keys", "set") else b"")
    assert result.code == 0 or arguments[:1] == ("doctor",) or arguments[:2] == ("sandbox", "remove"), result
    line = " ".join(arguments)
    rereads = [reread for reread in _REREADS if reread.is_meant(line, "--user" in arguments)]
    allowed = rereads[0].counts if rereads else {}
    assert {file: count for file, count in counts.items() if count > allowed.get(file, 1)} == {}, result


def test_after_a_choice_at_the_terminal_they_are_not_read_again(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_world(deepctl, home, tmp_path, monkeypatch)
    Path(os.environ["DEEPCTL_CONFIG"]).parent.mkdir()
    Path(os.environ["DEEPCTL_CONFIG"]).write_text('default_user = "alice"\n')
    monkeypatch.setattr(checkpoints, "is_terminal", lambda _: True)
    monkeypatch.setattr(pickers.Picker, "run", lambda self: self._choices[self._at])
    with _OPENED.counted() as counts:
        deepctl("checkpoints", "rewind").ok()
    assert counts == {"config.toml": 1, "alice/profile.toml": 1}
