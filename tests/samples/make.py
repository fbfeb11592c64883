"""How the samples were made: profiles as some version of deepctl wrote them, kept so that later ones still read them.

    python tests/samples/make.py NAME DIRECTORY

makes one of them anew below DIRECTORY, with the code of the commit that is named here. A sample in this directory is
never made anew: what it is for is that it was written back then. A change of a format gets a new sample beside the old
ones. `NAME.manifest` has the mode and the SHA-256 of each file, and the directories, which
git does not keep; `tests/test_formats.py` compares them.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PROFILE = "alice"


class Sample(NamedTuple):
    """One sample: the commit whose code wrote it, what was done, what it shows, and whether the cache is kept, too."""

    commit: str
    story: list[list[str]]
    shows: str
    has_cache: bool = False


def _chat(*lines: str, session: str = "main") -> list[str]:
    return ["chat", "--user", PROFILE, "--session", session, "\n".join(lines)]


def _commands(*lines: str) -> list[str]:
    return [*_chat(*lines), "--sandbox", "none", "--approve", "auto"]


def _checkpoints(*words: str) -> list[str]:
    return ["checkpoints", *words, "--user", PROFILE]


SAMPLES: dict[str, Sample] = {
    "format-1": Sample(
        "4cc2083",
        [
            _chat("remember tea in the morning", "write notes.txt: one"),
            _chat("plan Journey: book; pack; leave", "write data/list.txt: a", "write notes.txt: two"),
            _checkpoints("save", "good", "--session", "main"),
            _commands("run seq 1 5000"),
            _chat("write elsewhere.txt: x", session="other"),
            _checkpoints("fork", "good", "forked", "--session", "main"),
            _chat("write notes.txt: three", "remember coffee at noon", session="main"),
            _checkpoints("rewind", "~1", "--session", "main"),
            _checkpoints("undo", "--session", "main"),
            _checkpoints("rewind", "~1", "--session", "main"),
            _chat("write after.txt: y", session="main"),
            _chat("what did I say?", session="forked"),
        ],
        "Every format of 0.1.0: sessions, a fork, rewinds, an undo, a label, memory, a plan, an evicted result.",
    ),
    "early-log": Sample(
        "c6fd0f7",
        [_chat("remember tea", "write notes.txt: one"), _chat("write notes.txt: two"), _chat("hello", session="other")],
        "The first message logs, which name the workspace by its path.",
    ),
    "early-packs": Sample(
        "fb9fd43",
        [
            _chat("write notes.txt: one"),
            _chat("remember tea", "write notes.txt: two"),
            _checkpoints("save", "good", "--session", "main"),
            _chat("write more.txt: three"),
            _checkpoints("rewind", "~1", "--session", "main"),
        ],
        "The first packs, whose tables have no CRC, and a cache in format 1.",
        has_cache=True,
    ),
    "zstd-packs": Sample(
        "6fa9b07",
        [
            _chat("write notes.txt: " + "one and the same " * 20),
            _chat("remember tea", "write notes.txt: two"),
            _checkpoints("save", "good", "--session", "main"),
            _chat("write more.txt: three"),
        ],
        "The first packs in format 2, compressed by Zstandard.",
    ),
}


def make(name: str, directory: Path) -> None:
    """Make a sample below `directory`: the profile as `NAME/`, and `NAME.manifest`."""
    sample = SAMPLES[name]
    with tempfile.TemporaryDirectory(prefix="deepctl-sample-") as place:
        code = Path(place) / "code"
        packed = subprocess.run(
            ["git", "archive", sample.commit, "deepctl"], cwd=HERE.parent.parent, capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(code, filter="data")
        # Always the same, because the first logs name it.
        root = Path("/tmp/deepctl-sample")
        shutil.rmtree(root, ignore_errors=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": place,
            "DEEPCTL_HOME": str(root),
            "DEEPCTL_CONFIG": f"{place}/config.toml",
            "PYTHONPATH": str(code),
        }
        try:
            for command in sample.story:
                subprocess.run(
                    [sys.executable, "-P", "-m", "deepctl", *command],
                    env=environment,
                    cwd=place,
                    stdin=subprocess.DEVNULL,
                    check=True,
                )
            shutil.copytree(root / "profiles" / PROFILE, directory / name, symlinks=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    if not sample.has_cache:
        shutil.rmtree(directory / name / "cache", ignore_errors=True)
    (directory / f"{name}.manifest").write_text(manifest(directory / name))


def manifest(sample: Path) -> str:
    """A line for everything in a sample: mode, SHA-256 (of a directory: a dash), path."""
    lines = []
    for path in sorted(sample.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        digest = "-" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{mode:04o} {digest} {path.relative_to(sample)}\n")
    return "".join(lines)


def unpack(name: str, target: Path) -> None:
    """A copy of a sample, with the modes and the empty directories that it had."""
    target.mkdir(parents=True)
    for line in (HERE / f"{name}.manifest").read_text().splitlines():
        mode, digest, relative = line.split(" ", 2)
        path = target / relative
        if digest == "-":
            path.mkdir()
        else:
            path.write_bytes((HERE / name / relative).read_bytes())
        path.chmod(int(mode, 8))
    target.chmod(0o700)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
