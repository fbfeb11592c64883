"""A whole root that 0.1.0 wrote (`tests/samples/make_root.py`): every command of today works on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.samples import make_root
from tests.support.command import InProcess

PROFILES = ("alice", "bob", "carol")
UNSANDBOXED = ("--sandbox", "none", "--approve", "auto")


@pytest.fixture(autouse=True)
def root(home: Path) -> Path:
    make_root.unpack(home)
    return home


def _state(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted((root / "profiles").rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize("user", PROFILES)
def test_every_command_that_reads_works_on_a_profile_of_0_1_and_writes_nothing(
    deepctl: InProcess, root: Path, tmp_path: Path, user: str
) -> None:
    before = _state(root)
    main = ("--session", "main", "--user", user)
    for words in (
        ("profiles", "list"),
        ("profiles", "show", user),
        ("profiles", "path", user),
        ("sessions", "list", "--user", user),
        ("sessions", "show", "main", "--user", user),
        ("sessions", "search", "one", "--user", user),
        ("sessions", "export", "main", "--user", user),
        ("checkpoints", "list", "--all", "--graph", "--user", user),
        ("checkpoints", "show", "~1", *main),
        ("checkpoints", "diff", "~1", *main),
        ("checkpoints", "verify", "--user", user),
        ("memory", "list", "--user", user),
        ("config", "show", "--user", user),
        ("config", "get", "approve", "--user", user),
        ("config", "path", "--user", user),
        ("doctor", "--user", user),
        ("wipe", "--dry-run", "--user", user),
    ):
        deepctl(*words).ok()
    for session in deepctl("sessions", "list", "--user", user, "--json").ok().json["sessions"]:
        shown = deepctl("sessions", "show", session["name"], "--user", user, "--json").ok().json
        assert (bool(shown["messages"]), shown["damaged"]) == (True, [])
    listed = deepctl("checkpoints", "list", "--all", "--user", user, "--json").ok().json
    assert listed["damaged"] == []
    for one in listed["checkpoints"]:
        shown = deepctl("checkpoints", "show", one["id"], "--user", user, "--json").ok().json
        assert len(shown["messages"]) == one["message_count"]
        deepctl("checkpoints", "diff", one["id"], "--user", user).ok()
    if user != "bob":
        deepctl("memory", "search", "tea", "--user", user).ok()
        for word in ("show", "history", "diff"):
            deepctl("memory", word, "--user", user).ok()
        assert "secret" not in deepctl("memory", "show", "--user", user).ok().stdout
    deepctl("profiles", "export", str(tmp_path / "out.deepctl"), "--user", user).ok()
    assert _state(root) == before


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_every_command_that_writes_works_on_a_profile_of_0_1(
    deepctl: InProcess, root: Path, tmp_path: Path, user: str
) -> None:
    main = ("--session", "main", "--user", user)
    prompts = ["write new.txt: one", "remember a new note", "run echo two > new2.txt", "write new.txt: three"]
    for prompt in prompts:
        deepctl("chat", *main, prompt, *UNSANDBOXED).ok()
    for words in (
        ("checkpoints", "save", "here", *main),
        ("checkpoints", "label", "~2", "two-back", *main),
        ("checkpoints", "fork", "here", "new-fork", *main),
        ("chat", "--session", "new-fork", "--user", user, "write f.txt: f"),
        ("checkpoints", "rewind", "~2", *main),
        ("checkpoints", "undo", *main),
        ("checkpoints", "rewind", "~1", "--exact", *main),
        ("checkpoints", "undo", *main, "--force"),
        ("checkpoints", "rewind", "two-back", *main, "--force"),
        ("memory", "add", "by hand", "--user", user),
        ("memory", "forget", "by hand", "--yes", "--user", user),
        ("memory", "forget", "new note", "--purge", "--yes", "--user", user),
        ("config", "set", "approve", "never", "--user", user),
        ("config", "unset", "approve", "--user", user),
        ("sessions", "rename", "new-fork", "renamed", "--user", user),
        ("sessions", "export", "main", "--user", user, "-o", str(tmp_path / "main.json")),
        ("sessions", "import", str(tmp_path / "main.json"), "--user", user, "--as", "again"),
        ("chat", "--session", "again", "--user", user, "hello"),
        ("sessions", "delete", "renamed", "--yes", "--user", user),
        ("checkpoints", "prune", "--keep", "5", "--dry-run", "--user", user),
        ("checkpoints", "prune", "--keep", "5", "--user", user),
        ("checkpoints", "verify", "--user", user),
        ("doctor", "--user", user),
        ("profiles", "export", str(tmp_path / "out.deepctl"), "--user", user),
        ("profiles", "import", str(tmp_path / "out.deepctl"), "--as", "copied"),
        ("checkpoints", "verify", "--user", "copied"),
        ("chat", "--user", "copied", "hello"),
        ("profiles", "rename", user, "dora"),
        ("checkpoints", "verify", "--user", "dora"),
        ("wipe", "--only", "memory,history", "--yes", "--user", "dora"),
        ("wipe", "--yes", "--user", "dora"),
    ):
        deepctl(*words).ok()
    assert not (root / "profiles/dora").exists()


def test_everything_a_session_of_0_1_did_is_rewound_and_brought_back(deepctl: InProcess, root: Path) -> None:
    main = ("--session", "main", "--user", "alice", "--force")
    place = root / "profiles/alice/workspace"
    now = {path.name: path.read_bytes() for path in place.glob("*.txt")}
    for one in (
        deepctl("checkpoints", "list", "--session", "main", "--user", "alice", "--json").ok().json["checkpoints"]
    ):
        if deepctl("checkpoints", "rewind", one["id"], *main, "--json").ok().json["safety"] is not None:
            deepctl("checkpoints", "undo", *main).ok()
    assert {path.name: path.read_bytes() for path in place.glob("*.txt")} == now
    deepctl("checkpoints", "verify", "--user", "alice").ok()


def test_a_turn_that_was_killed_under_0_1_gets_its_end(deepctl: InProcess) -> None:
    killed = ("--session", "killed", "--user", "alice")
    assert "can see 2 earlier turns" in deepctl("chat", *killed, "hello").ok().stdout
    deepctl("checkpoints", "verify", "--user", "alice").ok()


def test_an_archive_of_0_1_is_imported(deepctl: InProcess, tmp_path: Path) -> None:
    deepctl("profiles", "import", str(tmp_path / "alice.deepctl"), "--as", "erin").ok()
    deepctl("checkpoints", "verify", "--user", "erin").ok()
    for session in ("main", "forked", "other"):
        deepctl("chat", "--user", "erin", "--session", session, "hello").ok()
    deepctl("checkpoints", "rewind", "good", "--session", "main", "--user", "erin", "--force").ok()
    deepctl("checkpoints", "verify", "--user", "erin").ok()
