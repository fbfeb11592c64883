"""A profile that leaves as an archive and comes back is the same profile."""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.domain import profiles
from deepctl.domain.transfer import archive, profile_export, profile_import
from deepctl.domain.transfer.archive import OmittedPath, leads_out
from deepctl.domain.transfer.profile_export import Export, ProfileArchive
from deepctl.domain.transfer.profile_import import ImportLimits, ProfileImport
from deepctl.errors import Locked, Refused
from deepctl.layout import ProfilePaths, Root
from deepctl.store import export_target, session_catalogue, verify
from tests.store import faults
from tests.store.scene import Scene


def export(scene: Scene) -> tuple[bytes, ProfileArchive]:
    made = io.BytesIO()
    one = Export(scene.paths, "0.1.0")
    one.measure()
    done = one.write(made)
    return made.getvalue(), done


def take(
    root: Root, data: bytes, name: str = "bob", report: Callable[[int], None] = lambda count: None
) -> ProfileImport:
    opened = profile_import.examine(root, io.BytesIO(data), "a.tgz", name=name, size=len(data), limits=ImportLimits())
    return profile_import.take_in(root, opened, lambda: profiles.lock(root, name, command="test"), report)


def tree(directory: str | Path) -> dict[bytes, tuple[int, bytes]]:
    """Everything below a directory, by path: mode and content; not the cache and the usage of a profile."""
    start = os.fsencode(directory)
    found: dict[bytes, tuple[int, bytes]] = {}
    pending = [start]
    while pending:
        above = pending.pop()
        for name in os.listdir(above):
            path = os.path.join(above, name)
            if path in (os.path.join(start, b"cache"), os.path.join(start, b"usage.jsonl")):
                continue
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISDIR(mode):
                pending.append(path)
            elif stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                content = Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, start)] = (mode, content)
    return found


@pytest.fixture
def here(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Root:
    return Root(str(tmp_path / "there"))


def test_a_profile_comes_back_as_it_was(here: Scene, there: Root) -> None:
    here.agent("a.txt", "one")
    here.agent("plans/p.md", "two")
    with here.work() as work:
        target = here.records()[0]
        work.fork(target, "other")
        work.store.writer.label(target.id, "start")
    Path(here.paths.prompt_history).write_bytes(b"\n# then\n+one\n")
    os.chmod(here.paths.prompt_history, 0o600)
    here.write("empty", "")
    (here.workspace / "large").write_bytes(os.urandom(3 << 20))
    (here.workspace / "nothing" / "in" / "it").mkdir(parents=True)
    os.chmod(here.workspace / "nothing" / "in", 0o500)
    here.write("run", "#!/bin/sh\n")
    os.chmod(here.workspace / "run", 0o755)
    here.write("read-only", "x")
    os.chmod(here.workspace / "read-only", 0o444)
    (here.workspace / "nothing" / "link").symlink_to("../run")
    (here.workspace / "dangling").symlink_to("nowhere")
    data, done = export(here)
    assert done.left_out == []
    imported = take(there, data)
    assert imported.origin == "alice"
    assert imported.totals == done.totals
    assert tree(imported.paths.directory) == tree(here.paths.directory)
    assert verify.verify(imported.paths).problems == []


def test_what_is_imported_goes_on_where_the_other_stood(here: Scene, tmp_path: Path) -> None:
    """Rewind and undo, in the copy, with what the original had to say about whose work is whose."""
    here.agent("a.txt", "one")
    here.agent("a.txt", "two")
    here.write("mine.txt", "not the agent's")
    data, _ = export(here)
    take(Root(str(tmp_path / "there")), data, name="alice")
    copy = Scene(tmp_path / "there")
    copy.rewind("~1")
    assert copy.files() == {"a.txt": "one", "mine.txt": "not the agent's"}
    copy.undo()
    assert copy.files() == {"a.txt": "two", "mine.txt": "not the agent's"}
    copy.agent("b.txt", "three")
    assert copy.prompts() == ["write a.txt one", "write a.txt two", "write b.txt three"]
    assert here.files() == {"a.txt": "two", "mine.txt": "not the agent's"}
    assert verify.verify(copy.paths).problems == []


def test_the_session_used_last_is_still_the_one_that_goes_on(here: Scene, there: Root) -> None:
    for name in ("b", "c", "a"):
        here.agent("x", name, session=name)
    for number, name in enumerate(("a", "c", "b")):
        session = here.session(name)
        for file in Path(session.directory).iterdir():
            os.utime(file, ns=(0, 1_700_000_000_000_000_000 + number))
    assert session_catalogue.latest_session(here.paths) == "b"
    assert session_catalogue.latest_session(take(there, export(here)[0]).paths) == "b"


def test_times_before_1970_and_far_from_now_are_kept(here: Scene, there: Root) -> None:
    times = {"old": -1_500_000_000, "older": -86_400 * 10**9 + 1, "later": 2**33 * 10**9 + 123_456_789}
    for name, at in times.items():
        here.write(name, name)
        os.utime(here.workspace / name, ns=(at, at))
    workspace = Path(take(there, export(here)[0]).paths.workspace)
    assert {name: (workspace / name).stat().st_mtime_ns for name in times} == {
        name: (here.workspace / name).stat().st_mtime_ns for name in times
    }


def test_what_cannot_be_in_an_archive_is_listed_and_nothing_else_is_missing(here: Scene, there: Root) -> None:
    here.agent("kept.txt", "kept")
    os.mkfifo(here.workspace / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        previous = os.getcwd()
        os.chdir(here.workspace)
        try:
            server.bind("socket")
        finally:
            os.chdir(previous)
    (here.workspace / "out").symlink_to("../profile.toml")
    (here.workspace / "absolute").symlink_to("/etc/passwd")
    (here.workspace / "inside").symlink_to("/workspace/kept.txt")
    (here.workspace / "down").mkdir()
    (here.workspace / "down" / "out").symlink_to("../../sessions")
    (here.workspace / "down" / "maybe").symlink_to("x/../../..")
    Path(here.paths.directory, "stray").write_text("?")
    Path(here.paths.sessions, "main", "stray").write_text("?")
    deep = here.workspace
    for _ in range(archive.MAX_DEPTH + 1):
        deep /= "d"
    os.makedirs(deep)
    data, done = export(here)
    why = "a link that leads, or may lead, out of the workspace: "
    assert done.left_out == [
        OmittedPath("sessions/main/stray", "not part of a profile"),
        OmittedPath("stray", "not part of a profile"),
        OmittedPath("workspace/absolute", f"{why}/etc/passwd"),
        OmittedPath("workspace" + "/d" * (archive.MAX_DEPTH + 1), "more than 200 nested directories"),
        OmittedPath("workspace/down/maybe", f"{why}x/../../.."),
        OmittedPath("workspace/down/out", f"{why}../../sessions"),
        OmittedPath("workspace/fifo", "a FIFO"),
        OmittedPath("workspace/out", f"{why}../profile.toml"),
        OmittedPath("workspace/socket", "a socket"),
    ]
    expected = tree(here.paths.directory)
    for one in done.left_out:
        del expected[archive.raw(one.path)]
    assert tree(take(there, data).paths.directory) == expected


def test_temporary_files_and_the_cache_stay_behind(here: Scene, there: Root) -> None:
    here.agent("a.txt", "one")
    for leftover in (".profile.toml.1234.tmp", "sessions/.new-x", "checkpoints/packs/.1234.tmp", "checkpoints/.lock"):
        Path(here.paths.directory, leftover).write_text("half")
    data, done = export(here)
    assert done.left_out == []
    found = tree(take(there, data).paths.directory)
    assert [path for path in found if b".tmp" in path or b".lock" in path or b".new" in path or b"cache" in path] == []


def test_the_archive_is_a_tar_file_that_others_can_read(here: Scene) -> None:
    here.agent("a.txt", "one")
    os.close(os.open(os.fsencode(here.workspace) + b"/\xff\n\xc3\xa9", os.O_CREAT | os.O_WRONLY, 0o640))
    with tarfile.open(fileobj=io.BytesIO(export(here)[0]), mode="r:gz", errors="surrogateescape") as tar:
        names = tar.getnames()
        assert (names[0], names[-1]) == ("deepctl-profile.json", "MANIFEST.jsonl")
        assert "workspace/\udcff\né" in names
        assert "workspace/a.txt" in names
        member = tar.extractfile("workspace/a.txt")
        assert member is not None
        assert member.read() == b"one"
        assert abs(tar.getmember("workspace/a.txt").mtime - (here.workspace / "a.txt").stat().st_mtime) < 1e-5


def test_a_sparse_giant_passes_without_being_held_in_memory(here: Scene, there: Root) -> None:
    import resource

    with open(here.workspace / "giant", "wb") as file:
        file.truncate(300 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data, done = export(here)
    assert len(data) < 4 << 20
    imported = take(there, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10
    assert os.stat(os.path.join(imported.paths.workspace, "giant")).st_size == 300 << 20
    assert imported.totals.bytes == done.totals.bytes


NAMES = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda name: b"/" not in name and b"\0" not in name)
    .filter(lambda name: name not in (b".", b".."))
)
LONG_NAMES = st.binary(min_size=200, max_size=255).map(lambda name: name.translate(None, b"/\0") or b"x")
MODES = st.integers(0, 0o777).map(lambda mode: mode | 0o400)


@st.composite
def trees(draw: Any, depth: int = 3) -> dict[bytes, Any]:
    names = draw(st.lists(NAMES | LONG_NAMES, max_size=4, unique=True))
    found: dict[bytes, Any] = {}
    for name in names:
        kinds = ["file", "link", *(["directory"] if depth else [])]
        kind = draw(st.sampled_from(kinds))
        if kind == "file":
            found[name] = (draw(st.binary(max_size=600)), draw(MODES))
        elif kind == "link":
            found[name] = draw(NAMES | st.just(b"a/" * 100 + b"long" * 30))
        else:
            found[name] = (draw(trees(depth - 1)), draw(MODES) | 0o500)
    return found


def _plant(directory: bytes, entries: dict[bytes, Any]) -> None:
    for name, what in entries.items():
        path = os.path.join(directory, name)
        if isinstance(what, bytes):
            os.symlink(what, path)
            continue
        content, mode = what
        if isinstance(content, bytes):
            with open(path, "wb") as file:
                file.write(content)
        else:
            os.mkdir(path)
            _plant(path, content)
        os.chmod(path, mode)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=trees())
def test_any_names_modes_and_contents_come_back(tmp_path: Path, entries: dict[bytes, Any]) -> None:
    place = tmp_path / os.urandom(6).hex()
    scene = Scene(place)
    _plant(os.fsencode(scene.workspace), entries)
    data, done = export(scene)
    assert done.left_out == []
    imported = take(Root(str(place)), data)
    assert tree(imported.paths.workspace) == tree(scene.workspace)


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("workspace/l", "a", False),
        ("workspace/l", "a/b/../c", True),
        ("workspace/l", ".", False),
        ("workspace/l", "..", True),
        ("workspace/d/l", "..", False),
        ("workspace/d/l", "../..", True),
        ("workspace/d/e/l", ".././../a", False),
        ("workspace/l", "/workspace", False),
        ("workspace/l", "/workspace/a//b", False),
        ("workspace/l", "//workspace/a", False),
        ("workspace/l", "/workspace/a/..", True),
        ("workspace/l", "/", True),
        ("workspace/l", "/workspaces", True),
        ("workspace/l", "...", False),
    ],
)
def test_where_a_link_leads_is_told_by_what_it_says(path: str, target: str, out: bool) -> None:
    assert leads_out(path, target) is out


def _while_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before: str, action: Callable[[], object]
) -> ProfileArchive:
    """Export, with something happening right before the path `before` is written."""
    real = profile_export._ArchiveWriter.add
    pending = [action]

    def add(writing: Any, walk: Any, found: Any) -> None:
        if found.path.startswith(before) and pending:
            pending.pop()()
        real(writing, walk, found)

    with monkeypatch.context() as patched:
        patched.setattr(profile_export._ArchiveWriter, "add", add)
        _, done = export(scene)
    assert not pending, "it did happen"
    return done


@pytest.mark.parametrize("moment", ["profile.toml", "checkpoints/packs", "sessions/main/", "workspace/a.txt"])
def test_a_chat_that_goes_on_meanwhile_is_no_trouble(
    here: Scene, there: Root, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    here.agent("a.txt", "one")
    made = io.BytesIO()
    done: list[bool] = []
    real = profile_export._ArchiveWriter.add

    def add(writing: Any, walk: Any, found: Any) -> None:
        if found.path.startswith(moment) and not done:
            done.append(True)
            for number in range(3):
                here.agent(f"later-{number}.txt", "x")
        real(writing, walk, found)

    monkeypatch.setattr(profile_export._ArchiveWriter, "add", add)
    one = Export(here.paths, "0.1.0")
    one.measure()
    one.write(made)
    assert done
    imported = take(there, made.getvalue())
    verified = verify.verify(imported.paths)
    assert verified.problems == []
    assert verified.checkpoints < len(here.records())


@pytest.mark.parametrize("moment", ["profile.toml", "checkpoints/packs", "sessions/main/", "workspace/a.txt"])
def test_a_rewind_meanwhile_fails_the_export_so_that_it_is_tried_again(
    here: Scene, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    here.agent("a.txt", "one")
    here.agent("a.txt", "two")
    with pytest.raises(Locked) as raised:
        _while_written(here, monkeypatch, moment, lambda: here.rewind("~1"))
    assert (raised.value.code, raised.value.exit_code, raised.value.retryable) == ("changed_while_read", 4, True)
    assert export(here)[1].left_out == []


def test_whatever_else_takes_something_away_meanwhile_fails_the_export(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    here.agent("a.txt", "one")
    here.agent("b.txt", "one", session="other")
    pack = max(Path(here.paths.packs).iterdir())
    ledger = Path(here.paths.checkpoints, "ledger.jsonl")

    def rewrite() -> None:
        raw = ledger.read_bytes()
        ledger.unlink()
        ledger.write_bytes(raw.replace(b"one", b"two"))

    for moment, action in (
        ("checkpoints/packs/", pack.unlink),
        ("workspace/b.txt", rewrite),
        ("sessions/main", lambda: shutil.rmtree(os.path.join(here.paths.sessions, "other"))),
        ("workspace", ledger.unlink),
    ):
        with pytest.raises(Locked) as raised:
            _while_written(here, monkeypatch, moment, action)
        assert raised.value.code == "changed_while_read"


def test_files_of_the_workspace_may_come_and_go_meanwhile(
    here: Scene, there: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.agent("a.txt", "one")
    here.write("z/later.txt", "goes")
    here.write("y.txt", "becomes a FIFO")

    def meanwhile() -> None:
        (here.workspace / "z" / "later.txt").unlink()
        (here.workspace / "z" / "new.txt").write_text("comes")
        (here.workspace / "y.txt").unlink()
        os.mkfifo(here.workspace / "y.txt")

    done = _while_written(here, monkeypatch, "workspace/a.txt", meanwhile)
    assert done.left_out == [OmittedPath("workspace/y.txt", "a FIFO")]


def test_an_interrupted_rewind_is_finished_in_the_copy(here: Scene, tmp_path: Path) -> None:
    here.agent("a.txt", "one")
    here.agent("a.txt", "two")

    def rewind() -> None:
        here.rewind("~1")

    for at in range(1, 400):
        if faults.in_child(rewind, at, faults.kill) != "killed":
            pytest.fail("no kill left an unfinished rewind")
        from deepctl.store import session_catalogue

        if session_catalogue.read_ledger(here.paths).unfinished is not None:
            break
    data, _ = export(here)
    take(Root(str(tmp_path / "there")), data, name="alice")
    copy = Scene(tmp_path / "there")
    with copy.work() as work:
        assert work.notes
    assert copy.files() == {"a.txt": "one"}
    assert verify.verify(copy.paths).problems == []


def test_a_line_that_is_just_being_written_is_not_in_the_archive(here: Scene, there: Root) -> None:
    here.agent("a.txt", "one")
    session = here.session()
    whole = Path(session.directory, f"{session.log}.jsonl").read_bytes()
    with open(Path(session.directory, f"{session.log}.jsonl"), "ab") as file:
        file.write(b'{"v":1,"turn":2,"at":"2026')
    with open(Path(here.paths.checkpoints, "ledger.jsonl"), "ab") as file:
        file.write(b'{"v":1,"record":{"id"')
    paths = take(there, export(here)[0]).paths
    assert Path(paths.sessions, "main", f"{session.log}.jsonl").read_bytes() == whole
    assert verify.verify(paths).notes == []


def test_a_damaged_profile_can_be_exported_with_all_it_has(here: Scene, there: Root) -> None:
    here.agent("a.txt", "one")
    here.agent("b.txt", "two")
    ledger = Path(here.paths.checkpoints, "ledger.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([lines[0], lines[1][:-20] + b"damaged".ljust(19) + b"\n", *lines[2:]]))
    Path(here.paths.settings).write_text("not = = toml")
    paths = take(there, export(here)[0])
    expected = tree(here.paths.directory)
    expected[b"untrusted.toml"] = expected.pop(b"profile.toml")
    found = tree(paths.paths.directory)
    assert found.pop(b"profile.toml") is not None
    assert found == expected
    assert paths.notes == ["Its profile.toml cannot be read. It is not in force, and is stored as untrusted.toml."]


def test_settings_that_matter_for_safety_are_told(here: Scene, there: Root) -> None:
    with open(here.paths.settings, "a") as file:
        file.write(
            'sandbox = "none"\napprove = "auto"\nbase_url = "'
            "http://evil.example"
            '"\nmodel = "openai-chat:x"\n'
            '[permissions.execute]\ndefault = "allow"\n'
        )
    notes = take(there, export(here)[0]).notes
    assert len(notes) == 5
    for word in ("sandbox = none", "approve = auto", "[permissions]", "http://evil.example", "openai-chat:x"):
        assert any(word in note for note in notes), word


def test_what_a_killed_import_left_goes_with_the_next_and_a_running_one_stays(here: Scene, there: Root) -> None:
    here.agent("a.txt", "one")
    data, _ = export(here)
    profiles.make_root(there)
    stale = Path(there.profiles, ".import-0123456789abcdef")
    (stale / "workspace").mkdir(parents=True)
    (stale / "workspace" / "secret").write_text("x")
    with profile_import.Staging(there) as running:
        take(there, data)
        assert os.path.isdir(running.path)
        assert not stale.exists()
    assert os.listdir(there.profiles) == ["bob"]


def test_a_name_that_is_taken_in_the_last_moment_is_refused(here: Scene, there: Root) -> None:
    here.agent("a.txt", "one")
    data, _ = export(here)
    made: list[ProfilePaths] = []

    def meanwhile(count: int) -> None:
        if not made:
            made.append(profiles.create(there, "bob"))

    with pytest.raises(Refused) as raised:
        take(there, data, report=meanwhile)
    assert raised.value.code == "profile_exists"
    assert os.listdir(there.profiles) == ["bob"]
    assert os.listdir(made[0].workspace) == []


@pytest.mark.parametrize("start", range(3))
def test_an_import_that_is_killed_at_any_call_leaves_a_whole_profile_or_none(
    here: Scene, tmp_path: Path, start: int
) -> None:
    here.agent("a.txt", "one")
    data, _ = export(here)
    whole = tree(here.paths.directory)
    calls = faults.count(lambda: take(Root(str(tmp_path / "counted")), data))
    for at in range(1 + start, calls + 1, 12):
        root = Root(str(tmp_path / f"there-{at}"))
        assert faults.in_child(lambda root=root: take(root, data), at, faults.kill) == "killed"  # type: ignore[misc]
        if profiles.exists(root, "bob"):
            assert tree(root.profile("bob").directory) == whole
            continue
        take(root, data)
        assert os.listdir(root.profiles) == ["bob"]
        assert tree(root.profile("bob").directory) == whole


@pytest.mark.parametrize("start", range(3))
def test_an_import_that_fails_at_any_call_leaves_nothing(here: Scene, tmp_path: Path, start: int) -> None:
    here.agent("a.txt", "one")
    data, _ = export(here)
    calls = faults.count(lambda: take(Root(str(tmp_path / "counted")), data))
    for at in range(1 + start, calls + 1, 17):
        root = Root(str(tmp_path / f"there-{at}"))
        said = faults.in_child(lambda root=root: take(root, data), at, faults.failing(errno.ENOSPC))  # type: ignore[misc]
        assert said in ("OSError", "done"), (at, said)
        there = os.listdir(root.profiles) if os.path.isdir(root.profiles) else []
        assert there in ([], ["bob"]), (at, said)
        if there:
            assert tree(root.profile("bob").directory) == tree(here.paths.directory)


def test_a_destination_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"

    def write(data: bytes, meanwhile: Callable[[], object]) -> None:
        with export_target.open_target(str(path), force=False) as file:
            file.write(data)
            meanwhile()

    with pytest.raises(ZeroDivisionError):
        write(b"half", lambda: 1 // 0)
    assert list(tmp_path.glob("*.tgz*")) == []
    assert list(tmp_path.glob(".*export")) == []
    with pytest.raises(Refused):
        write(b"mine", lambda: path.write_bytes(b"somebody else's"))
    assert path.read_bytes() == b"somebody else's"
    with export_target.open_target(str(path), force=True) as file:
        file.write(b"mine")
        with export_target.open_target(str(path), force=True) as other:
            other.write(b"another's")
    assert path.read_bytes() == b"mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.glob(".*export")) == []


def test_a_link_that_comes_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with export_target.open_target(str(tmp_path / "x"), force=True) as file:
            file.write(b"mine")
            (tmp_path / "x").symlink_to("secret")

    with pytest.raises(Refused):
        write()
    assert list(tmp_path.glob(".*export")) == []
    assert (tmp_path / "x").is_symlink()


def test_a_file_system_without_locks_takes_an_export_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / ".x.0123456789abcdef.deepctl-export"
    left.write_bytes(b"perhaps somebody is writing this")
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refused)
        with export_target.open_target(str(tmp_path / "x"), force=False) as file:
            file.write(b"one")
    assert (tmp_path / "x").read_bytes() == b"one"
    assert left.exists()


def test_an_absolute_path_leads_where_the_path_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)
    assert export_target.absolute("./link//x") == str(tmp_path / "link" / "x")
    (tmp_path / "a" / "x").write_bytes(b"one")
    assert Path(export_target.absolute("link/../x")).read_bytes() == b"one"
    assert os.path.isabs(export_target.absolute("link/../x"))


def test_bytes_are_those_of_gzip(here: Scene) -> None:
    inner = gzip.decompress(export(here)[0])
    assert len(inner) % 512 == 0
    assert inner.endswith(bytes(1024))
