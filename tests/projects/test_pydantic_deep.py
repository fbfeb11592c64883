"""pydantic-deep's own tests of its stores and checkpoints pass with deepctl's, but for documented differences."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deepctl
from deepctl import create_deep_agent, migration
from tests.projects import sdists

_ROOT = Path(__file__).parents[2]
_DISTRIBUTION = "pydantic_deep-0.3.50"
_TESTS, _TOOLSET = "tests/test_checkpointing.py", "pydantic_deep/features/checkpointing/toolset.py"

DIFFERENCES = {
    "TestInMemoryCheckpointStore.test_save_and_get": "`InMemoryCheckpointStore.get`",
    "TestInMemoryCheckpointStore.test_get_by_label": "`InMemoryCheckpointStore.get`",
    "TestInMemoryCheckpointStore.test_get_by_label_skips_non_matching": "`InMemoryCheckpointStore.get`",
    "TestSaveAndPrune.test_prunes_over_limit": "`max_checkpoints`",
    "TestCreateDeepAgentCheckpoints.test_include_checkpoints_adds_capability_and_toolset": "`CheckpointToolset`",
    "TestCheckpointExports.test_checkpoint_middleware_importable": "`CheckpointMiddleware`",
    "TestCheckpointExports.test_checkpoint_toolset_importable": "`CheckpointToolset`",
}
"""The tests that fail, and what the row of the table in docs/library.md is about that says why."""


def test_pydantic_deeps_tests_pass_or_are_documented_differences(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_checkpointing.py").write_text(sdists.text(_DISTRIBUTION, _TESTS))
    (tmp_path / "toolset.py").write_text(sdists.text(_DISTRIBUTION, _TOOLSET))
    words = ["-q", "-p", "tests.projects.pydantic_deep_tests", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path / "tests")],
        env={
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "TOOLSET": str(tmp_path / "toolset.py"),
            "RESULTS": str(tmp_path / "results"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    results: dict[str, str] = json.loads((tmp_path / "results").read_text())
    assert len(results) == 81, done.stdout
    failed = {name: failure for name, failure in results.items() if failure}
    assert failed.keys() == DIFFERENCES.keys(), failed


def test_every_difference_is_in_the_table() -> None:
    page = (_ROOT / "docs" / "library.md").read_text()
    table = page.partition("## Differences from pydantic-deep")[2].partition("\n## ")[0]
    subjects = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    for subject in DIFFERENCES.values():
        assert [row for row in subjects if subject in row], subject


def _exported(source: str) -> set[str]:
    """The names in `__all__`."""
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return set(ast.literal_eval(value))
    raise AssertionError("there is no __all__")


def _arguments(source: str) -> set[str]:
    """All arguments of `create_deep_agent`."""
    return {
        argument.arg
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "create_deep_agent"
        for argument in (*node.args.args, *node.args.kwonlyargs)
    }


@pytest.mark.parametrize("distribution", ["pydantic_deep-0.3.32", "pydantic_deep-0.3.50"])
def test_every_name_and_argument_of_pydantic_deep_is_here_or_says_what_to_use_instead(distribution: str) -> None:
    names = _exported(sdists.text(distribution, "pydantic_deep/__init__.py"))
    assert len(names) > 200
    assert names - {*deepctl.__all__} <= migration.NAMES.keys()
    arguments = _arguments(sdists.text(distribution, "pydantic_deep/agent.py"))
    assert len(arguments) > 60
    code = create_deep_agent.__wrapped__.__code__  # type: ignore[attr-defined]
    own_arguments = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
    assert arguments - own_arguments <= migration.ARGUMENTS.keys()
    assert not own_arguments & migration.ARGUMENTS.keys()
    assert not {*deepctl.__all__} & migration.NAMES.keys()


def test_the_tables_of_names_and_arguments_are_those_of_the_errors() -> None:
    page = (_ROOT / "docs" / "library.md").read_text()
    for rows in (migration.ARGUMENT_ROWS, migration.NAME_ROWS):
        written = [f"| {', '.join(f'`{name}`' for name in names.split())} | {text} |" for names, text in rows]
        assert "\n".join(written) in page
