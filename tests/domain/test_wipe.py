"""Wiping in the domain: all of it or nothing, whatever happens in between, and nothing else.

`make soak` tries every call; otherwise a sample is tried, the same every time.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.domain import profiles, settings
from deepctl.domain.wipe import trash, wipe_plan
from deepctl.errors import DeepctlError, Interrupted, NewerFormat, Refused, StorageError, UsageError
from deepctl.files import rmtree, sealed_lines
from deepctl.layout import ProfilePaths, Root
from deepctl.locks import Lease, Lock
from tests.store.faults import FAULTS, Counter, count, in_child, kill, points, sample
from tests.store.scene import Scene
from tests.support.ordinary import as_ordinary

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 18
_ENVIRONMENT = {"DEEPCTL_CONFIG": "/nonexistent/config.toml"}

Seen = dict[str, str]


def _seen(directory: str | Path) -> Seen:
    """Everything below a directory: names, modes, contents, where links lead."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        mode = path.lstat().st_mode
        text = os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes().hex() if stat.S_ISREG(mode) else ""
        found[str(path.relative_to(directory))] = f"{mode:o} {text}"
    return found


def _without_cache(seen: Seen) -> Seen:
    return {path: what for path, what in seen.items() if path.partition("/")[0] != "cache"}


def _story(place: Path) -> Root:
    """Alice with something in every part, and bob."""
    scene = Scene(place)
    with scene.turn("first"):
        scene.write("a.txt", "one\n")
        scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
        scene.write("plans/trip.md", "# trip\n")
        scene.write(".deep/todo.json", "[]")
        scene.write("large_tool_results/c1", "long\n")
    scene.agent("b.txt", "two\n")
    scene.rewind("~1")
    Path(scene.paths.prompt_history).write_text("+first\n")
    (Path(scene.paths.directory) / "stray").write_text("whatever")
    root = Root(str(place))
    bob = profiles.create(root, "bob")
    Path(bob.workspace, "his.txt").write_text("bob's")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return _story(tmp_path / "root")


def _put_away(root: Root, paths: ProfilePaths, planned: wipe_plan.WipePlan) -> wipe_plan.HiddenData:
    return wipe_plan.put_away(root, paths, planned, _ENVIRONMENT, settings.load(_ENVIRONMENT, paths))


def _wipe(root: Root, only: tuple[str, ...] = (), name: str = "alice") -> wipe_plan.WipePlan:
    """What the command does."""
    paths = profiles.find(root, name)
    with profiles.lock(root, name, command="wipe"):
        planned = wipe_plan.plan(root, paths, only)
        away = _put_away(root, paths, planned)
    wipe_plan.delete([away])
    return planned


def _next_command(root: Root, name: str = "bob") -> None:
    """Any command that takes the lock of any profile."""
    with profiles.lock(root, name, command="config set"):
        pass


def _hidden(root: Root) -> list[str]:
    return [entry for entry in os.listdir(root.profiles) if entry.startswith(".")]


def _rows(planned: wipe_plan.WipePlan) -> dict[str, int]:
    """The files of a plan, by their places."""
    return {os.path.relpath(part.path, planned.path): part.weight.files for part in planned.parts}


def test_a_plan_says_where_everything_is_and_counts_it_once(root: Root) -> None:
    paths = root.profile("alice")
    planned = wipe_plan.plan(root, paths, ())
    rows = _rows(planned)
    assert {place: rows[place] for place in rows if not place.startswith(("cache", "checkpoints", "sessions"))} == {
        "workspace/.deep/memory": 1,
        "workspace/plans": 1,
        "workspace/.deep/todo.json": 1,
        "workspace/large_tool_results": 1,
        "workspace": 1,
        "prompt_history": 1,
        "profile.toml": 1,
        "usage.jsonl": 1,
        "stray": 1,
    }
    files = [path for path in Path(paths.directory).rglob("*") if not path.is_dir()]
    assert planned.files == len(files)
    assert planned.bytes == sum(path.stat().st_size for path in files)
    assert planned.entries == len(list(Path(paths.directory).rglob("*")))
    assert {part.part for part in planned.parts} == {*wipe_plan.PARTS, "settings", "usage", "other"}


def test_a_plan_changes_nothing_and_is_the_same_again_until_something_changes(root: Root) -> None:
    paths = root.profile("alice")
    before = _seen(root.path)
    planned = wipe_plan.plan(root, paths, ())
    assert _seen(root.path) == before
    assert wipe_plan.plan(root, paths, ()) == planned
    Path(paths.workspace, "a.txt").write_text("ONE\n")
    os.utime(Path(paths.workspace, "a.txt"), (0, 0))
    assert wipe_plan.plan(root, paths, ()) != planned, "the same number of bytes, and an older time"


def test_everything_of_a_profile_goes_and_nothing_else(root: Root) -> None:
    bob = _seen(root.profile("bob").directory)
    planned = _wipe(root)
    assert os.listdir(root.profiles) == ["bob"]
    assert planned.is_nothing is False
    assert _seen(root.profile("bob").directory) == bob


@pytest.mark.parametrize(
    "only", [*((part,) for part in wipe_plan.PARTS), ("memory", "history"), tuple(wipe_plan.PARTS)]
)
def test_parts_go_and_the_rest_stays_as_it_is(root: Root, only: tuple[str, ...]) -> None:
    alice = root.profile("alice").directory
    before = _seen(alice)
    parts = wipe_plan.parse_parts(only)
    gone = [place for part in parts for place in wipe_plan.PARTS[part]]
    _wipe(root, parts)
    after = _seen(alice)
    stays = {path: text for path, text in before.items() if not any(f"{path}/".startswith(f"{one}/") for one in gone)}
    assert after.items() >= stays.items()
    anew = {path: text for path, text in after.items() if path not in stays}
    assert anew.keys() <= {"sessions", "checkpoints", "workspace", "prompt_history"}
    assert set(anew.values()) <= {"40700 ", "100600 "}
    assert _hidden(root) == []
    assert wipe_plan.plan(root, root.profile("alice"), parts).is_nothing


def test_what_goes_along_with_a_part_is_chosen_with_it() -> None:
    assert wipe_plan.parse_parts(["history,memory", "history"]) == ("memory", "history")
    assert wipe_plan.parse_parts(["sessions"]) == ("checkpoints", "sessions")
    assert wipe_plan.parse_parts(["workspace"]) == ("memory", "plans", "evicted", "workspace")
    for wrong in ("", "memory,", "Memory", "all"):
        with pytest.raises(UsageError) as raised:
            wipe_plan.parse_parts([wrong])
        assert "memory, plans, evicted" in str(raised.value.hint)


_WIPES: dict[str, tuple[str, ...]] = {
    "everything": (),
    "sessions": wipe_plan.parse_parts(["sessions"]),
    "all parts": tuple(wipe_plan.PARTS),
    "memory": ("memory",),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", _WIPES)
def test_after_any_fault_it_is_as_before_or_the_next_command_finishes_it(name: str, tmp_path: Path) -> None:
    only = _WIPES[name]
    _story(tmp_path / "story")

    def copy() -> Root:
        place = tmp_path / "try"
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(tmp_path / "story", place, symlinks=True)
        return Root(str(place))

    root = copy()
    before, bob = _seen(root.profile("alice").directory), _seen(root.profile("bob").directory)
    every = points(lambda: _wipe(root, only))
    after = _seen(root.profile("alice").directory)
    seen = []
    for at, call, fault in every if _SOAK else sample(every, name, _SAMPLE):
        root = copy()
        said = in_child(lambda: _wipe(root, only), at, FAULTS[fault])  # noqa: B023 (called here and now)
        where = f"{fault} at call {at}, {call}: {said}"
        assert "\n" not in said, where
        assert (said == "killed") == (fault == "SIGKILL"), where
        alice = _seen(root.profile("alice").directory)
        if not only:
            assert alice in (before, {}), where
        _next_command(root)
        assert _hidden(root) == [], where
        found = _seen(root.profile("alice").directory)
        # What is in the cache, and the reserve, may give way on a full disk.
        compared = _without_cache if fault == "ENOSPC" else Seen
        assert compared(found) in (compared(before), compared(after)), where
        if said == "done":
            assert compared(found) == compared(after), where
        assert _seen(root.profile("bob").directory) == bob, where
        seen.append(found)
    assert before in seen
    assert after in seen


def _interrupted(root: Root, only: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wipe that is killed when everything is out of sight and nothing has been deleted."""
    with monkeypatch.context() as patched:
        patched.setattr(rmtree, "remove_tree", _interrupt)
        with pytest.raises(Interrupted, match="removed from the profile"):
            _wipe(root, only)


def _interrupt(path: str, report: object = None) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("only", [(), ("memory",)])
def test_what_was_interrupted_is_known_and_finished_by_the_next(
    root: Root, only: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trash.unfinished_wipes(root) == []
    _interrupted(root, only, monkeypatch)
    (left,) = trash.unfinished_wipes(root)
    assert (left.profile, left.is_partial) == ("alice", bool(only))
    assert os.path.isdir(left.path)
    assert profiles.all_names(root) == (["alice", "bob"] if only else ["bob"])
    _next_command(root)
    assert trash.unfinished_wipes(root) == []
    assert _hidden(root) == []


def test_a_wiped_name_can_be_used_at_once_while_the_old_directory_is_still_being_deleted(root: Root) -> None:
    paths = profiles.find(root, "alice")
    with profiles.lock(root, "alice", command="wipe"):
        away = _put_away(root, paths, wipe_plan.plan(root, paths, ()))
    with profiles.lock(root, "alice", command="profiles create"):
        profiles.create(root, "alice")
    Path(paths.workspace, "new.txt").write_text("new")
    assert len(_hidden(root)) == 1, "whoever wipes is at work on it, and nobody else"
    assert trash.unfinished_wipes(root) == []
    wipe_plan.delete([away])
    assert _hidden(root) == []
    assert os.listdir(paths.workspace) == ["new.txt"]


def test_what_is_made_after_parts_have_gone_is_not_taken_by_whoever_finishes(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(root, ("memory", "history"), monkeypatch)
    memory = Path(root.profile("alice").workspace, ".deep/memory/main/MEMORY.md")
    memory.parent.mkdir(parents=True)
    memory.write_text("- new\n")
    Path(root.profile("alice").prompt_history).write_text("+new\n")
    _next_command(root, "alice")
    assert memory.read_text() == "- new\n"
    assert Path(root.profile("alice").prompt_history).read_text() == "+new\n"
    assert _hidden(root) == []


@pytest.mark.timeout(3600)
def test_whoever_finishes_a_wipe_may_be_killed_too(tmp_path: Path) -> None:
    _killed_between_moves(_story(tmp_path / "story"), tuple(wipe_plan.PARTS))

    def copy() -> Root:
        if (tmp_path / "try").exists():
            shutil.rmtree(tmp_path / "try")
        shutil.copytree(tmp_path / "story", tmp_path / "try", symlinks=True)
        root = Root(str(tmp_path / "try"))
        (left,) = trash.leftovers(root)
        # The plan knows the profile by its inode, and this one is a copy.
        plan = sealed_lines.unseal(Path(left.path, "plan").read_bytes().rstrip())
        status = os.stat(root.profile("alice").directory)
        plan["identity"] = [status.st_dev, status.st_ino]
        Path(left.path, "plan").write_bytes(sealed_lines.seal({key: plan[key] for key in plan if key != "crc"}))
        return root

    root = copy()
    calls = count(lambda: _next_command(root))
    after = _seen(root.profile("alice").directory)
    assert sorted(after) == [
        "checkpoints",
        "profile.toml",
        "prompt_history",
        "sessions",
        "stray",
        "usage.jsonl",
        "workspace",
    ]
    for at in range(1, calls + 1) if _SOAK else random.Random("finish").sample(range(1, calls + 1), 10):
        root = copy()
        assert in_child(lambda: _next_command(root), at, kill) == "killed"  # noqa: B023 (called here and now)
        _next_command(root, "alice")
        assert _hidden(root) == [], at
        assert _seen(root.profile("alice").directory) == after, at


def _killed_between_moves(root: Root, only: tuple[str, ...]) -> None:
    """A wipe of parts that is killed right before its second part goes."""
    seen = 0
    real = rmtree.move_entry

    def wipe() -> None:
        def move(*arguments: int | str) -> None:
            nonlocal seen
            seen += 1
            if seen == 2:
                kill()
            real(*arguments)  # type: ignore[arg-type]

        rmtree.move_entry = move  # type: ignore[assignment]
        _wipe(root, only)

    assert in_child(wipe, 0, kill) == "killed"


def test_parts_of_a_profile_whose_lock_is_held_are_left_to_the_holder(root: Root) -> None:
    _killed_between_moves(root, ("memory", "history"))
    alice = root.profile("alice")
    assert not Path(alice.workspace, ".deep/memory").exists()
    assert Path(alice.prompt_history).read_text()
    with Lock(alice.lock, profile="alice", command="chat"):
        _next_command(root)
        assert Path(alice.prompt_history).read_text(), "somebody is at work there"
        assert len(trash.unfinished_wipes(root)) == 1
    _next_command(root)
    assert Path(alice.prompt_history).read_bytes() == b""
    assert _hidden(root) == []


def test_an_interrupted_wipe_of_parts_does_not_touch_another_profile_of_the_same_name(root: Root) -> None:
    _killed_between_moves(root, ("memory", "history"))
    alice = root.profile("alice")
    os.rename(alice.directory, f"{root.path}/elsewhere")
    shutil.copytree(f"{root.path}/elsewhere", alice.directory)
    before = _seen(alice.directory)
    _next_command(root, "alice")
    assert _seen(alice.directory) == before
    assert _hidden(root) == []


def test_what_a_later_deepctl_left_is_left_alone(root: Root) -> None:
    left = Path(root.profiles, ".wipe-parts-0123abcd-alice")
    left.mkdir()
    (left / "plan").write_bytes(sealed_lines.seal({"v": trash.FORMAT + 1, "something": "else"}))
    _next_command(root, "alice")
    assert left.exists()
    assert [one.path for one in trash.unfinished_wipes(root)] == [str(left)]


@pytest.mark.parametrize("name", [".wipe-me", ".wipe-0123abcd-", ".wipe-0123abcd-..", "wipe-0123abcd-alice", ".wipe"])
def test_what_only_looks_like_a_wipe_is_left_alone(root: Root, name: str) -> None:
    (Path(root.profiles) / name).mkdir()
    _next_command(root)
    assert (Path(root.profiles) / name).is_dir()


def test_a_link_in_the_place_of_what_was_wiped_goes_and_not_its_target(root: Root, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    Path(root.profiles, ".wipe-0123abcd-alice").symlink_to(tmp_path / "kept")
    Path(root.profiles, ".wipe-parts-0123abcd-alice").symlink_to(tmp_path / "kept")
    _next_command(root)
    assert _hidden(root) == []
    assert (tmp_path / "kept" / "file").read_text() == "kept"


def test_the_lock_costs_one_listing_more_where_nothing_was_interrupted(root: Root) -> None:
    def with_lock(made: Callable[[], Lease]) -> int:
        counter = Counter()
        lock = made()
        with counter.installed(), lock:
            pass
        return counter.seen

    plain = with_lock(lambda: Lock(root.profile("alice").lock, profile="alice", command="x"))
    assert with_lock(lambda: profiles.lock(root, "alice", command="x")) <= plain + 1


def test_what_cannot_be_deleted_is_named_the_rest_goes_and_no_command_is_kept_from_working(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def unlink(path: str, **options: int) -> None:
        if path == "a.txt":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        real(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        with pytest.raises(StorageError, match=r"not permitted \(.*/workspace/a.txt\)") as raised:
            _wipe(root)
        assert "deepctl doctor" in str(raised.value.hint)
        assert profiles.all_names(root) == ["bob"]
        _next_command(root)
        (left,) = trash.unfinished_wipes(root)
        names = sorted(name for _, _, files in os.walk(left.path) for name in files)
        assert names == ["a.txt"]
        profiles.create(root, "alice")
    _next_command(root)
    assert trash.unfinished_wipes(root) == []


def test_a_link_in_the_way_to_a_part_is_refused_and_nothing_goes(root: Root, tmp_path: Path) -> None:
    workspace = Path(root.profile("alice").workspace)
    os.rename(workspace / ".deep", tmp_path / "outside")
    (workspace / ".deep").symlink_to(tmp_path / "outside")
    before, outside = _seen(root.profile("alice").directory), _seen(tmp_path / "outside")
    with pytest.raises(Refused, match="symbolic link"):
        _wipe(root, ("memory",))
    assert _seen(root.profile("alice").directory) == before
    _wipe(root, wipe_plan.parse_parts(["workspace"]))
    assert list(workspace.iterdir()) == []
    assert _seen(tmp_path / "outside") == outside


def test_a_link_that_is_put_in_the_way_after_the_plan_is_refused_and_nothing_goes(root: Root, tmp_path: Path) -> None:
    paths = root.profile("alice")
    planned = wipe_plan.plan(root, paths, ("history", "memory"))
    os.rename(Path(paths.workspace, ".deep"), tmp_path / "outside")
    Path(paths.workspace, ".deep").symlink_to(tmp_path / "outside")
    before, outside = _seen(paths.directory), _seen(tmp_path / "outside")
    with profiles.lock(root, "alice", command="wipe"), pytest.raises(Refused, match="symbolic link"):
        _put_away(root, paths, planned)
    assert _seen(paths.directory) == before
    assert _seen(tmp_path / "outside") == outside
    assert _hidden(root) == []


def test_a_part_that_is_a_link_goes_itself(root: Root, tmp_path: Path) -> None:
    workspace = Path(root.profile("alice").workspace)
    os.rename(workspace / "plans", tmp_path / "outside")
    (workspace / "plans").symlink_to(tmp_path / "outside")
    _wipe(root, ("plans",))
    assert not os.path.lexists(workspace / "plans")
    assert (tmp_path / "outside" / "trip.md").exists()


def test_whatever_lies_in_a_workspace_goes_and_nothing_it_leads_to(root: Root, tmp_path: Path) -> None:
    workspace = Path(root.profile("alice").workspace)
    outside = tmp_path / "outside"
    (outside / "directory").mkdir(parents=True)
    (outside / "file").write_text("kept")
    (outside / "directory" / "inner").write_text("kept")
    for number, target in enumerate(["/", str(outside), str(outside / "file"), "..", "../../../..", "loop"]):
        (workspace / f"link{number}").symlink_to(target)
    (workspace / "loop").symlink_to("loop")
    os.link(outside / "file", workspace / "hard")
    os.mkfifo(workspace / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{os.open(workspace, os.O_RDONLY)}/socket")
    (workspace / "new\nline\x1b[2J").mkdir()
    (workspace / os.fsdecode(b"\xff")).write_text("x")
    (workspace / "closed").mkdir(mode=0)
    before, bob = _seen(outside), _seen(root.profile("bob").directory)
    planned = _wipe(root)
    assert planned.files > 10
    assert os.listdir(root.profiles) == ["bob"]
    assert _seen(outside) == before
    assert _seen(root.profile("bob").directory) == bob


def test_a_profile_that_is_a_link_is_refused(root: Root, tmp_path: Path) -> None:
    Path(root.profiles, "carol").symlink_to(tmp_path)
    with pytest.raises(Refused, match="symbolic link"):
        _wipe(root, (), "carol")


def test_where_something_is_mounted_nothing_goes(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = root.profile("alice")
    real = Path(os.path.realpath(paths.workspace))
    found: list[str] = []

    def mounts(directory: str) -> list[str]:
        at = str(real / "mounted")
        found.append(directory)
        return [at] if at.startswith(os.path.realpath(directory)) else []

    monkeypatch.setattr(wipe_plan, "mounts", mounts)
    before = _seen(root.path)
    for only in ((), wipe_plan.parse_parts(["workspace"])):
        with pytest.raises(Refused, match="mounted at"):
            wipe_plan.plan(root, paths, only)
    wipe_plan.plan(root, paths, ("memory", "history"))
    assert _seen(root.path) == before


def test_what_is_mounted_below_a_directory_is_known() -> None:
    from deepctl.domain.wipe.wipe_plan import mounts

    assert "/proc" in mounts("/")
    assert mounts("/proc")[0] == "/proc"
    assert mounts("/usr/nowhere") == []


def test_no_modes_in_a_workspace_keep_an_ordinary_user_from_wiping(tmp_path: Path) -> None:
    def wipe() -> None:
        for only in ((), wipe_plan.parse_parts(["workspace"]), ("memory",), ("plans",)):
            root = _story(tmp_path / ("-".join(only) or "whole"))
            workspace = Path(root.profile("alice").workspace)
            for closed in (".deep/memory/main", ".deep/memory", ".deep", "plans", ""):
                os.chmod(workspace / closed, 0 if closed != "plans" else 0o500)
            planned = wipe_plan.plan(root, root.profile("alice"), only)
            assert sum(part.weight.uncounted for part in planned.parts) > 0
            assert stat.S_IMODE(os.stat(workspace).st_mode) == 0, "a plan changes nothing"
            _wipe(root, only)
            assert _hidden(root) == []
            if only in (("memory",), ("plans",)):
                assert stat.S_IMODE(os.stat(workspace).st_mode) == 0, "what stays has its mode again"
                os.chmod(workspace, 0o700)
                os.chmod(workspace / ".deep", 0o700)
                assert (workspace / "a.txt").exists()
                assert not (workspace / (".deep/memory" if only == ("memory",) else "plans")).exists()

    as_ordinary(wipe)


def test_a_very_deep_directory_is_no_trouble(root: Root) -> None:
    descriptor = os.open(root.profile("alice").workspace, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("deep", dir_fd=descriptor)
        inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    planned = _wipe(root)
    assert sum(part.weight.uncounted for part in planned.parts) == 1
    assert os.listdir(root.profiles) == ["bob"]


def test_what_killed_commands_left_of_a_profile_goes_with_it(root: Root) -> None:
    for name in (".new-alice", ".new-alice-too", ".import-0123abcd", ".new-bob"):
        Path(root.profiles, name).mkdir()
        Path(root.profiles, name, "file").write_text("x")
    Path(root.profile("alice").directory, ".edit-0123abcd").mkdir()
    Path(root.profile("alice").directory, ".edit-0123abcd", "MEMORY.md").write_text("- tea\n")
    assert ".edit-0123abcd" in _rows(wipe_plan.plan(root, root.profile("alice"), ("memory",)))
    planned = _wipe(root)
    assert planned.files > 3
    assert list(_hidden(root)) == [], "what was being made of others, too, as with any command"


def test_an_import_that_is_going_on_is_left_alone(root: Root) -> None:
    import fcntl

    going_on = Path(root.profiles, ".import-0123abcd")
    going_on.mkdir()
    descriptor = os.open(going_on, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _wipe(root)
    os.close(descriptor)
    assert going_on.exists()


def test_copies_that_stay_in_checkpoints_are_counted(root: Root) -> None:
    paths = root.profile("alice")
    scene = Scene(Path(root.path))

    def copies(*only: str) -> tuple[int, ...] | None:
        found = wipe_plan.copies(paths, wipe_plan.plan(root, paths, wipe_plan.parse_parts(only)))
        return found and tuple(found)

    records = len(scene.records())
    assert copies("memory") == (records - 1, 1, 1), "all but the first, before anything was noted"
    assert copies("workspace") == (records - 1, 1, 1)
    assert copies("memory", "checkpoints") == (0, 0, 1)
    assert copies("memory", "sessions") is None
    assert copies("history") is None
    scene.agent("c.txt", "x", "second")
    assert copies("evicted") == (len(scene.records()) - 1, 2, 2)


def test_a_wiped_memory_can_be_brought_back_from_a_checkpoint(root: Root) -> None:
    scene = Scene(Path(root.path))
    before = scene.last().id
    _wipe(root, ("memory",))
    assert ".deep/memory/main/MEMORY.md" not in scene.files()
    scene.rewind(before, exact=True)
    assert scene.files()[".deep/memory/main/MEMORY.md"] == "- tea\n"


@pytest.mark.parametrize("part", ["sessions", "checkpoints", "workspace"])
def test_work_goes_on_after_parts_are_gone(root: Root, part: str) -> None:
    _wipe(root, wipe_plan.parse_parts([part]))
    scene = Scene(Path(root.path))
    assert scene.prompts() == ([] if part == "sessions" else ["first"])
    scene.agent("later.txt", "one")
    scene.agent("later.txt", "two")
    scene.rewind("~1")
    assert scene.files()["later.txt"] == "one"
    scene.undo()
    assert scene.files()["later.txt"] == "two"
    from deepctl.store import verify

    verified = verify.verify(scene.paths)
    assert (verified.problems, verified.notes) == ([], [])


def test_a_profile_that_is_damaged_or_of_a_later_deepctl_can_be_wiped_whole(root: Root) -> None:
    paths = root.profile("alice")
    Path(paths.settings).write_text("version = 99\n[[[")
    Path(paths.checkpoints, "ledger.jsonl").write_bytes(sealed_lines.seal({"v": 99, "x": 1}))
    with pytest.raises(NewerFormat):
        wipe_plan.is_rewinding(paths, ("memory",))
    assert not wipe_plan.is_rewinding(paths, ())
    assert not wipe_plan.is_rewinding(paths, ("history",))
    _wipe(root)
    assert os.listdir(root.profiles) == ["bob"]


def test_parts_that_cannot_all_go_all_stay(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _seen(root.profile("alice").directory)
    real = rmtree.move_entry

    def move(parent: int, name: str, to: int, new_name: str) -> None:
        if name == "sessions":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        real(parent, name, to, new_name)

    monkeypatch.setattr(rmtree, "move_entry", move)
    with pytest.raises(OSError, match="busy"):
        _wipe(root, tuple(wipe_plan.PARTS))
    assert _seen(root.profile("alice").directory) == before
    assert _hidden(root) == []


def test_the_container_goes_first_and_if_it_cannot_nothing_does(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepctl.domain import sandbox_settings

    asked: list[bool] = []

    def gone(environment: object, in_force: object, profile: ProfilePaths) -> str:
        asked.append(os.path.isdir(profile.workspace))
        return "deepctl-0123"

    def refused(environment: object, in_force: object, profile: ProfilePaths) -> str:
        raise Refused("Docker cannot be asked.")

    paths = root.profile("alice")
    before = _seen(paths.directory)
    monkeypatch.setattr(sandbox_settings, "remove_container_if_any", refused)
    for only in ((), wipe_plan.parse_parts(["workspace"])):
        with pytest.raises(DeepctlError, match="Docker"):
            _wipe(root, only)
    assert _seen(paths.directory) == before
    _wipe(root, ("memory",))
    monkeypatch.setattr(sandbox_settings, "remove_container_if_any", gone)
    assert _put_away(root, paths, wipe_plan.plan(root, paths, ())).container == "deepctl-0123"
    assert asked == [True]
