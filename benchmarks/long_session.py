"""A session of 2,000 turns against one of 10: what `checkpoints rewind`, `checkpoints list` and `sessions list` take.

Measured is processor time (user and system) of whole processes, so that a disk that is busy does not count. With
`DEEPCTL_BENCH_OLD=/path/to/deepctl`, the command of 0.1.0, the rewind is compared with that one's in the same run, on
the same state in the format of 0.1.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure import environment_of, promise
from deepctl.domain import profiles
from deepctl.files import sealed_lines
from deepctl.layout import Root
from deepctl.store import session_catalogue, session_log, session_reader
from deepctl.store.log_file import START
from deepctl.store.records import AGENT, Position
from deepctl.store.repository import Repository
from deepctl.store.session_reader import SessionReader

_LONG, _SHORT = 2000, 10
_ROUNDS = 5
_TEXT = "The quick brown fox jumps over the lazy dog, and the report says so. "
_LIST_LIMIT, _REWIND_LIMIT = 1.2, 0.3


def run() -> bool:
    """Measure and print; whether every promise holds."""
    ours, old = str(Path(sys.executable).parent / "deepctl"), os.environ.get("DEEPCTL_BENCH_OLD")
    with tempfile.TemporaryDirectory() as place:
        bytes_of_log = _make(f"{place}/long", _LONG)
        _make(f"{place}/short", _SHORT)
        lists = {
            name: _seconds([ours, *command], {turns: f"{place}/{turns}" for turns in ("long", "short")}, place)
            for name, command in {
                "checkpoints list": ("checkpoints", "list", "--limit", "20", "--user", "alice"),
                "sessions list": ("sessions", "list", "--user", "alice"),
            }.items()
        }
        rewind = ("checkpoints", "rewind", "~2", "--user", "alice")
        times = _seconds([ours, *rewind], {turns: f"{place}/{turns}" for turns in ("long", "short")}, place)
        before = None
        if old is not None:
            _in_format_1(f"{place}/long")
            before = _seconds([old, *rewind], {"long": f"{place}/long"}, place)["long"]
    print(f"A session of {_LONG} turns, {4 * _LONG} messages, {bytes_of_log / 1e6:.1f} MB (medians of processor time):")
    held = [
        promise(f"{name}, {_LONG} turns / {_SHORT} turns", measured["long"] / measured["short"], _LIST_LIMIT)
        for name, measured in lists.items()
    ]
    print(f"  rewind ~2: {times['long']:.3f} s; in the session of {_SHORT} turns: {times['short']:.3f} s", end="")
    print(f", ratio {times['long'] / times['short']:.2f}")
    if before is not None:
        held.append(promise("rewind ~2 / the same with $DEEPCTL_BENCH_OLD", times["long"] / before, _REWIND_LIMIT))
    return all(held)


def _seconds(command: list[str], states: dict[str, str], place: str) -> dict[str, float]:
    """The median processor time of a command for each state, each time on a fresh copy. One run warms up.

    The states take turns, so that a busy moment of the machine falls on all of them.
    """
    measured: dict[str, list[float]] = {name: [] for name in states}
    for number in range(_ROUNDS + 1):
        for name, state in states.items():
            home = f"{place}/copy"
            shutil.copytree(state, home, symlinks=True)
            environment = environment_of({"DEEPCTL_HOME": home, "DEEPCTL_CONFIG": f"{place}/config.toml"})
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:
                measured[name].append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
            shutil.rmtree(home)
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def _make(home: str, turns: int) -> int:
    """A profile whose session has so many turns of four messages; returns the bytes of its log."""
    paths = profiles.create(Root(home), "alice")
    session = session_catalogue.start(paths, session_catalogue.FIRST)
    digest = session_reader.read_log(session.directory, session.log).digest or START
    with Repository.open(paths) as work:
        for turn in range(1, turns + 1):
            if turn == turns:  # as every turn does
                reader = SessionReader(paths, session)
                reader.whole()
                reader.remember()
            with closing(session_log.LogWriter(session.directory, session.log, turn, digest)) as writer:
                for message in _turn(turn):
                    if message["kind"] == "request" and message["parts"][0]["part_kind"] == "tool-return":
                        writer.result(message["parts"][0])
                    writer.message(message)
                (Path(paths.workspace) / "notes.txt").write_text(f"after turn {turn}\n")
                digest = writer.digest
                position = Position(
                    session.id, turn, session.log, writer.end, 4 * turn, f"Prompt number {turn}.", writer.point
                )
                work.save(session, "turn", position, author=AGENT)
                size = writer.end
    return size


def _in_format_1(home: str) -> None:
    """Write the ledger and the logs as 0.1 did: without digests."""
    for path in [*Path(home).rglob("ledger.jsonl"), *Path(home).rglob("sessions/*/*.jsonl")]:
        lines = []
        for line in sealed_lines.parse(path.read_bytes()):
            value = {**(line.value or {}), "v": 1}
            if "record" in value:
                value["record"] = {key: field for key, field in value["record"].items() if key != "digest"}
            lines.append(sealed_lines.seal(value))
        path.write_bytes(b"".join(lines))


def _turn(turn: int) -> list[dict[str, Any]]:
    at = "2026-11-01T10:00:00Z"
    text = _TEXT * 25
    usage = {"input_tokens": 1000 + turn, "output_tokens": 100}
    call = {"part_kind": "tool-call", "tool_name": "write_file", "tool_call_id": f"call-{turn}"}
    result = {"part_kind": "tool-return", "tool_name": "write_file", "tool_call_id": f"call-{turn}", "timestamp": at}
    return [
        {
            "parts": [{"content": f"Prompt number {turn}. {text}", "timestamp": at, "part_kind": "user-prompt"}],
            "instructions": "Be of help.",
            "kind": "request",
        },
        {
            "parts": [{**call, "args": {"path": "notes.txt", "content": text}}],
            "usage": usage,
            "timestamp": at,
            "kind": "response",
        },
        {
            "parts": [{**result, "content": text, "outcome": "success"}],
            "instructions": "Be of help.",
            "kind": "request",
        },
        {
            "parts": [{"content": f"Done: {text}", "part_kind": "text"}],
            "usage": usage,
            "timestamp": at,
            "kind": "response",
        },
    ]


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
