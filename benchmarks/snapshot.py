"""Snapshots of a workspace of 10,000 files, against a shadow git repository and a bare directory walk."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import promise
from deepctl.store import trees
from deepctl.store.index_db import Cache
from deepctl.store.pack_store import PackStore

_DIRECTORIES, _FILES, _SIZE = 100, 100, 2048


def fill(root: Path, randomness: random.Random) -> None:
    """10,000 files of 2 KB in 100 directories."""
    words = [f"{randomness.getrandbits(40):x}" for _ in range(3000)]
    for directory in range(_DIRECTORIES):
        (root / f"d{directory}").mkdir(parents=True)
        for file in range(_FILES):
            text = " ".join(randomness.choice(words) for _ in range(250))[:_SIZE]
            (root / f"d{directory}" / f"f{file}.txt").write_text(text)


def walk(root: Path) -> None:
    """A bare walk with one `lstat` a file."""
    for directory, _, files in os.walk(root):
        for file in files:
            os.lstat(os.path.join(directory, file))


def _git(root: Path, repository: Path) -> None:
    environment = {**os.environ, "GIT_DIR": str(repository), "GIT_WORK_TREE": str(root)}
    for command in (("init", "-q"), ("add", "-A"), ("write-tree",)):
        subprocess.run(["git", *command], env=environment, cwd=root, check=True, stdout=subprocess.DEVNULL)


def _snapshot(root: Path, store: Path) -> int:
    """Take a snapshot as a new process would; returns the bytes it added."""
    cache = Cache(str(store / "cache"))
    with PackStore(str(store / "packs"), cache).new_batch() as batch:
        trees.snapshot(str(root), batch, cache)
    cache.close()
    return batch.added_bytes


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def run() -> bool:
    """Measure and print; whether every promise holds."""
    randomness = random.Random(20261122)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "work"
        fill(root, randomness)
        time.sleep(0.1)
        gits, firsts = [], []
        for number in range(3):
            store = Path(place) / f"store{number}"
            store.mkdir()
            firsts.append(_timed(lambda store=store: _snapshot(root, store)))  # type: ignore[misc]
            gits.append(_timed(lambda number=number: _git(root, Path(place) / f"git{number}")))  # type: ignore[misc]
        walks, same, changed, added = [], [], [], []
        for _ in range(9):
            walks.append(_timed(lambda: walk(root)))
            same.append(_timed(lambda: _snapshot(root, store)))
            with open(root / f"d{randomness.randrange(_DIRECTORIES)}" / "f7.txt", "a") as file:
                file.write(str(randomness.random()))
            time.sleep(0.05)
            began = time.perf_counter()
            added.append(_snapshot(root, store) - _SIZE)
            changed.append(time.perf_counter() - began)
    bare = statistics.median(walks)
    first = statistics.median(firsts) / statistics.median(gits)
    print(f"Snapshots of {_DIRECTORIES * _FILES} files of {_SIZE} bytes (medians in one run):")
    print(f"  bare walk with one lstat a file {bare * 1000:.0f} ms")
    return all(
        [
            promise("first snapshot / git add -A and write-tree", first, 1 / 3),
            promise("snapshot with nothing changed / bare walk", statistics.median(same) / bare, 1.5),
            promise("snapshot with one file changed / bare walk", statistics.median(changed) / bare, 1.7),
            promise("bytes added beyond the changed file / 16 KiB", max(added) / 16384, 1.0),
        ]
    )
