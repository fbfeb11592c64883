"""Titles and last exchanges: what the ends of the logs tell is what the whole log tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepctl.errors import Damaged
from deepctl.store import log_file, session_catalogue, session_ends, session_titles
from deepctl.store.session_ends import LastExchange
from deepctl.unicode import cells
from tests.store.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    for number in range(4):
        made.agent("notes", f"version {number}")
    return made


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("plan the days in trip.md", "plan the days in trip.md"),
        ("\n\n  fix   the\tbug\nand more", "fix the bug"),
        ("@notes.txt @shot.png\nwhat is this?", "what is this?"),
        ('compare @"my notes.txt" with @b\\ c.txt', "compare my notes.txt with b c.txt"),
        ("what is it?\n\n@shot.png", "what is it?"),
        ("@shot.png", "shot.png"),
        ("mail alice@mail.test", "mail alice@mail.test"),
        (f"review this{log_file.PIPED}a diff\n</stdin>", "review this"),
        ("clear\x1b[2J the \x07screen", "clear [2J the screen"),
        ("x" * 100, "x" * 79 + "…"),
        ("日本語" * 40, "日本語" * 13 + "…"),
        ("", ""),
    ],
)
def test_a_title_is_the_first_line_with_words(prompt: str, title: str) -> None:
    found = session_titles.of_prompt(prompt)
    assert found == title
    assert cells(found) <= 80


def test_a_family_is_not_cut_apart() -> None:
    family = "👨\u200d👩\u200d👧"
    assert session_titles.of_prompt(family * 60) == family * 39 + "…"


def _check(scene: Scene, session: str = "main") -> LastExchange | None:
    """The ends, after a comparison with the whole conversation."""
    record = scene.session(session)
    found = session_ends.read(record)
    summary = session_catalogue.summary(scene.paths, session)
    assert found.title == summary.title
    messages = session_catalogue.read(record).messages
    assert found.last == session_ends._last(messages)
    return found.last


def test_the_ends_are_those_of_the_whole_log_after_rewinds_forks_and_undos(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that several reads are necessary.
    monkeypatch.setattr(session_ends, "_FIRST_READ", 50)
    last = _check(scene)
    assert last is not None
    assert (last.turn, last.prompt, last.problem) == (4, "write notes version 3", None)
    scene.rewind("~2")
    last = _check(scene)
    assert last is not None
    assert last.prompt == "write notes version 1"
    scene.agent("notes", "another way")
    last = _check(scene)
    assert last is not None
    assert last.prompt == "write notes another way"
    scene.undo(force=True)
    _check(scene)
    with scene.work() as work:
        work.fork(scene.records()[1], "fork")
    _check(scene, "fork")
    scene.agent("notes", "in the fork", "fork")
    _check(scene, "fork")
    scene.rewind("~4", force=True)
    assert _check(scene) is None


def test_a_killed_turn_has_a_problem(scene: Scene) -> None:
    scene.killed_turn("write it all", lambda: scene.write("more", "text"))
    last = _check(scene)
    assert last is not None
    assert last.prompt == "write it all"
    assert last.problem is not None


def test_only_the_ends_are_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        scene.agent("notes", f"text {number} " + "x" * 3000)
    sizes = []
    read_part = log_file.read_part

    def counting(*arguments: object, **options: object) -> tuple[bytes, bool]:
        raw, is_all = read_part(*arguments, **options)  # type: ignore[arg-type]
        sizes.append(len(raw))
        return raw, is_all

    monkeypatch.setattr(log_file, "read_part", counting)
    monkeypatch.setattr(session_ends, "_FIRST_READ", 8 << 10)
    monkeypatch.setattr(session_catalogue, "read", lambda session: pytest.fail("the whole log was read"))
    record = scene.session()
    length = os.path.getsize(log_file.log_path(record.directory, record.log))
    assert session_ends.read(record).last is not None
    assert sum(sizes) < length / 2


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_a_changed_byte_or_a_missing_log_is_found_by_reading_everything(scene: Scene, place: float) -> None:
    record = scene.session()
    path = Path(log_file.log_path(record.directory, record.log))
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * place)] ^= 1
    path.write_bytes(raw)
    _check(scene)
    path.unlink()
    with pytest.raises(Damaged):
        session_ends.read(record)
