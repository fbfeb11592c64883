"""A result comes before what is said about it, also where stdout and stderr go to the same pipe."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from deepctl.cli.main import main
from tests.support.command import InProcess


def _merged(*arguments: str) -> list[str]:
    """The lines of a command whose stdout and stderr are one pipe, as with `2>&1 | cat`."""
    pipe = io.BytesIO()
    out, err = io.TextIOWrapper(pipe, "utf-8"), io.TextIOWrapper(pipe, "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(list(arguments))
    out.flush()
    return pipe.getvalue().decode().splitlines()


@pytest.fixture
def alice(deepctl: InProcess) -> None:
    deepctl("chat", "--user", "alice", "--session", "first", "write a.txt: one").ok()
    deepctl("chat", "--user", "alice", "--session", "first", "write a.txt: two").ok()


def test_how_to_undo_a_rewind_is_the_last_that_a_rewind_and_an_undo_say(alice: None, deepctl: InProcess) -> None:
    first_lines = {"rewind": "Rewound session first to ", "undo": "Undid the last rewind: session first is back at "}
    for command, first in first_lines.items():
        lines = _merged("checkpoints", command, "--user", "alice")
        assert lines[0].startswith(first)
        assert lines[-1].startswith("To undo this: `deepctl checkpoints undo --user alice`. Checkpoint ")


def test_the_command_that_undoes_a_rewind_undoes_it_also_where_another_session_is_newer(
    alice: None, deepctl: InProcess
) -> None:
    deepctl("chat", "--user", "alice", "--session", "second", "hello").ok()
    lines = _merged("checkpoints", "rewind", "--only", "files", "--user", "alice", "--session", "first")
    command = lines[-1].split("`")[1]
    undone = deepctl(*command.split()[1:], "--json").ok().json
    assert undone["files"]["restored"] == ["a.txt"]


def test_what_is_said_about_a_result_comes_after_it(alice: None, deepctl: InProcess, tmp_path: Path) -> None:
    archive, session = str(tmp_path / "a.tgz"), str(tmp_path / "s.json")
    deepctl("config", "set", "approve", "never", "--user", "alice").ok()
    deepctl("profiles", "export", archive, "--user", "alice").ok()
    deepctl("sessions", "export", "first", "--user", "alice", "--output", session).ok()
    for arguments, first in (
        (("checkpoints", "fork", "~1", "other"), "Session other starts"),
        (("sessions", "import", session, "--as", "third"), "Imported session"),
        (("memory", "add", "x"), "Added to"),
        (("memory", "forget", "x", "--yes"), "MEMORY.md:1"),
        (("sessions", "delete", "first", "--dry-run"), "Would delete session"),
    ):
        lines = _merged(*arguments, "--user", "alice")
        assert lines[0].startswith(first), lines
    lines = _merged("profiles", "import", archive, "--as", "carol")
    assert [line.split()[0] for line in lines] == ["Imported", "It", "Not"]


def test_what_a_command_printed_before_it_failed_comes_before_the_error(
    alice: None, deepctl: InProcess, home: Path
) -> None:
    (log,) = (home / "profiles/alice/sessions/first").glob("*.jsonl")
    log.write_bytes(log.read_bytes()[:-40])
    lines = _merged("checkpoints", "verify", "--user", "alice")
    assert [line.split()[0] for line in lines][-2:] == ["Error:", "Hint:"]
    assert lines[0].startswith("Damaged:")
