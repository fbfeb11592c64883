"""What a sandbox costs: a command in bubblewrap against the same without, and file tools against plain `open`."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.measure import promise
from deepctl import Bubblewrap, LocalBackend, NoSandbox

_ROUNDS = 30
_FILES = 100


def run() -> bool:
    """Measure and print; whether every promise holds."""
    return asyncio.run(_measured())


async def _measured() -> bool:
    with tempfile.TemporaryDirectory() as place:
        bare = LocalBackend(f"{place}/bare", sandbox=NoSandbox())
        sandboxed = LocalBackend(f"{place}/sandboxed", sandbox=Bubblewrap())
        commands = await _medians(
            {"bare": lambda: bare.run("true", shell=True), "sandboxed": lambda: sandboxed.run("true", shell=True)}
        )
        for number in range(_FILES):
            (Path(sandboxed.root_dir) / f"{number}.txt").write_text(f"{number}\n" * 100)
        reads = await _medians({"open": lambda: _opened(sandboxed.root_dir), "tool": lambda: _read(sandboxed)})
    print("Sandbox (medians in one run):")
    print(
        f"  `true` in a shell {commands['bare'] * 1000:.1f} ms, in bubblewrap {commands['sandboxed'] * 1000:.1f} ms; ",
        end="",
    )
    print(f"{_FILES} reads by open {reads['open'] * 1000:.1f} ms, by the workspace {reads['tool'] * 1000:.1f} ms")
    return all(
        [
            promise("a command in bubblewrap / the same without", commands["sandboxed"] / commands["bare"], 20),
            promise(f"{_FILES} reads by the workspace / by open", reads["tool"] / reads["open"], 80),
        ]
    )


async def _medians(work: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """The median time of each in seconds, one of each in turn; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(_ROUNDS + 1):
        for name, one in work.items():
            began = time.perf_counter()
            await one()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured) for name, measured in times.items()}


async def _read(backend: LocalBackend) -> None:
    for number in range(_FILES):
        await backend.read_bytes(f"{number}.txt")


async def _opened(directory: str) -> None:
    for number in range(_FILES):
        with open(f"{directory}/{number}.txt", "rb") as file:
            file.read()
