"""Exit 8 says what has become of the command: nothing, it is done, or the next command finishes it."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl.domain import profiles
from deepctl.layout import Root
from deepctl.store import ledger, session_catalogue
from tests.store.faults import Counter, failing
from tests.support.command import InProcess, Result

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 2

COMMANDS: dict[str, tuple[str, ...]] = {
    "label": ("checkpoints", "label", "~1", "there"),
    "rename": ("sessions", "rename", "main", "other"),
    "rewind": ("checkpoints", "rewind", "~1"),
    "undo": ("checkpoints", "undo", "--session", "undone"),
    "prune": ("checkpoints", "prune", "--keep", "1"),
    "delete": ("sessions", "delete", "undone", "--yes"),
    "forget": ("memory", "forget", "tea", "--yes"),
    "add": ("memory", "add", "a note"),
    "profile": ("profiles", "rename", "default", "renamed"),
    "config": ("config", "set", "instructions", "x", "--user", "default"),
    "wipe": ("wipe", "--only", "history,plans", "--yes"),
}
# What changes the file system: a fault of what only looks is another matter, and mostly none.
_CHANGES = (
    "fchmod",
    "fdatasync",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "pwrite",
    "rename",
    "rmdir",
    "unlink",
    "write",
)


class FromThen(Counter):
    """Every call from number `at` on fails: the disk is gone."""

    def __init__(self, at: int, beneath: str) -> None:
        super().__init__(at, failing(errno.EIO), only=_CHANGES, beneath=beneath)
        self._fails = failing(errno.EIO)

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        counted = super()._counting(call)

        def called(*arguments: Any, **options: Any) -> Any:
            if self.seen > self._at:
                self._fails()
            return counted(*arguments, **options)

        return called


_CLAIMS = ("It is done", "is deleted", "removed from the profile", "else was deleted")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with something for each of the commands to do."""
    place = tmp_path_factory.mktemp("story") / "root"
    deepctl = InProcess()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPCTL_HOME", str(place))
        patch.setenv("DEEPCTL_CONFIG", str(place / "config.toml"))
        deepctl("chat", "--session", "undone", "write u.txt: one\nremember tea\nplan a: b").ok()
        deepctl("chat", "--session", "undone", "write u.txt: two").ok()
        deepctl("checkpoints", "rewind", "~1", "--session", "undone").ok()
        for number in range(3):
            deepctl("chat", "--session", "main", f"write a.txt: {number}\nwrite d/{number}.txt: x").ok()
        (place / "profiles/default/prompt_history").write_text("typed\n")
    return place


def _seen(home: Path, command: str) -> object:
    """What the command is about, as a reader sees it."""
    root = Root(str(home))
    name = "renamed" if profiles.exists(root, "renamed") else "default"
    paths = profiles.find(root, name)
    found = ledger.read(paths.checkpoints)
    workspace = Path(paths.workspace)
    heads = {one: session_catalogue.find(paths, one).log for one in session_catalogue.all_names(paths)}
    files = {
        str(path.relative_to(workspace)): path.read_text() for path in sorted(workspace.rglob("*")) if path.is_file()
    }
    match command:
        case "label":
            return len(found.labels)
        case "rename" | "delete":
            return sorted(heads)
        case "rewind" | "undo":
            session = "main" if command == "rewind" else "undone"
            return (sorted(files.items()), len(session_catalogue.read(session_catalogue.find(paths, session)).messages))
        case "prune":
            return sum(record.kind != "manual" for record in found.records.values())
        case "forget" | "add":
            return files[".deep/memory/main/MEMORY.md"]
        case "profile":
            return name
        case "config":
            return Path(paths.settings).read_text()
        case _:
            return ("plans" in os.listdir(workspace), (Path(paths.directory) / "prompt_history").read_text())


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "lasts"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_of_the_disk_says_whether_the_command_is_done(
    deepctl: InProcess, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, lasts: bool
) -> None:
    home = tmp_path / "copy"
    monkeypatch.setenv("DEEPCTL_HOME", str(home))

    def run(points: Counter | None = None) -> Result:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(story, home, symlinks=True)
        with (points or Counter(only=())).installed():
            return deepctl(*COMMANDS[command])

    run()
    deepctl("checkpoints", "save", "--user", "renamed" if command == "profile" else "default")
    new = _seen(home, command)
    counted = Counter(only=_CHANGES, beneath=str(home))
    run(counted).ok()
    shutil.rmtree(home)
    shutil.copytree(story, home, symlinks=True)
    old = _seen(home, command)
    assert old != new
    points = range(counted.seen // 3, counted.seen + 1)
    randomness = random.Random(f"{command} {lasts}")
    for at in points if _SOAK else sorted(randomness.sample(points, min(_SAMPLE, len(points)))):
        once = Counter(at, failing(errno.EIO), only=_CHANGES, beneath=str(home))
        result = run(FromThen(at, str(home)) if lasts else once)
        where = f"{command}, call {at}: {result}"
        assert result.code in (0, 8), where
        now = _seen(home, command)
        claims_done = any(text in result.stderr for text in _CLAIMS)
        claims_later = "finishes it" in result.stderr or "removes the rest" in result.stderr
        deepctl("checkpoints", "save", "--user", "renamed" if now == "renamed" else "default")
        later = _seen(home, command)
        if result.code == 0:
            assert later == new, where
        elif now == new:
            assert claims_done or claims_later, where
        else:
            assert not claims_done, where
            assert later in (old, new) or claims_later, where
            assert (later == new) == claims_later, where


def test_the_lock_that_cannot_be_erased_fails_nothing(
    deepctl: InProcess, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "copy"
    shutil.copytree(story, home, symlinks=True)
    monkeypatch.setenv("DEEPCTL_HOME", str(home))
    truncate: Callable[[int, int], None] = os.ftruncate

    def failing_on_locks(descriptor: int, length: int) -> None:
        if "/locks/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        truncate(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", failing_on_locks)
    deepctl("checkpoints", "label", "~1", "there").ok()
