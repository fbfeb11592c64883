"""What killed commands left half made goes with the next command that changes something, whichever it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.domain.transfer.profile_import import Staging
from deepctl.layout import Root
from deepctl.locks import Lock
from deepctl.store import session_catalogue
from tests.store.faults import count, in_child, kill
from tests.store.scene import Scene
from tests.support.command import InProcess


def _hidden(directory: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith("."))


@pytest.fixture
def root(home: Path) -> Root:
    return Root(str(home))


def test_a_profile_that_was_being_made_goes_with_the_next_command_of_another(
    deepctl: InProcess, root: Root, home: Path
) -> None:
    deepctl("profiles", "create", "alice").ok()

    def create(name: str) -> None:
        with profiles.lock(root, name, command="profiles create"):
            profiles.create(root, name)

    # All of them under names of their own, so that none removes what another left.
    left = set()
    for at in range(5, count(lambda: create("counted")) + 1, 9):
        assert in_child(lambda at=at: create(f"p{at}"), at, kill) == "killed"  # type: ignore[misc]
        left |= set(_hidden(root.profiles))
    assert left
    deepctl("config", "set", "instructions", "x", "--user", "alice").ok()
    assert _hidden(root.profiles) == []
    assert "leftovers" not in deepctl("doctor").stdout


def test_a_session_that_was_being_made_goes_with_the_next_command(home: Path) -> None:
    scene = Scene(home)
    scene.agent("a.txt", "one")
    points = count(lambda: session_catalogue.start(scene.paths, "counted"))
    for at in range(4, points + 1, 4):
        assert in_child(lambda at=at: session_catalogue.start(scene.paths, f"s{at}"), at, kill) == "killed"  # type: ignore[misc]
    assert any(name.startswith(".new-") for name in _hidden(scene.paths.sessions))
    with scene.work():
        pass
    assert _hidden(scene.paths.sessions) == []


def test_an_import_that_was_killed_goes_with_the_next_command(deepctl: InProcess, root: Root) -> None:
    deepctl("profiles", "create", "alice").ok()

    def begin() -> None:
        with Staging(root):
            kill()

    assert in_child(begin, 0, kill) == "killed"
    assert len(_hidden(root.profiles)) == 1
    deepctl("memory", "add", "a note", "--user", "alice").ok()
    assert _hidden(root.profiles) == []


def test_what_is_being_made_is_left_alone_and_no_leftover(deepctl: InProcess, root: Root, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    made = Path(root.profiles) / ".new-gina"
    made.mkdir()
    imported = Path(root.profiles) / ".import-0123456789abcdef"
    imported.mkdir()
    descriptor = os.open(imported, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with Lock(root.profile("gina").lock, profile="gina", command="profiles create"):
        deepctl("memory", "add", "a note", "--user", "alice").ok()
        assert _hidden(root.profiles) == [imported.name, made.name]
        assert ".new-gina" not in deepctl("doctor").stdout
    os.close(descriptor)
    assert str(made) in deepctl("doctor").stdout
    assert str(imported) in deepctl("doctor").stdout
    deepctl("memory", "add", "another", "--user", "alice").ok()
    assert _hidden(root.profiles) == []


def test_a_link_in_the_place_of_a_leftover_is_removed_and_not_followed(
    deepctl: InProcess, root: Root, tmp_path: Path
) -> None:
    deepctl("profiles", "create", "alice").ok()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    for name in (".new-gina", ".import-0123456789abcdef"):
        (Path(root.profiles) / name).symlink_to(tmp_path / "mine")
    (Path(root.profiles) / "alice/sessions/.new-x").symlink_to(tmp_path / "mine")
    deepctl("memory", "add", "a note", "--user", "alice").ok()
    assert _hidden(root.profiles) == _hidden(os.path.join(root.profiles, "alice/sessions")) == []
    assert (tmp_path / "mine/file").read_text() == "mine"
