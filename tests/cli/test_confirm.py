"""Questions of commands in a conversation, whose terminal is set for the line editor."""

from __future__ import annotations

import os
import pty
import select
import sys

import pytest

from deepctl.cli import confirm, tty_modes
from deepctl.errors import Refused
from deepctl.output import render


@pytest.mark.parametrize("said", ["y", "n"])
def test_an_answer_counts_from_the_moment_the_question_is_there_and_no_earlier(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    master, slave = pty.openpty()
    shown: list[str] = []

    def show(words: str) -> None:
        shown.append(words)
        os.write(master, f"{said}\r".encode())

    with open(slave) as stdin, open(os.dup(slave), "w") as stderr, open(master, "rb"):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(render, "say_part", show)
        with tty_modes.without_echo():
            os.write(master, b"y\r" if said == "n" else b"n\r")
            assert select.select([stdin], [], [], 10)[0]
            if said == "y":
                confirm.confirm("Go on?", yes=False, as_json=False)
            else:
                with pytest.raises(Refused, match="Declined"):
                    confirm.confirm("Go on?", yes=False, as_json=False)
    assert shown == ["Go on? [y/N] "]
