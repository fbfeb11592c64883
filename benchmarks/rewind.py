"""A rewind of one changed file among 10,000, and listing a thousand checkpoints, and a file of 2 GB."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from benchmarks.measure import medians, promise
from benchmarks.snapshot import fill, walk
from benchmarks.start import BARE_TYPER
from deepctl.domain import profiles
from deepctl.layout import ProfilePaths, Root
from deepctl.store import rewind, session_catalogue, session_reader
from deepctl.store.records import AGENT, Position
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindRequest

_ROUNDS = 7
_CHECKPOINTS = 1000
_LARGE = 2 << 30


def run() -> bool:
    """Measure and print; whether every promise holds."""
    return all([_rewind(), _list(), _large()])


def _profile(place: str) -> ProfilePaths:
    return profiles.create(Root(f"{place}/state"), "alice")


def _rewind() -> bool:
    randomness = random.Random(20261123)
    with tempfile.TemporaryDirectory() as place:
        paths = _profile(place)
        root = Path(paths.workspace)
        fill(root, randomness)
        session = session_catalogue.start(paths, "main")
        time.sleep(0.1)
        walks, rewinds, syncs = [], [], []
        for number in range(_ROUNDS):
            with Repository.open(paths) as found:
                position = session_reader.position(session, session_catalogue.read(session))
                target = found.save(session, "turn", position, author=AGENT)
            with open(root / f"d{randomness.randrange(100)}" / "f7.txt", "a") as file:
                file.write(f"round {number}")
            time.sleep(0.05)
            with Repository.open(paths) as found:
                found.save(session, "turn", position, author=AGENT)
            time.sleep(0.05)
            walks.append(_timed_walk(root))
            began = time.perf_counter()
            with _Syncs() as counted, Repository.open(paths) as found:
                done = rewind.run(found, session, RewindRequest(target))
            rewinds.append(time.perf_counter() - began)
            syncs.append(counted.count)
            assert len(done.restored_paths) == 1
    ratio = statistics.median(rewinds) / statistics.median(walks)
    print("A rewind of one changed file of 10,000 (medians in one run):")
    print(f"  calls that sync to disk: {max(syncs)}")
    return all([promise("rewind of one changed file / bare walk", ratio, 3.0), max(syncs) <= 16])


def _timed_walk(root: Path) -> float:
    began = time.perf_counter()
    walk(root)
    return time.perf_counter() - began


class _Syncs:
    """Counts the calls that wait for the disk."""

    def __init__(self) -> None:
        self.count = 0
        self._real = {name: getattr(os, name) for name in ("fsync", "fdatasync", "sync")}

    def __enter__(self) -> Self:
        for name, real in self._real.items():
            setattr(os, name, self._counting(real))
        return self

    def _counting(self, real: object) -> object:
        def counted(*arguments: object) -> object:
            self.count += 1
            return real(*arguments)  # type: ignore[operator]

        return counted

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)


def _list() -> bool:
    deepctl = str(Path(sys.executable).parent / "deepctl")
    with tempfile.TemporaryDirectory() as place:
        paths = _profile(place)
        session = session_catalogue.start(paths, "main")
        with Repository.open(paths) as found:
            for number in range(_CHECKPOINTS):
                if not number % 2:
                    (Path(paths.workspace) / "file.txt").write_text(f"version {number}")
                position = Position(session.id, number, session.log, 0, number * 2, f"prompt number {number}")
                found.save(session, "turn", position, author=AGENT)
        (Path(place) / "bare.py").write_text(BARE_TYPER)
        environment = {"DEEPCTL_HOME": f"{place}/state", "DEEPCTL_CONFIG": f"{place}/config.toml"}
        commands = {
            "bare": (sys.executable, f"{place}/bare.py", "one"),
            "list": (deepctl, "checkpoints", "list", "--user", "alice"),
        }
        times = medians(commands, rounds=15, environment=environment)
    print(f"Listing {_CHECKPOINTS} checkpoints, piped (medians in one run):")
    return promise("checkpoints list / bare two-command Typer app", times["list"] / times["bare"], 1.6)


_SNAPSHOT = """
import resource, sys
from deepctl.store.records import Position
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.workspaces import WorkspaceOptions
with Checkpoints(sys.argv[2]) as store:
    store.save(Position("s", 0, "", 0, 0, ""), "turn", author="agent", workspace=WorkspaceOptions(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _large() -> bool:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "work").mkdir()
        with open(Path(place) / "work" / "large", "wb") as file:
            file.truncate(_LARGE)
            for offset in range(0, _LARGE, 256 << 20):
                file.seek(offset)
                file.write(os.urandom(1 << 20))
        command = (sys.executable, "-c", _SNAPSHOT, f"{place}/work", f"{place}/store")
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = int(done.stdout) * unit
    print("A checkpoint of a file of 2 GB:")
    return promise("peak memory / 100 MB", peak / 100e6, 1.0)
