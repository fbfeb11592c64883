"""The same web application on the classes of deepctl and of pydantic-deep, in one run.

`benchmarks.guide_application` is served by uvicorn with one worker, in a process of its own each. Both get the same
requests over HTTP, in alternating rounds: users with conversations that grow, and turns of several users at once. Ours
sync every checkpoint to the disk, and their checkpoints contain the files, too.

pydantic-deep is of the version of its guide, with the versions of its requirements that it runs with: later ones have
no `LocalBackend`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx

from benchmarks.measure import promise, python_with
from tests.support.web_server import WebServer, served

_ROUNDS = 3
_USERS = 16
_TURNS = 5
"""Of every user in a round."""
_AT_ONCE = 8
_MOST_CPU = 0.5
_MOST_TIME = 0.6
_MOST_MEMORY = 1.0
_PLACE = Path(__file__).parent
_PYDANTIC_AI = version("pydantic-ai-slim")
_PEER = (
    "pydantic-deep==0.3.32",
    "pydantic-ai-backend==0.2.20",
    f"pydantic-ai-slim=={_PYDANTIC_AI}",
    f"pydantic-graph=={_PYDANTIC_AI}",
    "fastapi",
    "uvicorn",
)


async def _round(url: str) -> float:
    """Turns of all users, several at once. Returns the seconds."""
    places = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def converse(user: int) -> None:
            for _ in range(_TURNS):
                async with places:
                    answer = await client.post(f"/chat/user{user}", params={"message": "Write, read and list."})
                    assert answer.json() == {"response": "Done."}, answer.text

        began = time.perf_counter()
        await asyncio.gather(*map(converse, range(_USERS)))
        return time.perf_counter() - began


def _cpu(server: WebServer) -> float:
    """The processor seconds of a server so far."""
    ticks = 0
    for pid in server.pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def _serving(classes: str, python: str, place: Path) -> Iterator[WebServer]:
    with served(
        "guide_application:app",
        place / f"{classes}.log",
        {"CLASSES": classes, "STATE": str(place / classes)},
        python=python,
        directory=_PLACE,
    ) as server:
        yield server


def run() -> bool:
    """Measure and print; whether every promise holds."""
    print(f"The guide's application: {_USERS} users, {_ROUNDS * _TURNS} turns each, {_AT_ONCE} at once:")
    figures: dict[str, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        ours = _serving("deepctl", sys.executable, Path(place))
        theirs = _serving("pydantic-deep", python_with(_PEER, ".venv-guide", "DEEPCTL_BENCH_GUIDE"), Path(place))
        with ours as deepctl, theirs as peer:
            servers = {"deepctl": deepctl, "pydantic-deep": peer}
            seconds = dict.fromkeys(servers, 0.0)
            began = {name: _cpu(server) for name, server in servers.items()}
            for _ in range(_ROUNDS):
                for name, server in servers.items():
                    seconds[name] += asyncio.run(_round(server.url))
            for name, server in servers.items():
                turns = _ROUNDS * _USERS * _TURNS
                cpu = _cpu(server) - began[name]
                figures[name] = turns / seconds[name], cpu / turns, server.peak_memory() / 1e6
    for name, (throughput, cpu, peak) in figures.items():
        print(f"  {name:<14} {throughput:6.1f} turns/s   {cpu * 1e3:6.1f} ms of a processor a turn   {peak:5.0f} MB")
    (throughput, cpu, peak), (their_throughput, their_cpu, their_peak) = figures.values()
    return all(
        [
            promise("processor time of a turn / theirs", cpu / their_cpu, _MOST_CPU),
            promise("time of a turn / theirs", their_throughput / throughput, _MOST_TIME),
            promise("peak memory / theirs", peak / their_peak, _MOST_MEMORY),
        ]
    )


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
