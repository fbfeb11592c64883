"""Files with holes: kept as what they mean, at the cost of what is in them, and restored with holes."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from deepctl import cancellation
from deepctl.errors import TimedOut
from deepctl.files import sparse_files
from deepctl.store import pack_store, restore, trees
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.workspaces import WorkspaceOptions
from tests.store.scene import Scene

_MIB = 1 << 20


def _make(path: Path, size: int, data: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        for at, content in data.items():
            file.seek(at)
            file.write(content)
        file.truncate(size)


LAYOUTS: dict[str, tuple[int, dict[int, bytes]]] = {
    "all hole": (3 * _MIB + 17, {}),
    "data first": (4 * _MIB, {0: b"x" * 5000}),
    "data last": (3 * _MIB + 5000, {3 * _MIB: b"y" * 5000}),
    "data between": (6 * _MIB + 1, {_MIB + 7: os.urandom(300), 4 * _MIB - 3: b"z" * 3000}),
    "zeros that are written": (3 * _MIB, {0: bytes(2 * _MIB), 2 * _MIB: b"end"}),
    "no hole": (2 * _MIB + 3, {0: random.Random(1).randbytes(2 * _MIB + 3)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_with_holes_is_kept_and_restored_as_what_it_means(tmp_path: Path, layout: str) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    _make(workspace / "file", *LAYOUTS[layout])
    content = (workspace / "file").read_bytes()
    descriptor = os.open(workspace / "file", os.O_RDONLY)
    assert b"".join(sparse_files.pieces(descriptor)) == content
    assert sparse_files.Hasher().hashed(descriptor) == (hashlib.sha256(content).digest(), len(content))
    os.close(descriptor)
    with Checkpoints(str(tmp_path / "store")) as store:
        with store.new_batch() as batch:
            full = store.snapshot(WorkspaceOptions(str(workspace)), batch).tree
            empty = batch.add(trees.encode([]))
        assert store.objects.read(hashlib.sha256(content).digest()) == content
        (workspace / "file").unlink()
        changes = list(trees.changes(store.objects, empty, full))
        restore.working_tree(str(workspace), store.objects).apply(changes)
        assert restore.working_tree(str(workspace), store.objects).apply(changes).written_paths == [], (
            "it is found to be right"
        )
    assert (workspace / "file").read_bytes() == content
    if layout == "all hole":
        assert (workspace / "file").stat().st_blocks * 512 < _MIB


def test_giants_that_are_holes_cost_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for number in range(12):
        _make(workspace / f"giant{number}", (300 + number % 2) * _MIB, {})
    (workspace / "small").write_text("small")
    read = 0
    real = {name: getattr(os, name) for name in ("read", "pread")}

    def counting(name: str) -> object:
        def call(*arguments: int) -> bytes:
            nonlocal read
            found: bytes = real[name](*arguments)
            read += len(found)
            return found

        return call

    with Checkpoints(str(tmp_path / "store")) as store, monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, counting(name))
        with store.new_batch() as batch:
            taken = store.snapshot(WorkspaceOptions(str(workspace)), batch)
        assert taken.bytes == (6 * 300 + 6 * 301) * _MIB + 5
        assert batch.added_bytes < 2 * _MIB
    assert read < _MIB


def test_time_that_is_up_is_noticed_within_a_giant(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    _make(workspace / "giant", 300 * _MIB, {})
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 20:
            raise TimedOut("The time is up.")

    with Checkpoints(str(tmp_path / "store")) as store:
        with pytest.raises(TimedOut), cancellation.stoppable(look), store.new_batch() as batch:
            store.snapshot(WorkspaceOptions(str(workspace)), batch)
        assert store.packs.names() == set()
    assert looks == 20


def test_zeros_are_compressed_as_any_reader_reads_them() -> None:
    zstd = pack_store.zstd_module()
    randomness = random.Random(2)
    for _ in range(12):
        parts = [randomness.choice([sparse_files.ZEROS, b"", randomness.randbytes(999), b"a" * _MIB]) for _ in range(4)]
        packed = b"".join(pack_store.frames(parts))
        assert zstd.decompress(packed) == b"".join(parts)
        size = sum(map(len, parts))
        for length in (4, 7, 1 << 16, len(packed)):
            pieces = (packed[start : start + length] for start in range(0, len(packed), length))
            assert b"".join(pack_store.decompressed(pieces, size)) == b"".join(parts)


def test_a_rewind_brings_a_file_with_holes_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with scene.turn("first"):
        _make(scene.workspace / "sparse", 20 * _MIB, {10 * _MIB: b"data"})
    scene.agent("sparse", "small")
    scene.rewind("~1")
    status = (scene.workspace / "sparse").stat()
    assert status.st_size == 20 * _MIB
    assert status.st_blocks * 512 < 4 * _MIB
    assert (scene.workspace / "sparse").read_bytes()[10 * _MIB : 10 * _MIB + 5] == b"data\0"
