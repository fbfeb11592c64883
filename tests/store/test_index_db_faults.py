"""The cache fails at any of its calls, once or for good: no command fails, and no record names what is not there."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl.files import sealed_lines
from deepctl.store import lookup, prune, verify
from deepctl.store.pack_store import PackStore
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.trees import DIRECTORY, walk
from tests.store.scene import Scene, leftovers

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 2


class Faults:
    """Counts the calls of SQLite and makes number `at`, from 1, fail: before or `after` it is done, or `on` from there.

    In memory there is no disk that could fail.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = 0, *, after: bool = False, on: bool = False) -> None:
        self.seen = 0
        self.error: Exception = sqlite3.OperationalError("disk I/O error")
        faults = self

        def call(operation: Callable[[], Any]) -> Any:
            faults.seen += 1
            fails = faults.seen >= at if on else faults.seen == at
            if at and fails and not after:
                raise faults.error
            result = operation()
            if at and fails:
                raise faults.error
            return result

        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> Any:
                return call(lambda: super(Connection, self).execute(*arguments))

            def executemany(self, *arguments: Any) -> Any:
                return call(lambda: super(Connection, self).executemany(*arguments))

        connect = sqlite3.connect

        def connected(path: str, **options: Any) -> Any:
            return connect(path, **options) if path == ":memory:" else connect(path, factory=Connection, **options)

        monkeypatch.setattr(sqlite3, "connect", connected)


def _story(place: Path) -> Scene:
    scene = Scene(place)
    scene.agent("a.txt", "one")
    scene.agent("d/b.txt", "two")
    scene.agent("a.txt", "three")
    scene.write("mine.txt", "mine")
    return scene


def _prune(scene: Scene) -> None:
    with scene.work() as work:
        prune.remove(work, prune.to_prune(work.ledger, 2))


OPERATIONS: dict[str, Callable[[Scene], object]] = {
    "turn": lambda scene: scene.agent("d/c.txt", "four"),
    "rewind": lambda scene: scene.rewind("~1"),
    "prune": _prune,
}


def _check(scene: Scene, where: str) -> None:
    assert verify.verify(scene.paths).problems == [], where
    reader = ReadOnlyRepository(scene.paths)
    for record in reader.ledger.records.values():
        for _, entry in walk(reader.objects, bytes.fromhex(record.tree)):
            if entry.kind != DIRECTORY:
                reader.objects.read(entry.digest)
        lookup.conversation_at(scene.paths, record)
    reader.close()
    assert leftovers(scene.paths) == [], where


@pytest.mark.parametrize("kind", ["before", "after", "on"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fault_of_the_cache_fails_no_command_and_loses_nothing(
    tmp_path: Path, operation: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _story(tmp_path / "story")

    def copy() -> Scene:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "story", tmp_path / "copy", symlinks=True)
        return Scene(tmp_path / "copy")

    with monkeypatch.context() as patch:
        counted = Faults(patch)
        OPERATIONS[operation](copy())
    assert counted.seen > 10
    points = range(1, counted.seen + 1)
    randomness = random.Random(operation + kind)
    for at in points if _SOAK else sorted(randomness.sample(points, _SAMPLE)):
        scene = copy()
        where = f"{operation}, {kind} call {at}"
        with monkeypatch.context() as patch:
            Faults(patch, at, after=kind == "after", on=kind == "on")
            OPERATIONS[operation](scene)
        _check(scene, where)
        scene.agent("last.txt", where)
        _check(scene, where)


def test_a_pack_that_no_line_names_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line cannot be written and the pack cannot be removed: what comes next in the same process has it anew."""
    scene = Scene(tmp_path)
    scene.agent("a.txt", "one")
    scene.write("b.txt", "two")
    with scene.work() as work:
        session = scene.session()
        with monkeypatch.context() as patch:

            def full(self: sealed_lines.Appender, values: object) -> list[int]:
                raise OSError(28, "No space left on device")

            def stuck(self: PackStore, name: str) -> None:
                raise OSError(5, "Input/output error")

            patch.setattr(sealed_lines.Appender, "extend", full)
            patch.setattr(PackStore, "remove_pack", stuck)
            for _ in range(3):
                with pytest.raises(OSError, match="No space"):
                    work.save_now(session)
        assert len(work.store.strays()) == 3
        record = work.save_now(session)
        assert record.pack
    assert verify.verify(scene.paths).problems == [], "three packs without a line are rubbish, and no lost lines"
    with scene.work() as work:
        assert work.store.strays() == set()
    _check(scene, "after the next opening")


def test_what_the_cache_has_forgotten_is_still_found(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.agent("a.txt", "one")
    database = sqlite3.connect(scene.paths.snapshot_cache)
    with database:
        database.execute("DELETE FROM objects")
    database.close()
    with scene.work() as work:
        tree = bytes.fromhex(scene.last().tree)
        for _, entry in walk(work.store.objects, tree):
            work.store.objects.read(entry.digest)
    reader = ReadOnlyRepository(scene.paths)
    assert reader.objects.read(tree)
    reader.close()
