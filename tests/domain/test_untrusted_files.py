"""Skills and commands of a profile in exports, imports and copies: what comes from elsewhere needs trust."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pydantic_ai
import pytest

from deepctl.domain import untrusted_files
from deepctl.layout import Root
from tests.domain.test_transfer import tree
from tests.store import faults
from tests.support.command import InProcess

SOAK = os.environ.get("DEEPCTL_SOAK") == "1"  # read here: the fixtures remove the variable


def _fill(profile: Path) -> None:
    skill = profile / "skills/tidy"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text("---\ndescription: Tidies.\n---\nRun ./run.sh\n")
    (skill / "run.sh").write_text("#!/bin/sh\n")
    (skill / "run.sh").chmod(0o755)
    (skill / "data.jsonl").write_text('{"no": "sealed line"}\n{"cut')
    (skill / "link").symlink_to("/etc/passwd")
    (profile / "commands").mkdir()
    (profile / "commands/note.md").write_text("write note.txt: $ARGUMENTS")


@pytest.fixture
def archive(deepctl: InProcess, home: Path, tmp_path: Path) -> Path:
    deepctl("profiles", "create", "alice").ok()
    _fill(home / "profiles/alice")
    result = deepctl("profiles", "export", "--user", "alice", str(tmp_path / "alice.tar.gz"), "--json").ok()
    assert [entry["path"] for entry in result.json["left_out"]] == ["skills/tidy/link"]
    return tmp_path / "alice.tar.gz"


def _names(deepctl: InProcess, user: str) -> list[str]:
    return [skill["name"] for skill in deepctl("skills", "list", "--user", user, "--json").ok().json["skills"]]


def test_imported_skills_and_commands_are_in_force_after_a_confirmation(
    deepctl: InProcess, home: Path, archive: Path
) -> None:
    imported = deepctl("profiles", "import", str(archive), "--as", "bob").ok()
    assert "skills.tidy" in imported.stdout + imported.stderr
    bob = home / "profiles/bob"
    assert _names(deepctl, "bob") == []
    deepctl("chat", "--user", "bob", "/note hello").ok()
    assert not (bob / "workspace/note.txt").exists()
    shown = deepctl("config", "show", "--user", "bob").ok().stdout
    assert "skills.tidy" in shown
    assert "commands.note" in shown
    assert deepctl("profiles", "trust", "bob").code == 6
    # An export of it has neither: its owner trusts them first.
    again = deepctl("profiles", "export", "--user", "bob", f"{archive}.2", "--json").ok().json
    assert {"path": "untrusted", "reason": "imported skills and commands that are not trusted"} in again["left_out"]
    trusted = deepctl("profiles", "trust", "bob", "--yes", "--json").ok().json
    assert [item["key"] for item in trusted["settings"]] == ["skills.tidy", "commands.note"]
    assert _names(deepctl, "bob") == ["tidy"]
    assert not (bob / "untrusted").exists()
    assert os.access(bob / "skills/tidy/run.sh", os.X_OK)
    assert (bob / "skills/tidy/data.jsonl").read_text() == '{"no": "sealed line"}\n{"cut'
    deepctl("chat", "--user", "bob", "/note hello").ok()
    assert (bob / "workspace/note.txt").read_text() == "hello"
    assert deepctl("profiles", "trust", "bob").code == 0


def test_an_imported_skill_does_not_replace_one_of_the_profile(deepctl: InProcess, home: Path, archive: Path) -> None:
    deepctl("profiles", "import", str(archive), "--as", "bob").ok()
    own = home / "profiles/bob/skills/tidy"
    own.mkdir(parents=True)
    (own / "SKILL.md").write_text("---\ndescription: Mine.\n---\n")
    failed = deepctl("profiles", "trust", "bob", "--yes", "--json")
    assert (failed.code, failed.error["code"]) == (6, "exists")
    assert (home / "profiles/bob/commands/note.md").exists()
    assert (own / "SKILL.md").read_text() == "---\ndescription: Mine.\n---\n"
    assert (home / "profiles/bob/untrusted/skills/tidy/run.sh").exists()


def test_a_copy_has_them_with_the_settings_and_a_wipe_deletes_them(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    _fill(home / "profiles/alice")
    deepctl("profiles", "copy", "alice", "bob").ok()
    assert _names(deepctl, "bob") == ["tidy"]
    assert os.access(home / "profiles/bob/skills/tidy/run.sh", os.X_OK)
    assert (home / "profiles/bob/commands/note.md").exists()
    deepctl("profiles", "copy", "alice", "carol", "--only", "memory").ok()
    assert _names(deepctl, "carol") == []
    deepctl("profiles", "rename", "bob", "dora").ok()
    assert _names(deepctl, "dora") == ["tidy"]
    deepctl("chat", "--user", "dora", "write a.txt: one").ok()
    assert deepctl("checkpoints", "verify", "--user", "dora").ok()
    assert deepctl("checkpoints", "repair", "--user", "dora").ok()
    assert _names(deepctl, "dora") == ["tidy"]
    deepctl("wipe", "--user", "dora", "--yes").ok()
    assert not (home / "profiles/dora").exists()


def test_a_role_brings_them_and_a_new_profile_has_them_after_a_confirmation(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "sk-shop-0123456789abcdef")
    deepctl("profiles", "create", "alice").ok()
    _fill(home / "profiles/alice")
    (home / "profiles/alice/skills/tidy/notes.md").write_text("key: sk-shop-0123456789abcdef\n")
    made = deepctl("roles", "create", "tidier", "--from", "alice", "--json").ok().json
    assert {"path": "skills/tidy/link", "reason": "not a file"} in made["left_out"]
    assert "sk-shop" not in (home / "roles/tidier/skills/tidy/notes.md").read_text()
    assert "not in force" in deepctl("profiles", "create", "bob", "--like", "tidier").ok().stderr
    assert _names(deepctl, "bob") == []
    deepctl("profiles", "trust", "bob", "--yes").ok()
    assert _names(deepctl, "bob") == ["tidy"]
    assert (home / "profiles/bob/commands/note.md").exists()


def test_skills_of_a_package_come_back_byte_for_byte(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    library = home / "profiles/alice/skills"
    shutil.copytree(Path(os.path.dirname(pydantic_ai.__file__ or "")) / ".agents/skills", library)
    (library / "large").mkdir()
    (library / "large/SKILL.md").write_text("---\ndescription: Has a model.\n---\n")
    with open(library / "large/model.bin", "wb") as file:
        # More than what deepctl reads as a whole.
        file.truncate(65 << 20)
    names = _names(deepctl, "alice")
    assert len(names) > 3
    archive = str(tmp_path / "alice.tar.gz")
    deepctl("profiles", "export", "--user", "alice", archive).ok()
    deepctl("profiles", "import", archive, "--as", "bob").ok()
    assert _names(deepctl, "bob") == []
    deepctl("profiles", "trust", "bob", "--yes").ok()
    assert _names(deepctl, "bob") == names

    def contents(directory: Path) -> dict[bytes, bytes]:
        return {path: content for path, (_, content) in tree(directory).items()}

    assert contents(home / "profiles/bob/skills") == contents(library)


@pytest.mark.parametrize("command", ["import", "trust"])
def test_a_kill_at_any_call_loses_no_skill_and_brings_none_into_force(
    deepctl: InProcess, home: Path, archive: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = ["profiles", "import", str(archive), "--as", "bob"]
    trust = ["profiles", "trust", "bob", "--yes"]

    def begin(root: Path) -> None:
        monkeypatch.setenv("DEEPCTL_HOME", str(root))
        if command == "trust":
            deepctl(*take).ok()

    def run() -> None:
        deepctl(*(take if command == "import" else trust))

    def files(profile: Path) -> dict[str, bytes]:
        """The files of skills and commands by their paths, in force or not."""
        result = {}
        for place in (profile, profile / "untrusted"):
            for kind in ("skills", "commands"):
                for path, (_, content) in (tree(place / kind) if (place / kind).exists() else {}).items():
                    if content:
                        assert f"{kind}/{path.decode()}" not in result
                        result[f"{kind}/{path.decode()}"] = content
        return result

    begin(home)
    counter = faults.Counter()
    with counter.installed():
        run()
    whole = files(home / "profiles/bob")
    assert {"skills/tidy/SKILL.md", "skills/tidy/run.sh", "commands/note.md"} <= set(whole)
    every = [(at, name, "SIGKILL") for at, name in enumerate(counter.names, 1)]
    for at, name, _ in faults.sample(every, command, len(every) if SOAK else 24):
        root = home.parent / f"{command}-{at}"
        begin(root)
        assert faults.in_child(run, at, faults.kill) == "killed", (at, name)
        profile = root / "profiles/bob"
        if profile.exists():
            assert files(profile) == whole, (at, name)
        else:
            assert command == "import"
            deepctl(*take).ok()
        waiting = untrusted_files.waiting(Root(str(root)).profile("bob"))
        if command == "import":
            assert _names(deepctl, "bob") == []
            assert len(waiting) == 2
        deepctl(*trust).ok()
        assert _names(deepctl, "bob") == ["tidy"], (at, name)
        assert files(profile) == whole, (at, name)
        assert not (profile / "untrusted").exists(), (at, name)
