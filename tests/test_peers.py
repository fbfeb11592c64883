"""How other tools fail their users when they rewind, one test each: here it must not happen.

Each was seen in another tool, by running it or in its users' reports.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.errors import StorageError
from deepctl.store.records import Record
from deepctl.store.rewind import RewindConflicts
from tests.store.faults import Counter, failing
from tests.store.scene import Scene
from tests.store.test_trees import real
from tests.support.command import InProcess

_SHELL = ("--sandbox", "none", "--approve", "auto")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "scene")


def test_what_a_shell_command_destroyed_comes_back(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "write a.txt: one two\nwrite b.txt: b\nwrite d/c.txt: c").ok()
    workspace = home / "profiles/default/workspace"
    before = {path: kept for path, kept in real(workspace).items() if not path.startswith(b".deep")}
    command = "run sed -i s/two/2/ a.txt; mv b.txt moved; rm -rf d; echo new > new; chmod 600 a.txt; ln -s a.txt link"
    deepctl("chat", command, *_SHELL).ok()
    assert not (workspace / "d").exists()
    deepctl("checkpoints", "rewind").ok()
    after = {path: kept for path, kept in real(workspace).items() if not path.startswith(b".deep")}
    assert after == before


def test_a_rewind_can_be_undone_at_any_later_time_and_no_branch_vanishes(scene: Scene) -> None:
    for name in ("one", "two", "three"):
        scene.agent(f"{name}.txt", name)
    everything = (scene.files(), scene.prompts())
    scene.rewind("~2")
    scene.agent("other.txt", "another way")
    known = {record.id for record in scene.records()}
    scene.undo()
    assert (scene.files(), scene.prompts()) == everything
    assert known < {record.id for record in scene.records()}
    scene.undo()
    assert "other.txt" in scene.files()
    assert scene.prompts()[-1] == "write other.txt another way"


def test_a_restore_deletes_only_what_a_snapshot_proves(scene: Scene) -> None:
    repository = scene.workspace / "nested" / ".git"
    repository.mkdir(parents=True)
    (repository / "HEAD").write_text("ref: refs/heads/main")
    scene.write(".gitignore", "*.log\nignored/\n")
    scene.write("ignored/file.log", "ignored by git, not by us")
    with open(scene.workspace / "large", "wb") as large:
        large.truncate(300 << 20)
    scene.agent("a.txt", "one")
    before = {path: path.lstat().st_size for path in scene.workspace.rglob("*")}
    scene.agent("b.txt", "two")
    scene.write("mine.txt", "written by hand")
    scene.rewind("~1")
    after = {path: path.lstat().st_size for path in scene.workspace.rglob("*")}
    assert after == {**before, scene.workspace / "mine.txt": 15}


def test_a_rewind_never_destroys_the_users_or_another_sessions_edits(scene: Scene) -> None:
    scene.agent("shared.txt", "main")
    scene.agent("more.txt", "main")
    scene.agent("shared.txt", "other", session="other")
    scene.write("more.txt", "the user's")
    before = scene.files()
    with pytest.raises(RewindConflicts) as refused:
        scene.rewind("~2")
    assert sorted(refused.value.paths) == [b"more.txt", b"shared.txt"]
    assert scene.files() == before


def test_memory_to_dos_and_plans_are_rewound_too(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "remember tea\nplan trip: one; two").ok()
    workspace = home / "profiles/default/workspace"
    (workspace / ".deep/todo.json").write_text('{"version": 1, "items": []}')
    before = real(workspace)
    deepctl("chat", "remember coffee\nplan other: x").ok()
    deepctl("chat", "run echo '{}' > .deep/todo.json", *_SHELL).ok()
    deepctl("checkpoints", "rewind", "~2").ok()
    assert real(workspace) == before
    assert deepctl("memory", "show").ok().stdout == "- tea\n"


@pytest.mark.parametrize("call", range(1, 12))
def test_nothing_is_reported_rewound_that_is_not_and_half_is_never_left(scene: Scene, call: int) -> None:
    for number in range(3):
        with scene.turn(f"turn {number}"):
            for name in "abc":
                scene.write(f"{name}/file.txt", f"{name}{number}")
    before = (real(scene.workspace), scene.prompts(), len(scene.records()))
    counter = Counter(call, failing(errno.EACCES), only=("rename", "fchmod"), beneath=str(scene.workspace))
    hints = []
    try:
        with counter.installed():
            scene.rewind("~2")
    except StorageError as error:
        hints.append(error.hint or "")
    if hints:
        assert "Nothing was rewound" in hints[0]
        assert (real(scene.workspace), scene.prompts(), len(scene.records())) == before
    else:
        assert scene.files() == {f"{name}/file.txt": f"{name}0" for name in "abc"}
        assert len(scene.prompts()) == 1


def test_a_rewind_and_an_undo_with_nothing_to_do_touch_nothing(scene: Scene) -> None:
    scene.agent("a.txt", "one")
    scene.agent("b.txt", "two")

    def status() -> dict[Path, tuple[int, int, int]]:
        found = [*scene.workspace.rglob("*"), scene.workspace]
        return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in found}

    before, records = status(), len(scene.records())
    done = scene.rewind("~0")
    assert (done.safety, done.restored_paths, done.deleted_paths) == (None, [], [])
    assert (status(), len(scene.records())) == (before, records)
    scene.rewind("~1", only="conversation")
    assert status() == before
    scene.undo()
    assert status() == before


def test_any_directory_will_do_without_git_and_with_nested_repositories(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = shutil.which("git")
    assert git is not None
    scene.agent("a.txt", "one")
    with scene.turn("clone"):
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run([git, "init", "-q", "nested"], cwd=scene.workspace, env=environment, check=True)
    cloned = real(scene.workspace)
    scene.agent("nested/.git/config", "broken")
    monkeypatch.setenv("PATH", "/nowhere")
    scene.rewind("~1")
    assert real(scene.workspace) == cloned
    scene.rewind("~1")
    assert scene.files() == {"a.txt": "one"}


def test_modes_and_empty_directories_come_back_exactly(scene: Scene) -> None:
    for name, mode in (("secret", 0o600), ("readonly", 0o444), ("script", 0o755), ("odd", 0o1604)):
        scene.write(name, name)
        os.chmod(scene.workspace / name, mode)
    (scene.workspace / "empty").mkdir(mode=0o700)
    (scene.workspace / "closed").mkdir()
    scene.write("closed/file", "x")
    os.chmod(scene.workspace / "closed", 0o500)
    scene.agent("a.txt", "one")
    before = real(scene.workspace)
    with scene.turn("ruin"):
        for path in scene.workspace.iterdir():
            path.chmod(0o777)
        (scene.workspace / "empty").rmdir()
        (scene.workspace / "closed" / "file").unlink()
        (scene.workspace / "readonly").unlink()
    scene.rewind("~1")
    assert real(scene.workspace) == before
    assert stat.S_IMODE((scene.workspace / "closed").stat().st_mode) == 0o500


def test_content_is_kept_once_and_prune_gives_it_back(scene: Scene) -> None:
    content = os.urandom(200_000).hex()

    def size() -> int:
        return profiles.describe(scene.paths).bytes.checkpoints

    for number in range(6):
        with scene.turn(f"turn {number}"):
            scene.write(f"copy-{number}.txt", content)
            os.utime(scene.workspace / "copy-0.txt")
    assert size() < 1.2 * 200_000 + 6 * 4096, "six copies in a dozen checkpoints"
    with scene.turn("away"):
        for path in scene.workspace.glob("copy-*"):
            path.unlink()
    scene.agent("a.txt", "small")
    before = size()
    from deepctl.store import prune

    with scene.work() as work:
        prune.remove(work, prune.to_prune(work.ledger, 1))
    assert before - size() > 200_000


def test_an_edit_of_the_same_size_with_its_time_put_back_is_seen(scene: Scene) -> None:
    scene.agent("a.txt", "one")
    path = scene.workspace / "a.txt"
    status = path.stat()
    with scene.turn("sly"):
        path.write_text("two")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    records: list[Record] = scene.records()
    assert records[-1].tree != records[0].tree
    scene.rewind("~1")
    assert path.read_text() == "one"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",), ("list", "--all", "--graph"), ("show", "~1"), ("diff",), ("diff", "~2", "~1", "--stat"), ("save",),
        ("save", "named"), ("label", "~1", "x"), ("rewind",), ("rewind", "~1", "--dry-run"), ("fork", "~1", "other"),
        ("remove", "~2"), ("prune", "--keep", "1"), ("prune", "--keep", "1", "--dry-run"), ("verify",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_everything_can_be_done_from_a_script(deepctl: InProcess, arguments: tuple[str, ...]) -> None:
    deepctl("chat", "write a.txt: one").ok()
    deepctl("chat", "write a.txt: two").ok()
    done = deepctl("checkpoints", *arguments, "--json").ok()
    assert done.stderr == ""
    assert json.loads(done.stdout)["version"] == 1
    again = deepctl("checkpoints", "undo", "--json")
    assert again.code in (0, 3)
    missing = deepctl("checkpoints", *arguments, "--json", "--user", "nobody")
    assert (missing.code, missing.stdout) == (3, "")
    assert missing.error["code"] == "profile_not_found"
