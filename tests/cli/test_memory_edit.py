"""`deepctl memory edit`."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess
from tests.support.terminal import Terminal


@pytest.fixture
def notebook(deepctl: InProcess, home: Path) -> Path:
    """The agent's MEMORY.md, in which it has noted tea."""
    deepctl("chat", "remember tea").ok()
    return home / "profiles/default/workspace/.deep/memory/main/MEMORY.md"


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that the test writes, called `an editor --wait FILE`."""
    program = tmp_path / "an editor"
    monkeypatch.setenv("VISUAL", f"'{program}' --wait")
    return program


def _write(editor: Path, script: str) -> None:
    """What the editor does with `$file`."""
    editor.write_text(f'#!/bin/sh\n[ "$1" = --wait ] || exit 9\nfile=$2\n{script}\n')
    editor.chmod(0o755)


def _drafts(home: Path) -> list[Path]:
    return sorted(home.glob("profiles/default/.edit-*"))


def test_the_edited_copy_becomes_the_notebook(deepctl: InProcess, home: Path, notebook: Path, editor: Path) -> None:
    notebook.write_bytes(b"- tea\r\nno end \xff")
    _write(editor, 'printf "first\\n" | cat - "$file" > "$file.new" && mv "$file.new" "$file"')
    edited = deepctl("memory", "edit", "--json").ok().json
    assert notebook.read_bytes() == b"first\n- tea\r\nno end \xff"
    assert (edited["changed"], edited["merged"], edited["added_lines"], edited["removed_lines"]) == (True, False, 1, 0)
    assert edited["file"]["bytes"] == len(notebook.read_bytes())
    newest = deepctl("checkpoints", "list", "--json").ok().json["checkpoints"][0]
    assert (newest["id"], newest["kind"]) == (edited["checkpoint"], "manual")
    assert _drafts(home) == []


def test_the_checkpoint_after_an_edit_leaves_out_what_was_excluded_during_it(
    deepctl: InProcess, home: Path, notebook: Path, editor: Path
) -> None:
    (home / "profiles/default/workspace/large.bin").write_bytes(b"large")
    config = Path(os.environ["DEEPCTL_CONFIG"])
    config.parent.mkdir()
    _write(editor, f"printf '[snapshot]\\nexclude = \"*.bin\"\\n' > '{config}'; echo coffee >> \"$file\"")
    checkpoint = deepctl("memory", "edit", "--json").ok().json["checkpoint"]
    assert "large.bin" not in deepctl("checkpoints", "show", checkpoint, "--json").ok().stdout
    config.unlink()
    saved = deepctl("checkpoints", "save", "--json").ok().json["checkpoint"]["id"]
    assert "large.bin" in deepctl("checkpoints", "show", saved, "--json").ok().stdout


def test_new_text_that_is_not_utf8_is_refused_and_kept(
    deepctl: InProcess, home: Path, notebook: Path, editor: Path
) -> None:
    _write(editor, 'printf "caf\\351\\n" >> "$file"')
    before = notebook.read_bytes()
    refused = deepctl("memory", "edit")
    assert refused.code == 2
    assert notebook.read_bytes() == before
    (draft,) = _drafts(home)
    assert (draft / "MEMORY.md").read_bytes() == before + b"caf\xe9\n"


def test_a_mark_of_byte_order_that_an_editor_adds_is_dropped(deepctl: InProcess, notebook: Path, editor: Path) -> None:
    _write(editor, 'printf "\\357\\273\\277- coffee\\n" > "$file"')
    deepctl("memory", "edit").ok()
    assert notebook.read_bytes() == b"- coffee\n"


def test_the_copy_is_private_and_lies_in_the_profile(
    deepctl: InProcess, home: Path, notebook: Path, editor: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    _write(editor, f'stat -c "%a %n" "$file" "$(dirname "$file")" > "{seen}"; stat -c %i "$file" >> "{seen}"')
    before = os.umask(0)
    try:
        deepctl("memory", "edit").ok()
    finally:
        os.umask(before)
    copy, directory, inode = seen.read_text().splitlines()
    assert copy.startswith(f"600 {home}/profiles/default/.edit-")
    assert copy.endswith("/MEMORY.md")
    assert directory.startswith("700 ")
    assert int(inode) != notebook.stat().st_ino


def test_nothing_changes_where_nothing_was_edited(deepctl: InProcess, home: Path, notebook: Path, editor: Path) -> None:
    _write(editor, "")
    status = notebook.stat()
    said = deepctl("memory", "edit").ok()
    assert (said.stdout, "MEMORY.md was not changed." in said.stderr) == ("", True)
    assert "--wait" in said.stderr
    assert deepctl("memory", "edit", "--json").ok().json["changed"] is False
    assert deepctl("memory", "edit", "new", "--json").ok().json["file"] is None
    assert (notebook.stat().st_ino, notebook.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert os.listdir(notebook.parent) == ["MEMORY.md"]
    assert _drafts(home) == []


def test_a_new_notebook_is_made_and_has_a_good_name(deepctl: InProcess, notebook: Path, editor: Path) -> None:
    _write(editor, 'printf "Lisbon" > "$file"')
    deepctl("memory", "edit", "trip").ok()
    assert (notebook.parent / "trip.md").read_bytes() == b"Lisbon"
    assert stat.S_IMODE((notebook.parent / "trip.md").stat().st_mode) == 0o600
    assert deepctl("memory", "edit", "a b").code == 2


def test_what_the_agent_noted_meanwhile_is_merged(
    deepctl: InProcess, process: Command, notebook: Path, editor: Path
) -> None:
    """The lock is not held while the editor runs: a whole turn fits in."""
    _write(editor, f'{" ".join(process.argv)} chat "remember coffee" >/dev/null 2>&1; printf "mine\\n" >> "$file"')
    said = deepctl("memory", "edit").ok()
    assert sorted(notebook.read_text().splitlines()) == ["- coffee", "- tea", "mine"]
    assert "it contains both changes" in said.stderr
    assert said.stdout.startswith("Changed MEMORY.md (+1 -0)")


def test_where_both_changed_a_line_nothing_is_written_and_nothing_lost(
    deepctl: InProcess, home: Path, notebook: Path, editor: Path
) -> None:
    _write(editor, f'printf "theirs\\n" > "{notebook}"; printf "mine\\n" > "$file"')
    refused = deepctl("memory", "edit", "--json")
    assert (refused.code, refused.error["code"]) == (6, "memory_conflict")
    assert notebook.read_text() == "theirs\n"
    (draft,) = _drafts(home)
    assert (draft / "MEMORY.md").read_text() == "mine\n"
    assert str(draft / "MEMORY.md") in refused.error["message"]
    _write(editor, "")
    assert str(draft / "MEMORY.md") in deepctl("memory", "edit").ok().stderr


def test_an_editor_that_fails_changes_nothing(deepctl: InProcess, home: Path, notebook: Path, editor: Path) -> None:
    _write(editor, "exit 3")
    refused = deepctl("memory", "edit", "--json")
    assert (refused.code, refused.error["code"]) == (6, "editor_failed")
    assert _drafts(home) == []
    _write(editor, 'echo mine >> "$file"; kill -9 $$')
    refused = deepctl("memory", "edit")
    assert (refused.code, "signal 9" in refused.stderr) == (6, True)
    (draft,) = _drafts(home)
    assert str(draft / "MEMORY.md") in refused.stderr
    assert (draft / "MEMORY.md").read_text() == "- tea\nmine\n"
    assert notebook.read_text() == "- tea\n"


def test_an_editor_that_removes_the_copy_changes_nothing(
    deepctl: InProcess, home: Path, notebook: Path, editor: Path
) -> None:
    _write(editor, 'rm "$file"')
    refused = deepctl("memory", "edit", "--json")
    assert (refused.code, refused.error["code"]) == (6, "no_draft")
    assert _drafts(home) == []
    assert notebook.read_text() == "- tea\n"


def test_the_text_is_kept_where_the_profile_is_locked_afterwards(
    process: Command, home: Path, notebook: Path, editor: Path
) -> None:
    import fcntl

    _write(editor, 'echo mine >> "$file"')
    with open(home / "locks/default", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = process("memory", "edit", "--json")
    assert (refused.code, refused.error["code"]) == (4, "locked")
    (draft,) = _drafts(home)
    assert str(draft / "MEMORY.md") in refused.error["message"]
    assert (draft / "MEMORY.md").read_text() == "- tea\nmine\n"


def test_the_text_is_kept_after_a_kill(process: Command, home: Path, notebook: Path, editor: Path) -> None:
    _write(editor, 'echo mine >> "$file"; touch "$file.ready"; exec sleep 60')
    running = process.start("memory", "edit", start_new_session=True)
    try:
        end = time.monotonic() + 30
        while not list(home.glob("profiles/default/.edit-*/*.ready")):
            assert time.monotonic() < end
            time.sleep(0.02)
        running.kill()
        running.wait()
    finally:
        os.killpg(running.pid, signal.SIGKILL)
    assert process("memory", "add", "later").code == 0
    (draft,) = _drafts(home)
    assert (draft / "MEMORY.md").read_text() == "- tea\nmine\n"
    assert notebook.read_text() == "- tea\nlater\n"


def test_an_editor_that_cannot_be_had_is_told(
    deepctl: InProcess, home: Path, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value, code, word in (
        ("VISUAL", "/none/such", 6, "no_editor"),
        ("EDITOR", "'open", 2, "usage"),
        ("EDITOR", " ", 6, "no_editor"),
        ("EDITOR", "", 6, "no_editor"),
    ):
        for unset in ("VISUAL", "EDITOR"):
            monkeypatch.delenv(unset, raising=False)
        monkeypatch.setenv(variable, value)
        refused = deepctl("memory", "edit", "--json")
        assert (refused.code, refused.error["code"]) == (code, word), value
    assert _drafts(home) == []


def test_visual_comes_before_editor(
    deepctl: InProcess, notebook: Path, editor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(editor, 'echo visual >> "$file"')
    monkeypatch.setenv("EDITOR", "false")
    deepctl("memory", "edit").ok()
    assert notebook.read_text() == "- tea\nvisual\n"


def test_what_the_editor_prints_is_not_the_answer(process: Command, notebook: Path, editor: Path) -> None:
    _write(editor, 'echo chatter; echo mine >> "$file"')
    assert process("memory", "edit", "--json").json["changed"] is True


def test_at_a_terminal_the_editor_on_the_path_is_used_and_ctrl_c_is_its_own(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unset in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(unset, raising=False)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "vi").write_text(
        "#!/bin/sh\ntrap \"echo interrupted >> '$1'; exit 0\" INT\necho ready\n"
        f"while :; do {shutil.which('sleep')} 0.05; done\n"
    )
    (programs / "vi").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    terminal = Terminal("memory", "edit")
    terminal.expect("ready")
    terminal.type("\x03")
    assert terminal.wait() == 0
    assert "Changed MEMORY.md" in terminal.screen
    assert notebook.read_text() == "- tea\ninterrupted\n"
