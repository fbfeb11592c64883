"""Coverage of projects: checkpoints contain what git lists, and stored rules tell what was covered."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.errors import StoreDamaged
from deepctl.store import coverage, trees
from deepctl.store.coverage import CoverageRules, CoverageSettings
from deepctl.store.index_db import Cache
from deepctl.store.pack_store import PackStore
from deepctl.store.trees import ScratchWriter
from tests.files.test_gitignore import NAMES, SIGNS, Case, case, files_of, fill

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_WHO = ("-c", "user.name=Alice", "-c", "user.email=alice@example.com")


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)


def git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *_WHO, *arguments], cwd=root, check=True, capture_output=True).stdout


def init(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    return root


def git_lists(root: Path) -> set[bytes]:
    """The files that git lists and that exist, without the entries of nested repositories."""
    output = git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    return {path for path in output.split(b"\0") if path and is_file(os.fsencode(root) + b"/" + path)}


def is_file(path: bytes) -> bool:
    return os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode)


def look_at(root: Path, settings: CoverageSettings) -> tuple[CoverageRules, set[bytes]]:
    """The rules that a snapshot of the directory found, and the files in its tree."""
    cache = Cache()
    try:
        rules = coverage.read_rules(str(root), settings)
        objects = PackStore(str(root / "nowhere"), cache)
        tree = trees.snapshot(str(root), ScratchWriter(objects), cache, leave_out=rules.top()).tree
        return rules, {path for path, entry in trees.walk(objects, tree) if entry.kind != trees.DIRECTORY}
    finally:
        cache.close()


def covered(root: Path, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> set[bytes]:
    """The files that a checkpoint covers; the stored rules say the same of every path."""
    rules, files = look_at(root, CoverageSettings(include, None, exclude))
    stored = CoverageRules.from_json(rules.to_json())
    assert stored.to_json() == rules.to_json()
    every_file = {path for path in files_in(root) if b".git" not in path.split(b"/")}
    assert {path for path in every_file if not stored.hides(path, False)} == files
    for path in rules.uncovered:
        assert stored.hides(path, rules.uncovered[path])
    return files


def files_in(root: Path) -> set[bytes]:
    return {
        os.path.relpath(os.path.join(directory, name), os.fsencode(root))
        for directory, names, files in os.walk(os.fsencode(root))
        for name in [*files, *(name for name in names if os.path.islink(os.path.join(directory, name)))]
    }


def write(root: Path, *paths: str, text: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_it_is_what_git_lists(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(tmp_path / "home", ".config/git/ignore", text="*.swp\n!important.swp\n")
    write(root, ".git/info/exclude", text="/private\n*.swp\n!other.swp\n")
    write(root, ".gitignore", text="build/\n*.pyc\n.env\n/docs/*\n!/docs/keep.md\n")
    write(root, "a.py", "a.pyc", ".env", "private/x", "sub/private/x", "sub/.env", "build/x", "docs/a", "docs/keep.md")
    write(root, "x.swp", "other.swp", "important.swp", "tracked/build/x", "tracked/build/y", "forced.pyc")
    write(root, "sub/.gitignore", text="*\n!*.c\n!.gitignore\n!/deep\n")
    write(root, "sub/a.c", "sub/a.h", "sub/deep/x.c", "sub/deep/x.h")
    os.symlink("/etc/passwd", root / "link")
    (root / "empty").mkdir()
    git(root, "add", "-f", "tracked/build/x", "forced.pyc")
    assert covered(root) == git_lists(root)
    assert {b"tracked/build/x", b"forced.pyc", b"other.swp", b"link"} <= covered(root)
    assert not {b"tracked/build/y", b"important.swp", b"a.pyc"} & covered(root)


def test_ignored_files_can_be_included(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(root, ".gitignore", text=".env\nbuild/\nnode_modules/\nvendor/\n")
    write(
        root,
        "a",
        ".env",
        "sub/.env",
        "build/keep/x",
        "build/other",
        "node_modules/.env",
        "vendor/lib/.git/x",
        "vendor/y",
    )
    assert covered(root) == {b".gitignore", b"a"}
    assert covered(root, (".env",)) == {b".gitignore", b"a", b".env", b"sub/.env"}
    assert covered(root, ("/build/keep", "vendor/")) == {b".gitignore", b"a", b"build/keep/x", b"vendor/y"}
    assert covered(root, ("*.env", "!/.env")) == {b".gitignore", b"a", b"sub/.env"}


def test_nested_repositories_and_submodules_are_not_covered(tmp_path: Path) -> None:
    other = init(tmp_path / "other")
    write(other, "x")
    git(other, "add", "-A")
    git(other, "commit", "-qm", "x")
    root = init(tmp_path / "project")
    write(root, "a", "deep/nested/x", "half/x", "half/.git/HEAD", "mixed/x", "mixed/y")
    git(root, "add", "mixed/x")
    init(root / "deep/nested")
    init(root / "mixed")
    git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "module")
    git(root, "worktree", "prune")
    assert covered(root) == git_lists(root) == {b"a", b"half/x", b"mixed/x", b"mixed/y", b".gitmodules"}
    rules, _ = look_at(root, CoverageSettings())
    assert rules.nested == {b"deep/nested", b"module"}
    assert rules.uncovered == {b"deep/nested": True, b"module": True}
    assert rules.hides(b"module/x", False)
    assert rules.hides(b"mixed/.git/HEAD", False)


def test_a_directory_below_the_top_has_the_rules_above_it(tmp_path: Path) -> None:
    top = init(tmp_path / "top")
    write(top, ".gitignore", text="*.o\n/packages/*/dist\nignored/\n")
    write(top, "packages/.gitignore", text="!keep.o\n/one/*.log\n")
    root = top / "packages/one"
    write(root, "a.o", "keep.o", "x.log", "deep/x.log", "dist/x", "deep/dist/x", "a", "forced.log")
    git(root, "add", "-f", "forced.log")
    assert covered(root) == git_lists(root) == {b"keep.o", b"deep/x.log", b"deep/dist/x", b"a", b"forced.log"}
    # A repository that ignores the whole directory, such as one of dotfiles, has no say in it.
    ignored = top / "ignored/project"
    write(ignored, "a.o", "b")
    assert covered(ignored) == {b"a.o", b"b"}
    assert covered(ignored, exclude=("*.o",)) == {b"b"}


def test_without_git_only_the_setting_excludes(tmp_path: Path) -> None:
    root = tmp_path / "project"
    write(root, ".gitignore", text="*.o\n")
    write(root, "a.o", "b.log", "deep/nested/.git/HEAD", "deep/nested/x", "keep.log")
    assert covered(root) == {b".gitignore", b"a.o", b"b.log", b"deep/nested/x", b"keep.log"}
    assert covered(root, ("keep.log",), ("*.log", "/deep")) == {b".gitignore", b"a.o", b"keep.log"}


def test_a_linked_worktree_has_its_own_index_and_the_exclude_file_of_all(tmp_path: Path) -> None:
    main = init(tmp_path / "main")
    write(main, ".git/info/exclude", text="*.local\n")
    write(main, "a", "forced.local")
    git(main, "add", "-A", "-f")
    git(main, "commit", "-qm", "x")
    root = tmp_path / "linked"
    git(main, "worktree", "add", "-q", str(root))
    write(root, "new.local", "b")
    git(root, "rm", "-q", "--cached", "forced.local")
    assert covered(root) == git_lists(root) == {b"a", b"b"}
    assert covered(main) == git_lists(main) == {b"a", b"forced.local"}


def test_tracked_files_that_are_gone_are_not_hidden(tmp_path: Path) -> None:
    """Otherwise no rewind would bring back an ignored but tracked file that the agent deleted."""
    root = init(tmp_path / "project")
    write(root, ".gitignore", text="build/\n*.pyc\n")
    write(root, "build/tracked", "build/other", "x.pyc")
    git(root, "add", "-f", "build/tracked", "x.pyc")
    (root / "x.pyc").unlink()
    for name in ("tracked", "other"):
        (root / "build" / name).unlink()
    (root / "build").rmdir()
    rules, _ = look_at(root, CoverageSettings())
    for each in (rules, CoverageRules.from_json(rules.to_json())):
        assert not each.hides(b"build/tracked", False)
        assert not each.hides(b"build", True)
        assert not each.hides(b"x.pyc", False)
        assert each.hides(b"build/other", False)
        assert each.hides(b"y.pyc", False)


def test_the_rules_follow_changes_of_their_sources(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(root, "a.x", "b.y", "c.z")
    assert covered(root) == git_lists(root)
    changes: list[Callable[[], object]] = [
        lambda: write(root, ".gitignore", text="*.x\n"),
        lambda: git(root, "add", "-f", "a.x"),
        lambda: write(root, ".git/info/exclude", text="*.y\n"),
        lambda: write(tmp_path / "home", ".gitignore", text="*.z\n"),
        lambda: git(root, "config", "core.excludesFile", "~/.gitignore"),
        lambda: git(root, "config", "core.excludesFile", ""),
        lambda: git(root, "rm", "-q", "--cached", "a.x"),
        lambda: write(tmp_path / "home", ".gitconfig", text="[core]\nignoreCase = true\n"),
        lambda: git(root, "config", "--unset", "core.ignoreCase") if git(root, "config", "core.ignoreCase") else None,
    ]
    seen = []
    for change in changes[:-1]:
        change()
        seen.append(covered(root))
        assert seen[-1] == git_lists(root)
    assert len({frozenset(files) for files in seen}) >= 4


@pytest.mark.parametrize("name", ["secret", ".config/git/credentials", "project/link", "home/.ssh/ignore"])
def test_a_repository_cannot_have_a_file_of_the_user_read(tmp_path: Path, name: str) -> None:
    root = init(tmp_path / "project")
    write(tmp_path / "home", "secret", ".config/git/credentials", ".ssh/ignore", text="secret\n")
    (root / "link").symlink_to(tmp_path / "home" / "secret")
    write(root, "a", "secret")
    path = tmp_path / (name if name.startswith(("project", "home")) else f"home/{name}")
    git(root, "config", "core.excludesFile", str(path))
    rules, files = look_at(root, CoverageSettings())
    assert files == {b"a", b"link", b"secret"}
    assert b"secret" not in rules.to_json()
    assert str(path) in rules.problem_sentence
    # A link in the place of the file that git reads in every repository is the same.
    git(root, "config", "--unset", "core.excludesFile")
    (root / ".git/info/exclude").unlink(missing_ok=True)
    (root / ".git/info/exclude").symlink_to(tmp_path / "home" / "secret")
    rules, files = look_at(root, CoverageSettings())
    assert files == {b"a", b"link", b"secret"}
    assert "info/exclude" in rules.problem_sentence


def test_the_user_names_any_file_with_patterns(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(tmp_path, "elsewhere", text="*.x\n")
    write(root, "a.x", "b")
    write(tmp_path / "home", ".gitconfig", text=f"[core]\nexcludesFile = {tmp_path}/elsewhere\n")
    rules, files = look_at(root, CoverageSettings())
    assert (files, rules.problem_sentence) == ({b"b"}, "")
    # What the repository says instead is not used, and the file of the user stays in force.
    git(root, "config", "core.excludesFile", "/etc/passwd")
    assert look_at(root, CoverageSettings())[1] == {b"b"}
    write(root, "patterns", text="b\n")
    git(root, "config", "core.excludesFile", "patterns")
    assert covered(root) == git_lists(root) == {b"a.x", b"patterns"}


def test_the_case_of_letters_counts_as_it_does_for_git(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(root, ".gitignore", text="BUILD/\n*.Log\n")
    write(root, "Build/x", "a.LOG", "b")
    assert covered(root) == git_lists(root)
    git(root, "config", "core.ignoreCase", "true")
    assert covered(root) == git_lists(root) == {b".gitignore", b"b"}


def test_a_repository_that_git_refuses_still_has_its_patterns(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(root, ".gitignore", text="*.o\n")
    write(root, "a.o", "b")
    git(root, "add", "-f", "a.o")
    (root / ".git/index").write_bytes(b"not an index")
    rules, files = look_at(root, CoverageSettings())
    assert files == {b".gitignore", b"b"}
    assert "index" in rules.problem


def test_a_gitignore_that_is_no_file_counts_as_empty(tmp_path: Path) -> None:
    root = init(tmp_path / "project")
    write(tmp_path, "patterns", text="*\n")
    os.symlink(tmp_path / "patterns", root / ".gitignore")
    write(root, "a", "fifo/x", "directory/.gitignore/x", "large/x")
    write(root, "large/.gitignore", text="#" * (2 << 20) + "\n*\n")
    expected = git_lists(root) | {b"large/.gitignore", b"large/x"}
    assert covered(root) == expected
    os.mkfifo(root / "fifo/.gitignore")  # git would wait for a writer
    assert look_at(root, CoverageSettings())[1] == expected


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"v":1}', b'{"v":1,"git":[]}'])
def test_damaged_rules_are_damage(data: bytes) -> None:
    with pytest.raises(StoreDamaged):
        CoverageRules.from_json(data)


def test_large_files_are_not_covered(tmp_path: Path) -> None:
    rules = CoverageRules(CoverageSettings(max_file=10), None, {})
    assert rules.covers(b"a", False, 10)
    assert not rules.covers(b"a", False, 11)
    assert rules.covers(b"a", True)
    assert CoverageRules.from_json(rules.to_json()).settings.max_file == 10


@settings(max_examples=600 if _SOAK else 15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cases=st.lists(case(), min_size=1, max_size=12),
    exclude=st.lists(st.tuples(SIGNS, st.sampled_from(NAMES)).map(b"".join), max_size=2),
    forced=st.sets(st.integers(0, 60), max_size=6),
    nested=st.sets(st.integers(0, 40), max_size=2),
    deleted=st.sets(st.integers(0, 60), max_size=4),
)
def test_snapshots_contain_what_git_lists(
    cases: list[Case],
    exclude: list[bytes],
    forced: set[int],
    nested: set[int],
    deleted: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = init(tmp_path_factory.mktemp("case") / "repository")
    raw = os.fsencode(root)
    for number, each in enumerate(cases):
        fill(raw + b"/%d" % number, files_of(each, False))
    fill(raw, {b".git/info/exclude": b"\n".join(exclude)})
    files = sorted(path for path in files_in(root) if not path.startswith(b".git/"))
    add = [files[number] for number in forced if number < len(files)]
    directories = sorted({os.path.dirname(path) for path in files} - {b""})
    if add:
        subprocess.run(["git", "add", "-f", "--", *add], cwd=root, check=True, capture_output=True)
    for number in nested:
        if number < len(directories):
            init(Path(os.fsdecode(raw + b"/" + directories[number])))
    for number in deleted:
        if number < len(files):
            os.unlink(raw + b"/" + files[number])
    assert covered(root) == git_lists(root)
