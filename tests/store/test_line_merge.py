"""Separate changes by the agent and by others in one file of a project: merged by line, or named as a conflict."""

from __future__ import annotations

import os
import random
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepctl.store import session_catalogue
from deepctl.store.line_merge import MERGED_UP_TO, take_back_lines
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindConflicts, RewindRequest, preview
from tests.store.scene import Scene
from tests.support.command import InProcess

LINES = [f"line {number}" for number in range(20)]
NOTEBOOK = ".deep/memory/main/MEMORY.md"


def text(ending: str = "\n", **changes: str) -> bytes:
    """A file of 20 lines, some of them changed: `l3="x"`."""
    lines = [changes.get(f"l{number}", line) for number, line in enumerate(LINES)]
    return "".join(line + ending for line in lines).encode()


class Project:
    """A session in a directory with one file, `f`."""

    def __init__(self, place: Path, content: bytes, root: Path | None = None) -> None:
        self.directory = place / "project"
        self.directory.mkdir()
        self.file = self.directory / "f"
        self.file.write_bytes(content)
        self.scene = Scene(root or place / "root")
        self.scene.directories["main"] = self.directory
        with self.scene.turn("first"):
            pass

    def agent(self, content: bytes, mode: int | None = None, tool: str = "edit_file") -> None:
        with self.scene.turn("edit", tool=tool):
            self.user(content, mode)

    def user(self, content: bytes, mode: int | None = None) -> None:
        self.file.write_bytes(content)
        if mode is not None:
            self.file.chmod(mode)

    def conflicts(self, reference: str = "~1", **wish: Any) -> list[bytes]:
        before = self.file.read_bytes()
        with pytest.raises(RewindConflicts) as caught:
            self.scene.rewind(reference, **wish)
        assert self.file.read_bytes() == before
        return caught.value.paths


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_separate_lines_are_merged_and_the_safety_checkpoint_has_what_there_was(tmp_path: Path, ending: str) -> None:
    project = Project(tmp_path, text(ending))
    project.agent(text(ending, l3="agent"))
    project.user(text(ending, l3="agent", l10="user"))
    both = project.file.read_bytes()
    with Repository.read_only(project.scene.paths) as reader:
        session = project.scene.session()
        head = session_catalogue.read_ledger(project.scene.paths).records
        target = next(record for record in head.values() if record.turn == 1)
        plan = preview(reader, session, RewindRequest(target))
        plan.check()
        assert [os.path.basename(path) for path in plan.merged_paths] == [b"f"]
    assert project.file.read_bytes() == both, "a preview changes nothing"
    result = project.scene.rewind("~1")
    assert project.file.read_bytes() == text(ending, l10="user")
    assert result.plan.merged_paths == result.restored_paths
    assert result.plan.conflicts == []
    project.scene.undo()
    assert project.file.read_bytes() == both
    project.scene.undo()
    assert project.file.read_bytes() == text(ending, l10="user")


def test_edits_between_the_agents_own_are_kept(tmp_path: Path) -> None:
    project = Project(tmp_path, text())
    project.agent(text(l3="agent"))
    project.user(text(l3="agent", l10="user"))
    project.agent(text(l3="agent, again", l10="user", l15="agent"))
    project.user(text(l3="agent, again", l10="user", l15="agent", l18="user"))
    project.scene.rewind("~2")
    assert project.file.read_bytes() == text(l10="user", l18="user")


def test_neighbouring_lines_are_separate(tmp_path: Path) -> None:
    project = Project(tmp_path, text())
    project.agent(text(l3="agent"))
    project.user(text(l3="agent", l4="user"))
    project.scene.rewind("~1")
    assert project.file.read_bytes() == text(l4="user")


@pytest.mark.parametrize("wish", [{}, {"force": True}])
def test_the_same_line_is_a_conflict(tmp_path: Path, wish: dict[str, Any]) -> None:
    project = Project(tmp_path, text())
    project.agent(text(l3="agent"))
    project.user(text(l3="agent and user", l10="user"))
    if not wish:
        assert project.conflicts() == [b"f"]
        return
    result = project.scene.rewind("~1", **wish)
    assert project.file.read_bytes() == text()
    assert result.plan.merged_paths == []
    project.scene.undo()
    assert project.file.read_bytes() == text(l3="agent and user", l10="user")


def test_lines_of_both_at_one_place_are_a_conflict_because_their_order_is_unknown(tmp_path: Path) -> None:
    project = Project(tmp_path, b"a\nremoved\nb\n")
    project.agent(b"a\nb\n")
    project.user(b"a\nuser\nb\n")
    assert project.conflicts() == [b"f"]
    assert take_back_lines(b"a\nremoved\nb\n", b"a\nb\n", b"a\nuser\nb\n") == b"a\nremoved\nuser\nb\n", "a notebook"


def test_without_merging_it_is_refused_and_force_overrides_it(tmp_path: Path) -> None:
    project = Project(tmp_path, text())
    project.agent(text(l3="agent"))
    project.user(text(l3="agent", l10="user"))
    assert project.conflicts(merge=False) == [b"f"]
    project.scene.rewind("~1", merge=False, force=True)
    assert project.file.read_bytes() == text()


def test_without_merging_a_notebook_is_a_conflict_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.agent("x", "x")
    scene.agent(NOTEBOOK, "- agent\n")
    scene.write(NOTEBOOK, "- agent\n- mine\n")
    with pytest.raises(RewindConflicts):
        scene.rewind("~1", merge=False)
    result = scene.rewind("~1")
    assert scene.files() == {"x": "x", NOTEBOOK: "- mine\n"}
    assert result.plan.merged_paths == [NOTEBOOK.encode()]


def test_a_file_of_the_private_workspace_is_not_merged(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.agent("f", text().decode())
    scene.agent("f", text(l3="agent").decode())
    scene.write("f", text(l3="agent", l10="user").decode())
    with pytest.raises(RewindConflicts):
        scene.rewind("~1")


@pytest.mark.parametrize(
    ("before", "agent", "user"),
    [
        (b"\0" + text(), b"\0" + text(l3="agent"), b"\0" + text(l3="agent", l10="user")),
        (text("\n").decode().encode("utf-16"), b"".join([text(l3="agent"), b"\0"]), text(l3="agent", l10="user")),
        (
            text() * (MERGED_UP_TO // 100),
            text(l3="agent") + text() * (MERGED_UP_TO // 100),
            text(l3="agent", l10="user") + text() * (MERGED_UP_TO // 100),
        ),
    ],
    ids=["nul", "utf-16", "large"],
)
def test_what_is_no_text_or_too_large_is_a_conflict(tmp_path: Path, before: bytes, agent: bytes, user: bytes) -> None:
    project = Project(tmp_path, before)
    project.agent(agent)
    project.user(user)
    assert project.conflicts() == [b"f"]


@pytest.mark.parametrize("size", [100, 2 * MERGED_UP_TO])
def test_a_mode_is_merged_apart_from_the_content_also_of_a_binary_file(tmp_path: Path, size: int) -> None:
    content = random.Random(1).randbytes(size)
    project = Project(tmp_path, content)
    project.file.chmod(0o644)
    with project.scene.turn("second"):
        pass
    project.agent(content + b"agent")
    project.user(content + b"agent", 0o755)
    project.scene.rewind("~1")
    assert project.file.read_bytes() == content
    assert stat.S_IMODE(project.file.stat().st_mode) == 0o755
    project.agent(content, 0o700)
    project.user(content + b"user")
    project.scene.rewind("~1")
    assert project.file.read_bytes() == content + b"user"
    assert stat.S_IMODE(project.file.stat().st_mode) == 0o755
    project.agent(content + b"user", 0o700)
    project.user(content + b"user", 0o600)
    assert project.conflicts() == [b"f"]


def test_a_file_that_the_agent_created_or_deleted_is_not_merged(tmp_path: Path) -> None:
    project = Project(tmp_path, text())
    new = project.directory / "new"
    with project.scene.turn("create"):
        new.write_bytes(text())
    new.write_bytes(text(l3="user"))
    assert project.conflicts() == [b"new"]
    new.write_bytes(text())
    with project.scene.turn("delete"):
        project.file.unlink()
    project.file.write_bytes(b"the user's\n")
    assert project.conflicts() == [b"f"]


def test_a_former_last_line_gets_the_line_ending_of_its_file(tmp_path: Path) -> None:
    project = Project(tmp_path, b"a\r\nb\r\nc")
    project.agent(b"agent\r\nb\r\nc")
    project.user(b"agent\r\nb\r\nc\r\nuser")
    project.scene.rewind("~1")
    assert project.file.read_bytes() == b"a\r\nb\r\nc\r\nuser"
    assert take_back_lines(b"x\r\ny", b"x\r\ny", b"x\r\ny\r\nz") == b"x\r\ny\r\nz"


def test_texts_with_many_equal_lines_are_a_conflict_after_at_most_seconds() -> None:
    randomness = random.Random(1)
    began = time.process_time()
    assert take_back_lines(b"x\n" + b"\n" * 200_000, b"y\n" + b"\n" * 200_001 + b"z\n", b"\n" * 200_000) is None
    words = [b"%d\n" % number for number in range(20)]
    texts = [b"".join(randomness.choices(words, k=50_000)) for _ in range(3)]
    assert take_back_lines(texts[0], texts[1], texts[2]) is None
    assert time.process_time() - began < 5


_TEXT = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"d\n", b"\n", b"e\r\n"]), max_size=8).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(_TEXT, _TEXT, _TEXT, st.booleans())
def test_what_one_author_alone_changed_is_taken_back_exactly(
    before: bytes, after: bytes, now: bytes, is_ordered: bool
) -> None:
    assert take_back_lines(before, after, after, is_ordered=is_ordered) == before
    assert take_back_lines(after, after, now, is_ordered=is_ordered) == now
    merged = take_back_lines(before, after, now, is_ordered=is_ordered)
    if merged is not None and is_ordered:
        assert merged == take_back_lines(now, after, before, is_ordered=True), "the same for either author"


def test_paths_that_a_command_changed_are_named_apart(tmp_path: Path) -> None:
    project = Project(tmp_path, text())
    other = project.directory / "other"
    project.agent(text(l3="agent"), tool="edit_file")
    with project.scene.turn("build"):
        other.write_text("built")
        (project.directory / "directory").mkdir()
    result = project.scene.rewind("~2")
    assert [os.path.basename(path) for path in result.plan.command_paths] == [b"other"]
    assert sorted(os.path.basename(path) for path in (*result.restored_paths, *result.deleted_paths)) == [
        b"directory",
        b"f",
        b"other",
    ]


def test_the_command_names_merged_files_and_those_of_commands(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    project = Project(place, text(), home)
    project.agent(text(l3="agent"))
    with project.scene.turn("build"):
        (project.directory / "built").write_text("x")
    project.user(text(l3="agent", l10="user"))
    rewind = ("checkpoints", "rewind", "~2", "--session", "main", "--user", "alice")
    refused = deepctl(*rewind, "--no-merge", "--json")
    assert (refused.code, refused.error["code"]) == (6, "conflicts")
    previewed = deepctl(*rewind, "--dry-run").ok().stdout.splitlines()
    assert "  modified  f  +1 -1  (merged)" in previewed
    document = deepctl(*rewind, "--json").ok().json
    assert (document["files"]["merged"], document["files"]["commands"]) == (["f"], ["built"])
    deepctl("checkpoints", "undo", "--session", "main", "--user", "alice").ok()
    lines = [line.split() for line in deepctl(*rewind).ok().stdout.splitlines()]
    merged = next(number for number, words in enumerate(lines) if words[:1] == ["merged"])
    assert lines[merged][1] == "f"
    assert lines[merged][2:] == ["(changes", "of", "another", "author", "stay)"]
    assert lines[merged + 1][:3] == ["Changed", "by", "commands,"]
    assert lines[merged + 2] == ["deleted", "built"]
    assert project.file.read_bytes() == text(l10="user")
