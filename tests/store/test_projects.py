"""Sessions that work in a directory of the user: one tree for both places, and a rewind that changes only its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.domain.transfer.profile_export import Export
from deepctl.errors import Refused
from deepctl.files import placeholders
from deepctl.files.placeholders import Placeholder
from deepctl.layout import Root
from deepctl.store import (
    diff,
    lookup,
    projects,
    repair,
    rewind,
    session_catalogue,
    session_log,
    session_reader,
    trees,
    verify,
    workspaces,
)
from deepctl.store.coverage import CoverageSettings
from deepctl.store.records import OTHER, UNKNOWN, SessionProject
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindConflicts, RewindRequest
from tests.samples import make
from tests.store.scene import Scene
from tests.support.command import InProcess

State = dict[str, tuple[str, int, bytes]]


def contents(directory: Path) -> State:
    """Every entry below a directory: its kind, its mode, and its bytes or the target of a link."""
    state: State = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        name = os.fsencode(path.relative_to(directory)).decode("utf-8", "surrogateescape")
        if stat.S_ISLNK(status.st_mode):
            state[name] = ("link", 0, os.fsencode(os.readlink(path)))
        elif stat.S_ISDIR(status.st_mode):
            state[name] = ("directory", stat.S_IMODE(status.st_mode), b"")
        else:
            state[name] = ("file", stat.S_IMODE(status.st_mode), path.read_bytes())
    return state


def populate(directory: Path) -> None:
    """Files of the user with odd names, modes and links, and a repository."""
    (directory / "src" / "empty").mkdir(parents=True)
    (directory / "src" / "app.py").write_text("print('hello')\n")
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    (directory / "secret").write_text("0600\n")
    (directory / "secret").chmod(0o600)
    (directory / "link").symlink_to("src/app.py")
    (directory / "dangling").symlink_to("/no/such/thing")
    (directory / "bytes").write_bytes(bytes(range(256)))
    Path(os.fsdecode(os.fsencode(directory) + b"/not\xffutf8")).write_text("odd\n")
    (directory / ".git" / "hooks").mkdir(parents=True)
    (directory / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (directory / ".git" / "config").write_text("[core]\n")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "project"
    place.mkdir()
    populate(place)
    return place


@pytest.fixture
def scene(tmp_path: Path, directory: Path) -> Scene:
    scene = Scene(tmp_path / "root")
    scene.directories["main"] = directory
    return scene


def _ravage(directory: Path) -> None:
    """What a shell command of the agent does."""
    shutil.rmtree(directory / "src")
    (directory / "src").write_text("a file where a directory was")
    (directory / "link").unlink()
    (directory / "link").mkdir()
    (directory / "link" / "inner").write_text("new\n")
    (directory / "bytes").write_bytes(b"short")
    (directory / "run.sh").chmod(0o644)
    (directory / "secret").unlink()
    (directory / "new" / "deep").mkdir(parents=True)
    (directory / "new" / "deep" / "file").write_text("new\n")


def test_a_session_stays_in_the_project_in_which_it_began(scene: Scene, directory: Path) -> None:
    session = scene.session()
    assert session.project is not None
    assert session.project.path == str(directory)
    assert session_catalogue.find(scene.paths, "main").project == session.project
    assert scene.session("private").project is None
    assert b'"project"' not in (Path(scene.session("private").directory) / "session.json").read_bytes()
    assert session_catalogue.latest_session(scene.paths) == "private"
    assert session_catalogue.latest_session(scene.paths, session.project.id) == "main"
    assert session_catalogue.latest_session(scene.paths, "00000000") is None


def test_a_rewind_and_its_undo_restore_bytes_modes_and_links(scene: Scene, directory: Path) -> None:
    before = contents(directory)
    with scene.turn("ravage"):
        _ravage(directory)
        scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
    after = contents(directory)
    assert after != before
    result = scene.rewind("~1")
    assert contents(directory) == before
    assert not (scene.workspace / ".deep/memory/main/MEMORY.md").exists()
    assert not (scene.workspace / ".deep/projects").exists()
    assert result.in_the_way == []
    scene.undo()
    assert contents(directory) == after
    assert (scene.workspace / ".deep/memory/main/MEMORY.md").read_text() == "- tea\n"
    scene.undo()
    assert contents(directory) == before


def test_the_home_of_commands_is_no_change_of_a_session(scene: Scene, directory: Path) -> None:
    with scene.turn("build"):
        (scene.workspace / ".deep/home").mkdir(parents=True)
        (directory / "out").mkdir()
    with Repository.read_only(scene.paths) as reader:
        assert [file.path for file in diff.compare(reader, "~1", None, "main").differences] == ["out"]
    for changes in (scene.rewind("~1"), scene.undo(), scene.rewind("~1", exact=True)):
        shown = [changes.plan.workspace.shown(path) for path in (*changes.restored_paths, *changes.deleted_paths)]
        assert shown == [b"out"]
        assert (scene.workspace / ".deep/home").is_dir()
        assert changes.in_the_way == []


def test_files_of_commands_in_their_home_are_undone(scene: Scene, directory: Path) -> None:
    with scene.turn("first"):
        scene.write(".deep/home/.profile", "1\n")
    with scene.turn("second"):
        shutil.rmtree(scene.workspace / ".deep/home")
    scene.rewind("~1")
    assert (scene.workspace / ".deep/home/.profile").read_text() == "1\n"
    with scene.turn("third"):
        shutil.rmtree(scene.workspace / ".deep/home")
        (scene.workspace / ".deep/home").write_text("a file in its place")
    scene.rewind("~1")
    assert (scene.workspace / ".deep/home/.profile").read_text() == "1\n"
    scene.rewind("~1")
    assert os.listdir(scene.workspace / ".deep/home") == []


def test_a_rewind_leaves_files_that_are_right_untouched(scene: Scene, directory: Path) -> None:
    times = (directory / "run.sh").stat().st_mtime_ns, (directory / "run.sh").stat().st_ino
    with scene.turn("write"):
        (directory / "other").write_text("x")
    scene.rewind("~1")
    assert ((directory / "run.sh").stat().st_mtime_ns, (directory / "run.sh").stat().st_ino) == times


def test_git_is_neither_stored_nor_changed(scene: Scene, directory: Path) -> None:
    (directory / "vendor" / "sub" / ".git").mkdir(parents=True)
    (directory / "vendor" / "sub" / ".git" / "HEAD").write_text("x")
    with scene.turn("commit"):
        (directory / ".git" / "HEAD").write_text("ref: refs/heads/other\n")
        (directory / ".git" / "hooks" / "post-checkout").write_text("evil")
        (directory / "src" / "app.py").write_text("changed")
    git = contents(directory / ".git")
    record = scene.last()
    with scene.work() as work:
        names = [path for path, _ in trees.walk(work.objects, bytes.fromhex(record.tree))]
    assert not [name for name in names if b".git" in name.split(b"/")]
    assert any(name.endswith(b"/files/src/app.py") for name in names)
    scene.rewind("~1")
    assert (directory / "src" / "app.py").read_text() == "print('hello')\n"
    assert contents(directory / ".git") == git


def test_a_checkpoint_contains_no_placeholder(scene: Scene, directory: Path) -> None:
    """They are there while a container runs: `.envrc` as a directory would keep the user from writing the file."""
    (directory / "sticky").mkdir()
    (directory / "sticky" / "inner").write_text("x")
    (directory / "sticky").chmod(0o1555)
    with placeholders.held([Placeholder(str(directory / ".envrc")), Placeholder(str(directory / "sub"))]):
        with scene.turn("write"):
            (directory / "a").write_text("a")
    record = scene.last()
    with scene.work() as work:
        names = {path.partition(b"/files/")[2] for path, _ in trees.walk(work.objects, bytes.fromhex(record.tree))}
    assert b"sticky/inner" in names
    assert not names & {b".envrc", b"sub"}


def test_a_tree_that_names_git_changes_nothing_there(scene: Scene, directory: Path) -> None:
    """Such a tree can only come from an archive that somebody else made."""
    with scene.turn("write"):
        (directory / "a").write_text("a")
    session = scene.session()
    with scene.work() as work:
        workspace = work.workspace_of(session)
        assert workspace.project is not None
        prefix = workspaces.mount_prefix(workspace.project.id)
        with work.store.new_batch() as batch:
            digest = batch.add(b"evil")
        work.store.writer._append({"repaired": {}, "packs": [batch.pack], "gone": []})  # otherwise it is rubbish
        entry = trees.TreeEntry(trees.FILE, 0o755, 4, digest, b"post-checkout")
        changes = [
            trees.TreeChange(prefix + b"/" + path, None, entry._replace(name=os.path.basename(path)))
            for path in (b".git/hooks/post-checkout", b"src/.GIT/x", b".git", b"fine")
        ]
        changes.append(trees.TreeChange(b".deep/projects/00000000/files/x", None, entry._replace(name=b"x")))
        result = workspaces.working_tree(workspace, work.objects).apply(changes)
    assert result.written_paths == [prefix + b"/fine"]
    assert {path.removeprefix(prefix) for path, _ in result.kept_paths} == {
        b"/.git/hooks/post-checkout",
        b"/src/.GIT/x",
        b"/.git",
        b".deep/projects/00000000/files/x",
    }
    assert not (directory / ".git/hooks/post-checkout").exists()
    assert not (scene.workspace / ".deep/projects").exists()


def test_only_files_is_the_project_and_only_memory_the_notebooks(scene: Scene, directory: Path) -> None:
    with scene.turn("both"):
        (directory / "a").write_text("a")
        scene.write("plans/plan.md", "# plan\n")
        scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
    scene.rewind("~1", only="files")
    assert not (directory / "a").exists()
    assert (scene.workspace / "plans/plan.md").exists()
    assert (scene.workspace / ".deep/memory/main/MEMORY.md").exists()
    scene.undo()
    assert (directory / "a").exists()
    scene.rewind("~1", only="memory")
    assert (directory / "a").exists()
    assert not (scene.workspace / ".deep/memory/main/MEMORY.md").exists()
    assert (scene.workspace / "plans/plan.md").exists()
    scene.rewind("~1")
    assert not (directory / "a").exists()
    assert not (scene.workspace / "plans/plan.md").exists()


def test_the_users_edits_survive_and_are_named_by_their_paths_in_the_project(scene: Scene, directory: Path) -> None:
    with scene.turn("write"):
        (directory / "src" / "app.py").write_text("agent\n")
        (directory / "new").write_text("agent\n")
    (directory / "src" / "app.py").write_text("user\n")
    (directory / "mine").write_text("user\n")
    with pytest.raises(RewindConflicts) as caught:
        scene.rewind("~1")
    assert caught.value.paths == [b"src/app.py"]
    assert (directory / "new").exists()
    scene.rewind("~1", force=True)
    assert (directory / "src" / "app.py").read_text() == "print('hello')\n"
    assert (directory / "mine").read_text() == "user\n"
    assert not (directory / "new").exists()


def test_exact_restores_the_users_edits_too(scene: Scene, directory: Path) -> None:
    before = contents(directory)
    with scene.turn("write"):
        (directory / "new").write_text("agent\n")
    (directory / "mine").write_text("user\n")
    (directory / "secret").unlink()
    scene.write("plans/mine.md", "user\n")
    scene.rewind("~1", exact=True)
    assert contents(directory) == before
    assert not (scene.workspace / "plans/mine.md").exists()


@pytest.mark.parametrize("exact", [False, True])
def test_two_sessions_in_two_projects_do_not_change_each_others_files(
    scene: Scene, directory: Path, tmp_path: Path, exact: bool
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "theirs").write_text("theirs\n")
    scene.directories["second"] = other
    with scene.turn("one"):
        (directory / "one").write_text("1")
    with scene.turn("two", "second"):
        (other / "two").write_text("2")
    with scene.turn("private", "private"):
        scene.write("three", "3")
    first, second = scene.session().project, scene.session("second").project
    assert first is not None
    assert second is not None
    with scene.work() as work:
        tree = bytes.fromhex(scene.last().tree)
        assert workspaces.mounts_in(work.objects, tree).keys() == {first.id, second.id}
    before = contents(directory)
    scene.rewind("~1", "second", exact=exact)
    assert contents(directory) == before
    assert sorted(contents(other)) == ["theirs"]
    assert (scene.workspace / "three").exists() != exact, "the workspace belongs to both"
    theirs = contents(other)
    scene.rewind("~1", "main", exact=exact)
    assert not (directory / "one").exists()
    assert contents(other) == theirs


@pytest.mark.parametrize("exact", [False, True])
def test_a_private_session_never_changes_a_project(scene: Scene, directory: Path, exact: bool) -> None:
    with scene.turn("private", "private"):
        scene.write("three", "3")
    with scene.turn("one"):
        (directory / "one").write_text("1")
    before = contents(directory)
    with scene.turn("private again", "private"):
        scene.write("three", "4")
        (directory / "one").write_text("changed by a command of the private session")
    changed = contents(directory)
    scene.rewind("~2", "private", exact=exact)
    assert not (scene.workspace / "three").exists()
    assert contents(directory) == changed != before


def test_the_tree_of_a_private_profile_is_as_before(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    with scene.turn("one"):
        scene.write("one", "1")
    with scene.work() as work:
        plain = trees.snapshot(str(scene.workspace), work.sink, work.store.cache).tree.hex()
    assert scene.last().tree == plain
    assert scene.last().project == ""


def test_a_real_directory_in_the_place_of_the_mounts_is_left_out(scene: Scene, directory: Path) -> None:
    scene.write(".deep/projects/x/files/planted", "planted\n")
    with scene.turn("one"):
        (directory / "one").write_text("1")
    with scene.work() as work:
        names = [path for path, _ in trees.walk(work.objects, bytes.fromhex(scene.last().tree))]
    assert not [name for name in names if b"planted" in name]
    scene.rewind("~1", exact=True)
    assert (scene.workspace / ".deep/projects/x/files/planted").read_text() == "planted\n"


def test_a_link_in_the_place_of_deepctls_directory_hides_no_file_of_the_project(
    scene: Scene, directory: Path, tmp_path: Path
) -> None:
    scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
    before = contents(directory)
    (tmp_path / "elsewhere").mkdir()
    with scene.turn("replace"):
        shutil.rmtree(scene.workspace / ".deep")
        (scene.workspace / ".deep").symlink_to(tmp_path / "elsewhere")
        (directory / "one").write_text("1")
    assert [".deep", "in the place of a directory of deepctl"] in scene.last().unkept
    scene.rewind("~1")
    assert contents(directory) == before
    assert (scene.workspace / ".deep/memory/main/MEMORY.md").read_text() == "- tea\n"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_cached_directories_of_one_place_survive_snapshots_of_another(scene: Scene, directory: Path) -> None:
    with scene.turn("one"):
        (directory / "one").write_text("1")
    with scene.turn("private", "private"):
        scene.write("three", "3")
    project = scene.session().project
    assert project is not None
    prefix = workspaces.mount_prefix(project.id)
    with scene.work() as work:
        rows = work.store.cache.directories(b"", workspaces.PROJECTS)
        assert b"" in rows
        assert not [path for path in rows if path.startswith(workspaces.PROJECTS)]
        assert work.store.cache.directories(prefix).keys() == {prefix, prefix + b"/src", prefix + b"/src/empty"}


class TestADirectoryThatIsGone:
    @pytest.fixture(autouse=True)
    def gone(self, scene: Scene, directory: Path) -> Path:
        with scene.turn("both"):
            (directory / "a").write_text("a")
            scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
        return directory.rename(directory.with_name("moved"))

    def test_other_sessions_work_and_its_tree_stays(self, scene: Scene, directory: Path) -> None:
        tree = scene.last().tree
        with scene.turn("private", "private"):
            scene.write("three", "3")
        project = scene.session().project
        assert project is not None
        with scene.work() as work:
            then, now = (workspaces.mounts_in(work.objects, bytes.fromhex(one)) for one in (tree, scene.last().tree))
        assert then == now
        assert project.id in then

    def test_memory_and_conversation_can_be_rewound(self, scene: Scene, directory: Path) -> None:
        with pytest.raises(Refused) as caught:
            scene.rewind("~1")
        assert caught.value.code == "project_gone"
        scene.rewind("~1", only="memory")
        assert not (scene.workspace / ".deep/memory/main/MEMORY.md").exists()
        scene.rewind("~1", only="conversation")
        assert scene.prompts() == []

    def test_after_a_move_everything_can_be_rewound(self, scene: Scene, directory: Path, gone: Path) -> None:
        moved = projects.move(scene.paths, str(directory), str(gone))
        assert moved.path == str(gone)
        assert moved.inode == gone.stat().st_ino
        scene.rewind("~1")
        assert not (gone / "a").exists()
        assert not directory.exists()

    def test_a_link_in_its_place_is_not_followed(self, scene: Scene, directory: Path, gone: Path) -> None:
        directory.symlink_to(gone)
        before = contents(gone)
        with pytest.raises(Refused) as caught:
            scene.rewind("~1")
        assert caught.value.code == "project_gone"
        assert contents(gone) == before

    def test_another_directory_in_its_place_is_edited_by_somebody_else(self, scene: Scene, directory: Path) -> None:
        directory.mkdir()
        (directory / "a").write_text("another file\n")
        with pytest.raises(RewindConflicts):
            scene.rewind("~1")
        assert (directory / "a").read_text() == "another file\n"


class TestTheDocument:
    def test_it_is_built_again_from_the_sessions(self, scene: Scene, directory: Path) -> None:
        session = scene.session()
        document = Path(scene.paths.directory) / "projects.json"
        before = projects.read(scene.paths)
        assert [project.path for project in before] == [str(directory)]
        for damage in (b"", b"{}", document.read_bytes()[:-9], document.read_bytes().replace(b"project", b"prefect")):
            document.write_bytes(damage)
            found = projects.read(scene.paths)
            assert [(project.id, project.path) for project in found] == [(before[0].id, str(directory))]
        assert verify.verify(scene.paths).problems == []
        assert "projects.json is damaged" in " ".join(verify.verify(scene.paths).notes)
        with scene.work() as work:
            assert "The list of projects was damaged" in " ".join(work.notes)
        assert not projects.is_damaged(scene.paths)
        assert verify.verify(scene.paths).notes == []
        document.unlink()
        with scene.turn("one"):
            (directory / "one").write_text("1")
        assert scene.last().project == (session.project or SessionProject("", "")).id
        assert projects.ensure(scene.paths, str(directory)).id == before[0].id
        assert document.exists()

    def test_a_session_whose_record_is_damaged_keeps_its_project(self, scene: Scene, directory: Path) -> None:
        with scene.turn("one"):
            (directory / "one").write_text("1")
        session = scene.session()
        (Path(session.directory) / "session.json").write_bytes(b"broken\n")
        assert scene.session().project == SessionProject(scene.last().project, "")
        with scene.work():
            pass
        assert scene.session().project == session.project
        scene.rewind("~1")
        assert not (directory / "one").exists()

    def test_a_session_whose_directory_nothing_knows_is_refused(
        self, scene: Scene, directory: Path, deepctl: InProcess
    ) -> None:
        with scene.turn("one"):
            (directory / "one").write_text("1")
        (Path(scene.session().directory) / "session.json").write_bytes(b"broken\n")
        (Path(scene.paths.directory) / "projects.json").write_bytes(b"broken\n")
        with pytest.raises(Refused) as caught:
            scene.rewind("~1")
        assert caught.value.code == "project_unknown"
        assert (directory / "one").exists()
        with scene.turn("private", "private"):
            scene.write("three", "3")
        project = scene.session().project
        assert project is not None
        assert [(found.id, found.path) for found in projects.read(scene.paths)] == [(project.id, "")]
        deepctl("projects", "move", project.id, str(directory), "--user", "alice").ok()
        scene.rewind("~1")
        assert not (directory / "one").exists()

    def test_forget_and_trust(self, scene: Scene, directory: Path) -> None:
        project = projects.ensure(scene.paths, str(directory))
        projects.set_trusted(scene.paths, project.id, "digest")
        assert projects.by_path(scene.paths, str(directory)) == project._replace(trusted="digest")
        assert projects.ensure(scene.paths, str(directory)).trusted == "digest"
        projects.forget(scene.paths, project.id)
        assert projects.read(scene.paths) == []

    def test_two_projects_never_have_one_directory(self, scene: Scene, directory: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        for place in (directory, other):
            projects.ensure(scene.paths, str(place))
        with pytest.raises(Refused):
            projects.move(scene.paths, str(directory), str(other))


def test_two_sessions_in_one_project_know_each_others_changes(scene: Scene, directory: Path) -> None:
    scene.directories["second"] = directory
    with scene.turn("one"):
        (directory / "src" / "app.py").write_text("main\n")
        (directory / "one").write_text("main\n")
    with scene.turn("two", "second"):
        (directory / "src" / "app.py").write_text("second\n")
        (directory / "two").write_text("second\n")
    with pytest.raises(RewindConflicts) as caught:
        scene.rewind("~1")
    assert caught.value.paths == [b"src/app.py"]
    scene.rewind("~1", "second")
    assert (directory / "src" / "app.py").read_text() == "main\n"
    assert not (directory / "two").exists()
    scene.rewind("~1", force=True)  # the rewind of the other session counts as its change
    assert (directory / "src" / "app.py").read_text() == "print('hello')\n"
    assert not (directory / "one").exists()


def test_checkpoints_of_two_projects_are_compared_without_mixing_them(
    scene: Scene, directory: Path, tmp_path: Path, deepctl: InProcess
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    scene.directories["second"] = other
    with scene.turn("one"):
        (directory / "one").write_text("1")
    with scene.turn("two", "second"):
        (other / "two").write_text("2")
    of_main = [record for record in scene.records() if record.session == scene.session().id]
    of_second = [record for record in scene.records() if record.session == scene.session("second").id]
    compared = deepctl("checkpoints", "diff", of_main[0].id, of_second[-1].id, "--user", "alice", "--json").ok().json
    assert [file["path"] for file in compared["files"] if not file["path"].startswith("/profile/")] == ["one"]


def test_a_fork_inherits_the_project(scene: Scene, directory: Path) -> None:
    with scene.turn("one"):
        (directory / "one").write_text("1")
    with scene.work() as work:
        forked = work.fork(scene.last(), "forked")
    assert forked.project == scene.session().project
    with scene.turn("two", "forked"):
        (directory / "two").write_text("2")
    scene.rewind("~1", "forked")
    assert (directory / "one").exists()
    assert not (directory / "two").exists()


def test_files_that_the_rules_ignore_stay_and_are_listed(scene: Scene, directory: Path) -> None:
    with scene.turn("one"):
        (directory / "build.log").write_text("1")
        (directory / "one").write_text("1")
    with scene.work(exclude=["*.log"]) as work:
        session = scene.session()
        target = lookup.find_checkpoint(scene.paths, work.ledger, "~1", "main")
        result = rewind.run(work, session, RewindRequest(target))
        project = session.project
        assert project is not None
        assert result.plan.ignored_paths == [workspaces.mount_prefix(project.id) + b"/build.log"]
    assert (directory / "build.log").exists()
    assert not (directory / "one").exists()


def test_another_directory_that_the_user_puts_in_place_during_a_command_is_not_the_agents(
    scene: Scene, directory: Path
) -> None:
    with scene.turn("one"):
        (directory / "one").write_text("agent")
        directory.rename(directory.with_name("moved"))
        directory.mkdir()
        (directory / "mine").write_text("mine")
    with pytest.raises(RewindConflicts):
        scene.rewind("~1")
    assert os.listdir(directory) == ["mine"]
    assert scene.last().author == OTHER
    assert scene.last("tool").author == UNKNOWN


def _git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Alice", "-c", "user.email=alice@localhost", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


class TestGit:
    @pytest.fixture(autouse=True)
    def repository(self, directory: Path) -> None:
        shutil.rmtree(directory / ".git")
        _git(directory, "init", "--quiet")
        _git(directory, "add", "--all")
        _git(directory, "commit", "--quiet", "--message", "start")

    def test_a_checkpoint_has_head_and_branch(self, scene: Scene, directory: Path) -> None:
        head = _git(directory, "rev-parse", "HEAD")
        with scene.turn("one"):
            (directory / "one").write_text("1")
        assert scene.last().git == {"head": head, "branch": "main"}

    def test_the_commits_of_the_agent_stay_and_are_named(self, scene: Scene, directory: Path) -> None:
        with scene.turn("one"):
            (directory / "one").write_text("1")
            _git(directory, "add", "one")
            _git(directory, "commit", "--quiet", "--message", "by the agent")
        agents = _git(directory, "rev-parse", "HEAD")
        (directory / "mine").write_text("mine")
        _git(directory, "add", "mine")
        _git(directory, "commit", "--quiet", "--message", "by the user")
        with scene.turn("two"):
            (directory / "two").write_text("2")
        git = contents(directory / ".git")
        result = scene.rewind("~2")
        assert [(commit.id, commit.subject) for commit in result.plan.commits] == [(agents, "by the agent")]
        assert not (directory / "one").exists()
        assert (directory / "mine").exists()
        assert contents(directory / ".git") == git

    def test_a_commit_that_leaves_the_files_as_they_are_has_its_author_too(self, scene: Scene, directory: Path) -> None:
        with scene.turn("work"):
            (directory / "new.txt").write_text("new\n")
        _git(directory, "add", "new.txt")
        _git(directory, "commit", "--quiet", "--message", "by the user")
        with scene.turn("commit"):
            _git(directory, "commit", "--quiet", "--allow-empty", "--message", "by the agent")
        commits = [commit.subject for commit in scene.rewind("~2").plan.commits]
        assert commits == ["by the agent"]

    def test_a_change_whose_earlier_state_no_checkpoint_has_stays_and_is_named(
        self, scene: Scene, directory: Path
    ) -> None:
        with scene.turn("base"):
            pass
        (directory / ".gitignore").write_text("build/\n")
        with scene.turn("one"):
            (directory / ".gitignore").write_text("")
            (directory / "build").mkdir()
            (directory / "build" / "out").write_text("one")
        with scene.turn("two"):
            (directory / "build" / "out").write_text("two")
        plan = scene.rewind("~3").plan
        assert (directory / "build" / "out").read_text() == "one"
        assert [plan.workspace.shown(path) for path in plan.kept_paths] == [b"build/out"]
        assert [plan.workspace.shown(path) for path in plan.blocked_paths][-1:] == [b"build/out"]

    def test_older_commits_that_the_agent_merged_are_not_named(
        self, scene: Scene, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _git(directory, "checkout", "--quiet", "-b", "side")
        with monkeypatch.context() as past:
            past.setenv("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z")
            _git(directory, "commit", "--quiet", "--allow-empty", "--message", "by the user")
        _git(directory, "checkout", "--quiet", "main")
        with scene.turn("merge"):
            _git(directory, "merge", "--quiet", "--no-ff", "--message", "by the agent", "side")
            (directory / "one").write_text("1")
        assert [commit.subject for commit in scene.rewind("~1").plan.commits] == ["by the agent"]

    def test_a_commit_that_the_user_has_dropped_is_not_named(self, scene: Scene, directory: Path) -> None:
        with scene.turn("one"):
            (directory / "one").write_text("1")
            _git(directory, "add", "one")
            _git(directory, "commit", "--quiet", "--message", "by the agent")
        _git(directory, "reset", "--quiet", "HEAD~1")
        assert scene.rewind("~1").plan.commits == []

    def test_a_rewind_of_memory_says_nothing_about_commits(self, scene: Scene, directory: Path) -> None:
        with scene.turn("one"):
            scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
            (directory / "one").write_text("1")
            _git(directory, "add", "one")
            _git(directory, "commit", "--quiet", "--message", "by the agent")
        assert scene.rewind("~1", only="memory").plan.commits == []


def test_paths_that_are_not_covered_are_part_of_the_checkpoint(scene: Scene, directory: Path) -> None:
    paths = [f"node_modules/{number}" for number in range(300)]
    session = scene.session()
    with scene.work() as work:
        position = session_reader.position(session, session_catalogue.read(session))
        (record,) = work.after_turn(session, position, not_covered=paths)
    assert scene.last() == record
    assert record.not_covered == paths[:200]
    assert record.not_covered_count == 300


def test_the_paths_of_views_are_those_of_the_project(scene: Scene, directory: Path, deepctl: InProcess) -> None:
    with scene.turn("one"):
        (directory / "one").write_text("1\n")
        scene.write("plans/plan.md", "# plan\n")
        os.mkfifo(directory / "fifo")
    alice = ("--user", "alice", "--json")
    shown = deepctl("checkpoints", "show", scene.last().id, *alice).ok().json
    paths = {entry["path"] for entry in shown["files"]}
    assert {"one", "src/app.py", "/profile/plans/plan.md"} <= paths
    assert not [path for path in paths if "projects" in path]
    assert shown["unkept"] == [{"path": "fifo", "reason": "a FIFO"}]
    first = scene.records()[0].id
    compared = deepctl("checkpoints", "diff", first, *alice).ok().json
    assert {file["path"] for file in compared["files"]} >= {"one", "/profile/plans/plan.md"}
    assert "+++ b/one\n" in next(file["diff"] for file in compared["files"] if file["path"] == "one")
    preview = deepctl("checkpoints", "rewind", "~1", "--session", "main", "--dry-run", *alice).ok().json
    assert "one" in preview["files"]["deleted"]
    (directory / "one").write_text("mine\n")
    refused = deepctl("checkpoints", "rewind", "~1", "--session", "main", *alice)
    assert refused.code == 6
    assert "Another author changed one after the agent" in refused.stderr
    done = deepctl("checkpoints", "rewind", "~1", "--session", "main", "--force", *alice).ok().json
    assert "one" in done["files"]["deleted"]
    assert done["files"]["ignored"] == []
    assert done["commits"] == []


def test_temporary_files_of_a_killed_tool_are_removed_in_ignored_directories_too(scene: Scene, directory: Path) -> None:
    (directory / ".gitignore").write_text("dist/\n")
    shutil.rmtree(directory / ".git")
    _git(directory, "init", "--quiet")
    (directory / "dist" / "inner").mkdir(parents=True)
    names = [f".deepctl-{number:012x}.tmp" for number in range(4)]
    with scene.turn("start"):
        pass

    def leave() -> None:
        for name, place in zip(names, ("src", "dist", "dist/inner", "dist"), strict=True):
            (directory / place / name).write_text("half")
        (directory / "dist" / ".deepctl-mine.tmp").write_text("not of deepctl")

    with scene.work() as work:
        session = scene.session()
        before = session_reader.position(session, session_catalogue.read(session))
        work.before_turn(session, before)
        writer = session_log.LogWriter(session.directory, session.log, before.turn + 1)
        calls = [{"path": "dist/a.js"}, json.dumps({"path": f"{directory}/dist/inner/b.js"}), {"path": "../../x"}]
        parts = [
            {"part_kind": "tool-call", "tool_name": "write_file", "tool_call_id": str(number), "args": args}
            for number, args in enumerate(calls)
        ]
        writer.message({"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "write"}]})
        writer.message({"kind": "response", "parts": parts})
        leave()
        writer.close()
    with scene.turn("private", "private"):
        pass
    assert sorted(path.name for path in directory.rglob(".deepctl-*")) == [".deepctl-mine.tmp"]


class TestIgnoredAtOneEnd:
    """`.gitignore` changes between the target and now: neither side's ignored files are touched."""

    @pytest.fixture(autouse=True)
    def repository(self, directory: Path) -> None:
        shutil.rmtree(directory / ".git")
        _git(directory, "init", "--quiet")
        (directory / "data").write_text("the user's\n")

    @pytest.mark.parametrize("exact", [False, True])
    def test_ignored_now(self, scene: Scene, directory: Path, exact: bool) -> None:
        with scene.turn("one"):
            (directory / "data").write_text("the agent's\n")
            (directory / "other").write_text("the agent's\n")
        (directory / ".gitignore").write_text("data\n")
        (directory / "data").write_text("the user's again\n")
        session = scene.session()
        assert session.project is not None
        result = scene.rewind("~1", exact=exact)
        assert (directory / "data").read_text() == "the user's again\n"
        assert not (directory / "other").exists()
        assert workspaces.mount_prefix(session.project.id) + b"/data" in result.plan.ignored_paths

    @pytest.mark.parametrize("exact", [False, True])
    def test_ignored_at_the_target(self, scene: Scene, directory: Path, exact: bool) -> None:
        (directory / ".gitignore").write_text("data\nother\n")
        with scene.turn("one"):
            (directory / ".gitignore").write_text("other\n")
            (directory / "data").write_text("the agent's\n")
        session = scene.session()
        assert session.project is not None
        result = scene.rewind("~1", exact=exact)
        assert (directory / "data").read_text() == "the agent's\n"
        assert (directory / ".gitignore").read_text() == "data\nother\n"
        assert result.plan.ignored_paths == [workspaces.mount_prefix(session.project.id) + b"/data"]

    def test_ignored_by_the_agent_afterwards(self, scene: Scene, directory: Path) -> None:
        with scene.turn("one"):
            (directory / "data").write_text("the agent's\n")
        with scene.turn("two"):
            (directory / ".gitignore").write_text("data\n")
        session = scene.session()
        assert session.project is not None
        result = scene.rewind("~2")
        assert (directory / "data").read_text() == "the agent's\n"
        assert not (directory / ".gitignore").exists()
        assert result.plan.ignored_paths == [workspaces.mount_prefix(session.project.id) + b"/data"]
        # Now that nothing ignores it, the same rewind takes the rest back.
        with scene.work() as work:
            target = scene.records()[0]
            rewind.run(work, scene.session(), RewindRequest(target))
        assert (directory / "data").read_text() == "the user's\n"

    def test_changed_and_ignored_by_the_agent_in_one_turn(self, scene: Scene, directory: Path) -> None:
        (directory / "logs").mkdir()
        (directory / "logs" / "one").write_text("the user's\n")
        with scene.turn("one"):
            (directory / "data").write_text("the agent's\n")
            (directory / "logs" / "one").write_text("the agent's\n")
            (directory / ".gitignore").write_text("data\nlogs/\n")
        session = scene.session()
        assert session.project is not None
        result = scene.rewind("~1")
        assert not (directory / ".gitignore").exists()
        # Nobody knows what the agent made of them, and a directory stands for what is in it.
        prefix = workspaces.mount_prefix(session.project.id)
        assert result.plan.ignored_paths == [prefix + b"/data", prefix + b"/logs"]

    def test_ignored_in_between_only(self, scene: Scene, directory: Path) -> None:
        with scene.turn("one"):
            (directory / "other").write_text("the agent's\n")
        (directory / ".gitignore").write_text("data\n")
        with scene.turn("two"):
            (directory / "third").write_text("the agent's\n")
        (directory / "data").write_text("the user's, unseen\n")
        (directory / ".gitignore").unlink()
        scene.rewind("~2")
        assert (directory / "data").read_text() == "the user's, unseen\n"
        assert not (directory / "other").exists()
        assert not (directory / "third").exists()

    def test_a_file_that_grew_too_large_is_not_touched(self, scene: Scene, directory: Path) -> None:
        coverage = CoverageSettings(max_file=1000)
        with scene.turn("one", coverage=coverage):
            (directory / "data").write_text("x" * 2000)
            (directory / "other").write_text("the agent's\n")
        assert [entry[1] for entry in scene.last().unkept] == [trees.TOO_LARGE]
        with scene.work(coverage=coverage) as work:
            session = scene.session()
            target = lookup.find_checkpoint(scene.paths, work.ledger, "~1", "main")
            result = rewind.run(work, session, RewindRequest(target))
        assert session.project is not None
        assert result.plan.ignored_paths == [workspaces.mount_prefix(session.project.id) + b"/data"]
        assert (directory / "data").read_text() == "x" * 2000
        assert not (directory / "other").exists()


class TestTransfer:
    @pytest.fixture
    def archive(self, scene: Scene, directory: Path) -> bytes:
        with scene.turn("one"):
            (directory / "one").write_text("1")
            scene.write("plans/plan.md", "# plan\n")
        export = Export(scene.paths, "test")
        export.measure()
        file = io.BytesIO()
        result = export.write(file)
        assert result.projects == [str(directory)]
        assert [entry.path for entry in result.left_out] == ["projects.json"]
        return file.getvalue()

    def test_imported_sessions_are_private_and_change_no_project(
        self, scene: Scene, directory: Path, archive: bytes, tmp_path: Path, deepctl: InProcess
    ) -> None:
        before = contents(directory)
        (tmp_path / "archive").write_bytes(archive)
        deepctl("profiles", "import", str(tmp_path / "archive"), "--as", "bob").ok()
        bob = Scene.__new__(Scene)
        bob.paths = profiles.find(Root(str(tmp_path / "root")), "bob")
        bob.workspace, bob.directories = Path(bob.paths.workspace), {}
        assert bob.session().project is None
        assert not (Path(bob.paths.directory) / "projects.json").exists()
        previewed = deepctl("checkpoints", "rewind", "~1", "--dry-run", "--user", "bob", "--json").ok().json
        assert "files of a project" in previewed["notes"][0]
        shown = deepctl("checkpoints", "rewind", "~1", "--dry-run", "--user", "bob").ok()
        assert " ".join(shown.stderr.split()).count(previewed["notes"][0]) == 1
        for only in ("memory", "conversation"):
            document = deepctl("checkpoints", "rewind", "~1", "--only", only, "--dry-run", "--user", "bob", "--json")
            assert "notes" not in document.ok().json
        bob.rewind("~1", exact=True)
        assert contents(directory) == before
        assert not (bob.workspace / "plans/plan.md").exists()
        bob.undo()
        with bob.work() as work:
            assert work.fork(bob.last(), "forked").project is None
        assert deepctl("checkpoints", "diff", bob.records()[0].id, "--user", "bob").code == 0
        assert verify.verify(bob.paths).problems == []

    def test_an_export_says_what_its_checkpoints_contain(
        self, scene: Scene, directory: Path, archive: bytes, tmp_path: Path, deepctl: InProcess
    ) -> None:
        done = deepctl("profiles", "export", str(tmp_path / "archive"), "--user", "alice").ok()
        assert f"Its checkpoints contain files of these directories: {directory}." in done.stderr

    def test_a_session_is_imported_as_private(
        self, scene: Scene, directory: Path, archive: bytes, tmp_path: Path, deepctl: InProcess
    ) -> None:
        exported = deepctl("sessions", "export", "main", "--user", "alice").ok()
        assert json.loads(exported.stdout)["session"]["project"] == str(directory)
        (tmp_path / "session.json").write_text(exported.stdout)
        deepctl("sessions", "import", str(tmp_path / "session.json"), "--as", "again", "--user", "alice").ok()
        assert scene.session("again").project is None

    def test_a_wipe_leaves_the_directory(
        self, scene: Scene, directory: Path, archive: bytes, deepctl: InProcess
    ) -> None:
        before = contents(directory)
        deepctl("wipe", "--user", "alice", "--only", "workspace,memory,plans", "--yes").ok()
        assert contents(directory) == before
        deepctl("wipe", "--user", "alice", "--yes").ok()
        assert contents(directory) == before


def test_a_repair_finds_lost_contents_in_the_project(scene: Scene, directory: Path) -> None:
    with scene.turn("one"):
        (directory / "one").write_text("the only copy of these bytes\n")
    digest = hashlib.sha256(b"the only copy of these bytes\n").digest()
    with scene.work() as work:
        location = work.store.cache.find(digest)
    assert location is not None
    pack = Path(scene.paths.packs) / location.pack
    damaged = bytearray(pack.read_bytes())
    damaged[location.offset + 3] ^= 0xFF
    pack.chmod(0o600)
    pack.write_bytes(damaged)
    assert verify.verify(scene.paths).problems
    found = repair.repair(scene.paths)
    assert verify.verify(scene.paths).problems == []
    assert found.lost == []
    scene.rewind("~1")
    scene.undo()
    assert (directory / "one").read_text() == "the only copy of these bytes\n"


def test_a_root_of_0_1_goes_on_with_a_project(tmp_path: Path, directory: Path) -> None:
    make.unpack("format-1", tmp_path / "root" / "profiles" / "alice")
    scene = Scene(tmp_path / "root")
    scene.directories["work"] = directory
    before, workspace = contents(directory), scene.files()
    with scene.turn("one", "work"):
        (directory / "one").write_text("1")
    scene.rewind("~1", "work")
    assert contents(directory) == before
    assert scene.files().items() >= workspace.items()
    scene.rewind("~1", "main")
    assert contents(directory) == before
    assert verify.verify(scene.paths).problems == []
