"""A machine with other users, one of whom was in the root, or above it, first."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.domain.wipe import trash
from deepctl.errors import StorageError
from deepctl.files import atomic, ownership, sealed_lines
from deepctl.layout import Root
from deepctl.locks import Lock
from tests.support.command import InProcess
from tests.support.ordinary import as_ordinary

MALLORY = 4242
COMMANDS = (
    ["chat", "hello", "--user", "alice"],
    ["profiles", "create", "alice"],
    ["profiles", "list"],
    ["sessions", "list", "--user", "alice"],
    ["wipe", "--user", "alice", "--yes"],
    ["memory", "add", "x", "--user", "alice"],
    ["config", "set", "model", "offline", "--user", "alice"],
)
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


def _plan(profile: Path, *paths: str) -> bytes:
    status = profile.stat() if profile.exists() else profile.parent.stat()
    return sealed_lines.seal(
        {
            "v": trash.FORMAT,
            "profile": profile.name,
            "identity": [status.st_dev, status.st_ino],
            "moves": [[path, ""] for path in paths],
        }
    )


def _plant_plan(root: Path, profile: Path, *paths: str) -> Path:
    place = root / "profiles" / ".wipe-parts-0123abcd-alice"
    place.mkdir(parents=True)
    (place / "plan").write_bytes(_plan(profile, *paths))
    return place


UNSAFE: dict[str, Callable[[Path], None]] = {
    "everybody's": lambda root: root.chmod(0o777),
    "everybody's with the sticky bit": lambda root: root.chmod(0o1777),
    "everybody's to write only": lambda root: root.chmod(0o702),
    "its profiles are everybody's": lambda root: (root / "profiles").chmod(0o1777),
    "its locks are everybody's": lambda root: (root / "locks").chmod(0o777),
    "its profiles are a link": lambda root: _link(root / "profiles"),
    "its locks are a link": lambda root: _link(root / "locks"),
    "what is above it is everybody's": lambda root: root.parent.chmod(0o777),
    "it is a link": lambda root: _link(root),
}


def _link(path: Path) -> None:
    moved = path.with_name(f"{path.name}-moved")
    path.rename(moved)
    path.symlink_to(moved)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a profile in a directory of its own, and a file of the user's outside of it."""
    root = tmp_path / "srv" / "deepctl"
    for name in ("profiles/alice/workspace", "profiles/alice/sessions", "profiles/alice/checkpoints", "locks"):
        (root / name).mkdir(parents=True, mode=0o700)
    (root / "profiles/alice/profile.toml").write_text("version = 1\n")
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setenv("DEEPCTL_HOME", str(root))
    return root


@pytest.mark.parametrize("kind", UNSAFE)
def test_a_root_that_others_can_put_things_into_is_refused_by_every_command(
    shared: Path, deepctl: InProcess, kind: str
) -> None:
    """A planted plan with `../../..` made the next chat delete files outside the root (K1.4)."""
    _plant_plan(shared, shared / "profiles" / "alice", "../../../../precious")
    UNSAFE[kind](shared)

    def attempt() -> None:
        # A chat takes long to start, and is as good as the others then.
        for arguments in COMMANDS[kind != "everybody's" :]:
            result = deepctl(*arguments)
            assert result.code == 8, (arguments, result)
            if "everybody's" in kind:
                named = next(one for one in (shared, *shared.iterdir(), shared.parent) if one.stat().st_mode & 0o002)
                assert f"chmod go-w {named}\n" in result.stderr

    as_ordinary(attempt)
    assert (shared.parent.parent / "precious").read_text() == "mine"
    assert "✗ root" in deepctl("doctor").stdout


def test_the_hint_helps(shared: Path, deepctl: InProcess) -> None:
    shared.chmod(0o777)
    hint = deepctl("profiles", "list").stderr.partition("permission: ")[2].strip()
    assert hint.startswith("chmod ")
    assert os.system(hint) == 0
    assert deepctl("profiles", "list").code == 0


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o711, 0o500])
def test_a_root_that_only_its_user_may_write_to_is_taken(shared: Path, deepctl: InProcess, mode: int) -> None:
    shared.chmod(mode)
    assert deepctl("profiles", "list").code == 0


def test_a_group_of_the_user_alone_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    own = [entry.gr_gid for entry in grp.getgrall() if entry.gr_gid == os.getegid()]
    if own and not grp.getgrgid(own[0]).gr_mem:
        assert ownership.examine(str(tmp_path)) is None
    if os.geteuid() == 0:
        shared = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
        os.chown(tmp_path, 0, 54321)  # a group that nobody knows
        found = ownership.examine(str(tmp_path))
        assert found is not None
        assert found.help == f"Remove their permission: chmod go-w {tmp_path}"
        assert shared


@only_root
@pytest.mark.parametrize("whose", ["srv", "srv/deepctl", "srv/deepctl/profiles", "srv/deepctl/locks"])
def test_a_directory_of_another_user_is_refused_in_the_root_and_above_it(
    shared: Path, tmp_path: Path, deepctl: InProcess, whose: str
) -> None:
    os.chown(tmp_path / whose, MALLORY, MALLORY)
    for arguments in COMMANDS:
        result = deepctl(*arguments)
        assert result.code == 8, (arguments, result)
        assert str(tmp_path / whose) in result.stderr


@pytest.mark.parametrize("kind", ["device", "file", "fifo", "socket", "link"])
@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_what_is_no_directory_is_called_that_and_its_mode_is_not_to_be_changed(
    tmp_path: Path, kind: str, below: str
) -> None:
    place = tmp_path / "place"
    if kind == "device":
        place = Path("/dev/null")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        os.mknod(place, stat.S_IFSOCK | 0o600)
    else:
        (tmp_path / "file" if kind == "link" else place).write_text("")
        if kind == "link":
            place.symlink_to("file")
    if kind != "device":
        place.chmod(0o666)
    with pytest.raises(StorageError) as raised:
        ownership.check(str(place / below), "profiles")
    assert (raised.value.message, raised.value.exit_code) == (f"{place} is not a directory.", 8)
    assert raised.value.hint == "Set $DEEPCTL_HOME to a directory of your own."


@pytest.mark.parametrize("command", [["chat", "hi"], ["profiles", "list"], ["profiles", "create", "q"], ["doctor"]])
def test_a_root_in_a_device_is_refused_by_all_commands_without_advice_to_change_the_device(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for home in ("/dev/null", "/dev/null/x"):
        monkeypatch.setenv("DEEPCTL_HOME", home)
        result = deepctl(*command)
        assert "chmod" not in result.stdout + result.stderr
        assert "not a directory" in result.stdout + result.stderr
        assert "$DEEPCTL_HOME" in result.stdout + result.stderr


def test_settings_that_are_no_file_are_told_by_the_name_of_their_variable(
    tmp_path: Path, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place, problem, code in [
        ("/dev/null", "/dev/null is not a regular file.", 6),
        ("/dev/null/x", "/dev/null is not a directory.", 8),
        (str(tmp_path / "fifo"), f"{tmp_path}/fifo is not a regular file.", 6),
        (str(tmp_path / "fifo" / "x" / "y"), f"{tmp_path}/fifo is not a directory.", 8),
        (str(tmp_path), f"{tmp_path} is not a regular file.", 6),
    ]:
        monkeypatch.setenv("DEEPCTL_CONFIG", place)
        for command in (["config", "show"], ["config", "set", "model", "offline"]):
            result = deepctl(*command)
            assert (result.code, result.stderr) == (
                code,
                f"Error: {problem}\nHint: Set $DEEPCTL_CONFIG to a file of your own.\n",
            )


def test_a_sticky_directory_above_and_links_of_ones_own_are_fine(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "link").symlink_to("tmp")
    (tmp_path / "tmp" / "root").mkdir(0o700)
    ownership.check(str(tmp_path / "link" / "root"))
    ownership.check(str(tmp_path / "link" / "not" / "there" / "yet"))
    if os.geteuid() == 0:
        os.chown(tmp_path / "link", MALLORY, MALLORY, follow_symlinks=False)
        with pytest.raises(StorageError, match="link belongs to another user"):
            ownership.check(str(tmp_path / "link" / "root"))


@pytest.mark.parametrize(
    "path", ["../../../../precious", "/etc/passwd", "workspace/../../bob", "", ".", "workspace//x", "workspace/", "./x"]
)
def test_a_plan_moves_nothing_outside_its_profile(shared: Path, path: str, deepctl: InProcess) -> None:
    """Also where the root is safe: what a plan says is looked at."""
    profile = shared / "profiles" / "alice"
    (profile / "workspace" / "x").write_text("kept")
    place = _plant_plan(shared, profile, "workspace", path)
    with Lock(str(shared / "locks" / "alice"), profile="alice", command="test"):
        trash.finish(Root(str(shared)), "alice")
    assert (shared.parent.parent / "precious").read_text() == "mine"
    assert (profile / "workspace" / "x").read_text() == "kept"
    assert profile.is_dir()
    assert not place.exists()


@pytest.mark.parametrize("name", [".wipe-0123abcd-alice", ".wipe-parts-0123abcd-alice"])
def test_what_another_user_put_where_wipes_are_finished_is_left_alone(shared: Path, name: str) -> None:
    outside = shared.parent.parent / "precious"
    place = shared / "profiles" / name
    if os.geteuid() == 0:
        place.symlink_to(outside.parent)
        os.chown(place, MALLORY, MALLORY, follow_symlinks=False)
        assert trash.leftovers(Root(str(shared))) == []
        place.unlink()
    place.mkdir()
    (place / "plan").write_bytes(_plan(shared / "profiles" / "alice", "workspace"))
    place.chmod(0o777)
    assert trash.leftovers(Root(str(shared))) == []
    if os.geteuid() == 0:
        place.chmod(0o700)
        os.chown(place, MALLORY, MALLORY)
        assert trash.leftovers(Root(str(shared))) == []
    trash.finish(Root(str(shared)), "alice")
    assert outside.exists()
    assert (shared / "profiles" / "alice" / "workspace").is_dir()


@pytest.mark.parametrize("planted", ["profiles/.new-bob", "profiles/alice/sessions/.new-main"])
@pytest.mark.parametrize("kind", ["link", "directory", "file"])
def test_a_directory_in_the_making_is_never_one_that_was_there(
    shared: Path, deepctl: InProcess, planted: str, kind: str
) -> None:
    """A planted link `profiles/.new-alice` made the first chat overwrite another directory's profile.toml (K1.4)."""
    other = shared.parent.parent / "other"
    other.mkdir()
    (other / "profile.toml").write_text("theirs")
    place = shared / planted
    if kind == "link":
        place.symlink_to(other)
    elif kind == "directory":
        place.mkdir()
        (place / "planted").write_text("x")
    else:
        place.write_text("x")
    result = deepctl("chat", "hello", "--user", "bob" if "bob" in planted else "alice")
    assert result.code == 0, result
    assert (other / "profile.toml").read_text() == "theirs"
    assert sorted(entry.name for entry in other.iterdir()) == ["profile.toml"]
    made = shared / ("profiles/bob" if "bob" in planted else "profiles/alice/sessions/main")
    assert stat.S_ISDIR(made.lstat().st_mode)
    assert not (made / "planted").exists()


def test_making_a_directory_takes_none_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory"):
        with pytest.raises(FileExistsError):
            atomic.make_new_directory(str(tmp_path / name))


def test_a_profile_that_others_may_write_to_is_refused(shared: Path, deepctl: InProcess) -> None:
    (shared / "profiles" / "alice").chmod(0o777)
    result = deepctl("sessions", "list", "--user", "alice")
    assert (result.code, "chmod go-w" in result.stderr) == (8, True)
    assert deepctl("profiles", "list").code == 0
