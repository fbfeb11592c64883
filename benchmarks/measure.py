"""Measuring processes: medians of alternating runs, so that a busy moment falls on all alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path


def medians(commands: Mapping[str, Sequence[str]], *, rounds: int, environment: Mapping[str, str]) -> dict[str, float]:
    """The median wall time of each command in seconds, over `rounds` runs, one of each in turn. One run warms up."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(
                command,
                env=environment_of(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured) for name, measured in times.items()}


def environment_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process and more, with compiled modules kept, as where a package is installed."""
    found = {**os.environ, **environment}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def python_with(packages: Sequence[str], name: str, variable: str) -> str:
    """The Python of an environment with these packages, made once in the directory `name` of the clone.

    The environment variable `variable`, if it is set, names a Python that has them.
    """
    if given := os.environ.get(variable):
        return given
    place = Path(__file__).parent.parent / name
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return str(python)


def promise(what: str, ratio: float, limit: float) -> bool:
    """Print one promise with what was measured; whether it holds."""
    held = ratio <= limit
    print(f"  {what:<58} {ratio:6.3f} x   promised: {limit:.3f} x   {'held' if held else 'BROKEN'}")
    return held
