"""A user without a home and without an entry in the user database needs two variables, and nothing else (K3.4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import Command, Result

_AS_NOBODY = ("bwrap", "--dev-bind", "/", "/", "--unshare-user", "--uid", "4242", "--gid", "4242", "--cap-drop", "ALL")


@pytest.fixture
def nobody(process: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs commands as such a user."""
    monkeypatch.delenv("HOME")
    process.argv = (*_AS_NOBODY, "--", *Command.argv)  # type: ignore[assignment]
    return process


def _ended(running: Result) -> str:
    assert running.code == 0, running
    return running.stdout


def test_with_both_variables_everything_works(nobody: Command, home: Path) -> None:
    assert "Wrote 1 line" in _ended(nobody("chat", "--user", "alice", "write a.txt: one"))
    assert "uid=4242" in _ended(nobody("chat", "--user", "alice", "--sandbox", "none", "--approve", "auto", "run id"))
    _ended(nobody("memory", "add", "a note", "--user", "alice"))
    assert "a.txt" in _ended(nobody("checkpoints", "rewind", "~2", "--user", "alice"))
    assert '"status": "problem"' not in _ended(nobody("doctor", "--user", "alice", "--json"))
    assert (home / "profiles" / "alice").is_dir()


@pytest.mark.parametrize("home_variable", [None, "", "~", "relative"])
def test_without_them_the_three_variables_are_named(
    nobody: Command, monkeypatch: pytest.MonkeyPatch, home_variable: str | None
) -> None:
    monkeypatch.delenv("DEEPCTL_HOME")
    monkeypatch.delenv("DEEPCTL_CONFIG")
    if home_variable is not None:
        monkeypatch.setenv("HOME", home_variable)
    result = nobody("profiles", "list")
    assert (result.code, result.stdout) == (2, "")
    for name in ("$HOME", "DEEPCTL_HOME", "DEEPCTL_CONFIG"):
        assert name in result.stderr
