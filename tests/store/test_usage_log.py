"""`usage.jsonl` under kills, several writers and damage; its sums, without reading a long file again."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deepctl.errors import Locked, NewerFormat, Refused
from deepctl.files import atomic, sealed_lines
from deepctl.layout import ProfilePaths, Root
from deepctl.store import usage_log, usage_sums
from deepctl.store.usage_log import UsageEntry


@pytest.fixture
def paths(tmp_path: Path) -> ProfilePaths:
    return made(str(tmp_path))


def made(directory: str) -> ProfilePaths:
    root = Root(directory)
    paths = root.profile("alice")
    os.makedirs(paths.directory, exist_ok=True)
    os.makedirs(root.locks, exist_ok=True)
    return paths


def entry(number: int = 0, at: str = "2026-11-30T12:00:00.000000Z", cost: float | None = 0.5) -> UsageEntry:
    return UsageEntry(
        f"{number:016x}", at, None, None, "openai:gpt-4o", "answer", 100 + number, 0, 10, cost, estimated=False
    )


def write(paths: ProfilePaths, *entries: UsageEntry) -> None:
    with usage_log.lock(paths):
        usage_log.prepare(paths)
        usage_log.sync(usage_log.append(paths, [one.line() for one in entries]), is_durable=False)


def test_an_entry_is_read_as_it_was_written_and_the_later_line_counts(paths: ProfilePaths) -> None:
    write(paths, entry(1, cost=None)._replace(is_open=True, estimated=True))
    write(paths, entry(2))
    write(paths, entry(1)._replace(output=99, cost=0.25))
    found = usage_log.read(paths)
    assert found.problems == []
    assert found.entries == [entry(1)._replace(output=99, cost=0.25), entry(2)]
    assert os.stat(paths.usage).st_mode & 0o777 == 0o600


def test_a_line_that_a_kill_cut_anywhere_is_no_damage_and_the_next_line_is_whole(paths: ProfilePaths) -> None:
    write(paths, entry(1))
    whole = Path(paths.usage).read_bytes()
    line = entry(2).line()
    for cut in range(1, len(line) + 1):
        Path(paths.usage).write_bytes(whole + line[:cut])
        is_whole = cut >= len(line) - 1
        found = usage_log.read(paths)
        assert (len(found.entries), found.problems) == (1 + is_whole, []), cut
        write(paths, entry(3))
        found = usage_log.read(paths)
        assert [one.id for one in found.entries] == [entry(number).id for number in ([1, 2, 3] if is_whole else [1, 3])]
        assert found.problems == []


def test_a_failed_write_leaves_no_part_of_a_line(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    write(paths, entry(1))
    before = Path(paths.usage).read_bytes()
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) - 50], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space"):
        write(paths, entry(2))
    assert Path(paths.usage).read_bytes() == before


def _writer(directory: str, start: int, count: int) -> None:
    paths = made(directory)
    for number in range(start, start + count):
        write(paths, entry(number))


def test_several_processes_append_at_once_and_no_line_is_lost(paths: ProfilePaths, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writer, args=(str(tmp_path), 1000 * place, 150)) for place in range(1, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = usage_log.read(paths)
    assert found.problems == []
    assert {one.id for one in found.entries} == {
        entry(1000 * place + number).id for place in range(1, 4) for number in range(150)
    }


def test_a_lock_that_is_never_released_is_an_error_that_names_it(paths: ProfilePaths) -> None:
    descriptor = os.open(paths.usage_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(Locked, match=r"locks/\.usage") as refused, usage_log.lock(paths, 0.05):
            pass
        assert refused.value.code == "usage_locked"
    finally:
        os.close(descriptor)


def test_a_later_format_is_refused_and_left_alone(paths: ProfilePaths) -> None:
    raw = sealed_lines.seal({"v": 2, "at": "2026-11-30T12:00:00Z", "from_logs": None})
    Path(paths.usage).write_bytes(raw)
    with pytest.raises(NewerFormat):
        usage_log.read(paths)
    with pytest.raises(NewerFormat):
        write(paths, entry(1))
    assert Path(paths.usage).read_bytes() == raw


def test_a_link_in_its_place_is_refused(paths: ProfilePaths, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine\n")
    os.symlink(tmp_path / "target", paths.usage)
    with pytest.raises(Refused):
        usage_log.read(paths)
    with pytest.raises(Refused):
        write(paths, entry(1))
    assert (tmp_path / "target").read_text() == "mine\n"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # 5:45 ahead
    time.tzset()
    monkeypatch.setattr(usage_sums, "today", lambda: "2026-12-01")
    return monkeypatch


@pytest.fixture(autouse=True)
def own_zone() -> object:
    before = os.environ.get("TZ")
    yield
    if before is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_days_and_months_are_those_of_the_local_calendar(paths: ProfilePaths, zone: pytest.MonkeyPatch) -> None:
    write(paths, entry(1, "2026-11-30T18:14:59.999999Z", 1.0))
    write(paths, entry(2, "2026-11-30T18:15:00.000000Z", 2.0), entry(3, "2026-12-01T10:00:00Z", 4.0))
    found = usage_sums.read(paths)
    assert (found.day.cost, found.month.cost) == (6.0, 6.0)
    zone.setenv("TZ", "UTC")
    time.tzset()
    found = usage_sums.read(paths)
    assert (found.day.cost, found.month.cost) == (4.0, 4.0), "another time zone has other days"
    zone.setattr(usage_sums, "today", lambda: "2026-11-30")
    assert usage_sums.read(paths).month.cost == 3.0


def test_an_open_request_counts_with_its_estimate_until_it_ends(paths: ProfilePaths, zone: pytest.MonkeyPatch) -> None:
    at = "2026-12-01T10:00:00Z"
    write(paths, entry(1, at, 3.0)._replace(is_open=True, output=0))
    assert usage_sums.read(paths).day.cost == 3.0
    write(paths, entry(2, at, 1.0), entry(1, at, 0.5))
    assert usage_sums.read(paths).day.cost == 1.5
    usage_sums._states.clear()
    assert usage_sums.read(paths).day == usage_sums.Sums(1.5, 101 + 102 + 20)


def test_only_what_is_new_is_read_and_another_file_is_recognised(paths: ProfilePaths, zone: pytest.MonkeyPatch) -> None:
    at = "2026-12-01T10:00:00Z"
    write(paths, *[entry(number, at, 0.001) for number in range(1000)])
    read_bytes: list[int] = []
    real = sealed_lines.parse

    def parse(raw: bytes) -> object:
        read_bytes.append(len(raw))
        return real(raw)

    zone.setattr(sealed_lines, "parse", parse)
    assert round(usage_sums.read_and_store(paths).day.cost, 6) == 1.0
    write(paths, entry(2000, at, 5.0))
    usage_sums._states.clear()  # as in another process, which has the file in the cache
    read_bytes.clear()
    assert round(usage_sums.read(paths).day.cost, 6) == 6.0
    assert sum(read_bytes) < 1000
    raw = Path(paths.usage).read_bytes().splitlines(keepends=True)
    atomic.write_file(paths.usage, b"".join(raw[:500]))
    assert round(usage_sums.read(paths).day.cost, 6) == 0.499
    Path(paths.usage_sums).write_bytes(b'{"v":1,"zone":[],"end":"x"}')
    usage_sums._states.clear()
    assert round(usage_sums.read(paths).day.cost, 6) == 0.499


def test_threads_that_only_read_count_no_line_twice(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40
    is_over = threading.Event()

    def slow(function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        time.sleep(0.002)
        return result

    def read_without_the_lock() -> None:
        while not is_over.is_set():
            usage_sums.read(paths)

    monkeypatch.setattr(usage_sums, "_fits", partial(slow, usage_sums._fits))
    monkeypatch.setattr(usage_log, "entry_of", partial(slow, usage_log.entry_of))
    at = f"{usage_sums.today()}T12:00:00.000000Z"
    write(paths, entry(0, at, cost=1.0))
    readers = [threading.Thread(target=read_without_the_lock) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, count):
        write(paths, entry(number, at, cost=1.0))
        time.sleep(0.003)
    is_over.set()
    for reader in readers:
        reader.join()
    assert usage_sums.read(paths).day.cost == count


def test_reading_that_breaks_off_counts_no_line_twice(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    at = f"{usage_sums.today()}T12:00:00.000000Z"
    write(paths, entry(0, at, cost=1.0))
    assert usage_sums.read(paths).day.cost == 1.0
    write(paths, entry(1, at, cost=1.0), entry(2, at, cost=1.0))
    real = usage_log.entry_of

    def interrupted(line: sealed_lines.SealedLine, path: str) -> tuple[UsageEntry | None, str | None]:
        if line.number == 2:
            raise KeyboardInterrupt
        return real(line, path)

    with monkeypatch.context() as patch:
        patch.setattr(usage_log, "entry_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            usage_sums.read(paths)
    assert usage_sums.read(paths).day.cost == 3.0


@pytest.mark.parametrize("change", [{"cost": float("nan")}, {"cost": float("inf")}, {"cost": -5.0}, {"input": -1000}])
def test_a_number_that_no_request_has_is_no_entry(paths: ProfilePaths, change: dict[str, float]) -> None:
    at = f"{usage_sums.today()}T12:00:00.000000Z"
    write(paths, entry(0, at, cost=1.0), entry(1, at)._replace(**change))  # type: ignore[arg-type]
    assert [number for number, _ in usage_log.read(paths).problems] == [3]
    assert usage_sums.read(paths).day.cost == 1.0
