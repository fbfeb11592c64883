"""Snapshots: the whole workspace, exactly, and cheaply the second time."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.store import trees
from deepctl.store.trees import Snapshot
from tests.store.test_object_store import Store

Model = dict[bytes, tuple[str, int, bytes]]
"""A tree as it should be: kind, permission bits and content (of a link: its target) by path."""


class Work(Store):
    """A workspace and a store to snapshot it into."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.root = place / "work"
        self.root.mkdir()

    def snapshot(self, **options: object) -> Snapshot:
        with self.objects.new_batch() as batch:
            return trees.snapshot(str(self.root), batch, self.cache, **options)  # type: ignore[arg-type]

    def kept(self, tree: bytes) -> Model:
        """What the store holds of a tree."""
        found: Model = {}
        for path, entry in trees.walk(self.objects, tree):
            content = b"" if entry.kind == trees.DIRECTORY else self.objects.read(entry.digest)
            assert entry.size == len(content)
            found[path] = (entry.kind.decode(), entry.mode, content)
        return found

    def real(self) -> Model:
        """What is on the disk."""
        return real(self.root)


def real(place: Path) -> Model:
    """What is in a directory."""
    found: Model = {}
    root = os.fsencode(place)
    for directory, _, _ in os.walk(root):
        for item in os.scandir(directory):
            mode = item.stat(follow_symlinks=False).st_mode
            path = os.path.relpath(item.path, root)
            if stat.S_ISLNK(mode):
                found[path] = ("l", 0, os.readlink(item.path))
            elif stat.S_ISDIR(mode):
                found[path] = ("d", stat.S_IMODE(mode), b"")
            elif stat.S_ISREG(mode):
                found[path] = ("f", stat.S_IMODE(mode), Path(os.fsdecode(item.path)).read_bytes())
    return found


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    opened = Work(tmp_path)
    yield opened
    opened.cache.close()


def _settle() -> None:
    """Let the clock tick, so that what was written before is told from what is written after."""
    time.sleep(0.03)


def test_everything_is_kept_exactly(work: Work, tmp_path: Path) -> None:
    root = work.root
    (root / "empty").mkdir()
    (root / "sub" / ".git" / "refs").mkdir(parents=True)
    (root / "sub" / ".git" / "HEAD").write_text("ref: x")
    (root / "binary").write_bytes(bytes(range(256)) * 50)
    (root / "nothing").write_bytes(b"")
    (root / "sub" / "locked").write_text("x")
    os.chmod(root / "sub" / "locked", 0o444)
    os.chmod(root / "binary", 0o7755 if os.geteuid() == 0 else 0o755)
    os.chmod(root / "empty", 0o700)
    (root / os.fsdecode(b"new\nline \xff\xfe")).write_text("odd")
    (root / "link").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("nowhere")
    os.symlink(b"odd \xff target", os.fsencode(root / "odd-link"))
    os.link(root / "binary", root / "hard")
    (root / "Case").write_text("1")
    (root / "case").write_text("2")
    taken = work.snapshot()
    assert work.kept(taken.tree) == work.real()
    assert taken.unkept == []
    assert taken.files == 11
    assert work.kept(taken.tree)[b"link"] == ("l", 0, b"/etc/passwd")


def test_nothing_changed_adds_nothing_and_reads_nothing(work: Work) -> None:
    for n in range(20):
        (work.root / f"d{n % 3}").mkdir(exist_ok=True)
        (work.root / f"d{n % 3}" / f"f{n}").write_text(str(n))
    _settle()
    first = work.snapshot()
    packs = sorted(work.packs.iterdir())
    reads: list[str] = []
    real = os.open

    def watched(path: str | bytes, flags: int, *arguments: int, **options: int) -> int:
        if not flags & os.O_DIRECTORY:
            reads.append(os.fsdecode(path))
        return real(path, flags, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watched)
        assert work.snapshot() == first
    assert reads == []
    assert sorted(work.packs.iterdir()) == packs
    (work.root / "d1" / "f1").write_text("new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watched)
        assert work.snapshot().tree != first.tree
    assert [name for name in reads if name.startswith("f")] == ["f1"], "only what changed is read"


def test_a_same_size_edit_with_a_restored_time_is_seen(work: Work) -> None:
    path = work.root / "file"
    path.write_text("one")
    _settle()
    work.snapshot()
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert work.kept(work.snapshot().tree)[b"file"][2] == b"two"


def test_edits_in_the_same_tick_of_the_clock_are_seen(work: Work) -> None:
    path = work.root / "file"
    for n in range(200):
        path.write_text(f"{n:03}")
        assert work.kept(work.snapshot().tree)[b"file"][2] == b"%03d" % n


def test_what_cannot_be_kept_is_reported(work: Work) -> None:
    os.mkfifo(work.root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work.root / "socket"))
        (work.root / "file").write_text("kept")
        taken = work.snapshot()
    assert [one[:2] for one in sorted(taken.unkept)] == [(b"fifo", "a FIFO"), (b"socket", "a socket")]
    assert work.snapshot().unkept == taken.unkept, "the second time too"
    assert set(work.kept(taken.tree)) == {b"file"}


def test_what_is_left_out_is_neither_kept_nor_looked_into(work: Work) -> None:
    (work.root / "node_modules" / "deep").mkdir(parents=True)
    (work.root / "node_modules" / "deep" / "file").write_text("x")
    (work.root / "kept").write_text("x")
    taken = work.snapshot(leave_out=trees.excluding(["node_modules/"]))
    assert set(work.kept(taken.tree)) == {b"kept"}


def test_links_are_never_followed_out(work: Work, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (work.root / "out").symlink_to(tmp_path / "secret")
    assert work.kept(work.snapshot().tree) == {b"out": ("l", 0, os.fsencode(tmp_path / "secret"))}


_NAMES = st.sampled_from(["a", "b", "c", "Ä", "new\nline"])
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "append", "chmod", "delete", "mkdir", "link", "rename", "truncate"]),
        st.lists(_NAMES, min_size=1, max_size=3),
        st.lists(_NAMES, min_size=1, max_size=3),
        st.binary(max_size=8),
    ),
    max_size=12,
)


def _edit(root: Path, step: tuple[str, list[str], list[str], bytes]) -> None:
    """One random edit; one that cannot be done, as things are, does nothing."""
    kind, parts, others, content = step
    path, other = root.joinpath(*parts), root.joinpath(*others)
    try:
        match kind:
            case "write":
                path.write_bytes(content)
            case "append":
                with open(path, "ab") as file:
                    file.write(content)
            case "truncate":
                os.truncate(path, len(content))
            case "chmod":
                if not path.is_symlink():
                    os.chmod(path, 0o500 | (len(content) << 3))
            case "delete":
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            case "mkdir":
                path.mkdir()
            case "link":
                path.symlink_to("/".join(others))
            case "rename":
                path.rename(other)
    except (OSError, ValueError):
        pass


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_STEPS, min_size=1, max_size=4))
def test_after_any_edits_the_snapshot_is_what_is_there_and_the_changes_lead_from_one_to_the_next(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, list[str], list[str], bytes]]]
) -> None:
    work = Work(tmp_path_factory.mktemp("trees"))
    previous: tuple[bytes, Model] | None = None
    for steps in rounds:
        for step in steps:
            _edit(work.root, step)
        tree = work.snapshot().tree
        model = work.real()
        assert work.kept(tree) == model, "with the cache of the rounds before"
        if previous is not None:
            replayed = dict(previous[1])
            for change in trees.changes(work.objects, previous[0], tree):
                if change.after is None:
                    del replayed[change.path]
                else:
                    content = b"" if change.after.kind == b"d" else work.objects.read(change.after.digest)
                    replayed[change.path] = (change.after.kind.decode(), change.after.mode, content)
            assert replayed == model
        previous = tree, model
    work.cache.forget()
    assert work.snapshot().tree == tree, "and the same without it"
    work.cache.close()
