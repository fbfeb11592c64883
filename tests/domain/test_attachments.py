"""How a prompt names files, and how files of the user's get into a workspace: all of them or none, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.domain import attachments
from deepctl.errors import StorageError, UsageError
from tests.store import faults
from tests.store.scene import Scene, leftovers


@pytest.fixture
def scene(home: Path) -> Scene:
    return Scene(home)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    return place


def _file(place: Path, name: str, content: bytes = b"content\n") -> str:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def _attach(scene: Scene, *files: str) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return attachments.attach(scene.paths, files, said.append), said


def test_a_copy_is_private_whole_and_the_users_own_name(scene: Scene, outside: Path) -> None:
    plain, program = _file(outside, "report.pdf", b"%PDF" * 500_000), _file(outside, "run.sh")
    os.chmod(plain, 0o644)
    os.chmod(program, 0o755)
    assert _attach(scene, plain, program) == (["report.pdf", "run.sh"], [])
    there = scene.workspace / "report.pdf"
    assert there.read_bytes() == b"%PDF" * 500_000
    assert stat.S_IMODE(there.stat().st_mode) == 0o600
    assert stat.S_IMODE((scene.workspace / "run.sh").stat().st_mode) == 0o700
    assert there.stat().st_nlink == 1
    assert leftovers(scene.paths) == []


def test_another_file_of_the_name_stays_and_the_copy_gets_a_free_one(scene: Scene, outside: Path) -> None:
    scene.write("a.txt", "theirs")
    path = _file(outside, "a.txt", b"ours")
    assert _attach(scene, path) == (
        ["a-2.txt"],
        ["The workspace already has another file of that name: the copy of a.txt is called a-2.txt."],
    )
    assert _attach(scene, path)[0] == ["a-2.txt"], "the same is there already"
    assert scene.files() == {"a.txt": "theirs", "a-2.txt": "ours"}


def test_where_the_same_is_there_nothing_is_copied(scene: Scene, outside: Path) -> None:
    path = _file(outside, "a.txt", b"same")
    _attach(scene, path)
    before = (scene.workspace / "a.txt").stat()
    assert _attach(scene, path, path) == (["a.txt"], [])
    after = (scene.workspace / "a.txt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(scene.files()) == ["a.txt"]


def test_two_files_of_one_name_are_both_there(scene: Scene, outside: Path) -> None:
    names, said = _attach(scene, _file(outside, "one/a.txt", b"1"), _file(outside, "two/a.txt", b"2"))
    assert names == ["a.txt", "a-2.txt"]
    assert len(said) == 1
    assert scene.files() == {"a.txt": "1", "a-2.txt": "2"}


@pytest.mark.parametrize("planted", ["link", "dangling link", "fifo", "directory"])
def test_what_the_agent_has_planted_is_neither_followed_nor_waited_for(
    scene: Scene, outside: Path, planted: str
) -> None:
    victim = Path(_file(outside, "victim", b"content\n"))
    place = scene.workspace / "a.txt"
    match planted:
        case "link":
            place.symlink_to(victim)
        case "dangling link":
            place.symlink_to(outside / "made")
        case "fifo":
            os.mkfifo(place)
        case _:
            place.mkdir()
    assert _attach(scene, _file(outside, "a.txt"))[0] == ["a-2.txt"]
    assert victim.read_bytes() == b"content\n"
    assert not (outside / "made").exists()


@pytest.mark.parametrize("name", ["AGENTS.md", "agents.md", "DEEP.md", ".deep", "plans", "large_tool_results"])
def test_a_name_that_means_something_to_deepctl_is_never_given_to_a_copy(
    scene: Scene, outside: Path, name: str
) -> None:
    ((given,), (said,)) = _attach(scene, _file(outside, name))
    assert given != name
    assert name in said
    assert not (scene.workspace / name).exists()
    assert (scene.workspace / given).read_text() == "content\n"


def test_instructions_that_are_there_already_are_named_as_they_are(scene: Scene, outside: Path) -> None:
    scene.write("AGENTS.md", "content\n")
    assert _attach(scene, _file(outside, "AGENTS.md")) == (["AGENTS.md"], [])


def test_a_long_name_stays_within_what_a_name_may_have(scene: Scene, outside: Path) -> None:
    name = "é" * 125 + ".txt"
    scene.write(name, "theirs")
    (given,), _ = _attach(scene, _file(outside, name))
    assert len(given.encode()) <= 255
    assert given.endswith("-2.txt")


def _fifo(place: Path) -> str:
    os.mkfifo(place / "fifo")
    return str(place / "fifo")


def _grown(place: Path) -> str:
    path = place / "huge"
    with open(path, "wb") as file:
        file.truncate(attachments.MAX_BYTES + 1)
    return str(path)


BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda place: str(place / "none"), "file_not_found"),
    "below a file": (lambda place: _file(place, "a") + "/b", "file_not_found"),
    "empty path": (lambda place: "", "file_not_found"),
    "directory": (str, "bad_file"),
    "fifo": (_fifo, "bad_file"),
    "device": (lambda place: "/dev/zero", "bad_file"),
    "too large": (_grown, "file_too_large"),
    "newline": (lambda place: _file(place, "a\nb"), "bad_file"),
    "escape": (lambda place: _file(place, "a\x1b[2Jb"), "bad_file"),
    "not UTF-8": (lambda place: _file(place, os.fsdecode(b"caf\xe9")), "bad_file"),
    "unreadable": (lambda place: "/proc/self/mem", "file_unreadable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_attached_is_refused_and_the_ones_before_it_are_not_left(
    scene: Scene, outside: Path, kind: str
) -> None:
    make, code = BAD[kind]
    good, bad = _file(outside, "good.txt"), make(outside)
    if kind != "unreadable":
        with pytest.raises(UsageError) as early:
            attachments.check([good, bad])
        assert early.value.code == code
    with pytest.raises(UsageError) as refused:
        _attach(scene, good, bad)
    assert (refused.value.code, refused.value.exit_code) == (code, 2)
    assert scene.files() == {}
    assert leftovers(scene.paths) == []


def test_a_link_of_the_users_own_is_followed(scene: Scene, outside: Path) -> None:
    path = _file(outside, "report-final.pdf")
    (outside / "report.pdf").symlink_to(path)
    assert _attach(scene, str(outside / "report.pdf"))[0] == ["report.pdf"]
    assert not (scene.workspace / "report.pdf").is_symlink()


def test_a_full_disk_leaves_nothing_half_copied(scene: Scene, outside: Path) -> None:
    files = [_file(outside, "a.txt"), _file(outside, "b.txt", b"x" * 3_000_000)]
    before = scene.files()
    writes = faults.Counter(only=("write",))
    with writes.installed():
        _attach(scene, *files)
    for name in ("a.txt", "b.txt"):
        (scene.workspace / name).unlink()
    assert writes.seen >= 4
    for at in range(1, writes.seen + 1):
        with faults.Counter(at, faults.failing(errno.ENOSPC), only=("write",)).installed():
            with pytest.raises(StorageError) as full:
                _attach(scene, *files)
        assert full.value.code == "storage_enospc"
        assert full.value.hint is not None
        assert full.value.hint.startswith("Nothing was copied.")
        assert scene.files() == before
        assert leftovers(scene.paths) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM])
def test_an_error_at_any_call_leaves_all_or_nothing(scene: Scene, outside: Path, number: int) -> None:
    files = [_file(outside, "a.txt", b"1"), _file(outside, "b.txt", b"2")]

    def attach() -> None:
        attachments.attach(scene.paths, files)

    def clean() -> None:
        for path in (*scene.workspace.iterdir(), *map(Path, leftovers(scene.paths))):
            path.unlink()

    calls = faults.count(attach)
    clean()
    assert calls > 10
    outcomes = set()
    for at in range(1, calls + 1):
        said = faults.in_child(attach, at, faults.failing(number))
        outcomes.add(said)
        assert said in ("done", "StorageError", "UsageError"), said
        assert sorted(scene.files().items()) in ([], [("a.txt", "1"), ("b.txt", "2")]), (at, said)
        assert (scene.files() != {}) == (said == "done"), (at, said)
        clean()
    assert outcomes >= {"StorageError", "UsageError"}


def test_a_kill_at_any_call_leaves_whole_files_only_and_what_it_leaves_is_removed(scene: Scene, outside: Path) -> None:
    files = [_file(outside, "a.txt", b"1" * 5000), _file(outside, "b.txt", b"2" * 5000)]

    def attach() -> None:
        attachments.attach(scene.paths, files)

    calls = faults.count(attach)
    killed = 0
    for at in range(1, calls + 1):
        for path in scene.workspace.iterdir():
            path.unlink()
        killed += faults.in_child(attach, at, faults.kill) == "killed"
        found = scene.files()
        assert set(found) <= {"a.txt", "b.txt"}
        assert all(set(text) == {"1" if name == "a.txt" else "2"} and len(text) == 5000 for name, text in found.items())
        with scene.work():
            pass
        assert leftovers(scene.paths) == []
    assert killed > 10


def test_without_hard_links_a_copy_is_made_all_the_same(
    scene: Scene, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = _file(outside, "a.sh", b"ours")
    os.chmod(path, 0o755)
    assert _attach(scene, path)[0] == ["a.sh"]
    assert stat.S_IMODE((scene.workspace / "a.sh").stat().st_mode) == 0o700
    scene.write("a.sh", "theirs")
    assert _attach(scene, path)[0] == ["a-2.sh"]
    assert scene.files() == {"a.sh": "theirs", "a-2.sh": "ours"}


def test_a_rewind_leaves_what_was_attached(scene: Scene, outside: Path) -> None:
    scene.agent("a.txt", "one")
    attachments.attach(scene.paths, [_file(outside, "mine.txt", b"mine")])
    scene.agent("a.txt", "two")
    scene.rewind("~1")
    assert scene.files() == {"a.txt": "one", "mine.txt": "mine"}


def test_a_file_of_the_workspace_is_named_and_not_copied(scene: Scene, outside: Path) -> None:
    inside = _file(Path(scene.paths.workspace), "src/a.py")
    (outside / "link").symlink_to(inside)
    assert _attach(scene, inside, str(outside / "link"), _file(outside, "b.txt")) == (["src/a.py", "b.txt"], [])
    assert sorted(os.listdir(scene.paths.workspace)) == ["b.txt", "src"]


def test_in_a_project_a_copy_goes_to_the_profile_and_a_file_of_the_project_is_named(
    scene: Scene, outside: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    files = [
        _file(project, "src/a.py"),
        _file(Path(scene.paths.workspace), "notes.md"),
        _file(outside, "b.txt"),
        _file(project, "new\nline/c.txt"),
    ]
    names = attachments.attach(scene.paths, files, project=str(project))
    assert names == ["src/a.py", "/profile/notes.md", "/profile/b.txt", "/profile/c.txt"]
    assert sorted(path.name for path in project.iterdir()) == ["new\nline", "src"]
    assert attachments.attach(scene.paths, files[:2], project=str(project)) == names[:2]
    with pytest.raises(UsageError):
        attachments.attach(scene.paths, [str(project / "none")], project=str(project))
