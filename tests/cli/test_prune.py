"""`deepctl checkpoints prune`, by number and by age."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from deepctl import quantities
from deepctl.cli.ages import time_before
from deepctl.errors import UsageError
from tests.support.command import InProcess, Result
from tests.support.terminal import Terminal

_NOW = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


class Alice:
    """Alice, who saved a checkpoint a day for ten days, up to now."""

    def __init__(self, deepctl: InProcess, home: Path) -> None:
        self._deepctl = deepctl
        self.profile = home / "profiles" / "alice"
        deepctl("profiles", "create", "alice").ok()
        now = datetime.now(timezone.utc)
        for days in range(10, -1, -1):
            at = (now - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            (self.profile / "workspace" / "a.txt").write_text(f"{days} days ago {days * 100}\n" * 200)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(quantities, "now", lambda at=at: at)
                self("save", *([f"day-{days}"] if days in (3, 7) else [])).ok()

    def __call__(self, *arguments: str) -> Result:
        return self._deepctl("checkpoints", *arguments, "--user", "alice")

    def days(self) -> list[int]:
        """How old those are that are left, the oldest first."""
        now = datetime.now(timezone.utc)
        records: list[dict[str, Any]] = self("list", "--json").ok().json["checkpoints"]
        return [(now - datetime.fromisoformat(one["created_at"])).days for one in reversed(records)]


@pytest.fixture
def alice(deepctl: InProcess, home: Path) -> Alice:
    return Alice(deepctl, home)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--keep", "4"), [7, 3, 2, 1, 0]),
        (("--older-than", "5d"), [7, 4, 3, 2, 1, 0]),
        (("--older-than", "1w"), [7, 6, 5, 4, 3, 2, 1, 0]),
        (("--older-than", "12h"), [7, 3, 0]),
        (("--older-than", "1m"), [7, 3, 0]),
        (("--older-than", "1y"), [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (("--keep", "4", "--older-than", "5d"), [7, 4, 3, 2, 1, 0]),
        (("--keep", "8", "--older-than", "5d"), [7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_what_is_beyond_the_newest_and_old_goes_and_labelled_ones_stay(
    alice: Alice, options: tuple[str, ...], left: list[int]
) -> None:
    before = _size(alice.profile / "checkpoints/packs")
    told = alice("prune", *options, "--dry-run", "--json").ok().json
    assert alice.days() == list(range(10, -1, -1))
    done = alice("prune", *options, "--json").ok().json
    assert (done["removed"], done["bytes"]) == (told["removed"], told["bytes"])
    assert alice.days() == left
    assert len(done["removed"]) == 11 - len(left)
    freed = before - _size(alice.profile / "checkpoints/packs")
    assert freed >= 0
    assert (done["bytes"] > 0) == bool(done["removed"])
    assert alice("verify").code == 0
    assert alice("prune", *options, "--json").ok().json["removed"] == []


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize(
    "wrong", ["", "30", "d", "-1d", "+1d", "1.5d", "0d", "00h", "1 d", "30D", "5s", "1mo1d", "٣d", "999999999y", "1d\n"]
)
def test_what_is_no_age_is_exit_2_before_anything_is_touched(alice: Alice, wrong: str) -> None:
    refused = alice("prune", f"--older-than={wrong}", "--json")
    assert (refused.code, refused.error["code"]) == (2, "bad_age")
    assert len(alice.days()) == 11


def test_nothing_asked_for_nothing_done(alice: Alice) -> None:
    for options in ((), ("--dry-run",)):
        refused = alice("prune", *options, "--json")
        assert (refused.code, refused.error["code"]) == (2, "usage")
    assert alice("prune", "--keep", "0").code == 2
    assert alice("prune", "--keep", "x").code == 2
    assert len(alice.days()) == 11


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(days=14)),
        ("6mo", timedelta(days=180)),
        ("1y", timedelta(days=365)),
    ],
)
def test_the_units_of_an_age(age: str, expected: timedelta) -> None:
    assert time_before(age, _NOW) == _NOW - expected


def test_before_the_calendar_is_no_age() -> None:
    with pytest.raises(UsageError, match="is too long"):
        time_before("9999y", _NOW)


def test_what_an_undo_needs_stays_however_old(alice: Alice, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(quantities, "now", lambda: "2020-01-01T00:00:00.000000Z")
        alice("rewind", "day-3", "--exact").ok()
    alice("save").ok()
    alice("prune", "--older-than", "1d").ok()
    alice("undo", "--force").ok()
    assert (alice.profile / "workspace/a.txt").read_text().startswith("0 days ago")


def test_a_person_is_told_what_it_frees(alice: Alice) -> None:
    told = alice("prune", "--older-than", "5d", "--dry-run").ok().stdout.splitlines()
    assert len(told) == 6
    assert told[-1].startswith("Would remove 5 checkpoints and free ")
    shown = Terminal("checkpoints", "prune", "--older-than", "5d", "--user", "alice")
    shown.expect("Removed 5 checkpoints and freed ")
    assert shown.wait() == 0
    shown.close()
    assert alice("prune", "--older-than", "5d").ok().stdout == "Nothing to remove.\n"
