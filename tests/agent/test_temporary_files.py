"""What a kill leaves of a write in the workspace is no file of anybody's: not seen, not kept, and soon gone."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import anyio
import pytest

from deepctl.agent.backend import LocalBackend
from deepctl.cli.repl import completer
from deepctl.files import atomic
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.trees import walk
from tests.store.faults import count, in_child, kill
from tests.store.scene import Scene
from tests.support.command import Command, InProcess


def _left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob(".deepctl-*"))


def _kept(scene: Scene) -> set[str]:
    reader = ReadOnlyRepository(scene.paths)
    found = {
        os.fsdecode(path)
        for record in reader.ledger.records.values()
        for path, _ in walk(reader.objects, bytes.fromhex(record.tree))
    }
    reader.close()
    return found


def test_a_kill_at_any_call_of_a_write_leaves_nothing_that_lasts(home: Path) -> None:
    scene = Scene(home)
    scene.agent("d/a.txt", "one")
    tree = DirectoryTree(scene.paths.workspace, follow=True)
    points = count(lambda: tree.write("d/a.txt", b"counted"))
    seen = set()
    for at in range(1, points + 1):
        assert in_child(lambda: tree.write("d/a.txt", b"two" * 1000), at, kill) == "killed"
        seen |= set(_left(scene.workspace))
        with scene.work() as work:
            work.save_now(scene.session())
        assert _left(scene.workspace) == []
    assert seen
    assert not any(name.endswith(".tmp") for name in _kept(scene))


def test_a_chat_that_is_killed_in_write_file_leaves_nothing_to_the_next(
    process: Command, deepctl: InProcess, home: Path
) -> None:
    deepctl("chat", "write a.txt: one").ok()
    workspace = home / "profiles/default/workspace"
    # As a kill in the middle leaves it, which takes a file too large to be written in one moment.
    (workspace / atomic.temporary_name()).write_text("half")
    (workspace / atomic.temporary_name("restore")).write_text("half")
    (workspace / atomic.temporary_name("restore")).symlink_to("a.txt")
    assert "deepctl-" not in deepctl("chat", "list", "--json").ok().stdout
    assert _left(workspace) == []
    listed = deepctl("checkpoints", "show", "~0", "--json").ok().stdout
    assert "deepctl-" not in listed


def test_the_agent_and_completion_see_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("found")
    (tmp_path / ".deepctl-0123456789ab.tmp").write_text("found")
    (tmp_path / ".deepctl-0123456789ab.txt").write_text("found")
    backend = LocalBackend(tmp_path)

    async def look() -> str:
        listed = [entry.name for entry in await backend.list_dir(".")]
        lines = await backend.grep("found", ".", None, with_hidden=True)
        return " ".join([*listed, *await backend.glob("*", "."), *(line.path for line in lines)])

    said = anyio.run(look)
    assert said.count("a.txt") == said.count(".deepctl-0123456789ab.txt") == 3
    assert ".deepctl-0123456789ab.tmp" not in said
    assert completer._names(".", str(tmp_path), ".deepctl-") == [".deepctl-0123456789ab.txt"]


def test_what_is_being_written_or_is_not_ours_stays(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "one")
    users = scene.workspace / ".deepctl-mine.tmp"
    users.write_text("the user's")
    linked = scene.workspace / ".deepctl-0123456789ab.tmp"
    linked.write_text("with another name")
    os.link(linked, scene.workspace / "other name")
    live = scene.workspace / ".deepctl-cccccccccccc.tmp"
    live.write_text("being written")
    descriptor = os.open(live, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    outside = tmp_path / "outside"
    outside.write_text("not to be touched")
    with scene.work() as work:
        work.save_now(scene.session())
    assert _left(scene.workspace) == sorted([users.name, linked.name, live.name])
    os.close(descriptor)
    with scene.work() as work:
        work.save_now(scene.session())
    assert _left(scene.workspace) == sorted([users.name, linked.name])
    assert not any("deepctl" in name for name in _kept(scene))
    scene.rewind("~1")
    assert users.read_text() == "the user's", "a rewind does not touch what no checkpoint has"


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_right_after_the_rename_is_no_other_error(tmp_path: Path, number: int) -> None:
    tree = DirectoryTree(str(tmp_path), follow=True)
    rename = os.rename

    def renamed(*arguments: object, **options: object) -> None:
        rename(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    os.rename = renamed
    try:
        with pytest.raises(KeyboardInterrupt):
            tree.write("a.txt", b"one")
    finally:
        os.rename = rename
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert _left(tmp_path) == []
