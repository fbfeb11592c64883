"""An agent in a project: two directories by three names, and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from pydantic_ai.workspaces import WorkspaceError
from pydantic_ai_backends import WorkspacePathError

from deepctl import Bubblewrap, LocalBackend, NoSandbox
from deepctl.agent import user_commands
from deepctl.agent.backend import text_for_model
from deepctl.files.paths_beneath import DirectoryTree, MountTable
from deepctl.layout import ProfilePaths


class Place(NamedTuple):
    """A project, the workspace of a profile, and the backend that has both."""

    project: Path
    profile: Path
    backend: LocalBackend

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        async def run() -> Any:
            return await getattr(self.backend, method)(*arguments, **options)

        return anyio.run(run)

    def read(self, path: str) -> bytes:
        content: bytes = self.call("read_bytes", path)
        return content


@pytest.fixture
def place(tmp_path: Path) -> Place:
    project, profile = tmp_path / "code" / "shop", tmp_path / "root" / "profiles" / "alice" / "workspace"
    project.mkdir(parents=True)
    (tmp_path / "code" / "other").mkdir()
    (tmp_path / "code" / "other" / "secret.txt").write_text("secret")
    (project / "a.txt").write_text("of the project")
    backend = LocalBackend(project, profile_dir=profile, sandbox=NoSandbox())
    (profile / "a.txt").write_text("of the profile")
    return Place(project, profile, backend)


def test_every_name_leads_to_its_directory(place: Place) -> None:
    for name in ("a.txt", "./x/../a.txt", "/workspace/a.txt", f"{place.project}/a.txt"):
        assert place.read(name) == b"of the project", name
    for name in ("/profile/a.txt", "/profile/./x/../a.txt", "/workspace/../profile/a.txt"):
        assert place.read(name) == b"of the profile", name
    place.call("write_bytes", "/profile/plans/p.md", b"plan")
    place.call("write_bytes", "new/b.txt", b"b")
    assert (place.profile / "plans" / "p.md").read_bytes() == b"plan"
    assert (place.project / "new" / "b.txt").read_bytes() == b"b"
    assert [entry.name for entry in place.call("list_dir", ".")] == ["a.txt", "new"]
    assert [entry.path for entry in place.call("list_dir", "/profile")] == ["/profile/a.txt", "/profile/plans"]
    assert place.call("working_dir") == str(place.project)
    assert place.call("realpath", "a.txt") == f"{place.project}/a.txt"
    assert place.call("realpath", "/profile/a.txt") == "/profile/a.txt"


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../other/secret.txt",
        "/workspace/../other/secret.txt",
        "/etc/passwd",
        "/",
        "/profiles/a.txt",
        "/profile/../etc/passwd",
        "//profile/a.txt",
        "{code}/other/secret.txt",
        "{profile}/../profile.toml",
    ],
)
def test_nothing_else_is_reached(place: Place, name: str) -> None:
    (place.profile.parent / "profile.toml").write_text("[x]")
    path = name.format(code=place.project.parent, profile=place.profile)
    for method in ("read_bytes", "stat", "list_dir", "exists"):
        with pytest.raises(WorkspacePathError):
            place.call(method, path)
    for method in ("write_bytes", "make_dir", "remove"):
        with pytest.raises(WorkspacePathError):
            place.call(method, path, *([b"x"] if method == "write_bytes" else []))
    with pytest.raises(WorkspaceError):
        place.call("grep", "secret", path, None, with_hidden=True)


def test_a_link_leads_from_none_of_the_two_into_anything_else(place: Place) -> None:
    targets = {
        "out": place.project.parent / "other" / "secret.txt",
        "to_profile": place.profile / "a.txt",
        "to_mount": Path("/profile/a.txt"),
        "up": Path("../other/secret.txt"),
    }
    for name, target in targets.items():
        (place.project / name).symlink_to(target)
        with pytest.raises(WorkspacePathError):
            place.read(name)
    for name, target in {"out": place.project / "a.txt", "to_mount": Path("/workspace/a.txt")}.items():
        (place.profile / name).symlink_to(target)
        with pytest.raises(WorkspacePathError):
            place.read(f"/profile/{name}")
    for number, inside in enumerate(("a.txt", "/workspace/a.txt", str(place.project / "a.txt"))):
        (place.project / f"in-{number}").symlink_to(inside)
        assert place.read(f"in-{number}") == b"of the project"


def test_a_project_below_a_name_of_the_table_keeps_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "src" / "shop").mkdir(parents=True)
    (tmp_path / "profile").mkdir()
    shop = DirectoryTree(str(tmp_path / "src" / "shop"), follow=True, aliases=("/workspace",))
    other = DirectoryTree(str(tmp_path / "profile"), follow=True, mount=str(tmp_path / "src"))
    for trees in (MountTable(shop, other), MountTable(other, shop)):
        assert trees.tree_of(f"{tmp_path}/src/shop/a") is shop
        assert trees.tree_of(f"{tmp_path}/src/shop-2/a") is other
        assert trees.tree_of("/workspace/a") is shop


def test_stores_are_in_the_profile_and_follow_no_link(place: Place) -> None:
    files = place.backend.files
    anyio.run(files.write_bytes, "large_tool_results/x", b"whole")
    assert (place.profile / "large_tool_results" / "x").read_bytes() == b"whole"
    assert not (place.project / "large_tool_results").exists()
    assert anyio.run(files.working_dir) == "/profile"
    (place.profile / "linked").symlink_to(place.profile / "a.txt")
    with pytest.raises(WorkspacePathError):
        anyio.run(files.read_bytes, "linked")
    with pytest.raises(WorkspacePathError):
        anyio.run(files.read_bytes, f"{place.project}/a.txt")


def test_searches_look_in_the_named_directory(place: Place) -> None:
    assert place.call("glob", "*.txt", ".") == ["a.txt"]
    assert place.call("glob", "*.txt", "/profile") == ["/profile/a.txt"]
    (line,) = place.call("grep", "of the", str(place.project), None, with_hidden=False)
    assert (line.path, line.text) == (f"{place.project}/a.txt", "of the project")
    (line,) = place.call("grep", "of the", "/profile/a.txt", None, with_hidden=False)
    assert (line.path, line.text) == ("/profile/a.txt", "of the profile")


def test_errors_name_the_project_by_its_path_and_nothing_beside_it(place: Place) -> None:
    profile, code = place.profile, place.project.parent
    shown = {
        f"{place.project}/a.txt is there": f"{place.project}/a.txt is there",
        f"'{profile}/plans/p.md'": "'/profile/plans/p.md'",
        f"{profile.parent}/profile.toml": "profile.toml",
        f"{code}/other/secret.txt": "other/secret.txt",
        f"{place.project}-2/x": "shop-2/x",
    }
    for text, told in shown.items():
        assert text_for_model(text, place.backend.trees) == told

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(code / "other" / "secret.txt"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepctl.files.paths_beneath.DirectoryTree.read_cached", fails)
        with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied(: 'other/secret.txt')?$"):
            place.read("a.txt")


def test_a_project_is_never_created(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        LocalBackend(tmp_path / "gone", profile_dir=tmp_path / "profile")
    assert not (tmp_path / "gone").exists()
    assert not (tmp_path / "profile").exists()


def test_a_line_of_the_user_runs_in_the_project_with_the_home_of_the_profile(place: Place) -> None:
    profile = ProfilePaths("alice", str(place.profile.parent), "")
    printed = bytearray()

    def sink(out: bytes, err: bytes) -> bool:
        printed.extend(out + err)
        return True

    line = "pwd; echo $HOME; echo new > made; cat /profile/a.txt; echo; echo x > .envrc; ls /profile/.deep"
    end = user_commands.run(profile, Bubblewrap(), line, sink, project=str(place.project))
    assert end.code == 0
    lines = printed.decode().splitlines()
    assert lines[:2] == [str(place.project), "/profile/.deep/home"]
    assert "of the profile" in lines[2]
    assert lines[-1] == "home" or "home" in lines
    assert (place.project / "made").read_text() == "new\n"
    assert not (place.project / ".envrc").exists()
    assert not (place.profile / "made").exists()
