"""The pictures in README and docs/ show what `deepctl` shows."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree

import pyte
import pytest

from docs.pictures import make, screen

_SVG = "{http://www.w3.org/2000/svg}"
_KNOWN = {"svg", "title", "style", "rect", "circle", "text", "tspan"}


def _kept(name: str) -> str:
    return (make.HERE / f"{name}.svg").read_text("utf-8")


@pytest.mark.parametrize("name", ["session", "commands"])
def test_a_picture_made_now_says_what_the_stored_one_says(name: str) -> None:
    made = make.picture(name)
    assert screen.settled(screen.text(made)) == screen.settled(screen.text(_kept(name))), "run `make pictures`"


def test_there_is_a_picture_for_each_scene_and_no_other() -> None:
    assert {path.stem for path in make.HERE.glob("*.svg")} == set(make.SCENES)


@pytest.mark.parametrize("name", make.SCENES)
def test_a_picture_is_small_and_needs_and_gives_away_nothing(name: str) -> None:
    picture = _kept(name)
    assert len(picture.encode()) < 60_000
    elements = list(ElementTree.fromstring(picture).iter())
    assert {element.tag.removeprefix(_SVG) for element in elements} <= _KNOWN, "nothing that runs or is fetched"
    assert re.findall(r"(?:https?:|url\(|@import|href)", picture.replace(_SVG[1:-1], "")) == []
    said = screen.text(picture)
    assert said.count("\n") > 5
    assert re.findall(r"/(?:home|root|tmp|usr|work|Users)\b|\b20\d\d-\d\d", said) == []


def _drawn(*pieces: str) -> tuple[str, str]:
    """A picture of what is written to a screen of 20 columns, and what the screen answered."""
    answers: list[str] = []
    shown = screen.Screen(20, 4, answers.append)
    stream = pyte.Stream(shown)
    for piece in pieces:
        stream.feed(piece)
    return screen.svg(shown, "a <test>"), "".join(answers)


def test_text_is_read_back_as_it_stood_on_the_screen() -> None:
    picture, answer = _drawn("one  <&>\r\n", "  \x1b[1mtwo\x1b[0m   漢字 \x1b[4m.\x1b[6n")
    assert screen.text(picture) == "a <test>\none  <&>\n  two   漢字 ."
    assert answer == "\x1b[2;15R"


@pytest.mark.parametrize(
    ("sequence", "css"),
    [
        ("31", "fill:#ff7b72"),
        ("1;3;4;9", "fill:#dfe5ec;font-weight:700;font-style:italic;text-decoration:underline line-through"),
        ("2", "fill:#8f949b"),
        ("2;31", "fill:#a25552"),
        ("38;2;1;2;3", "fill:#010203"),
        ("38;5;196", "fill:#ff0000"),
        ("95", "fill:#e2c5ff"),
        ("7", "fill:#161b22"),
        ("2;22", "fill:#dfe5ec"),
    ],
)
def test_letters_look_as_the_terminal_would_show_them(sequence: str, css: str) -> None:
    picture, _ = _drawn(f"\x1b[{sequence}mx\x1b[0m")
    assert f"{{{css}}}" in picture


def test_ids_and_ages_are_no_difference_and_words_are() -> None:
    said = "433d61c6 turn 4, 9fc03920665c5fef, just now"
    assert screen.settled(said) == screen.settled("d0d68fd9 turn 4, a1ab45df0665c5f0, 3 seconds ago")
    assert screen.settled(said) != screen.settled(said.replace("turn 4", "turn 5"))


def test_what_does_not_come_is_an_error_that_shows_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "PATIENCE", 1)
    began = time.monotonic()
    with make.shell(40, 5, []) as person, pytest.raises(TimeoutError, match="'nonsense' is not on the screen:\n\\$"):
        person.until("nonsense")
    assert time.monotonic() - began < 20


def test_a_picture_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert make.main(["commands", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("No such picture: nonsense. There are: session, ")
