"""Snapshots of a project of 10,000 and 100,000 files, against git and a plain walk. Processor time, user and system."""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measure import promise
from deepctl.files import gitignore
from deepctl.store import trees, workspaces
from deepctl.store.coverage import CoverageSettings
from deepctl.store.index_db import Cache
from deepctl.store.pack_store import PackStore
from deepctl.store.trees import Snapshot
from deepctl.store.workspaces import MountedProject, WorkspaceOptions
from tests.support.command import InProcess

_IGNORED = """# As projects have it
__pycache__/
*.py[cod]
*$py.class
*.so
build/
dist/
*.egg-info/
.eggs/
/lib/
.venv/
venv/
.env
.env.*
!.env.example
.coverage
.coverage.*
htmlcov/
.pytest_cache/
.mypy_cache/
.ruff_cache/
node_modules/
*.log
npm-debug.log*
/docs/_build/
docs/**/*.pyc
.DS_Store
Thumbs.db
*~
*.sw[op]
.idea/
.vscode/*
!.vscode/settings.json
"""
_A_DIRECTORY = 100
_PEAK = 200 << 20
"""Bytes of memory that a process with a first snapshot of 100,000 files may take."""


def fill(root: Path, count: int, randomness: random.Random) -> None:
    """A repository with so many files of 1 to 4 KB of words, and a tenth more that git ignores."""
    words = [f"{randomness.getrandbits(40):x}" for _ in range(3000)]
    for number in range(count):
        directory = root / f"part{number // 10_000}" / f"d{number // _A_DIRECTORY % 100}"
        if number % _A_DIRECTORY == 0:
            (directory / "__pycache__").mkdir(parents=True)
            for name in range(_A_DIRECTORY // 10):
                (directory / "__pycache__" / f"f{name}.pyc").write_bytes(b"x")
        text = " ".join(randomness.choices(words, k=randomness.randrange(90, 360)))
        (directory / f"f{number % _A_DIRECTORY}.py").write_text(text)
    (root / ".gitignore").write_text(_IGNORED)
    _git(root, "init", "-q")


def _git(root: Path, *arguments: str, objects: Path | None = None) -> None:
    environment = dict(os.environ)
    if objects is not None:
        environment |= {"GIT_OBJECT_DIRECTORY": str(objects), "GIT_INDEX_FILE": str(objects / "index")}
    subprocess.run(["git", *arguments], env=environment, cwd=root, check=True, stdout=subprocess.DEVNULL)


def plain_walk(directory: str) -> None:
    """A walk with `os.scandir` and one `lstat` a file."""
    with os.scandir(directory) as items:
        for item in items:
            if item.stat(follow_symlinks=False).st_mode & 0o170000 == 0o040000:
                plain_walk(item.path)


def snapshot(root: Path, store: Path) -> Snapshot:
    """A snapshot as a turn takes it: the private workspace, the project, its rules."""
    (store / "workspace").mkdir(exist_ok=True)
    cache = Cache(str(store / "cache"))
    packs = PackStore(str(store / "packs"), cache)
    project = MountedProject("00000001", str(root), CoverageSettings())
    with packs.new_batch() as batch:
        options = WorkspaceOptions(str(store / "workspace"), project=project)
        taken = workspaces.snapshot(options, packs, batch, cache, "", tidy=True)
    cache.close()
    return taken


def _processor_time(action: Callable[[], object]) -> float:
    """The processor time of this process and of the programs that it starts."""

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    began = spent()
    action()
    return spent() - began


def _first(place: Path, root: Path, count: int, rounds: int) -> bool:
    """The first snapshot, and git's. Each begins without objects."""
    ours, gits = [], []
    for number in range(rounds):
        store, objects = place / f"store{count}-{number}", place / f"git{count}-{number}"
        store.mkdir()
        objects.mkdir()
        ours.append(_processor_time(lambda store=store: snapshot(root, store)))  # type: ignore[misc]

        def add(objects: Path = objects) -> None:
            _git(root, "add", "-A", objects=objects)
            _git(root, "write-tree", objects=objects)

        gits.append(_processor_time(add))
    ratio = statistics.median(ours) / statistics.median(gits)
    print(
        f"  git add -A and write-tree: {statistics.median(gits):.2f} s; first snapshot: {statistics.median(ours):.2f} s"
    )
    return promise(f"first snapshot of {count:,} files / git add and write-tree", ratio, 0.5)


def _again(root: Path, store: Path, count: int) -> bool:
    walks, same = [], []
    for _ in range(9):
        walks.append(_processor_time(lambda: plain_walk(str(root))))
        same.append(_processor_time(lambda: snapshot(root, store)))
    # The smallest of each: what else runs on the machine makes both longer, but not alike.
    print(f"  plain walk {min(walks):.3f} s, nothing changed {min(same):.3f} s")
    return promise(f"snapshot of {count:,} unchanged files / plain walk", min(same) / min(walks), 1.5)


def _peak(root: Path, store: Path) -> bool:
    """The memory of a process that takes the first snapshot."""
    code = "import sys, resource; from pathlib import Path; from benchmarks.projects import snapshot; "
    code += "store = Path(sys.argv[2]); store.mkdir(); snapshot(Path(sys.argv[1]), store); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    output = subprocess.run(
        [sys.executable, "-c", code, root, store], check=True, capture_output=True, text=True
    ).stdout
    return promise("peak memory of a first snapshot of 100,000 files / 200 MB", int(output) / _PEAK, 1.0)


def _turn(place: Path, prompt: str, *options: str) -> int:
    """The walks of a turn. Their number does not depend on the number of files."""
    project = place / "project"
    project.mkdir(parents=True)
    _git(project, "init", "-q")
    walks: list[str] = []
    real = trees.snapshot

    def counted(root: str, *arguments: Any, **options: Any) -> Snapshot:
        if options.get("mount"):
            walks.append(root)
        return real(root, *arguments, **options)

    own = {"DEEPCTL_HOME": place / "state", "DEEPCTL_CONFIG": place / "config.toml", "HOME": place / "home"}
    with mock.patch.dict(os.environ, {name: str(path) for name, path in own.items()}):
        with mock.patch.object(trees, "snapshot", counted):
            InProcess()("chat", "-C", str(project), *options, prompt).ok()
    return len(walks)


def _turns(place: Path) -> bool:
    """The walks of a turn with calls of file tools, which name the files that they change, and of one with commands."""
    files = [f"write {number}.txt: text" for number in range(3)] + ["write 0.txt: new", "remember tea", "plan A: b; c"]
    held = promise(
        "walks of a turn / calls of file tools and two",
        _turn(place / "files", "\n".join(files)) / (len(files) + 2),
        1.0,
    )
    commands = ["run true"] * 3
    walks = _turn(place / "commands", "\n".join(commands), "--sandbox", "none", "--approve", "auto")
    return promise("walks of a turn / two for each command and two", walks / (2 * len(commands) + 2), 1.0) and held


def _matcher(count: int) -> None:
    """The cost of a file for the matcher, and for pathspec."""
    from pathspec import GitIgnoreSpec

    names = [b"f%d.py" % number for number in range(_A_DIRECTORY)]
    paths = [f"part1/d7/{os.fsdecode(name)}" for name in names]
    spec = GitIgnoreSpec.from_lines(_IGNORED.splitlines())
    level = gitignore.level(gitignore.parse(_IGNORED.encode())).below(b"part1").below(b"d7")
    level.ignored(names, are_directories=False)
    repeats = count // _A_DIRECTORY
    own = _processor_time(lambda: [level.ignored(names, are_directories=False) for _ in range(repeats)]) / count
    other = _processor_time(lambda: [spec.match_file(path) for path in paths for _ in range(repeats)]) / count
    print(f"  a file for the matcher: {own * 1e6:.2f} µs, for pathspec: {other * 1e6:.1f} µs")


def run() -> bool:
    """Measure and print; whether every promise holds."""
    randomness = random.Random(20261130)
    held = []
    print("Projects (processor time, medians in one run):")
    _matcher(20_000)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for count, rounds in ((10_000, 3), (100_000, 1)):
            root = place / f"project{count}"
            root.mkdir()
            fill(root, count, randomness)
            time.sleep(0.1)
            held.append(_first(place, root, count, rounds))
            snapshot(root, place / f"store{count}-0")
            held.append(_again(root, place / f"store{count}-0", count))
        held.append(_peak(root, place / "peak"))
        held.append(_turns(place / "turns"))
    return all(held)


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
