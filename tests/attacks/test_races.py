"""An agent's job that swaps names while deepctl works in the same workspace: nothing it leads to is read or changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai_harness.memory import FileStore, MemoryConflictError
from pydantic_ai_harness.planning import PlanItem

from deepctl import LocalBackend, layout
from deepctl.agent import factory
from deepctl.agent.backend import files_of
from deepctl.domain.memory.directory import Memory
from deepctl.errors import DeepctlError
from deepctl.files import gitignore
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.store import restore, trees, workspaces
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.index_db import Cache
from deepctl.store.pack_store import PackStore
from deepctl.store.records import Position
from deepctl.store.trees import LINK, ScratchWriter, TreeChange, TreeEntry, snapshot
from deepctl.store.workspaces import WorkspaceOptions
from tests.attacks.scene import Call, Scene
from tests.support.command import InProcess

SECONDS = 3.0 if os.environ.get("DEEPCTL_SOAK") == "1" else 1.0
"""How long a race lasts; longer where it has to be for as many calls as a test demands."""

_SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
exchange = getattr(libc, "renameat2", None)
pairs = [(os.fsencode(a), os.fsencode(b)) for a, b in zip(sys.argv[1::2], sys.argv[2::2])]

def swap(one, other):
    # Without following what this process itself swaps: it stays in the workspace, as an agent in a sandbox does.
    *above, one = one.split(b"/")
    parent = os.open(b".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in above:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
            parent = inner
        other = os.path.basename(other)
        if exchange is not None:
            return exchange(parent, one, parent, other, 2) == 0
        for old, new in ((one, b".swapping"), (other, one), (b".swapping", other)):
            os.rename(old, new, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        return False
    finally:
        os.close(parent)
    return True

print("ready", flush=True)
os.set_blocking(0, False)
count = 0
while True:
    for one, other in pairs:
        count += swap(one, other)
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
print(count)
"""


@contextlib.contextmanager
def swapping(root: Path, *pairs: tuple[str, str], least: int = 100) -> Iterator[None]:
    """While entered, a process exchanges the two names of each pair as fast as it can."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SWAPPER, *(name for pair in pairs for name in pair)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
        process.stdin.close()
        count = int(process.stdout.readline())
        assert count > least, "there was no race"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    bob = Path(made.bob.workspace)
    for name in ("x", "sub/x", f"name-{made.canary}", "MEMORY.md", "main/MEMORY.md", "memory/main/MEMORY.md"):
        (bob / name).parent.mkdir(parents=True, exist_ok=True)
        (bob / name).write_text(f"{made.canary}\n")
    (bob / "todo.json").write_text(f'{{"version": 1, "items": [{{"id": "1", "content": "{made.canary}"}}]}}')
    (bob / "pointer").symlink_to(made.canary)
    yield made
    made.close()


@pytest.fixture
def workspace(scene: Scene) -> Iterator[Path]:
    """Alice's, with names to swap; afterwards everything outside is as it was."""
    shutil.rmtree(scene.workspace)
    scene.workspace.mkdir(mode=0o700)
    _populate(scene)
    before = scene.outside()
    yield scene.workspace
    assert scene.outside() == before
    scene.empty_workspace()


PAIRS = (("d", "to-d"), ("f", "to-f"), ("a/mid", "a/to-mid"), ("q", "fifo-q"), ("g", "fifo-g"), ("h", "dir-h"))
PATHS = ("d", "d/x", "d/sub/x", "f", "a/mid/x", "a/mid/sub/x", "q", "q/x", "g", "h", "to-d/x", "to-f", "d/new/deep")


def _populate(scene: Scene) -> None:
    root = scene.workspace
    for name in ("d/x", "d/sub/x", "d/pointer", "f", "a/mid/x", "a/mid/sub/x", "q/x", "g", "h", "dir-h/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("public\n")
    (root / "to-d").symlink_to(scene.bob.workspace)
    (root / "to-f").symlink_to(Path(scene.bob.workspace) / "x")
    (root / "a/to-mid").symlink_to("../../../bob/workspace")
    os.mkfifo(root / "fifo-q")
    os.mkfifo(root / "fifo-g")


def _for_a_while(attempts: Iterable[Callable[[], Any]], least: int) -> str:
    """What all of these returned and raised, called again and again; only `OSError`s and refusals are expected."""
    seen: set[str] = set()
    attempts, count, end = list(attempts), 0, time.monotonic() + SECONDS
    while time.monotonic() < end or count < least:
        for attempt in attempts:
            began = time.monotonic()
            try:
                seen.add(repr(attempt()))
            except (OSError, DeepctlError, ToolFailed) as error:
                seen.add(f"{type(error).__name__}: {error}")
            assert time.monotonic() - began < 10, "a call hung"
            count += 1
    return "\n".join(sorted(seen))


@pytest.mark.parametrize("follow", [True, False])
def test_files_are_read_and_written_inside_only(scene: Scene, workspace: Path, follow: bool) -> None:
    tree = DirectoryTree(str(workspace), follow=follow)

    def listed(path: str) -> list[str]:
        with tree.opened(path) as (descriptor, is_directory):
            place = f"/proc/self/fd/{descriptor}"
            return os.listdir(place) if is_directory else [Path(place).read_text()]

    def names(path: str) -> list[str]:
        # Without sizes and times, which make every answer another one.
        return [entry.name for entry in tree.entries(path)]

    calls: list[Callable[[], Any]] = []
    for path in PATHS:
        for call in (tree.read, tree.real_path, names, listed, tree.make_directory):
            calls.append(lambda call=call, path=path: call(path))  # type: ignore[misc]
        calls.append(lambda path=path: tree.write(path, b"public\n"))  # type: ignore[misc]
        calls.append(lambda path=path: tree.entry(path).is_directory)  # type: ignore[misc]
    with swapping(workspace, *PAIRS):
        seen = _for_a_while(calls, 400)
    assert "Outside" in seen
    assert scene.canary not in seen


def test_removing_removes_inside_only(scene: Scene, workspace: Path) -> None:
    tree = DirectoryTree(str(workspace), follow=True)
    new = workspace / "new"
    rounds, end = 0, time.monotonic() + SECONDS
    with swapping(workspace, ("r", "to-r"), ("r/sub", "r/to-sub"), least=20):
        while time.monotonic() < end or rounds <= 10:
            rounds += 1
            for name in ("sub/sub", "other"):
                (new / name).mkdir(parents=True)
                for number in range(8):
                    (new / name / f"x{number}").write_text("public")
                (new / name / "x").write_text("public")
            (new / "to-sub").symlink_to(scene.bob.workspace)
            (workspace / "to-r").symlink_to(scene.bob.workspace)
            new.rename(workspace / "r")
            for path in ("r/sub/x", "r/sub/sub", "r/sub", "r", "to-r"):
                with contextlib.suppress(OSError):
                    tree.remove(path)
            _clear(workspace, "r", "to-r")


def _clear(workspace: Path, *names: str) -> None:
    """Take names away that are being swapped."""
    while any(os.path.lexists(workspace / name) for name in names):
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(workspace / name)
            shutil.rmtree(workspace / name, ignore_errors=True)


def _run_for_a_while(scene: Scene, calls: list[Call], *, least: int) -> str:
    """What a model gets back that makes these calls again and again."""
    backend = LocalBackend(scene.workspace)
    seen: set[str] = set()
    count, end = 0, time.monotonic() + SECONDS
    try:
        while time.monotonic() < end or count < least:
            found = scene.run(backend, calls)
            seen |= {*found.results, found.instructions}
            count += len(found.results)
    finally:
        backend.close()
    return "\n".join(sorted(seen))


_AS_TOOLS: list[Call] = [
    call
    for path in ("d/x", "d/sub/x", "f", "a/mid/x", "g", "h", "to-f")
    for call in (
        ("read_file", {"path": path}),
        ("write_file", {"path": path, "content": "public\n"}),
        ("edit_file", {"path": path, "old_string": "public", "new_string": "public"}),
        ("edit_file", {"path": path, "old_string": "canary", "new_string": "public"}),
    )
] + [("ls", {"path": path}) for path in ("d", "a/mid", "q", "to-d", "h", ".")]


def test_the_file_tools_stay_inside(scene: Scene, workspace: Path) -> None:
    with swapping(workspace, *PAIRS):
        assert scene.canary not in _run_for_a_while(scene, _AS_TOOLS, least=30)


_SEARCHED = ("d", "a/mid", "a", "q", "to-d", ".", "h", "f")


def test_globs_stay_inside(scene: Scene, workspace: Path) -> None:
    calls: list[Call] = [("glob", {"pattern": "**/*", "path": path}) for path in _SEARCHED]
    with swapping(workspace, *PAIRS):
        assert scene.canary not in _run_for_a_while(scene, calls * 2, least=8)


def _grep(path: str) -> Call:
    return "grep", {"pattern": "canary", "path": path, "output_mode": "content"}


def test_searches_of_a_directory_stay_inside(scene: Scene, workspace: Path) -> None:
    """Where the place that is searched stays, whatever becomes of what is in it."""
    with swapping(workspace, *PAIRS):
        assert scene.canary not in _run_for_a_while(scene, [_grep("."), _grep("a")] * 8, least=8)


def test_a_search_of_one_file_stays_inside(scene: Scene, workspace: Path) -> None:
    with swapping(workspace, ("f", "to-f")):
        assert scene.canary not in _run_for_a_while(scene, [_grep("f"), _grep("to-f")] * 8, least=8)


def test_a_search_of_a_file_that_became_a_link_stays_inside(
    scene: Scene, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same race with the dice loaded."""
    backend = LocalBackend(workspace)
    real = DirectoryTree.opened

    @contextlib.contextmanager
    def opened(tree: DirectoryTree, path: str) -> Iterator[tuple[int, bool]]:
        with real(tree, path) as found:
            (workspace / "f").unlink()
            (workspace / "f").symlink_to(Path(scene.bob.workspace) / "x")
            yield found

    monkeypatch.setattr(DirectoryTree, "opened", opened)
    assert scene.canary not in str(scene.run(backend, [_grep("f")]).results)


_OWN = (
    (layout.MEMORY_DIRECTORY, ".deep/to-memory"),
    (".deep/memory/main", ".deep/memory/to-main"),
    (".deep/memory/main/MEMORY.md", ".deep/memory/main/to-bob.md"),
    (layout.TODO_FILE, ".deep/to-todo"),
    (".deep", "to-deep"),
    (layout.PLANS_DIRECTORY, "to-plans"),
    (layout.EVICTED_DIRECTORY, "to-large"),
)


def _populate_own(scene: Scene) -> None:
    root, bob = scene.workspace, Path(scene.bob.workspace)
    (root / ".deep/memory/main").mkdir(parents=True)
    (root / ".deep/memory/main/MEMORY.md").write_text("- public\n")
    (root / ".deep/todo.json").write_text('{"version": 1, "items": [{"id": "1", "content": "public"}]}')
    (root / "plans").mkdir()
    (root / "large_tool_results").mkdir()
    (root / "AGENTS.md").write_text("public\n")
    for name, target in (
        (".deep/to-memory", bob / "memory"),
        (".deep/memory/to-main", bob / "main"),
        (".deep/memory/main/to-bob.md", bob / "x"),
        (".deep/to-todo", bob / "todo.json"),
        ("to-deep", bob),
        ("to-plans", bob),
        ("to-large", bob),
        ("to-agents", bob / "x"),
    ):
        (root / name).symlink_to(target)


def test_memory_is_read_inside_only(scene: Scene, workspace: Path) -> None:
    _populate_own(scene)
    memory = Memory(scene.alice)
    with swapping(workspace, *_OWN):
        seen = _for_a_while(
            [lambda: memory.read("MEMORY.md").content, lambda: [note.name for note in memory.notebooks()]], 100
        )
    assert "public" in seen
    assert scene.canary not in seen


def test_the_harness_stores_stay_inside(scene: Scene, workspace: Path) -> None:
    _populate_own(scene)
    backend = LocalBackend(workspace)
    todos = factory.TodoStore(files_of(backend))
    evicted = factory.EvictedResults()
    memory = FileStore(layout.MEMORY_DIRECTORY, workspace=files_of(backend))

    def ran(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: asyncio.run(call())

    def kept(call: Callable[[], Any]) -> Callable[[], Any]:
        def attempt() -> Any:
            try:
                return asyncio.run(call())
            except (ValueError, MemoryConflictError) as error:  # the memory store's refusals
                return f"{type(error).__name__}: {error}"

        return attempt

    async def evict() -> Any:
        handle = await evicted.write(backend, "run/call.0", b"public")
        shutil.rmtree(workspace / handle, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(workspace / "large_tool_results" / "call")
        return handle[:10]

    with swapping(workspace, *_OWN):
        seen = _for_a_while(
            [
                ran(todos.get_items),
                ran(lambda: todos.set_items([PlanItem(content="public")])),
                ran(evict),
                ran(lambda: evicted.read(backend, "large_tool_results/x")),
                ran(lambda: evicted.read(backend, "large_tool_results/todo.json")),
                kept(lambda: memory.read("main/MEMORY.md", max_chars=1000)),
                kept(lambda: memory.list_paths("main/", limit=20)),
                kept(lambda: memory.write("main/other.md", "public", expected_version=None)),
                kept(lambda: memory.delete("main/other.md", expected_version=None)),
                kept(lambda: memory.search("main/", "canary", limit=9, max_files=9, max_chars=999, max_file_chars=999)),
            ],
            40,
        )
    assert scene.canary not in seen


def test_the_agents_own_tools_stay_inside(scene: Scene, workspace: Path) -> None:
    _populate_own(scene)
    calls: list[Call] = [
        ("write_memory", {"content": "- public"}),
        ("read_memory", {}),
        ("search_memory", {"query": "canary"}),
        ("save_plan", {"title": "p", "content": "public"}),
        ("write_plan", {"items": [{"content": "public", "status": "pending"}]}),
    ]
    with swapping(workspace, *_OWN):
        assert scene.canary not in _run_for_a_while(scene, calls * 3, least=8)


def test_a_context_file_that_is_swapped_does_not_end_the_run(scene: Scene, workspace: Path) -> None:
    _populate_own(scene)
    with swapping(workspace, ("AGENTS.md", "to-agents")):
        assert scene.canary not in _run_for_a_while(scene, [("ls", {"path": "."})], least=2)


def _everything_in(store: Checkpoints) -> bytes:
    objects = store.packs
    found = b"".join(objects.read(entry.digest) for name in objects.names() for entry in objects.table(name))
    assert found
    return found


_NOWHERE = Position("s", 1, "", 0, 0, "")


def test_checkpoints_keep_what_is_inside_only(scene: Scene, workspace: Path, tmp_path: Path) -> None:
    made = 0
    with Checkpoints(str(tmp_path / "store")) as store:
        with swapping(workspace, *PAIRS[:3]):

            def save() -> None:
                nonlocal made
                store.save(_NOWHERE, "manual", author="", workspace=WorkspaceOptions(str(workspace)))
                made += 1

            seen = _for_a_while([save], 5)
        assert made >= 5
        kept = _everything_in(store)
    assert b"public" in kept
    assert scene.canary.encode() not in kept
    assert scene.canary not in seen


def test_a_restore_changes_what_is_inside_only(scene: Scene, workspace: Path, tmp_path: Path) -> None:
    """Made and deleted again and again, while what it walks through is swapped; and finished after all."""
    _clear(workspace, *PAIRS[3], *PAIRS[4], *PAIRS[5])
    os.chmod(workspace / "d/sub", 0o500)
    with Checkpoints(str(tmp_path / "store")) as store:
        with store.new_batch() as batch:
            full = store.snapshot(WorkspaceOptions(str(workspace)), batch).tree
            os.chmod(workspace / "d/sub", 0o700)
            _clear(workspace, "d", "f", "a")
            empty = store.snapshot(WorkspaceOptions(str(workspace)), batch).tree
        make = list(trees.changes(store.objects, empty, full))
        take = [TreeChange(change.path, change.after, change.before) for change in make]
        (workspace / "a").mkdir()
        (workspace / "a/to-mid").symlink_to(scene.bob.workspace)
        with swapping(workspace, *PAIRS[:3], least=20):
            seen = _for_a_while(
                [
                    lambda: restore.working_tree(str(workspace), store.objects).apply(make),
                    lambda: restore.working_tree(str(workspace), store.objects).apply(take),
                ],
                6,
            )
        assert scene.canary not in seen
        # In peace it comes to an end.
        _clear(workspace, "d", "to-d", "f", "to-f", "a")
        restore.working_tree(str(workspace), store.objects).apply(make)
        assert (workspace / "d/sub/x").read_text() == "public\n"


def test_commands_hold_while_names_are_swapped(deepctl: InProcess, home: Path, tmp_path: Path, scene: Scene) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(scene.bob.workspace, outside, symlinks=True)
    before = {path: path.read_bytes() if path.is_file() else b"" for path in outside.rglob("*")}
    deepctl("chat", "write d/x: public\nwrite d/sub/x: public\nwrite f: public\nremember public").ok()
    deepctl("checkpoints", "save", "start").ok()
    deepctl("chat", "write d/x: more\nwrite d/sub/x: more\nwrite d/new: more\nwrite f: more\nremember more").ok()
    workspace = home / "profiles/default/workspace"
    for name, target in (("to-d", outside), ("to-f", outside / "x"), (".deep/to-memory", outside / "memory")):
        (workspace / name).symlink_to(target)
    said, codes = "", set()
    end = time.monotonic() + 2 * SECONDS
    with swapping(workspace, ("d", "to-d"), ("f", "to-f"), (".deep/memory", ".deep/to-memory")):
        while time.monotonic() < end:
            for command in (
                ("checkpoints", "save"),
                ("checkpoints", "diff", "start"),
                ("checkpoints", "rewind", "start", "--dry-run"),
                ("checkpoints", "rewind", "start", "--force"),
                ("checkpoints", "undo", "--force"),
                ("checkpoints", "rewind", "start", "--exact", "--force"),
                ("memory", "show"),
                ("memory", "list"),
                ("profiles", "show"),
            ):
                done = deepctl(*command)
                said += done.stdout + done.stderr
                codes.add(done.code)
                assert "Traceback" not in done.stderr
    assert scene.canary not in said
    assert codes <= {0, 3, 6, 8}, said
    assert {path: path.read_bytes() if path.is_file() else b"" for path in outside.rglob("*")} == before
    deepctl("checkpoints", "verify").ok()
    deepctl("chat", "list").ok()
    with Checkpoints(str(home / "profiles/default/checkpoints"), collect=False) as store:
        assert scene.canary.encode() not in _everything_in(store)


# Between the look at a name and its opening, one step at a time


class _SwappedWhenAsked(trees.Excluded):
    """Rules that leave nothing out, but have `f` become something else once it has been looked at."""

    def __init__(self, workspace: Path, become: Callable[[Path], None]) -> None:
        super().__init__(gitignore.level(()))
        self._file, self._become = workspace / "f", become

    def left_out(self, files: Collection[bytes], directories: Collection[bytes]) -> set[bytes]:
        if b"f" in files and self._file.is_file():
            self._file.unlink()
            self._become(self._file)
        return set()


@pytest.fixture
def calm(tmp_path: Path) -> Path:
    made = tmp_path / "calm"
    made.mkdir()
    (made / "f").write_text("public")
    return made


def _look(calm: Path, tmp_path: Path, become: Callable[[Path], None]) -> Any:
    cache = Cache(":memory:")
    try:
        sink = ScratchWriter(PackStore(str(tmp_path / "packs"), cache))
        return snapshot(str(calm), sink, cache, leave_out=_SwappedWhenAsked(calm, become))
    finally:
        cache.close()


def test_a_file_that_became_a_link_is_not_followed(calm: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    taken = _look(calm, tmp_path, lambda path: path.symlink_to(tmp_path / "secret"))
    assert [one.path for one in taken.unkept] == [b"f"]


def test_a_file_that_became_a_fifo_is_not_kept_as_a_file(calm: Path, tmp_path: Path) -> None:
    taken = _look(calm, tmp_path, os.mkfifo)
    assert [one.path for one in taken.unkept] == [b"f"]


def test_a_file_that_became_a_fifo_with_a_writer_does_not_end_the_snapshot(calm: Path, tmp_path: Path) -> None:
    writers: list[int] = []

    def become(path: Path) -> None:
        os.mkfifo(path)
        writers.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    try:
        taken = _look(calm, tmp_path, become)
        assert [one.path for one in taken.unkept] == [b"f"]
    finally:
        for writer in writers:
            os.close(writer)


def test_a_file_that_became_a_directory_does_not_end_the_snapshot(calm: Path, tmp_path: Path) -> None:
    taken = _look(calm, tmp_path, os.mkdir)
    assert [one.path for one in taken.unkept] == [b"f"]


def test_a_comparison_does_not_read_a_link_through_another(calm: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "pointer").symlink_to("secret-target")
    (calm / "d").symlink_to(outside)  # a directory a moment ago
    cache = Cache(":memory:")
    try:
        read = workspaces.content(WorkspaceOptions(str(calm)), PackStore(str(tmp_path / "packs"), cache))
        with pytest.raises(OSError, match=r"Not a directory|symbolic link"):
            read(b"d/pointer", TreeEntry(LINK, 0, 6, bytes(32), b"pointer"))
    finally:
        cache.close()


def test_a_directory_named_like_a_temporary_file_does_not_keep_a_rewind_from_being_finished(calm: Path) -> None:
    (calm / ".deepctl-mark-0.tmp").mkdir()
    restore.working_tree(str(calm), PackStore(str(calm / "packs"), Cache(":memory:"))).sweep([b"f"], "mark")


def test_the_size_of_a_profile_is_that_of_its_own_files(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepctl.domain import profiles

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(bytes(1 << 20))
    (calm / "d").mkdir()
    real = os.scandir
    opened: list[Any] = []

    def scandir(path: Any) -> Any:
        opened.append(path)
        if len(opened) == 2:  # `d` has been found to be a directory
            (calm / "d").rmdir()
            (calm / "d").symlink_to(outside)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert sum(status.st_size for _, status in profiles._files(str(calm))) < 1 << 20


def test_a_search_of_one_file_still_heeds_the_pattern_of_names(scene: Scene, workspace: Path) -> None:
    (workspace / "a.py").write_text("public\n")
    call: Call = ("grep", {"pattern": "public", "path": "a.py", "glob_pattern": "*.py", "output_mode": "content"})
    (found,) = scene.run(LocalBackend(workspace), [call]).results
    assert "a.py:1: public" in found


@pytest.mark.timeout(5, method="signal")
def test_the_size_of_a_profile_waits_for_no_fifo(calm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepctl.domain import profiles

    (calm / "d").mkdir()
    real = os.open

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if path == "d" and (calm / "d").is_dir():
            (calm / "d").rmdir()
            os.mkfifo(calm / "d")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    assert sum(status.st_size for _, status in profiles._files(str(calm))) == len("public")
