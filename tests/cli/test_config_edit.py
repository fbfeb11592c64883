"""`deepctl config edit`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import InProcess
from tests.support.terminal import Terminal


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that the test writes, called `an editor --wait FILE`."""
    program = tmp_path / "an editor"
    monkeypatch.setenv("VISUAL", f"'{program}' --wait")
    return program


def _write(editor: Path, script: str) -> None:
    editor.write_text(f"#!/bin/sh\nfile=$2\n{script}\n")
    editor.chmod(0o755)


def test_a_new_config_toml_is_what_was_written(deepctl: InProcess, editor: Path) -> None:
    config = Path(os.environ["DEEPCTL_CONFIG"])
    _write(editor, 'echo \'approve = "never" # mine\' >> "$file"')
    edited = deepctl("config", "edit", "--json").ok().json
    assert (edited["profile"], edited["path"], edited["changed"]) == (None, str(config), True)
    assert config.read_text().endswith('approve = "never" # mine\n')
    assert deepctl("config", "get", "approve").ok().stdout == "never\n"
    assert [entry.name for entry in config.parent.glob(".edit-*")] == []


def test_the_profile_has_settings_that_config_toml_must_not_have(
    deepctl: InProcess, home: Path, tmp_path: Path, editor: Path
) -> None:
    deepctl("profiles", "create", "alice").ok()
    _write(editor, 'printf \'[memory]\\nread = ["bob"]\\n\' >> "$file"')
    refused = deepctl("config", "edit")
    assert (refused.code, "cannot be set for all profiles" in refused.stderr) == (2, True)
    assert deepctl("config", "edit", "--user", "alice").ok().stdout == f"Changed {home}/profiles/alice/profile.toml.\n"
    assert deepctl("config", "get", "memory.read", "--user", "alice").ok().stdout == "bob\n"


def test_nothing_is_written_without_a_change(deepctl: InProcess, home: Path, editor: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    settings = home / "profiles/alice/profile.toml"
    before = settings.stat()
    _write(editor, ":")
    assert "was not changed" in deepctl("config", "edit", "--user", "alice").ok().stderr
    assert deepctl("config", "edit").ok().stdout == ""
    assert settings.stat() == before
    assert not Path(os.environ["DEEPCTL_CONFIG"]).exists()
    assert list(settings.parent.glob(".edit-*")) == []


@pytest.mark.parametrize(
    ("text", "code"), [("approve = ", 5), ("approve = 'perhaps'", 2), ("[permission]\\nread = 1", 2), ("keys = 1", 2)]
)
def test_an_error_changes_nothing_and_keeps_the_text(
    deepctl: InProcess, home: Path, editor: Path, text: str, code: int
) -> None:
    deepctl("profiles", "create", "alice").ok()
    settings = home / "profiles/alice/profile.toml"
    before = settings.read_bytes()
    _write(editor, f'printf "{text}\\n" >> "$file"')
    refused = deepctl("config", "edit", "--user", "alice")
    assert refused.code == code
    assert settings.read_bytes() == before
    (draft,) = settings.parent.glob(".edit-*/*")
    assert draft.read_bytes().startswith(before)
    assert draft.read_bytes() != before
    assert f"Your text is saved in {draft}." in refused.stderr
    found = deepctl("doctor", "--user", "alice").stdout
    assert str(draft) in found
    assert "deepctl config edit" in found


def test_a_change_in_the_meantime_stays(deepctl: InProcess, home: Path, editor: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    settings = home / "profiles/alice/profile.toml"
    _write(editor, f"echo 'retries = 1' >> \"$file\"; echo 'retries = 2' >> '{settings}'")
    refused = deepctl("config", "edit", "--user", "alice")
    assert refused.code == 6
    assert deepctl("config", "get", "retries", "--user", "alice").ok().stdout == "2\n"


def test_at_a_terminal_the_text_can_be_edited_again(home: Path, editor: Path, deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    _write(
        editor,
        """if grep -q perhaps "$file"; then sed -i s/perhaps/never/ "$file"
else echo 'approve = "perhaps"' >> "$file"; fi""",
    )
    terminal = Terminal("config", "edit", "--user", "alice")
    terminal.expect("It must be one of")
    terminal.expect("again? [Y/n]")
    terminal.type("\r")
    terminal.expect("Changed")
    assert terminal.wait() == 0
    assert deepctl("config", "get", "approve", "--user", "alice").ok().stdout == "never\n"
    assert list((home / "profiles/alice").glob(".edit-*")) == []
