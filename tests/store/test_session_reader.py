"""What a reader tells from the summary in the cache is what the whole log tells, whatever has become of either."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from deepctl.errors import DeepctlError
from deepctl.files import atomic, sealed_lines
from deepctl.store import log_file, lookup, rewind, session_catalogue, session_log, session_reader
from deepctl.store.repository import Repository
from deepctl.store.session_reader import SessionReader
from tests.store.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    for number in range(4):
        made.agent("notes", f"version {number}")
    return made


def _cache(scene: Scene) -> Path:
    return Path(scene.paths.cache) / "conversations"


def _reader(scene: Scene) -> SessionReader:
    return SessionReader(scene.paths, scene.session())


def _told(scene: Scene) -> tuple[object, ...]:
    """All that a reader tells without the whole log."""
    reader = _reader(scene)
    parted = [
        lookup.diverging_messages(reader, record) for record in scene.records() if record.session == reader.session.id
    ]
    outline = SessionReader(scene.paths, scene.session(), is_for_list=True).outline()
    assert outline == reader.outline()
    return reader.last_turn, reader.position(), outline, parted


def _is_short(reader: SessionReader) -> bool:
    """Whether it tells its position without having decoded the whole log."""
    reader.position()
    return reader._whole is None


def test_a_turn_leaves_a_summary_that_tells_what_the_whole_log_tells(scene: Scene) -> None:
    assert _is_short(_reader(scene))
    told = _told(scene)
    os.unlink(_cache(scene))
    assert not _is_short(_reader(scene))
    assert told == _told(scene)
    assert told[0] == 4
    assert scene.prompts()[-1] == "write notes version 3"


def test_the_summary_tells_the_same_after_rewinds_forks_and_undos(scene: Scene) -> None:
    def check() -> None:
        told = _told(scene)
        raw = _cache(scene).read_bytes()
        os.unlink(_cache(scene))
        assert told == _told(scene)
        _cache(scene).write_bytes(raw)

    scene.rewind("~2")
    check()
    scene.agent("notes", "another way")
    scene.agent("more", "text")
    check()
    scene.undo()
    check()
    scene.agent("notes", "after an undo")
    check()
    with scene.work() as work:
        work.fork(scene.last(), "fork")
    check()
    scene.agent("notes", "in the fork", "fork")
    check()


@pytest.mark.parametrize("number", range(0, 260, 7))
def test_a_changed_byte_of_the_cache_changes_nothing(scene: Scene, number: int) -> None:
    told = _told(scene)
    raw = bytearray(_cache(scene).read_bytes())
    raw[number % len(raw)] ^= 1
    _cache(scene).write_bytes(raw)
    assert _told(scene) == told


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"known": None},
        {"known": []},
        {"known": [[], "", 1, 1, 1, "", None, None]},
        {"known": [[["../x", 5, 1]], "", 1, 1, 1, "", None, None]},
        {"known": [[["a", 5, 1]], "", -1, 1, 1, "", None, None]},
        {"known": [[["a", 1 << 80, 1]], "", 1, 1, 1, "yesterday", [7, 1, 2], None]},
    ],
)
def test_a_line_of_the_cache_that_makes_no_sense_changes_nothing(scene: Scene, change: dict[str, object]) -> None:
    told = _told(scene)
    (line,) = sealed_lines.parse(_cache(scene).read_bytes())
    assert line.value is not None
    _cache(scene).write_bytes(sealed_lines.seal({**line.value, **change}))
    assert _told(scene) == told


@pytest.mark.parametrize("place", [0.2, 0.5, 0.7, 0.99])
def test_a_changed_byte_of_the_log_is_damage_with_a_summary_too(scene: Scene, place: float) -> None:
    path = log_file.log_path(scene.session().directory, scene.session().log)
    raw = bytearray(Path(path).read_bytes())
    raw[int(len(raw) * place)] ^= 1
    Path(path).write_bytes(raw)
    told = _told_or_error(scene)
    assert session_catalogue.summary(scene.paths, "main").damage == 1
    os.unlink(_cache(scene))
    assert told == _told_or_error(scene)


def _told_or_error(scene: Scene) -> object:
    try:
        return _told(scene)
    except DeepctlError as error:
        return str(error)


def test_a_log_that_is_another_is_not_taken_for_the_one_that_was_summarized(scene: Scene) -> None:
    session = scene.session()
    path = Path(log_file.log_path(session.directory, session.log))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    assert session_catalogue.summary(scene.paths, "main").message_count == len(session_catalogue.read(session).messages)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert session_catalogue.summary(scene.paths, "main").message_count == len(session_catalogue.read(session).messages)


def test_a_rewind_and_its_dry_run_read_no_log_twice(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    real = atomic.open_regular

    def counted(path: str, flags: int) -> int:
        is_reading = flags & os.O_ACCMODE != os.O_WRONLY
        reads[path] += is_reading and path.endswith(log_file.SUFFIX) and "sessions" in path
        return real(path, flags)

    monkeypatch.setattr(atomic, "open_regular", counted)
    for has_cache in (True, False):
        if not has_cache:
            os.unlink(_cache(scene))
        reads.clear()
        with Repository.read_only(scene.paths) as repository:
            rewind.preview(repository, *rewind.request_rewind(repository, "main", "~1"))
        assert max(reads.values()) == 1
        reads.clear()
        with scene.work() as work:
            rewind.run(work, *rewind.request_rewind(work, "main", "~1"))
        assert max(reads.values()) == 1
        scene.agent("notes", "and on")


@pytest.mark.parametrize("end", [b"", b"{", b"x" * 5000])
def test_a_reader_knows_where_its_log_ends_and_its_writer_goes_on_there(scene: Scene, end: bytes) -> None:
    session = scene.session()
    path = Path(log_file.log_path(session.directory, session.log))
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    reader = _reader(scene)
    assert reader.ends() == session_reader.end_of(session.directory, session.log)
    assert reader.ends()[1] == len(whole)
    writer = session_log.LogWriter.after(reader, 5)
    writer.message({"kind": "response", "parts": []})
    writer.close()
    assert writer.torn == len(end)
    assert session_reader.read_log(session.directory, session.log, writer.end, writer.digest).lost is None
    assert path.read_bytes().startswith(whole + b"{")


def test_a_compaction_does_not_change_what_is_told(scene: Scene) -> None:
    session = scene.session()
    whole = session_catalogue.read(session)
    writer = session_log.LogWriter(session.directory, session.log, whole.last_turn)
    writer.compacted({"kind": "request", "parts": [{"part_kind": "compaction", "content": "In short."}]}, 2)
    writer.close()
    told = _told(scene)
    os.unlink(_cache(scene))
    assert told == _told(scene)
    assert session_reader.outline(session_catalogue.read(session)).messages == len(whole.messages) + 1
