"""The scripts in examples/ work as they stand. `test_example_apps.py` has the web applications."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(_EXAMPLES / script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
        timeout=120,
        check=False,
    )


def test_the_unattended_job_keeps_what_is_good_undoes_what_is_not_and_leaves_nothing(
    home: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    done = _run("unattended.sh", str(archive))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "kept:   write app.toml: port = 9090",
        "turns taken back: 1",
        "undone: write app.toml: port = = oops",
    ]
    assert "app.toml" in done.stdout.splitlines()[3]
    assert archive.stat().st_size > 1000
    transcript = Path(f"{archive}.md").read_text()
    assert "port = 9090" in transcript
    assert "oops" not in transcript, "what was undone is in no transcript"
    assert os.listdir(home / "profiles") == [], "the profile is wiped"


def test_the_unattended_job_that_fails_keeps_what_it_did(home: Path, tmp_path: Path) -> None:
    failed = _run("unattended.sh", str(tmp_path / "archive"), DEEPCTL_MODEL="nonsense:x")
    assert failed.returncode != 0
    assert "the profile nightly is kept" in failed.stderr
    assert os.listdir(home / "profiles") == ["nightly"]


def test_the_unattended_job_overwrites_no_archive(home: Path, tmp_path: Path) -> None:
    (tmp_path / "archive.md").write_text("last night's")
    refused = _run("unattended.sh", str(tmp_path / "archive"))
    assert (refused.returncode, refused.stderr) == (1, f"{tmp_path}/archive is there already\n")
    assert (tmp_path / "archive.md").read_text() == "last night's"
    assert not home.exists(), "nothing was begun"


def test_the_unattended_job_touches_no_profile_that_is_there(home: Path, tmp_path: Path) -> None:
    first = _run("unattended.sh", str(tmp_path / "archive"))
    assert first.returncode == 0, first.stderr
    subprocess.run([sys.executable, "-m", "deepctl", "profiles", "create", "nightly"], check=True, capture_output=True)
    refused = _run("unattended.sh", str(tmp_path / "again"))
    assert refused.returncode == 1
    assert "not this script's to wipe" in refused.stderr
    assert os.listdir(home / "profiles") == ["nightly"]
    assert not (tmp_path / "again").exists()
