"""A thousand turns in `FileCheckpointStore`, against pydantic-deep's class of the same name.

pydantic-deep is installed into an environment of its own, because it wants other versions. Its cap of 20 checkpoints is
its middleware's; the class itself, which is compared, has none.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart

from benchmarks.measure import promise, python_with
from deepctl import Checkpoint, FileCheckpointStore
from deepctl.files import sealed_lines

_TURNS = 1000
_PEER = "pydantic-deep==0.3.50"

_PROGRAM = """
import asyncio, json, os, random, sys, time
from datetime import datetime, timezone
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ModelResponse, TextPart, UserPromptPart

if sys.argv[1] == "deepctl":
    from deepctl import Checkpoint, FileCheckpointStore
else:
    from pydantic_deep.features.checkpointing.store import Checkpoint, FileCheckpointStore

turns, directory = int(sys.argv[2]), sys.argv[3]
randomness = random.Random(7)

def text():
    return " ".join(f"{randomness.getrandbits(32):08x}" for _ in range(114))

async def main():
    store = FileCheckpointStore(directory)
    conversation, times = [], []
    for turn in range(turns):
        conversation.append(ModelRequest(parts=[UserPromptPart(text())]))
        conversation.append(ModelResponse(parts=[TextPart(text())]))
        now = datetime.now(timezone.utc)
        made = Checkpoint(f"c{turn:05}", f"turn-{turn}", turn, list(conversation), len(conversation), now)
        began = time.perf_counter()
        await store.save(made)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    listed = await FileCheckpointStore(directory).list_all()
    listing = time.perf_counter() - began
    assert [len(one.messages) for one in listed] == [2 * n + 2 for n in range(turns)]
    size = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(directory) for name in names)
    messages = len(ModelMessagesTypeAdapter.dump_json(conversation))
    print(json.dumps({"times": times, "listing": listing, "bytes": size, "messages": messages}))

asyncio.run(main())
"""


def _measured(python: str, which: str, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        command = (python, "-c", _PROGRAM, which, str(turns), f"{place}/store")
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _newest(counts: Sequence[int]) -> list[float]:
    """The least of 50 times of `newest()` of new objects, for stores of so many checkpoints of one conversation."""

    async def measure(directory: str, count: int) -> float:
        conversation: list[ModelMessage] = [ModelResponse(parts=[TextPart("x" * 1000)])]
        now = datetime.now(timezone.utc)
        await FileCheckpointStore(directory).save(Checkpoint("first", "", 1, conversation, 1, now))
        path = Path(directory, "ledger.jsonl")
        entry = sealed_lines.unseal(path.read_bytes().splitlines()[-1])
        others = ({**entry, "record": {**entry["record"], "id": f"c{number}"}} for number in range(count - 1))
        with path.open("ab") as file:
            file.writelines(map(sealed_lines.seal, others))
        times = []
        for _ in range(50):
            began = time.perf_counter()
            newest = await FileCheckpointStore(directory).newest()
            times.append(time.perf_counter() - began)
            assert newest is not None
            assert newest.id == f"c{count - 2}"
        return min(times)

    with tempfile.TemporaryDirectory() as place:
        return [asyncio.run(measure(f"{place}/{count}", count)) for count in counts]


def _around(times: list[float], at: int) -> float:
    """The median of five saves around one, so that one busy moment does not decide."""
    near = sorted(times[max(0, at - 3) : at + 2])
    return near[len(near) // 2]


def run() -> bool:
    """Measure and print; whether every promise holds."""
    ours = _measured(sys.executable, "deepctl", _TURNS)
    theirs = _measured(python_with([_PEER], ".venv-peer", "DEEPCTL_BENCH_PEER"), "peer", _TURNS)
    print(f"{_TURNS} turns of two messages of 1 KB, a checkpoint each (ours synced to disk, theirs not):")
    mega = 1e6
    print(
        f"  ours {sum(ours['times']):.1f} s, {ours['bytes'] / mega:.1f} MB for {ours['messages'] / mega:.1f} MB", end=""
    )
    print(
        f"; theirs {sum(theirs['times']):.1f} s, {theirs['bytes'] / mega:.0f} MB; lists {ours['listing']:.2f} s", end=""
    )
    print(f" and {theirs['listing']:.1f} s")
    few, many = _newest((10, 10_000))
    print(f"  newest() {few * 1000:.1f} ms of 10 checkpoints, {many * 1000:.1f} ms of 10,000")
    last, theirs_last = _around(ours["times"], _TURNS), _around(theirs["times"], _TURNS)
    return all(
        [
            promise("the last save / the tenth", last / _around(ours["times"], 10), 1.5),
            promise("bytes of the store / bytes of the messages", ours["bytes"] / ours["messages"], 2.0),
            promise("all saves / theirs", sum(ours["times"]) / sum(theirs["times"]), 1 / 10),
            promise("the last save / theirs", last / theirs_last, 1 / 25),
            promise("newest() of 10,000 checkpoints / of 10", many / few, 1.5),
            promise("bytes of the store / theirs", ours["bytes"] / theirs["bytes"], 1 / 200),
            promise("listing all / theirs", ours["listing"] / theirs["listing"], 1 / 200),
        ]
    )
