"""pydantic-deep's own tests of its stores and checkpoints pass with deepctl's, but for documented differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
