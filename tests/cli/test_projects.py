"""Chats in a directory of the user: which directory, which session, and what a project costs and refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deepctl.domain import projects
from deepctl.files import placeholders
from deepctl.files.placeholders import Placeholder
from deepctl.layout import Root
from deepctl.locks import DirectoryLock, Lock
from tests.support.command import InProcess, Result
from tests.support.ordinary import as_ordinary
from tests.support.terminal import Terminal

ALICE = ("--user", "alice")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop"
    path.mkdir()
    (path / "README").write_text("shop\n")
    return path


class Alice:
    """Runs commands on alice's profile."""

    def __init__(self, deepctl: InProcess) -> None:
        self._deepctl = deepctl

    def __call__(self, *arguments: str) -> Result:
        return self._deepctl(*arguments, *ALICE)

    def start(self, *arguments: str, prompt: str = "hello") -> dict[str, object]:
        """The `start` event of a chat."""
        events = self("chat", "--json", prompt, *arguments).ok().events
        return next(event for event in events if event["type"] == "start")


@pytest.fixture
def alice(deepctl: InProcess) -> Alice:
    return Alice(deepctl)


def test_the_agent_works_in_the_directory_and_a_rewind_takes_back_only_its_part(alice: Alice, shop: Path) -> None:
    alice("chat", "-C", str(shop), "write src/a.txt: one").ok()
    (shop / "mine.txt").write_text("mine")
    assert (shop / "src" / "a.txt").read_text() == "one"
    done = alice("checkpoints", "rewind", "-C", str(shop), "--json").ok().json
    assert done["project"] == str(shop)
    assert "src/a.txt" in done["files"]["deleted"]
    assert sorted(os.listdir(shop)) == ["README", "mine.txt"]
    shown = alice("checkpoints", "undo", "-C", str(shop)).ok()
    assert f"in {shop}." in shown.stdout
    assert (shop / "src" / "a.txt").read_text() == "one"
    assert (shop / "mine.txt").read_text() == "mine"


def test_directories_above_a_changed_file_are_not_listed(alice: Alice, shop: Path) -> None:
    (shop / "old").mkdir()
    (shop / "old" / "file").write_text("old")
    here = ("-C", str(shop))
    alice(
        "chat", *here, "--sandbox", "bubblewrap", "run rm -r old; mkdir -p new/inner empty; echo 1 > new/inner/f"
    ).ok()
    apart = "Changed by commands, with anything that was saved while they ran:"
    shown = alice("checkpoints", "rewind", *here, "--dry-run").ok().stdout.splitlines()
    assert [line.split() for line in shown[2:6]] == [
        ["deleted", "empty", "directory"],
        apart.split(),
        ["deleted", "new/inner/f", "+0", "-1"],
        ["added", "old/file", "+1", "-0"],
    ]
    stat = alice("checkpoints", "diff", *here, "~1", "--stat").ok().stdout.splitlines()
    assert [line.split()[1] for line in stat if line.startswith("  ")] == ["empty", "new/inner/f", "old/file"]
    shown = alice("checkpoints", "rewind", *here).ok().stdout.splitlines()
    assert shown[2:6] == ["  deleted   empty", apart, "  restored  old/file", "  deleted   new/inner/f"]
    assert sorted(path.name for path in shop.rglob("*")) == ["README", "file", "old"]


def test_kept_files_are_listed_before_the_paths_of_commands(alice: Alice, shop: Path) -> None:
    here = ("-C", str(shop))
    alice("chat", *here, "write a.txt: one").ok()
    (shop / "README").write_text("mine")
    alice("chat", *here, "--sandbox", "bubblewrap", "run echo x > c.txt").ok()
    shown = alice("checkpoints", "rewind", *here, "~2").ok().stdout.splitlines()
    apart = shown.index("Changed by commands, with anything that was saved while they ran:")
    (kept,) = (number for number, line in enumerate(shown) if line.startswith("  kept      README"))
    assert kept < apart
    assert shown[apart + 1] == "  deleted   c.txt"


def test_an_undo_lists_the_paths_of_commands_apart_too(alice: Alice, shop: Path) -> None:
    here = ("-C", str(shop))
    alice("chat", *here, "write a.txt: one").ok()
    alice("chat", *here, "--sandbox", "bubblewrap", "write b.txt: two\nrun rm a.txt; echo x > c.txt").ok()
    alice("checkpoints", "rewind", *here, "~1").ok()
    apart = "Changed by commands, with anything that was saved while they ran:"
    for _ in ("undo", "redo"):
        previewed = alice("checkpoints", "undo", *here, "--dry-run", "--json").ok().json
        assert sorted(previewed["files"]["commands"]) == ["a.txt", "c.txt"]
        shown = alice("checkpoints", "undo", *here).ok().stdout.splitlines()
        place = shown.index(apart)
        assert [line.split()[-1] for line in shown[place - 1 : place]] == ["b.txt"]
        assert {line.split()[-1] for line in shown[place + 1 : place + 3]} == {"a.txt", "c.txt"}


def test_a_mode_that_the_user_gave_stays_and_its_directory_is_not_listed(alice: Alice, shop: Path) -> None:
    here = ("-C", str(shop))
    (shop / "sub").mkdir()
    (shop / "sub" / "file").write_text("old")
    alice("chat", *here, "write sub/file: new").ok()
    (shop / "sub").chmod(0o555)
    (shop / "sub" / "file").chmod(0o755)

    def rewind() -> None:
        shown = alice("checkpoints", "rewind", *here).ok().stdout.splitlines()
        changed = [line for line in shown if line.startswith("  ")]
        assert changed == ["  merged    sub/file (changes of another author stay)"]

    as_ordinary(rewind)
    assert ((shop / "sub" / "file").read_text(), (shop / "sub" / "file").stat().st_mode & 0o777) == ("old", 0o755)
    assert (shop / "sub").stat().st_mode & 0o777 == 0o555


def test_what_the_agent_made_unreadable_is_kept_and_said_to_be_unreadable(alice: Alice, shop: Path) -> None:
    here = ("-C", str(shop))
    (shop / "file").write_text("old")

    def story() -> None:
        alice("chat", *here, "--sandbox", "bubblewrap", "run chmod 000 file").ok()
        shown = alice("checkpoints", "rewind", *here).ok()
        assert "  kept      file (differs from the checkpoint, cannot be read)" in shown.stdout.splitlines()
        assert "--exact changes the kept files too, once you may read them (chmod u+rwX)." in shown.stderr

    as_ordinary(story)


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_what_deepctl_makes_in_the_profile_is_no_change_of_a_turn_whatever_the_umask(
    alice: Alice, shop: Path, umask: int
) -> None:
    previous = os.umask(umask)
    try:
        alice("chat", "-C", str(shop), "--sandbox", "bubblewrap", "run touch x").ok()
        done = alice("checkpoints", "rewind", "-C", str(shop), "--json").ok().json
    finally:
        os.umask(previous)
    assert (done["files"]["restored"], done["files"]["deleted"]) == ([], ["x"])


def test_a_directory_in_the_place_of_a_file_stays_and_that_is_said(alice: Alice, shop: Path) -> None:
    here = ("-C", str(shop))
    alice("chat", *here, "write f: one\nwrite g: one").ok()
    alice("chat", *here, "--sandbox", "bubblewrap", "run rm f; echo two > g").ok()
    (shop / "f").mkdir()
    (shop / "f" / "mine").write_text("mine")
    refused = alice("checkpoints", "rewind", *here, "--json")
    assert (refused.error["code"], refused.error["paths"]) == ("conflicts", ["f"])
    reason = "(differs from the checkpoint, a directory with files of another author is in its place)"
    previewed = alice("checkpoints", "rewind", *here, "--force", "--dry-run", "--json").ok().json
    assert (previewed["files"]["restored"], previewed["files"]["kept"]) == (["g"], ["f", "f/mine"])
    assert f"  kept      f {reason}" in alice("checkpoints", "rewind", *here, "--force", "--dry-run").ok().stdout
    done = alice("checkpoints", "rewind", *here, "--force").ok()
    assert f"  kept      f {reason}\n" in done.stdout
    assert "has changed" not in done.stderr
    assert (shop / "f" / "mine").read_text() == "mine"
    assert (shop / "g").read_text().strip() == "one"
    # With another conflict, the hint names both.
    alice("checkpoints", "undo", *here, "--force").ok()
    (shop / "g").write_text("three")
    hint = alice("checkpoints", "rewind", *here, "--json").error["hint"]
    assert "--force also undoes these changes, but leaves f: a directory is there." in hint


def test_a_file_that_the_agent_ignored_and_deleted_comes_back_when_its_rule_is_gone(alice: Alice, shop: Path) -> None:
    here = ("-C", str(shop))
    subprocess.run(["git", "init", "-q", str(shop)], check=True)
    (shop / "mine").write_text("mine")
    (shop / "other").write_text("mine")
    alice("chat", *here, "list").ok()
    alice(
        "chat", *here, "--sandbox", "bubblewrap", "run echo mine > .gitignore; echo other >> .gitignore; rm mine"
    ).ok()
    shown = alice("checkpoints", "rewind", *here).ok().stdout.splitlines()
    assert [line for line in shown if "ignored" in line] == [
        "  ignored   mine (not covered at the checkpoint or now, so not restored)",
        "  ignored   other (not covered at the checkpoint or now, so it stays as it is)",
    ]
    assert not (shop / ".gitignore").exists()
    target = alice("checkpoints", "list", *here, "--json").ok().json["checkpoints"][-1]["id"]
    alice("checkpoints", "rewind", *here, "--exact", target).ok()
    assert ((shop / "mine").read_text(), (shop / "other").read_text()) == ("mine", "mine")


def test_a_session_belongs_to_the_directory_in_which_it_began(alice: Alice, shop: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert alice.start("-C", str(shop))["session"] == "main"
    assert alice.start() == alice.start() | {"session": "session-2", "project": None}
    assert alice.start("-C", str(other)) | {"model": ""} == alice.start("-C", str(other)) | {"model": ""}
    # The newest of the directory, although another session was used last.
    assert alice.start("-C", f"{shop}/")["session"] == "main"
    assert alice.start()["session"] == "session-2"
    # A session brings its directory along; a new one gets that of -C.
    assert alice.start("--session", "session-3")["project"] == str(other)
    assert alice.start("--session", "MAIN")["project"] == str(shop)
    assert alice.start("-C", str(shop), "--session", "named")["project"] == str(shop)
    assert alice.start("-C", str(shop), "--new", "fresh")["project"] == str(shop)
    listed = alice("sessions", "list", "-C", str(shop), "--json").ok().json["sessions"]
    assert {session["name"]: session.get("project") for session in listed} == dict.fromkeys(
        ("main", "named", "fresh"), str(shop)
    )
    refused = alice("chat", "-C", str(other), "--session", "main", "hello", "--json").events[-1]
    assert (refused["code"], refused["exit_code"]) == ("other_directory", 2)
    private = alice("chat", "--no-project", "--session", "main", "hello", "--json").events[-1]
    assert private["code"] == "other_directory"


def test_without_c_the_setting_counts_and_no_project_overrides_it(
    alice: Alice, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.start()
    monkeypatch.chdir(tmp_path)
    alice("config", "set", "project", "shop").ok()
    assert alice("config", "get", "project").ok().stdout == f"{shop}\n"
    started = alice.start()
    assert (started["project"], started["session"]) == (str(shop), "session-2")
    assert alice.start("--no-project")["session"] == "main"
    assert alice("checkpoints", "show", "~0", "--json").ok().json["checkpoint"]["session"] == "session-2"
    assert alice("sessions", "show", "--json").ok().json["sessions"][0]["name"] == "session-2"
    assert alice("memory", "diff", "~1").code == 0


def test_a_tilde_in_the_setting_is_the_home_directory(alice: Alice, home: Path, tmp_path: Path) -> None:
    alice.start()
    (tmp_path / "user" / "shop").mkdir()
    settings = home / "profiles" / "alice" / "profile.toml"
    settings.write_text('project = "~/shop"\n')
    assert alice.start()["project"] == str(tmp_path / "user" / "shop")
    shutil.rmtree(tmp_path / "user" / "shop")


@pytest.mark.parametrize("name", ["a\nb", "ä €", "with blank", "-x"])
def test_odd_names_and_links_are_one_project(alice: Alice, tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    (tmp_path / "link").symlink_to(directory)
    alice("chat", f"--project={directory}", "write a.txt: one").ok()
    assert alice.start("-C", str(tmp_path / "link"))["session"] == "main"
    assert alice.start("-C", f"{directory}/../{name}/.")["session"] == "main"
    assert (directory / "a.txt").read_text() == "one"
    listed = alice("projects", "list", "--json").ok().json["projects"]
    assert [(project["path"], project["sessions"]) for project in listed] == [(str(directory), 1)]
    alice("checkpoints", "rewind", "~3", "-C", str(directory)).ok()
    assert not (directory / "a.txt").exists()


def test_nothing_is_created_where_a_project_is_refused(alice: Alice, home: Path, tmp_path: Path) -> None:
    for directory in ("/", str(tmp_path / "user"), str(tmp_path / "nothing"), str(home)):
        result = alice("chat", "-C", directory, "hello", "--json")
        assert result.code in (3, 6), directory
    assert not (home / "profiles").exists()


def test_the_first_checkpoint_says_its_size_once(
    alice: Alice, shop: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    subprocess.run(["git", "init", "-q", str(shop)], check=True)
    (shop / ".gitignore").write_text("big/\n")
    (shop / "big").mkdir()
    for number in range(5):
        (shop / "big" / str(number)).write_text("x" * 1000)
    monkeypatch.setattr(projects, "MAX_FILES", 2)
    # Ignored files do not count.
    first = alice("chat", "-C", str(shop), "hello").ok()
    assert f"The first checkpoint of {shop} contains 2 files, 10 B." in first.stderr
    assert "first checkpoint" not in alice("chat", "-C", str(shop), "hello").ok().stderr


def test_a_large_project_needs_large_in_scripts(
    alice: Alice, shop: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(projects, "MAX_BYTES", 4)
    refused = alice("chat", "-C", str(shop), "hello", "--json").events[-1]
    assert (refused["code"], refused["exit_code"]) == ("project_large", 6)
    assert not (home / "profiles").exists()
    events = alice("chat", "-C", str(shop), "--large", "hello", "--json").ok().events
    assert events[0]["type"] == "notice"
    assert "more than 4 B" in events[0]["message"]
    alice("chat", "-C", str(shop), "hello").ok()


def test_a_person_is_asked_about_a_large_project(shop: Path, home: Path) -> None:
    for number in range(20_001):
        (shop / str(number)).touch()
    for prompt in ((), ("hello",)):
        chat = Terminal("chat", "-C", str(shop), *prompt, *ALICE, columns=200)
        try:
            chat.expect(f"{shop} has more than 20,000 files. Make a checkpoint of all of them? [y/N]")
            chat.type("n\r")
            assert chat.wait() == 6
            assert "Declined; nothing was done." in chat.screen
        finally:
            chat.close()
    assert not (home / "profiles" / "alice" / "sessions").exists() or not os.listdir(
        home / "profiles" / "alice" / "sessions"
    )


def test_a_directory_that_looks_like_a_project_is_hinted_at_once(
    alice: Alice, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "`deepctl chat -C . --user alice`"
    (shop / "pyproject.toml").write_text("")
    monkeypatch.chdir(shop)
    assert hint not in alice("chat", "hello", "--json").ok().stdout
    assert hint in alice("chat", "hello").ok().stderr
    assert hint not in alice("chat", "hello").ok().stderr
    inner = shop / "inner"
    inner.mkdir()
    (inner / "Makefile").write_text("")
    monkeypatch.chdir(inner)
    # The agent works above it already, or is told where to work.
    assert hint not in alice("chat", "-C", "..", "hello").ok().stderr
    assert hint not in alice("chat", "--no-project", "hello").ok().stderr
    assert hint in alice("chat", "hello").ok().stderr
    (tmp_path / "user" / "Makefile").write_text("")
    monkeypatch.chdir(tmp_path / "user")
    assert hint not in alice("chat", "hello").ok().stderr
    (tmp_path / "user" / "Makefile").unlink()


def test_a_directory_that_is_gone_stops_turns_and_file_rewinds_only(alice: Alice, shop: Path, tmp_path: Path) -> None:
    alice("chat", "-C", str(shop), "write a.txt: one").ok()
    shop.rename(tmp_path / "moved")
    gone = alice("chat", "--session", "main", "hello", "--json").events[-1]
    assert (gone["code"], gone["exit_code"]) == ("directory_not_found", 3)
    command = f"`deepctl projects move {shop} {tmp_path / 'moved'} --user alice`"
    assert command in gone["hint"]
    error = alice("checkpoints", "rewind", "--session", "main", "--json").error
    assert error["code"] == "project_gone"
    assert error["hint"] == f"It may be {tmp_path / 'moved'} now: {command}. " + (
        "`--only conversation` and `--only memory` still work."
    )
    listed = alice("projects", "list", "--json").ok().json["projects"][0]
    assert (listed["exists"], listed["moved_to"]) == (False, str(tmp_path / "moved"))
    assert command in alice("projects", "list").ok().stderr
    hint = alice("checkpoints", "rewind", "-C", str(tmp_path / "moved"), "--json").error["hint"]
    assert f"deepctl projects move {shop} {tmp_path / 'moved'}" in hint
    moved = alice("projects", "move", str(shop), str(tmp_path / "moved"), "--json").ok().json
    assert (moved["old"], moved["new"], moved["sessions"]) == (str(shop), str(tmp_path / "moved"), 1)
    alice("checkpoints", "rewind", "-C", str(tmp_path / "moved")).ok()
    assert sorted(os.listdir(tmp_path / "moved")) == ["README"]
    alice("checkpoints", "verify").ok()


def test_a_link_in_the_place_of_a_project_is_not_the_project(alice: Alice, shop: Path, tmp_path: Path) -> None:
    alice("chat", "-C", str(shop), "write a.txt: one").ok()
    new = tmp_path / "moved" / "shop"
    new.parent.mkdir()
    shop.rename(new)
    shop.symlink_to(new)
    gone = alice("chat", "--session", "main", "hello", "--json").events[-1]
    assert (gone["code"], gone["exit_code"]) == ("directory_not_found", 3)
    assert f"deepctl projects move {shop} {new}" in gone["hint"]
    assert alice("checkpoints", "rewind", "--session", "main", "--json").error["code"] == "project_gone"
    alice("checkpoints", "rewind", "--session", "main", "--only", "conversation").ok()
    alice("checkpoints", "undo", "--session", "main").ok()
    listed = alice("projects", "list", "--json").ok().json["projects"][0]
    assert (listed["path"], listed["exists"], listed["moved_to"]) == (str(shop), False, str(new))
    hint = alice("checkpoints", "rewind", "-C", str(shop), "--json").error["hint"]
    assert f"deepctl projects move {shop} {new}" in hint
    assert alice("projects", "move", str(shop), str(new), "--json").ok().json["old"] == str(shop)
    alice("checkpoints", "rewind", "-C", str(shop)).ok()
    assert os.listdir(new) == ["README"]


def test_another_directory_in_the_place_of_a_project_is_said_once(alice: Alice, shop: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(shop)], check=True)
    subprocess.run(["git", "-C", str(shop), "remote", "add", "origin", "https://me:pw@example.org/shop"], check=True)
    chat = ("chat", "-C", str(shop), "hello")
    alice(*chat).ok()
    # The same address in another form.
    subprocess.run(
        ["git", "-C", str(shop), "remote", "set-url", "origin", "https://me:pw@example.org/shop.git"], check=True
    )
    sentence = "seems to be another directory than at the last turn"
    assert sentence not in alice(*chat).ok().stderr
    subprocess.run(["git", "-C", str(shop), "remote", "set-url", "origin", "https://example.org/other"], check=True)
    assert f"{sentence}: its git remote origin is another one." in " ".join(alice(*chat).ok().stderr.split())
    assert sentence not in alice(*chat).ok().stderr
    shop.rename(tmp_path / "old")
    shop.mkdir()
    (event, *_) = alice(*chat, "--json").ok().events
    assert (event["type"], f"{sentence}: it was made anew." in event["message"]) == ("notice", True)
    assert sentence not in alice(*chat).ok().stderr
    assert "pw" not in (tmp_path / "root/profiles/alice/projects.json").read_text().replace("cwd", "")


def test_the_conversation_of_a_project_that_is_gone_can_be_rewound(alice: Alice, shop: Path) -> None:
    alice("chat", "-C", str(shop), "write a.txt: one").ok()
    shutil.rmtree(shop)
    alice("checkpoints", "rewind", "--session", "main", "--only", "conversation").ok()


def test_forgetting_deletes_sessions_and_checkpoints_and_no_file(alice: Alice, shop: Path) -> None:
    alice("chat", "hello").ok()
    alice("chat", "-C", str(shop), "write a.txt: one").ok()
    alice("chat", "-C", str(shop), "--new", "more", "write b.txt: two").ok()
    planned = alice("projects", "forget", str(shop), "--dry-run", "--json").ok().json
    assert sorted(planned["sessions"]) == ["more", "session-2"]
    done = alice("projects", "forget", str(shop), "--yes", "--json").ok().json
    assert (done["checkpoints"], done["sessions"]) == (planned["checkpoints"], planned["sessions"])
    assert sorted(os.listdir(shop)) == ["README", "a.txt", "b.txt"]
    assert alice("projects", "list", "--json").ok().json["projects"] == []
    assert [one["name"] for one in alice("sessions", "list", "--json").ok().json["sessions"]] == ["main"]
    alice("chat", "hello").ok()
    alice("checkpoints", "verify").ok()
    assert alice("projects", "forget", str(shop), "--yes", "--json").error["code"] == "project_not_found"


def test_trust_is_for_the_content_that_was_seen(alice: Alice, shop: Path) -> None:
    alice("chat", "-C", str(shop), "hello").ok()
    skill = shop / ".agents" / "skills" / "deploy" / "SKILL.md"
    assert alice("projects", "trust", str(shop), "--json").ok().json["trusted"] is False
    skill.parent.mkdir(parents=True)
    skill.write_text("Deploy.")
    found = alice("projects", "trust", str(shop), "--yes", "--json").ok().json
    assert (found["trusted"], found["files"]) == (
        True,
        [{"path": ".agents/skills/deploy/SKILL.md", "bytes": 7}],
    )

    def is_trusted() -> bool:
        trusted: bool = alice("projects", "list", "--json").ok().json["projects"][0]["trusted"]
        return trusted

    assert is_trusted()
    assert "is trusted with 1 file" in alice("projects", "trust", str(shop), "--dry-run").ok().stdout
    skill.write_text("Deploy elsewhere.")
    assert not is_trusted()
    asked = alice("projects", "trust", str(shop))
    assert asked.code == 6
    assert ".agents/skills/deploy/SKILL.md  17 B" in asked.stderr
    assert "--dry-run lists it" in asked.stderr
    shown = alice("projects", "trust", str(shop), "--dry-run", "--json").ok().json
    assert (shown["trusted"], [file["path"] for file in shown["files"]]) == (False, [".agents/skills/deploy/SKILL.md"])
    assert not is_trusted()


def test_trust_can_be_withdrawn(alice: Alice, shop: Path) -> None:
    alice("chat", "-C", str(shop), "hello").ok()
    skill = shop / "skills" / "deploy" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text("Deploy.")
    alice("projects", "trust", str(shop), "--yes").ok()
    revoked = alice("projects", "trust", str(shop), "--revoke").ok()
    assert revoked.stdout == f"Nothing in {shop} is trusted any more.\n"
    assert not alice("projects", "list", "--json").ok().json["projects"][0]["trusted"]
    assert "Off: 1 extension" in alice("chat", "-C", str(shop), "hello").ok().stderr
    # Of a missing directory too.
    shutil.rmtree(shop)
    assert alice("projects", "trust", str(shop), "--revoke", "--json").ok().json["trusted"] is False
    assert alice("projects", "trust", str(shop.parent), "--revoke", "--json").error["code"] == "project_not_found"


@pytest.mark.parametrize(
    "command",
    [
        ("chat", "--sandbox", "none", "hello", "-C", "{}"),
        ("checkpoints", "rewind", "-C", "{}"),
        ("checkpoints", "undo", "-C", "{}"),
        ("checkpoints", "repair"),
        ("projects", "move", "{}", "{}"),
    ],
    ids=lambda command: command[1],
)
def test_every_command_that_locks_a_project_removes_what_a_killed_command_left(
    alice: Alice, shop: Path, command: tuple[str, ...]
) -> None:
    subprocess.run(["git", "init", "-q", str(shop)], check=True)
    alice("chat", "-C", str(shop), "write a.txt: one").ok()
    alice("chat", "-C", str(shop), "write a.txt: two").ok()
    alice("checkpoints", "rewind", "-C", str(shop)).ok()
    (shop / "mine").mkdir(mode=0o755)
    # The process that made them was killed, so none of this process holds them.
    worktree = shop / ".git" / "worktrees" / "tree"
    worktree.mkdir(parents=True)
    git_files = [
        Placeholder(str(path), is_directory=False) for path in (shop / ".git/info/attributes", worktree / "locked")
    ]
    held = placeholders.held([Placeholder(str(shop / ".envrc")), Placeholder(str(shop / ".idea")), *git_files])
    held.__enter__()
    placeholders._holders.clear()
    assert (shop / ".envrc").is_dir()
    alice(*(word.format(shop) for word in command)).ok()
    assert set(os.listdir(shop)) - {"a.txt"} == {".git", "README", "mine"}
    assert not any(os.path.lexists(git_file.path) for git_file in git_files)


@pytest.mark.parametrize("place", ["shop", "shop/inner", "."])
def test_two_profiles_do_not_work_in_one_directory_or_above_it(
    alice: Alice, shop: Path, tmp_path: Path, home: Path, place: str
) -> None:
    (shop / "inner").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    shutil.move(shop, work / "shop")
    alice("chat", "-C", str(work / "shop"), "write a.txt: one").ok()
    bob = Root(str(home)).profile("bob").lock
    with Lock(bob, command="chat"), DirectoryLock(str((work / place).resolve()), lock_file=bob):
        for arguments in (
            ("chat", "-C", str(work / "shop"), "--new", "other", "hello", "--json"),
            ("checkpoints", "rewind", "-C", str(work / "shop"), "--json"),
        ):
            result = alice(*arguments)
            error = result.events[-1] if arguments[0] == "chat" else result.error
            assert (error["code"], error["exit_code"]) == ("locked", 4)
            assert f"(pid {os.getpid()}, `deepctl chat`, since " in error["message"]
    # The turn that was refused has started no session.
    assert len(alice("sessions", "list", "--json").ok().json["sessions"]) == 1


def test_doctor_names_the_project_and_its_problems_once(
    alice: Alice, shop: Path, tmp_path: Path, deepctl: InProcess
) -> None:
    alice("chat", "-C", str(shop), "hello").ok()
    alice("config", "set", "project", str(shop)).ok()

    def found() -> list[tuple[str, str]]:
        checks = deepctl("doctor", "--json", *ALICE).json["checks"]
        return [(check["status"], check["found"]) for check in checks if check["name"] == "project"]

    assert found() == [("ok", f"{shop} (setting project)"), ("ok", "1 project")]
    other = tmp_path / "other shop"
    other.mkdir()
    alice("chat", "-C", str(other), "hello").ok()
    shop.rename(tmp_path / "moved")
    command = f"`deepctl projects move {shop} {tmp_path / 'moved'} --user alice`"
    checks = [check for check in deepctl("doctor", "--json", *ALICE).json["checks"] if check["name"] == "project"]
    assert [(check["status"], check["hint"]) for check in checks] == [
        (
            "problem",
            f"It may be {tmp_path / 'moved'} now: {command}. "
            f"Then: `deepctl config set project {tmp_path / 'moved'} --user alice`.",
        )
    ]
    moved = alice("projects", "move", str(shop), str(tmp_path / "moved")).ok()
    assert f"`deepctl config set project {tmp_path / 'moved'} --user alice`" in moved.stderr
    alice("config", "set", "project", str(tmp_path / "moved")).ok()
    shutil.rmtree(other)
    assert found() == [
        ("ok", f"{tmp_path / 'moved'} (setting project)"),
        ("warning", f"2 projects; missing: {other}"),
    ]
    checks = [check for check in deepctl("doctor", "--json", *ALICE).json["checks"] if check["name"] == "project"]
    assert checks[1]["hint"].startswith(f"If you have moved it: `deepctl projects move '{other}' DIR --user alice`")


def test_a_conversation_stays_in_its_directory_and_follows_a_switch(
    deepctl: InProcess, alice: Alice, shop: Path
) -> None:
    alice("chat", "hello").ok()
    chat = Terminal("chat", "-C", str(shop), "--sandbox", "none", *ALICE, columns=200)
    try:
        chat.expect(f"Session session-2, 0 turns, in {shop}, model offline.")
        chat.prompt()
        chat.expect(f"alice · {shop} · ")
        chat.type("!pwd\r")
        chat.expect(f"\n{shop}")
        chat.type("write a.txt: one\r")
        chat.expect("Wrote 1 line to a.txt")
        chat.type("/new second\r")
        chat.expect("starts session second")
        chat.type("write b.txt: two\r")
        chat.expect("Wrote 1 line to b.txt")
        chat.type("/switch main\r")
        chat.expect("Session main")
        chat.type("write c.txt: three\r")
        chat.expect("Wrote 1 line to c.txt")
        assert chat.leave() == 0
    finally:
        chat.close()
    assert sorted(os.listdir(shop)) == ["README", "a.txt", "b.txt"]
    sessions = json.loads(deepctl("sessions", "list", "--json", *ALICE).ok().stdout)["sessions"]
    assert {session["name"]: session.get("project") for session in sessions} == {
        "main": None,
        "session-2": str(shop),
        "second": str(shop),
    }
