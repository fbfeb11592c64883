"""The lines of a notebook, and writing one."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.domain.memory.directory import MAX_BYTES, Memory, MemoryChanged, append_note, lines_with, without_lines
from deepctl.errors import BadName, Refused
from deepctl.layout import ProfilePaths, Root
from deepctl.store.diff import line_counts

_PIECES = (b"tea", b"Tea", b"", b"caf\xc3\xa9", b"CAF\xc3\x89", b"\xff\xfe", b" ", b"x\x0cy", b"\xe2\x80\xa8")
_ENDS = (b"\n", b"\r\n", b"\r")


def _notebook(seed: int) -> bytes:
    chance = random.Random(seed)
    lines = [
        b"".join(chance.choices(_PIECES, k=chance.randrange(4))) + chance.choice(_ENDS)
        for _ in range(chance.randrange(12))
    ]
    return b"".join(lines) + chance.choice((b"", b"tea", b"last \xff"))


@pytest.mark.parametrize("ignore_case", [False, True])
@pytest.mark.parametrize("text", [b"tea", b"caf\xc3\xa9", b"\xff", b"\x0c", b"none of it"])
def test_only_the_lines_with_the_text_go_and_every_other_byte_stays(text: bytes, ignore_case: bool) -> None:
    for seed in range(200):
        content = _notebook(seed)
        gone = lines_with(content, text, ignore_case=ignore_case)
        left = without_lines(content, text, ignore_case=ignore_case)
        lines = content.splitlines(keepends=True)
        assert [lines[number - 1] for number, _ in gone] == [line for _, line in gone]
        for number, _ in reversed(gone):
            del lines[number - 1]
        assert b"".join(lines) == left
        assert text not in left
        if not ignore_case:
            assert all(text in line for _, line in gone)


def test_case_is_ignored_beyond_ascii_and_bytes_that_are_no_text_equal_themselves_only() -> None:
    content = "Straße\nCAFÉ\n".encode() + b"\xc3\n\xe9\n"
    assert without_lines(content, b"STRASSE", ignore_case=True) == "CAFÉ\n".encode() + b"\xc3\n\xe9\n"
    assert without_lines(content, "café".encode(), ignore_case=True) == "Straße\n".encode() + b"\xc3\n\xe9\n"
    assert lines_with(content, b"\xe9", ignore_case=True) == [(4, b"\xe9\n")]


@pytest.mark.parametrize("text", [b"", b"a\nb", b"\n", b"a\r", b"\r\n"])
def test_nothing_and_several_lines_are_on_no_line(text: bytes) -> None:
    content = b"a\nb\n\r\na\r"
    assert lines_with(content, text, ignore_case=True) == []
    assert without_lines(content, text, ignore_case=True) == content


@pytest.mark.parametrize(
    ("content", "note", "expected"),
    [
        (b"", b"tea", b"tea\n"),
        (b"a\n", b"tea\n", b"a\ntea\n"),
        (b"a", b"tea", b"a\ntea\n"),
        (b"a\r\n", b" - tea ", b"a\r\n - tea \n"),
        (b"\xff", b"\xfe\r\nb", b"\xff\n\xfe\r\nb\n"),
    ],
)
def test_a_note_is_appended_as_it_is(content: bytes, note: bytes, expected: bytes) -> None:
    assert append_note(content, note) == expected


def test_lines_that_came_and_went_are_counted() -> None:
    assert line_counts(b"", b"a\nb\n") == (2, 0)
    assert line_counts(b"a\nb\nc\n", b"a\nX\nc") == (2, 2)
    assert line_counts(b"a\nb\nc\n", b"a\nc\n") == (0, 1)
    assert line_counts(b"same\n", b"same\n") == (0, 0)
    assert line_counts(b"a\n" * 30_000, b"a\n" * 30_001) == (1, 0)
    old, new = (b"".join(b"%d\n" % (number * step) for number in range(20_000)) for step in (2, 3))
    assert line_counts(old, new) is None


@pytest.fixture
def alice(tmp_path: Path) -> ProfilePaths:
    return profiles.create(Root(str(tmp_path / "root")), "alice")


def _place(alice: ProfilePaths) -> Path:
    return Path(alice.workspace, ".deep/memory/main")


def test_a_new_notebook_is_private_and_an_old_one_keeps_its_mode(alice: ProfilePaths) -> None:
    before = os.umask(0)
    try:
        memory = Memory(alice)
        memory.write("MEMORY.md", b"one\n", expected_content=None)
        path = _place(alice) / "MEMORY.md"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        written = memory.write("MEMORY.md", b"two\n", expected_content=b"one\n")
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two\n", 0o640)
    assert written == memory.read("MEMORY.md")
    assert sorted(os.listdir(_place(alice))) == ["MEMORY.md"]


def test_what_somebody_else_wrote_meanwhile_is_not_overwritten(alice: ProfilePaths) -> None:
    memory = Memory(alice)
    memory.write("MEMORY.md", b"one\n", expected_content=None)
    for expected in (None, b"", b"other\n"):
        with pytest.raises(MemoryChanged):
            memory.write("MEMORY.md", b"two\n", expected_content=expected)
    assert memory.read("MEMORY.md").content == b"one\n"
    assert [name for name in os.listdir(alice.directory) if name.startswith(".")] == []


def test_a_hard_link_does_not_lead_a_note_out_of_the_workspace(alice: ProfilePaths, tmp_path: Path) -> None:
    memory = Memory(alice)
    memory.write("MEMORY.md", b"one\n", expected_content=None)
    os.link(_place(alice) / "MEMORY.md", tmp_path / "outside")
    memory.write("MEMORY.md", b"two\n", expected_content=b"one\n")
    assert (tmp_path / "outside").read_bytes() == b"one\n"
    assert memory.read("MEMORY.md").content == b"two\n"


def test_a_notebook_that_may_not_be_written_and_one_too_large_stay_as_they_are(alice: ProfilePaths) -> None:
    memory = Memory(alice)
    memory.write("MEMORY.md", b"one\n", expected_content=None)
    (_place(alice) / "MEMORY.md").chmod(0o444)
    with pytest.raises(PermissionError):
        memory.write("MEMORY.md", b"two\n", expected_content=b"one\n")
    with pytest.raises(Refused):
        memory.write("trip.md", bytes(MAX_BYTES + 1), expected_content=None)
    assert memory.read("MEMORY.md").content == b"one\n"
    assert memory.find("trip.md") is None


@pytest.mark.parametrize(
    "name", ["a b", "-x", "_x", "a..b", "x" * 90, "naïve", "a\nb", "\udcff", "../x", "", ".x", "a/b"]
)
def test_a_new_notebook_has_a_name_that_the_agent_can_open(alice: ProfilePaths, name: str) -> None:
    with pytest.raises(BadName):
        Memory(alice).write(name, b"x\n", expected_content=None)
    assert not _place(alice).exists()
