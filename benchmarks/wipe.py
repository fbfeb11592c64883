"""Wiping a profile of 10,000 files and a checkpoint of them, against `rm -rf` of an equal tree and a bare start."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import environment_of, promise
from benchmarks.snapshot import fill
from benchmarks.start import BARE_TYPER

_ROUNDS = 5


def _timed(command: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        command, env=environment_of(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - began


def run() -> bool:
    """Measure and print; whether the promise holds."""
    deepctl = str(Path(sys.executable).parent / "deepctl")
    wipes, removals, starts = [], [], []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "state"
        environment = {"DEEPCTL_HOME": str(root), "DEEPCTL_CONFIG": f"{place}/config.toml"}
        profile, pattern, other = root / "profiles" / "alice", Path(place) / "pattern", Path(place) / "other"
        _timed((deepctl, "profiles", "create", "alice"), environment)
        fill(profile / "workspace", random.Random(20261123))
        _timed((deepctl, "checkpoints", "save", "--user", "alice"), environment)
        os.rename(profile, pattern)
        bare = Path(place) / "bare.py"
        bare.write_text(BARE_TYPER)
        for number in range(_ROUNDS + 1):
            for copy in (profile, other) if number % 2 else (other, profile):
                shutil.copytree(pattern, copy)
            os.sync()
            measured = {
                "wipe": (deepctl, "wipe", "--user", "alice", "--yes"),
                "rm": ("rm", "-rf", str(other)),
                "start": (sys.executable, str(bare), "one"),
            }
            times = {}
            for name in list(measured) if number % 2 else reversed(list(measured)):
                times[name] = _timed(measured[name], environment)
            if number:
                wipes.append(times["wipe"])
                removals.append(times["rm"])
                starts.append(times["start"])
        assert not profile.exists()
        assert not [entry for entry in os.listdir(root / "profiles") if entry.startswith(".")]
    wipe, removal, start = (statistics.median(times) for times in (wipes, removals, starts))
    print("Wiping a profile of 10,000 files and a checkpoint of them (medians in one run):")
    print(f"  wipe {wipe * 1000:.0f} ms, rm -rf {removal * 1000:.0f} ms, bare Typer {start * 1000:.0f} ms")
    return promise("wipe / rm -rf and a bare start", wipe / (removal + start), 1.5)
