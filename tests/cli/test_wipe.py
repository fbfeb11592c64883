"""`deepctl wipe`, as people and scripts use it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepctl.cli import wipe as commands
from deepctl.domain import profiles
from deepctl.domain.wipe.wipe_plan import PARTS
from deepctl.files import rmtree
from deepctl.layout import Root
from deepctl.store.repository import ReadOnlyRepository
from tests.store.faults import Lines, in_child_with
from tests.support.command import Command, InProcess
from tests.support.terminal import Terminal

SOAK = os.environ.get("DEEPCTL_SOAK") == "1"  # read here: the fixtures remove the variable


def _seen(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): f"{path.lstat().st_mode} {path.read_bytes().hex() if path.is_file() else ''}"
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def alice(deepctl: InProcess, home: Path) -> Path:
    """Alice's profile: a note, a file and three checkpoints at least; and bob."""
    deepctl("chat", "--user", "alice", "remember I like tea").ok()
    deepctl("chat", "--user", "alice", "write a.txt: hello").ok()
    deepctl("chat", "--user", "bob", "write b.txt: his").ok()
    return home / "profiles" / "alice"


def _paths(document: dict[str, Any], profile: Path) -> dict[str, str]:
    return {os.path.relpath(row["path"], profile): row["part"] for row in document["removed"]}


def test_everything_goes_with_yes_and_is_listed(deepctl: InProcess, alice: Path) -> None:
    bob = _seen(alice.parent / "bob")
    files = [path for path in alice.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    found = deepctl("wipe", "--user", "alice", "--yes", "--json").ok().json
    assert (found["version"], found["profile"], found["dry_run"]) == (1, "alice", False)
    assert (found["files"], found["bytes"], found["container"]) == (len(files), size, None)
    assert found["files"] == sum(row["files"] for row in found["removed"])
    assert _paths(found, alice) == {
        "workspace/.deep/memory": "memory",
        "cache": "checkpoints",
        "checkpoints": "checkpoints",
        "sessions": "sessions",
        "workspace": "workspace",
        "profile.toml": "settings",
        "usage.jsonl": "usage",
    }
    assert os.listdir(alice.parent) == ["bob"]
    assert _seen(alice.parent / "bob") == bob
    assert deepctl("wipe", "--user", "alice", "--yes").code == 3


def test_a_dry_run_says_the_same_changes_nothing_and_takes_no_lock(deepctl: InProcess, alice: Path, home: Path) -> None:
    before = _seen(home)
    with profiles.lock(Root(str(home)), "alice", command="chat"):
        foretold = deepctl("wipe", "--user", "alice", "--dry-run", "--json").ok().json
        assert deepctl("wipe", "--user", "alice", "--yes").code == 4
        assert deepctl("wipe", "--all", "--yes").code == 4
    assert _seen(home) == before
    done = deepctl("wipe", "--user", "alice", "--yes", "--json").ok().json
    assert foretold | {"dry_run": False} == done


def test_without_a_terminal_yes_is_needed(deepctl: InProcess, alice: Path, home: Path) -> None:
    before = _seen(home)
    for arguments in (("--user", "alice"), ("--all",), ("--user", "alice", "--only", "memory")):
        refused = deepctl("wipe", *arguments, "--json", stdin=b"alice\n")
        assert (refused.code, refused.error["code"]) == (6, "needs_yes")
        assert deepctl("wipe", *arguments, stdin=b"alice\n").code == 6
    assert _seen(home) == before


def test_wrong_use_is_refused_before_anything_is_touched(deepctl: InProcess, alice: Path, home: Path) -> None:
    before = _seen(home)
    for arguments, code in (
        (("--user", "alice", "--only", "memory,everything"), 2),
        (("--user", "alice", "--only", ""), 2),
        (("--user", "alice", "--all"), 2),
        (("--user", "../alice"), 2),
        (("--user", ""), 2),
        (("--user", "nobody"), 3),
        ((), 3),
    ):
        assert deepctl("wipe", *arguments, "--yes").code == code, arguments
    unknown = deepctl("wipe", "--user", "alice", "--only", "logs", "--yes", "--json").error
    assert all(part in unknown["hint"] for part in PARTS)
    assert _seen(home) == before
    assert "nobody" not in os.listdir(home / "locks")


def test_where_there_is_nothing_to_wipe_it_says_so(deepctl: InProcess, alice: Path) -> None:
    said = deepctl("wipe", "--user", "alice", "--only", "plans,history").ok()
    assert said.stdout == "There is nothing to wipe: profile alice has no plans and no history.\n"
    assert deepctl("wipe", "--user", "alice", "--only", "plans", "--json").ok().json["removed"] == []


def test_all_profiles_go_at_once(deepctl: InProcess, alice: Path, home: Path) -> None:
    foretold = deepctl("wipe", "--all", "--dry-run", "--json").ok().json
    assert [one["profile"] for one in foretold["profiles"]] == ["alice", "bob"]
    done = deepctl("wipe", "--all", "--only", "memory", "--yes", "--json").ok().json
    assert [len(one["removed"]) for one in done["profiles"]] == [1, 0]
    assert done["files"] == done["profiles"][0]["files"]
    assert "Wiped profile bob" in deepctl("wipe", "--all", "--yes").ok().stdout
    assert os.listdir(home / "profiles") == []
    assert deepctl("wipe", "--all", "--yes").ok().stdout == "There is nothing to wipe, because there are no profiles.\n"


def test_all_is_refused_before_anything_is_touched_if_one_cannot_go(
    deepctl: InProcess, alice: Path, home: Path, tmp_path: Path
) -> None:
    (home / "profiles" / "carol").symlink_to(tmp_path)
    assert deepctl("wipe", "--all", "--yes").code == 6
    assert deepctl("wipe", "--user", "carol", "--yes").code == 6
    assert sorted(os.listdir(home / "profiles")) == ["alice", "bob", "carol"]


def test_the_spelling_of_a_name_does_not_matter(deepctl: InProcess, alice: Path) -> None:
    assert deepctl("wipe", "--user", "ALICE", "--yes", "--json").ok().json["profile"] == "alice"


def test_sessions_take_their_checkpoints_along_and_it_says_why(deepctl: InProcess, alice: Path) -> None:
    (alice / "prompt_history").write_text("+typed\n")
    done = deepctl("wipe", "--user", "alice", "--only", "sessions", "--yes", "--json").ok().json
    assert {row["part"] for row in done["removed"]} == {"sessions", "checkpoints"}
    assert any("Deleting sessions also deletes their checkpoints" in note for note in done["notes"])
    assert any("--only history" in note for note in done["notes"])
    assert (alice / "workspace" / "a.txt").exists()
    deepctl("chat", "--user", "alice", "hello").ok()
    (session,) = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
    assert (session["name"], session["turns"]) == ("main", 1)


def test_each_row_of_the_plan_is_called_what_it_is(deepctl: InProcess, alice: Path) -> None:
    rows = [line.split() for line in deepctl("wipe", "--user", "alice", "--dry-run").ok().stdout.splitlines()]
    assert [row[0] for row in rows if row[-1] in ("cache", "checkpoints")] == ["cache", "checkpoints"]


def test_without_checkpoints_conversations_go_on(deepctl: InProcess, alice: Path) -> None:
    deepctl("chat", "--user", "alice", "write a.txt: changed").ok()
    deepctl("checkpoints", "rewind", "--user", "alice").ok()
    deepctl("checkpoints", "fork", "~1", "fork", "--user", "alice").ok()
    done = deepctl("wipe", "--user", "alice", "--only", "checkpoints", "--yes", "--json").ok().json
    assert any("rewound" in note for note in done["notes"])
    assert deepctl("checkpoints", "list", "--user", "alice", "--json").ok().json["checkpoints"] == []
    assert deepctl("checkpoints", "rewind", "--user", "alice").code == 3
    for session in ("main", "fork"):
        deepctl("chat", "--user", "alice", "--session", session, f"write {session}.txt: one").ok()
        deepctl("chat", "--user", "alice", "--session", session, f"write {session}.txt: two").ok()
        deepctl("checkpoints", "rewind", "--user", "alice", "--session", session).ok()
        assert (alice / "workspace" / f"{session}.txt").read_text() == "one"
        deepctl("checkpoints", "undo", "--user", "alice", "--session", session).ok()
    assert deepctl("checkpoints", "verify", "--user", "alice", "--json").ok().json["damaged"] == []
    assert "I like tea" in deepctl("sessions", "show", "--user", "alice", "fork").ok().stdout


def test_a_wiped_memory_is_still_in_checkpoints_which_it_says(deepctl: InProcess, alice: Path) -> None:
    done = deepctl("wipe", "--user", "alice", "--only", "memory", "--yes", "--json").ok().json
    count = done["copies"]["checkpoints"]
    assert done["copies"] == {"checkpoints": count, "sessions": 1, "logs": 1}
    assert count > 0
    assert any(f"{count} checkpoint" in note and "--only sessions" in note for note in done["notes"])
    assert deepctl("memory", "show", "--user", "alice").ok().stdout == ""
    deepctl("chat", "--user", "alice", "remember I like coffee").ok()
    assert "coffee" in deepctl("memory", "show", "--user", "alice").ok().stdout
    deepctl("checkpoints", "rewind", "~2", "--user", "alice", "--exact").ok()
    assert "tea" in deepctl("memory", "show", "--user", "alice").ok().stdout


def test_an_interrupted_rewind_is_finished_before_parts_go(
    deepctl: InProcess, alice: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepctl.store import restore

    class KilledError(BaseException):
        pass

    def killed(*arguments: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(restore._LocalWorkingTree, "apply", killed)
        with pytest.raises(KilledError):
            deepctl("checkpoints", "rewind", "~2", "--user", "alice")
    foretold = deepctl("wipe", "--user", "alice", "--only", "memory", "--dry-run", "--json").ok().json
    assert any("rewind was interrupted" in note for note in foretold["notes"])
    done = deepctl("wipe", "--user", "alice", "--only", "checkpoints", "--yes").ok()
    assert "An interrupted rewind has been finished." in done.stderr
    assert not (alice / "workspace" / "a.txt").exists()
    deepctl("chat", "--user", "alice", "hello").ok()
    assert deepctl("checkpoints", "verify", "--user", "alice").code == 0


def test_the_settings_that_name_a_wiped_profile_are_mentioned(deepctl: InProcess, alice: Path) -> None:
    deepctl("config", "set", "default_user", "alice").ok()
    done = deepctl("wipe", "--yes").ok()
    assert "config unset default_user" in done.stderr
    assert "config unset" not in deepctl("wipe", "--user", "bob", "--yes").ok().stderr


def test_settings_that_cannot_be_read_keep_nobody_from_wiping(deepctl: InProcess, alice: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "config.toml").write_text("[[[")
    (alice / "profile.toml").write_text("[[[")
    deepctl("wipe", "--user", "alice", "--yes").ok()
    assert not alice.exists()


def test_a_wipe_that_was_killed_can_be_repeated(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: str, report: object = None) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rmtree, "remove_tree", interrupt)
        stopped = deepctl("wipe", "--user", "alice", "--yes", "--json")
        assert (stopped.code, stopped.error["code"]) == (130, "interrupted")
        assert "removed from the profile" in stopped.error["message"]
        assert "next command" in stopped.error["hint"]
    assert deepctl("profiles", "show", "alice").code == 3
    assert deepctl("wipe", "--user", "alice", "--dry-run").code == 3
    assert len(os.listdir(alice.parent)) == 2
    again = deepctl("wipe", "--user", "alice", "--json").ok().json
    assert (again["removed"], len(again["notes"])) == ([], 1)
    assert os.listdir(alice.parent) == ["bob"]
    assert deepctl("wipe", "--user", "alice").code == 3


def test_ctrl_c_around_the_line_that_takes_a_profile_away_says_what_becomes_of_it(
    deepctl: InProcess, alice: Path, tmp_path: Path
) -> None:
    bob = alice.parent / "bob"
    shutil.copytree(alice, tmp_path / "alice", symlinks=True)

    def wipe() -> None:
        found = deepctl("wipe", "--user", "alice", "--yes")
        (tmp_path / "said").write_text(f"{found.code} {found.stderr}")

    def interrupt(at: int) -> str:
        """What a wipe says that is interrupted at this line; one with fewer lines than that runs to its end."""
        if not alice.exists():
            shutil.copytree(tmp_path / "alice", alice, symlinks=True)
        # In a process of its own, with which its locks go.
        assert in_child_with(wipe, Lines(commands._wiped, at)) == "done"
        return (tmp_path / "said").read_text()

    def is_away(at: int) -> bool:
        interrupt(at)
        away = not alice.exists()
        if away:
            deepctl("chat", "--user", "bob", "hello").ok()  # finishes it
        return away

    def count() -> int:
        lines = Lines(commands._wiped)
        with lines.installed():
            wipe()
        shutil.copytree(tmp_path / "alice", alice, symlinks=True)
        return lines.seen

    count()  # imports
    before, after = 1, count()
    while not is_away(after):
        before, after = after, 2 * after
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (before, middle) if is_away(middle) else (middle, after)
    near, far = (10, 30) if SOAK else (4, 12)
    for at in range(max(1, before - near), after + far):
        said = interrupt(at)
        assert said.startswith("130 "), at
        away = not alice.exists()
        assert away or at < after
        assert "next command" in said or not away, at
        assert set(alice.parent.iterdir()) != {bob}, at
        deepctl("chat", "--user", "bob", "hello").ok()
        assert set(alice.parent.iterdir()) == ({bob} if away else {alice, bob}), at
        assert away or _seen(alice) == _seen(tmp_path / "alice"), at


def test_what_cannot_be_deleted_is_an_error_that_names_it(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def unlink(path: str, **options: int) -> None:
        if path == "a.txt":
            raise PermissionError(1, "Operation not permitted", path)
        real(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        for _ in range(2):
            failed = deepctl("wipe", "--user", "alice", "--yes", "--json")
            assert (failed.code, failed.error["code"]) == (8, "storage_eperm")
            assert "/workspace/a.txt" in failed.error["message"]
        deepctl("chat", "--user", "alice", "hello").ok()
    assert deepctl("config", "set", "model", "offline", "--user", "bob").code == 0
    assert sorted(os.listdir(alice.parent)) == ["alice", "bob"]


def test_names_in_a_plan_cannot_reach_the_terminal(deepctl: InProcess, alice: Path) -> None:
    (alice / "new\nline\x1b[2J\u202e").write_text("x")
    (alice / os.fsdecode(b"\xff")).write_text("x")
    said = deepctl("wipe", "--user", "alice", "--dry-run").ok().stdout
    assert "new\\x0aline\\x1b[2J\\u202e" in said
    assert "\\xff" in said
    assert "\x1b" not in said
    found = deepctl("wipe", "--user", "alice", "--yes", "--json").ok().json
    assert str(alice / os.fsdecode(b"\xff")) in [row["path"] for row in found["removed"]]


def test_at_a_terminal_the_plan_is_shown_and_the_name_has_to_be_typed(alice: Path) -> None:
    for answer, code in (("yes", 6), ("", 6), ("Alice", 6), ("alice", 0)):
        assert alice.exists()
        terminal = Terminal("wipe", "--user", "alice")
        terminal.expect("type alice to continue")
        assert "workspace/.deep/memory" in terminal.screen
        assert "in all" in terminal.screen
        terminal.type(f"{answer}\r")
        assert terminal.wait() == code, terminal.screen
        assert ("Wiped profile alice: " in terminal.screen) == (code == 0)
    assert not alice.exists()


def test_at_a_terminal_all_profiles_want_another_word(alice: Path) -> None:
    terminal = Terminal("wipe", "--all")
    terminal.expect("type all profiles to continue")
    terminal.type("all profiles\r")
    assert terminal.wait() == 0
    assert os.listdir(alice.parent) == []


def test_nobody_is_kept_waiting_by_the_question_and_what_has_changed_meanwhile_is_not_wiped(
    deepctl: InProcess, alice: Path
) -> None:
    terminal = Terminal("wipe", "--user", "alice")
    terminal.expect("type alice to continue")
    deepctl("chat", "--user", "alice", "write new.txt: new").ok()
    before = _seen(alice)
    terminal.type("alice\r")
    assert terminal.wait() == 6
    assert "Something changed after you saw" in terminal.screen
    assert _seen(alice) == before


def test_ctrl_c_at_the_question_leaves_everything(alice: Path) -> None:
    before = _seen(alice)
    terminal = Terminal("wipe", "--user", "alice")
    terminal.expect("type alice to continue")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert _seen(alice) == before


def test_a_locked_profile_is_told_before_anybody_has_typed_anything(alice: Path, home: Path) -> None:
    with profiles.lock(Root(str(home)), "alice", command="chat"):
        terminal = Terminal("wipe", "--user", "alice")
        assert terminal.wait() == 4
    assert "type alice" not in terminal.screen


def test_an_open_conversation_goes_on_in_a_new_history_after_its_history_is_wiped(
    deepctl: InProcess, alice: Path
) -> None:
    terminal = Terminal("chat", "--user", "alice")
    terminal.prompt()
    terminal.type("secret words\r")
    terminal.expect("offline model")
    terminal.prompt()
    history = alice / "prompt_history"
    assert "secret words" in history.read_text()
    deepctl("wipe", "--user", "alice", "--only", "history", "--yes").ok()
    assert history.read_text() == ""
    terminal.type("other words\r")
    terminal.prompt()
    assert terminal.leave() == 0
    assert "other words" in history.read_text()
    assert "secret" not in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_ctrl_c_while_deleting_leaves_nothing_in_sight_and_the_next_command_finishes(
    deepctl: InProcess, process: Command, alice: Path
) -> None:
    workspace = alice / "workspace"
    for number in range(60):
        (workspace / f"d{number}").mkdir()
        for file in range(200):
            (workspace / f"d{number}" / f"{file}").touch()
    running = process.start("wipe", "--user", "alice", "--yes")
    end = time.monotonic() + 30
    while alice.exists():
        assert time.monotonic() < end
        time.sleep(0.001)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    # It may have been faster than the signal.
    is_left = os.listdir(alice.parent) != ["bob"]
    assert running.returncode in ((130,) if is_left else (0, 130))
    assert b"next command" in err or not is_left
    assert deepctl("profiles", "show", "alice").code == 3
    deepctl("chat", "--user", "bob", "hello").ok()
    assert os.listdir(alice.parent) == ["bob"]


def test_a_job_that_keeps_writing_and_swapping_names_leads_nowhere(
    deepctl: InProcess, alice: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(50):
        (outside / f"{number}").write_text("kept")
    for number in range(100):
        (alice / "workspace" / f"d{number}").mkdir()
        (alice / "workspace" / f"d{number}" / "file").write_text("x")
    job = """
import os, sys
outside = sys.argv[1]
print("ready", flush=True)
while os.getppid() != 1:
    for n in range(100):
        try:
            os.rename(f"d{n}", "away"); os.symlink(outside, f"d{n}"); os.unlink(f"d{n}"); os.rename("away", f"d{n}")
        except OSError:
            pass
"""
    swapping = subprocess.Popen(
        [sys.executable, "-c", job, str(outside)], cwd=alice / "workspace", stdout=subprocess.PIPE
    )
    try:
        assert swapping.stdout is not None
        assert swapping.stdout.readline() == b"ready\n"
        assert deepctl("wipe", "--user", "alice", "--yes").code in (0, 8)
    finally:
        swapping.kill()
        swapping.communicate()
    deepctl("chat", "--user", "bob", "hello").ok()
    assert os.listdir(alice.parent) == ["bob"]
    assert len(os.listdir(outside)) == 50


def test_what_is_mounted_in_a_workspace_is_not_deleted(alice: Path, process: Command) -> None:
    (alice / "workspace" / "mounted").mkdir()
    script = """
mount -t tmpfs none "$1" && echo kept > "$1/file" || exit 77
"$2" -m deepctl wipe --user alice --yes --json; code=$?
cat "$1/file" && exit $code
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(alice / "workspace" / "mounted"), sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode not in (77, 1, 127), "nothing can be mounted here"
    assert done.returncode == 6, done
    assert json.loads(done.stderr)["error"]["code"] == "mounted"
    assert done.stdout == "kept\n"


def test_wiping_does_not_load_the_agent_stack(alice: Path) -> None:
    run = """
import sys
from deepctl.cli.main import main
code = main(sys.argv[1:])
heavy = ("pydantic", "pydantic_ai", "rich", "prompt_toolkit", "tomlkit", "sqlite3")
print(*(name for name in heavy if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""
    for arguments in (("--dry-run",), ("--yes",)):
        done = subprocess.run(
            [sys.executable, "-c", run, "wipe", "--user", "alice", *arguments],
            env={name: value for name, value in os.environ.items() if name != "DOCKER_HOST"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == "\n"


class _Canary:
    """A secret told to alice in every way there is, and where it can be found."""

    def __init__(self, home: Path) -> None:
        self.word = f"canary{secrets.token_hex(12)}"
        self.home = home
        self.profile = home / "profiles" / "alice"

    def tell(self, deepctl: InProcess) -> None:
        word = self.word
        workspace = self.profile / "workspace"
        deepctl("chat", "--user", "alice", f"remember {word} in memory").ok()
        deepctl("chat", "--user", "alice", f"write {word}.txt: {word} in a file").ok()
        deepctl("chat", "--user", "alice", f"plan {word}: step one; step two").ok()
        (workspace / "large.txt").write_text(f"{word} in a large file\n" * 5000)
        deepctl("chat", "--user", "alice", "read large.txt\nread " + f"{word}.txt").ok()
        (workspace / ".deep" / "todo.json").write_text(json.dumps([{"content": f"{word} to do"}]))
        deepctl("checkpoints", "save", f"label-{word}", "--user", "alice").ok()
        deepctl("chat", "--user", "alice", "--session", f"s-{word}", "hello").ok()
        deepctl("config", "set", "instructions", f"Say {word}.", "--user", "alice").ok()
        terminal = Terminal("chat", "--user", "alice", "--session", "typed")
        terminal.prompt()
        terminal.type(f"typed {word}\r")
        terminal.expect("offline model")
        terminal.prompt()
        terminal.leave()

    def found(self) -> set[str]:
        """Where it is, below the root: in contents, also of packs, and in names."""
        found = set()
        for path in self.home.rglob("*"):
            place = str(path.relative_to(self.home))
            if self.word in path.name:
                found.add(f"name {place}")
            if path.is_file() and self.word.encode() in path.read_bytes():
                found.add(place)
        if self.profile.exists():
            reader = ReadOnlyRepository(Root(str(self.home)).profile("alice"))
            for pack in reader.packs.names():
                for entry in reader.packs.table(pack):
                    if self.word.encode() in reader.objects.read(entry.digest):
                        found.add("in a pack")
            reader.close()
        return found


def test_a_secret_told_to_alice_is_in_many_places_before_and_in_none_after(deepctl: InProcess, home: Path) -> None:
    canary = _Canary(home)
    canary.tell(deepctl)
    deepctl("chat", "--user", "bob", "write b.txt: his").ok()
    bob = _seen(home / "profiles" / "bob")
    found = canary.found()
    alice = "profiles/alice"
    for place in (
        f"{alice}/workspace/.deep/memory/main/MEMORY.md",
        f"{alice}/workspace/.deep/todo.json",
        f"{alice}/workspace/{canary.word}.txt",
        f"name {alice}/workspace/{canary.word}.txt",
        f"name {alice}/sessions/s-{canary.word}",
        f"{alice}/checkpoints/ledger.jsonl",
        f"{alice}/cache/index",
        f"{alice}/profile.toml",
        f"{alice}/prompt_history",
        "in a pack",
    ):
        assert place in found, place
    for start in ("workspace/plans/", "workspace/large_tool_results/", "sessions/main/", "sessions/typed/"):
        assert any(place.startswith(f"{alice}/{start}") for place in found), start
    deepctl("wipe", "--user", "alice", "--yes").ok()
    assert canary.found() == set()
    assert _seen(home / "profiles" / "bob") == bob
    assert (home / "locks" / "alice").read_bytes() == b""


def test_every_part_takes_all_there_is_of_it(deepctl: InProcess, home: Path) -> None:
    canary = _Canary(home)
    canary.tell(deepctl)
    alice = "profiles/alice"
    for part, start in (
        ("memory", "workspace/.deep/memory"),
        ("plans", "workspace/plans"),
        ("plans", "workspace/.deep/todo.json"),
        ("evicted", "workspace/large_tool_results"),
        ("history", "prompt_history"),
        ("sessions", "sessions"),
        ("sessions", "checkpoints"),
        ("sessions", "cache"),
        ("workspace", "workspace"),
    ):
        deepctl("wipe", "--user", "alice", "--only", part, "--yes").ok()
        left = {place for place in canary.found() if f"{alice}/{start}" in place}
        assert left == set(), part
    assert canary.found() == {f"{alice}/profile.toml"}, "the settings are no part by themselves"


@pytest.mark.parametrize("part", ["checkpoints", "workspace", "sessions"])
def test_a_link_in_the_place_of_a_part_goes_and_not_what_it_leads_to(
    deepctl: InProcess, alice: Path, tmp_path: Path, part: str
) -> None:
    outside = tmp_path / "outside"
    (alice / part).rename(outside)
    (alice / part).symlink_to(outside)
    before = sorted(path.name for path in outside.rglob("*"))
    assert deepctl("chat", "--user", "alice", "hello").code == 6, "nothing else goes through it"
    deepctl("wipe", "--user", "alice", "--yes").ok()
    assert not alice.exists()
    assert sorted(path.name for path in outside.rglob("*")) == before


@pytest.mark.parametrize("only", ["checkpoints", "sessions", "memory", "workspace"])
def test_what_is_damaged_beyond_reading_can_still_be_wiped(deepctl: InProcess, alice: Path, only: str) -> None:
    ledger = alice / "checkpoints" / "ledger.jsonl"
    ledger.unlink()
    os.mkfifo(ledger)
    deepctl("wipe", "--user", "alice", "--only", only, "--dry-run").ok()
    deepctl("wipe", "--user", "alice", "--only", only, "--yes").ok()
