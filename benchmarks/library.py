"""What a turn of the library costs: `create_deep_agent()` against a plain agent of pydantic-ai, both with three tools.

The same scripted model calls `write_file`, `read_file` and `ls`, one after another, then answers. Counted is the
processor time of this process, over many turns after some that warm up, in alternating rounds.

With `StateBackend` and `InMemoryCheckpointStore` there is no input and output; the plain agent then has three tools of
these names that do the same to a dictionary. With `LocalBackend` and `FileCheckpointStore` there are files, and each
turn also syncs checkpoints of them and of the conversation; the three tools of the plain agent then do the same to a
directory.

The part on a disk depends on other work of the machine: worker threads and syncs cost more when the cores are busy.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from benchmarks.measure import promise
from deepctl import (
    DeepAgentDeps,
    FileCheckpointStore,
    InMemoryCheckpointStore,
    LocalBackend,
    StateBackend,
    create_deep_agent,
)

_ROUNDS = 9
_TURNS = 20
_TURNS_ON_DISK = 5
_MOST_IN_MEMORY = 2.5
_MOST_ON_DISK = 3.5
_CALLS = (
    ("write_file", {"path": "notes.txt", "content": "one\ntwo\n"}),
    ("read_file", {"path": "notes.txt"}),
    ("ls", {"path": "."}),
)

Turn = Callable[[], Awaitable[object]]


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """The next of the calls, or the answer once all have results."""
    results = sum(
        isinstance(part, ToolReturnPart)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
    )
    if results == len(_CALLS):
        return ModelResponse(parts=[TextPart("Done.")])
    return ModelResponse(parts=[ToolCallPart(*_CALLS[results])])


def _plain() -> Turn:
    agent = Agent(FunctionModel(_answer))
    files: dict[str, str] = {}

    @agent.tool_plain
    async def write_file(path: str, content: str) -> str:
        """Write a file."""
        files[path] = content
        return f"Wrote {path}"

    @agent.tool_plain
    async def read_file(path: str) -> str:
        """Read a file."""
        return files[path]

    @agent.tool_plain
    async def ls(path: str) -> str:
        """List a directory."""
        return "\n".join(files)

    return lambda: agent.run("Write, read and list.")


def _plain_on_disk(directory: Path) -> Turn:
    agent = Agent(FunctionModel(_answer))

    # pydantic-ai calls functions that are not coroutines in threads, as blocking calls must be.
    @agent.tool_plain
    def write_file(path: str, content: str) -> str:
        """Write a file."""
        (directory / path).write_text(content)
        return f"Wrote {path}"

    @agent.tool_plain
    def read_file(path: str) -> str:
        """Read a file."""
        return (directory / path).read_text()

    @agent.tool_plain
    def ls(path: str) -> str:
        """List a directory."""
        return "\n".join(sorted(os.listdir(directory / path)))

    return lambda: agent.run("Write, read and list.")


def _deep(deps: Callable[[], DeepAgentDeps]) -> Turn:
    agent = create_deep_agent(FunctionModel(_answer))
    return lambda: agent.run("Write, read and list.", deps=deps())


async def _measure(turns: dict[str, Turn], count: dict[str, int], rounds: int) -> dict[str, float]:
    """Processor seconds of one turn each, the median of alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            began = time.process_time()
            for _ in range(count[name]):
                await turn()
            if number:
                seconds[name].append((time.process_time() - began) / count[name])
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def run() -> bool:
    """Measure and print; whether the promise holds."""
    print("A turn of the library with three tool calls, processor time against a plain agent:")
    with tempfile.TemporaryDirectory() as place:
        for name in ("workspace", "plain"):
            Path(place, name).mkdir()
        store = FileCheckpointStore(f"{place}/checkpoints")
        backend = LocalBackend(root_dir=f"{place}/workspace")
        turns = {
            "plain": _plain(),
            "plain, disk": _plain_on_disk(Path(place, "plain")),
            "memory": _deep(lambda: DeepAgentDeps(backend=StateBackend(), checkpoint_store=InMemoryCheckpointStore())),
            "disk": _deep(lambda: DeepAgentDeps(backend=backend, checkpoint_store=store)),
        }
        count = dict.fromkeys(turns, _TURNS) | {"disk": _TURNS_ON_DISK}
        taken = asyncio.run(_measure(turns, count, _ROUNDS))
    for name, seconds in taken.items():
        print(f"  {name:<12} {seconds * 1e3:7.2f} ms")
    return all(
        [
            promise("StateBackend and InMemoryCheckpointStore", taken["memory"] / taken["plain"], _MOST_IN_MEMORY),
            promise("LocalBackend and FileCheckpointStore", taken["disk"] / taken["plain, disk"], _MOST_ON_DISK),
        ]
    )


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
