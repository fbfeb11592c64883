"""Skills and commands of a profile in exports, imports and copies: what comes from elsewhere needs trust."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import InProcess


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
