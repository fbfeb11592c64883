"""Every row of `docs/errors.md` is caused by a real command and compared, and every error of the source has a row."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.errors
from deepctl.errors import EXIT_CODES
from tests.errors import sites
from tests.errors.excused import EXCUSED
from tests.errors.situation import CASES, Situation
from tests.errors.table import Row, rows
from tests.support.command import Result
from tests.support.tree import commands

for _module in pkgutil.iter_modules(tests.errors.__path__):
    importlib.import_module(f"tests.errors.{_module.name}")

ROWS = rows()
_RUNS = [
    pytest.param(row, mode, id=f"{row.id} [{mode}]")
    for row in ROWS
    for mode in getattr(CASES.get((row.command, row.cause)), "modes", ())
]
_SIGNALS = {129, 143}


@pytest.fixture
def situation(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> Iterator[Situation]:
    found = Situation(home, tmp_path, monkeypatch, as_json=mode == "json")
    yield found
    found.close()


@pytest.mark.parametrize(("row", "mode"), _RUNS)
def test_an_error_is_as_its_row_says(row: Row, mode: str, situation: Situation) -> None:
    case = CASES[row.command, row.cause]
    prepared = case.prepare(situation)
    result = prepared if isinstance(prepared, Result) else situation.run(*prepared)
    assert "Traceback" not in result.stdout + result.stderr
    if mode == "json":
        error = _scripts_error(result)
        assert set(error) >= {"code", "message", "hint", "exit_code", "retryable"}
        assert not row.differences(error["message"], error["hint"], error["code"], error["exit_code"])
        assert result.code == row.exit_code
        return
    if not case.prints:
        assert result.stdout == ""
    if case.silent:
        assert result.code == row.exit_code
        assert "Error" not in result.stderr
        return
    message, hint = _persons_error(result)
    assert not row.differences(message, hint, row.code, result.code)


def _scripts_error(result: Result) -> dict[str, Any]:
    """The only line on stderr; or, if stderr is empty, the last event of a chat."""
    if result.stderr:
        return result.error
    last: dict[str, Any] = result.events[-1]
    assert last.pop("type") == "error"
    return last


def _persons_error(result: Result) -> tuple[str, str | None]:
    """The message and the hint, which are the end of stderr."""
    before, said, after = result.stderr.rpartition("Error: ")
    assert said, result
    assert "Error:" not in before
    message, _, hint = after.removesuffix("\n").partition("\nHint: ")
    return message, hint or None


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    there = {(row.command, row.cause) for row in ROWS}
    assert sorted(there - set(CASES)) == [], "rows without a case"
    assert sorted(set(CASES) - there) == [], "cases without a row"
    assert [key for key, count in Counter((row.command, row.cause) for row in ROWS).items() if count > 1] == []


def test_rows_are_of_commands_that_there_are_and_of_exit_codes_that_are_documented() -> None:
    assert {row.command for row in ROWS} - {"any command"} <= set(commands())
    assert {row.exit_code for row in ROWS} <= (set(EXIT_CODES) | _SIGNALS) - {0, 1}


def test_messages_are_sentences() -> None:
    for row in ROWS:
        assert row.message.endswith("."), row
        assert row.message[:1] == row.message[:1].upper() or row.message.startswith(("stdin ", "stdout ")), row


def test_no_error_is_forgotten() -> None:
    found = sites.all_sites()
    assert len(found) > 100
    without = [
        site
        for site in found
        if not any(site.makes(row.message, row.code) for row in ROWS) and (site.file, site.text) not in EXCUSED
    ]
    assert without == []


def test_no_excuse_is_for_an_error_that_is_gone_or_has_a_row() -> None:
    there = {(site.file, site.text): site for site in sites.all_sites()}
    assert sorted(set(EXCUSED) - set(there)) == []
    needless = [key for key in EXCUSED if any(there[key].makes(row.message, row.code) for row in ROWS)]
    assert needless == []
