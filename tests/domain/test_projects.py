"""Which directories can be projects, how large they are, and what in them needs trust."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from deepctl.domain import project_trust, projects
from deepctl.errors import DeepctlError, NotFound, Refused, UsageError
from deepctl.layout import Root


@pytest.fixture
def root(home: Path) -> Root:
    (home / "profiles" / "alice" / "workspace").mkdir(parents=True)
    return Root(str(home))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "project"
    found.mkdir()
    return found


def _check(root: Root, path: str | Path) -> None:
    projects.check(root, projects.locate(str(path)), os.environ)


def _problem(root: Root, path: str | Path) -> DeepctlError:
    with pytest.raises(DeepctlError) as caught:
        _check(root, path)
    return caught.value


def test_a_directory_of_the_user_is_a_project(root: Root, directory: Path) -> None:
    _check(root, directory)


@pytest.mark.parametrize("spelling", ["{0}/", "{0}/.", "{0}/../project", "//{0}", "{1}", "{1}/", "./", "."])
def test_every_spelling_of_a_directory_is_one_project(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    (tmp_path / "link").symlink_to(directory)
    monkeypatch.chdir(directory)
    assert projects.locate(spelling.format(directory, tmp_path / "link")) == str(directory)


@pytest.mark.parametrize("name", ["a\nb", "ä € 日本", " lead", "-C", "$HOME", "a\\b"])
def test_odd_names_are_names(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert projects.locate(name) == f"{tmp_path}/{name}"
    _check(root, name)


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert projects.locate("~/x") == f"{tmp_path}/user/x"
    with pytest.raises(UsageError, match="There is no user 'nobody-here'"):
        projects.locate("~nobody-here/x")
    # A directory of that name in the current directory is one.
    here = tmp_path / "here"
    (here / "~nobody-here").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert projects.locate("~nobody-here") == f"{here}/~nobody-here"


def test_nothing_and_a_deleted_directory_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        projects.locate("")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFound, match="There is no directory"):
        projects.locate(".")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "it is the root of the file system"),
        ("/proc/self", "it is in /proc, a directory of the operating system"),
        ("/etc", "it is a directory of the operating system"),
        ("/usr", "it contains /usr/bin, a directory of the operating system"),
        ("/usr/share/doc", "it is in /usr/share, a directory of the operating system"),
        ("/var", "it contains /var/cache, a directory of the operating system"),
        ("/bin", "a directory of the operating system"),
        ("/lib/locale", "a directory of the operating system"),
        ("user", "it is your home directory"),
        ("", "it contains your home directory"),
        ("root", "it is in .*, where deepctl keeps its state"),
        ("root/profiles/alice/workspace", "it is in .*, where deepctl keeps its state"),
        ("config", "it contains the settings of deepctl"),
        ("shop/.git", "it is in a .git"),
        ("shop/.GIT/hooks", "it is in a .git"),
    ],
)
def test_what_contains_more_than_a_project_is_refused(root: Root, tmp_path: Path, path: str, reason: str) -> None:
    for name in ("config", "shop/.git", "shop/.GIT/hooks"):
        (tmp_path / name).mkdir(parents=True)
    problem = _problem(root, tmp_path / path)
    assert isinstance(problem, Refused)
    assert problem.code == "project_refused"
    assert problem.hint
    assert re.search(reason, problem.message)


@pytest.mark.skipif(os.geteuid() != 0, reason="directories of the operating system belong to root")
@pytest.mark.parametrize("path", ["/usr/src", "/srv", "/opt"])
def test_directories_of_root_for_own_files_are_projects(root: Root, path: str) -> None:
    _check(root, path)


def test_a_service_may_work_below_its_home(root: Root, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(projects, "_OF_SYSTEM", (str(tmp_path / "lib"),))
    (tmp_path / "lib" / "service" / "work").mkdir(parents=True)
    assert "it is in" in _problem(root, tmp_path / "lib" / "service" / "work").message
    monkeypatch.setenv("HOME", str(tmp_path / "lib" / "service"))
    _check(root, tmp_path / "lib" / "service" / "work")
    assert "of the operating system" in _problem(root, tmp_path / "lib" / "service").message
    monkeypatch.setenv("HOME", str(tmp_path / "lib"))
    assert "it is in" in _problem(root, tmp_path / "lib" / "service" / "work").message


def test_what_contains_the_root_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "around"
    (place / "state").mkdir(parents=True)
    problem = _problem(Root(str(place / "state")), place)
    assert problem.message == f"{place} cannot be a project: it contains {place}/state, where deepctl keeps its state."
    # A root that does not exist yet is one all the same.
    (place / "state").rmdir()
    assert _problem(Root(str(place / "state")), place).code == "project_refused"


def test_a_bare_repository_is_refused(root: Root, directory: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", str(directory)], check=True)
    problem = _problem(root, directory)
    assert (problem.code, problem.exit_code) == ("project_refused", 6)
    assert problem.message.endswith("it is a git directory, which a rewind must not change.")


def test_the_directory_of_the_settings_is_refused(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepctl" / "inner").mkdir(parents=True)
    monkeypatch.setenv("DEEPCTL_CONFIG", str(tmp_path / "deepctl" / "config.toml"))
    assert "has the settings of deepctl" in _problem(root, tmp_path / "deepctl" / "inner").message


def test_a_link_is_what_it_leads_to(root: Root, tmp_path: Path, directory: Path) -> None:
    (directory / "home").symlink_to(tmp_path / "user")
    assert "your home directory" in _problem(root, directory / "home").message


def test_a_missing_directory_a_file_and_a_place_below_a_file(root: Root, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nothing", "file/below"):
        problem = _problem(root, tmp_path / name)
        assert (problem.code, problem.exit_code) == ("directory_not_found", 3)
    assert (_problem(root, tmp_path / "file").code, _problem(root, tmp_path / "file").exit_code) == (
        "not_a_directory",
        2,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_directory_of_another_user_is_refused(root: Root, directory: Path) -> None:
    os.chown(directory, 4242, -1)
    problem = _problem(root, directory)
    assert problem.code == "project_not_owned"
    assert "(uid 4242)" in problem.message


def test_a_directory_without_permission_is_refused(
    root: Root, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.chmod(0o500)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    problem = _problem(root, directory)
    assert problem.code == "project_not_writable"
    assert "(mode 0500)" in problem.message


def test_counting_ends_at_the_limits() -> None:
    def files() -> object:
        yield from [1] * (projects.MAX_FILES + 1)
        pytest.fail("went on behind the limit")

    assert str(projects.measure([1024, 0])) == "2 files, 1.0 KiB"
    assert not projects.measure([1] * projects.MAX_FILES).is_large
    found = projects.measure(files())  # type: ignore[arg-type]
    assert (found.is_large, str(found)) == (True, "more than 20,000 files")
    assert str(projects.measure([projects.MAX_BYTES, 1])) == "more than 1.0 GiB"


def test_a_hint_is_for_a_directory_that_looks_like_a_project(
    root: Root, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    assert projects.looks_like_one(root, os.environ) is None
    (directory / "pyproject.toml").write_text("")
    assert projects.looks_like_one(root, os.environ) == str(directory)
    (tmp_path / "user" / ".git").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    assert projects.looks_like_one(root, os.environ) is None
    (tmp_path / "user" / ".git").rmdir()


def test_trust_is_of_the_content(directory: Path) -> None:
    skill = directory / ".agents" / "skills" / "deploy"
    skill.mkdir(parents=True)
    (directory / "src").mkdir()
    (directory / "src" / "a.py").write_text("x")
    assert project_trust.files(str(directory)) == []
    assert project_trust.digest([]) == ""
    (skill / "SKILL.md").write_text("Deploy.")
    (skill / "run.sh").write_text("true")
    found = project_trust.files(str(directory))
    assert [file.path for file in found] == [".agents/skills/deploy/SKILL.md", ".agents/skills/deploy/run.sh"]
    trusted = project_trust.digest(found)
    assert project_trust.is_trusted(str(directory), trusted)
    (directory / "src" / "a.py").write_text("y")
    assert project_trust.is_trusted(str(directory), trusted)
    for change in (
        lambda: (skill / "SKILL.md").write_text("Deploy!"),
        lambda: (skill / "run.sh").chmod(0o755),
        lambda: (skill / "more.md").write_text(""),
        lambda: (skill / "run.sh").rename(skill / "other.sh"),
        lambda: (skill / "run.sh").symlink_to("/bin/true") if not (skill / "run.sh").exists() else None,
    ):
        before = project_trust.digest(project_trust.files(str(directory)))
        change()
        assert not project_trust.is_trusted(str(directory), before)
    assert not project_trust.is_trusted(str(directory), "")


def test_what_leads_out_is_not_read_for_trust(directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "skills").mkdir(parents=True)
    (elsewhere / "skills" / "SKILL.md").write_text("x")
    (directory / ".claude").symlink_to(elsewhere)
    (directory / ".deepctl" / "skills").mkdir(parents=True)
    os.mkfifo(directory / ".deepctl" / "skills" / "pipe")
    (directory / ".deepctl" / "skills" / "link").symlink_to("/etc/passwd")
    found = project_trust.files(str(directory))
    assert [(file.path, bool(file.digest)) for file in found] == [
        (".deepctl/skills/link", True),
        (".deepctl/skills/pipe", False),
    ]


def test_too_much_is_not_trusted_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_trust, "MAX_FILES", 3)
    skills = directory / ".deepctl" / "skills"
    skills.mkdir(parents=True)
    for number in range(4):
        (skills / str(number)).write_text("x")
    with pytest.raises(Refused, match="too much that needs trust"):
        project_trust.files(str(directory))
    assert not project_trust.is_trusted(str(directory), "0" * 64)


def test_a_path_that_is_no_text_is_refused(root: Root, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff")
    path.mkdir()
    assert "its path is not UTF-8 text" in _problem(root, path).message
