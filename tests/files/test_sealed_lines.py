"""Sealed lines: damage takes only its own line down."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepctl.files import atomic, sealed_lines

_JSON = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "crc"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=20),
        lambda inner: st.lists(inner, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(_JSON)
def test_what_is_sealed_is_read_back_exactly(value: dict[str, object]) -> None:
    line = sealed_lines.seal(value)
    assert line.count(b"\n") == 1
    assert sealed_lines.unseal(line[:-1]) == {**value}


@given(_JSON, st.data())
def test_a_flipped_byte_never_passes_for_the_value(value: dict[str, object], data: st.DataObject) -> None:
    line = bytearray(sealed_lines.seal(value)[:-1])
    position = data.draw(st.integers(0, len(line) - 1))
    line[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"whole line|checksum|Expecting|not an object"):
        sealed_lines.unseal(bytes(line))


@given(st.lists(_JSON, min_size=2, max_size=5), st.data())
def test_one_damaged_line_leaves_the_others(values: list[dict[str, object]], data: st.DataObject) -> None:
    lines = [sealed_lines.seal(value) for value in values]
    victim = data.draw(st.integers(0, len(lines) - 1))
    lines[victim] = b"rubbish" + lines[victim][7:]
    found = list(sealed_lines.parse(b"".join(lines)))
    assert [line.value for line in found] == [value if n != victim else None for n, value in enumerate(values)]
    assert found[victim].problem


@given(st.lists(_JSON, min_size=1, max_size=3), st.data())
def test_a_file_cut_anywhere_keeps_every_whole_line_and_can_be_appended_to(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, object]], data: st.DataObject
) -> None:
    raw = b"".join(sealed_lines.seal(value) for value in values)
    cut = data.draw(st.integers(0, len(raw)))
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(raw[:cut])
    whole = [line.value for line in sealed_lines.parse(raw[:cut]) if line.value is not None]
    known_size = [cut] if raw[:cut].endswith(b"\n") else []
    appender = sealed_lines.Appender(str(path), data.draw(st.sampled_from([None, cut + 1, *known_size])))
    appender.append({"new": 1})
    appender.close()
    assert [line.value for line in sealed_lines.parse(path.read_bytes())] == [*whole, {"new": 1}]


@pytest.mark.parametrize("is_read", [False, True])
def test_a_line_that_cannot_be_written_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    path = tmp_path / "log"
    path.write_bytes(sealed_lines.seal({"first": 1}))
    before = path.read_bytes()
    appender = sealed_lines.Appender(str(path), len(before) if is_read else None)
    real = os.pwrite
    calls = 0

    def full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(descriptor, data[:10], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        appender.append({"second": "x" * 100})
    monkeypatch.undo()
    assert path.read_bytes() == before
    appender.append({"second": 2})
    appender.close()
    assert [line.value for line in sealed_lines.parse(path.read_bytes())] == [{"first": 1}, {"second": 2}]


def test_a_line_that_cannot_be_taken_back_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(sealed_lines.seal({"first": 1}))
    appender = sealed_lines.Appender(str(path), path.stat().st_size)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        for call in ("fdatasync", "fsync", "ftruncate"):
            patch.setattr(os, call, broken, raising=False)
        with pytest.raises(OSError, match="Input/output"):
            appender.append({"second": 2})
    assert appender.end == path.stat().st_size
    appender.append({"third": 3})
    appender.close()
    assert [line.value for line in sealed_lines.parse(path.read_bytes())] == [{"first": 1}, {"second": 2}, {"third": 3}]


def test_a_replaced_file_is_old_or_new_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    atomic.write_file(str(path), b"old")
    assert path.stat().st_mode & 0o777 == 0o600

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    for step in ("fsync", "rename", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, broken)
            with pytest.raises(OSError, match="Input/output"):
                atomic.write_file(str(path), b"new")
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["state"]


def test_a_line_that_is_nested_too_deeply_is_damage_and_only_itself() -> None:
    body = b'{"v":' + b"[" * 200_000 + b"]" * 200_000
    deep = b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))
    lines = list(sealed_lines.parse(sealed_lines.seal({"a": 1}) + deep + sealed_lines.seal({"b": 2})))
    assert [line.value for line in lines] == [{"a": 1}, None, {"b": 2}]
    assert lines[1].problem == "nested too deeply"
