"""The profile of a command without `--user`: the default, and the profiles of directories."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.command import InProcess
from tests.support.terminal import Terminal


def tree(directory: Path) -> dict[str, bytes | None]:
    """The contents of the files below a directory, by path; `None` for directories."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


WHO = ("profiles", "show", "--json")


@pytest.fixture
def shop(deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that uses carol, and the current one; alice is the default."""
    for name in ("alice", "bob", "carol"):
        deepctl("profiles", "create", name).ok()
    deepctl("profiles", "use", "alice").ok()
    shop = tmp_path / "shop"
    (shop / "src" / "deep").mkdir(parents=True)
    monkeypatch.chdir(shop)
    deepctl("profiles", "use", "CAROL", "--here").ok()
    return shop


def _user(deepctl: InProcess, *arguments: str) -> str:
    name: str = deepctl(*WHO, *arguments).ok().json["profile"]
    return name


def test_use_sets_the_default_which_the_list_marks(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("profiles", "create", "Bob").ok()
    listed = deepctl("profiles", "list", "--json").ok().json["profiles"]
    assert [profile["default"] for profile in listed] == [False, False], (
        "the default is `default`, which does not exist"
    )
    done = deepctl("profiles", "use", "bob", "--json").ok().json
    assert (done["profile"], done["directory"], done["path"]) == ("Bob", None, os.environ["DEEPCTL_CONFIG"])
    listed = deepctl("profiles", "list", "--json").ok().json["profiles"]
    assert {profile["name"]: profile["default"] for profile in listed} == {"alice": False, "Bob": True}
    assert deepctl("profiles", "list").ok().stdout.splitlines()[0].split("\t")[::6] == ["Bob", "default"]
    assert _user(deepctl) == "Bob"
    assert deepctl("profiles", "show").ok().stdout.startswith("Profile:      Bob (default)\n")


def test_use_keeps_the_rest_of_config_toml(deepctl: InProcess) -> None:
    config = Path(os.environ["DEEPCTL_CONFIG"])
    config.parent.mkdir()
    config.write_text("# mine\nretries = 5\n")
    deepctl("profiles", "create", "alice").ok()
    deepctl("profiles", "use", "alice").ok()
    assert config.read_text() == '# mine\nretries = 5\ndefault_user = "alice"\n'


def test_a_directory_has_a_profile_and_so_has_everything_below_it(
    deepctl: InProcess, home: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _user(deepctl) == "carol"
    monkeypatch.chdir(shop / "src" / "deep")
    assert _user(deepctl) == "carol"
    deepctl("profiles", "use", "bob", "-C", "..").ok()
    assert _user(deepctl) == "bob", "the nearest counts"
    monkeypatch.chdir(shop)
    assert _user(deepctl) == "carol"
    monkeypatch.chdir(shop.parent)
    assert _user(deepctl) == "alice"
    assert tree(shop) == {"src": None, "src/deep": None}, "nothing is written into the directory"
    file = home / "directories.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text()) == {"v": 1, "directories": {str(shop): "carol", f"{shop}/src": "bob"}}


def test_the_order_of_the_sources(deepctl: InProcess, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _user(deepctl) == "carol", "before default_user"
    monkeypatch.setenv("DEEPCTL_USER", "bob")
    assert _user(deepctl) == "bob", "after $DEEPCTL_USER"
    assert _user(deepctl, "--user", "alice") == "alice", "after --user"


def test_a_link_counts_as_the_directory_and_a_neighbour_with_the_same_beginning_does_not(
    deepctl: InProcess, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(shop)
    monkeypatch.chdir(tmp_path / "link")
    assert _user(deepctl) == "carol"
    (tmp_path / "shopping").mkdir()
    monkeypatch.chdir(tmp_path / "shopping")
    assert _user(deepctl) == "alice"


def test_nothing_in_a_directory_chooses_a_profile(
    deepctl: InProcess, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("directories.json", ".deepctl/directories.json", ".deep/directories.json", "config.toml"):
        (hostile / name).parent.mkdir(exist_ok=True)
        text = (
            'default_user = "bob"'
            if name.endswith("toml")
            else json.dumps({"v": 1, "directories": {str(hostile): "bob"}})
        )
        (hostile / name).write_text(text)
    monkeypatch.chdir(hostile)
    assert _user(deepctl) == "alice"


def test_minus_C_names_the_directory_instead_of_the_current_one(
    deepctl: InProcess, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = deepctl("chat", "-C", str(shop), "write a.txt: one", "--json")
    assert [event["profile"] for event in started.events if event["type"] == "start"] == ["carol"]
    for command in (("sessions", "list"), ("checkpoints", "list"), ("sessions", "show")):
        assert deepctl(*command, "-C", str(shop), "--json").ok().json["profile"] == "carol", command
    assert deepctl("checkpoints", "save", "-C", str(shop), "--json").ok().json["profile"] == "carol"
    assert deepctl("checkpoints", "rewind", "-C", str(shop), "--json").ok().json["profile"] == "carol"
    assert not (shop / "a.txt").exists()
    monkeypatch.chdir(shop)
    assert deepctl("sessions", "list", "-C", str(tmp_path), "--json").code == 3, "alice has no session there"


def test_a_chat_says_which_profile_and_why(deepctl: InProcess, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = deepctl("chat", "remember tea").ok().stderr
    assert f"The profile is carol, because {shop} uses it." in said
    assert "The profile is" not in deepctl("chat", "--user", "carol", "hello").ok().stderr
    monkeypatch.chdir(shop.parent)
    assert "The profile is" not in deepctl("chat", "hello").ok().stderr


def test_a_chat_at_a_terminal_says_it_once(shop: Path) -> None:
    terminal = Terminal("chat")
    terminal.prompt(name="carol")
    terminal.type("hello\r")
    terminal.expect("offline model, not an LLM")
    terminal.prompt(name="carol")
    assert terminal.screen.count("The profile is carol, because") == 1
    assert terminal.leave() == 0


@pytest.mark.parametrize(
    "command",
    [
        ("wipe", "--yes"),
        ("wipe", "--only", "memory", "--yes"),
        ("sessions", "delete", "main", "--yes"),
        ("memory", "forget", "tea", "--yes"),
        ("memory", "forget", "tea", "--purge", "--yes"),
    ],
)
def test_what_deletes_permanently_ignores_the_directory(
    deepctl: InProcess, home: Path, shop: Path, command: tuple[str, ...]
) -> None:
    for user in ("alice", "carol"):
        deepctl("chat", "--user", user, "remember tea").ok()
    before = tree(home / "profiles" / "carol")
    done = deepctl(*command).ok()
    assert "works on alice: it ignores the profile of this directory. `--user carol` names that one." in done.stderr
    assert tree(home / "profiles" / "carol") == before


def test_forgetting_a_project_ignores_the_directory(deepctl: InProcess, shop: Path) -> None:
    deepctl("chat", "-C", ".", "write a.txt: one").ok()
    assert deepctl("projects", "forget", ".", "--yes").code == 3, "alice has no such project"
    deepctl("projects", "forget", ".", "--yes", "--user", "carol").ok()


def test_a_directory_is_forgotten(deepctl: InProcess, home: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop / "src")
    above = deepctl("profiles", "use", "--here", "--forget", "--json")
    assert (above.code, above.error["code"]) == (3, "directory_not_found")
    assert f"`deepctl profiles use --forget -C {shop}`" in above.error["hint"]
    monkeypatch.chdir(shop.parent)
    shutil.rmtree(shop)
    done = deepctl("profiles", "use", "--forget", "-C", str(shop), "--json").ok().json
    assert done == {
        "version": 1,
        "profile": "carol",
        "directory": str(shop),
        "path": str(home / "directories.json"),
        "forgotten": True,
    }
    assert deepctl("profiles", "list", "--json").ok().json["directories"] == []


def test_a_renamed_profile_keeps_its_directories_and_a_wiped_one_does_not(
    deepctl: InProcess, home: Path, shop: Path
) -> None:
    done = deepctl("profiles", "rename", "carol", "dora", "--json").ok().json
    assert done["directories"] == [str(shop)]
    assert _user(deepctl) == "dora"
    deepctl("wipe", "--user", "dora", "--only", "memory", "--yes").ok()
    assert _user(deepctl) == "dora"
    deepctl("wipe", "--user", "DORA", "--yes").ok()
    assert _user(deepctl) == "alice"
    assert b"dora" not in (home / "directories.json").read_bytes()


def test_a_directory_whose_profile_is_gone_creates_no_profile(deepctl: InProcess, home: Path, shop: Path) -> None:
    shutil.rmtree(home / "profiles" / "carol")
    for command in (("chat", "hello"), ("memory", "show"), ("config", "show"), ("profiles", "path")):
        result = deepctl(*command)
        assert result.code == 3, command
        assert f"`deepctl profiles use --forget -C {shop}`" in result.stderr
    assert not (home / "profiles" / "carol").exists()
    assert deepctl("memory", "list", "--user", "alice").code == 0
    deepctl("profiles", "use", "--forget", "--here").ok()
    assert _user(deepctl) == "alice"


def test_a_damaged_file_is_named_and_does_not_stop_commands_with_user(
    deepctl: InProcess, home: Path, shop: Path
) -> None:
    file = home / "directories.json"
    for content in (b"", b"{", b"[]", b'{"v": 1}', b'{"v": 1, "directories": {"/a/../b": "carol"}}', b'{"v": 0}'):
        file.write_bytes(content)
        result = deepctl("memory", "list", "--json")
        assert (result.code, result.error["code"]) == (5, "bad_directories"), content
        deepctl("memory", "list", "--user", "carol").ok()
    file.write_text('{"v": 9, "directories": {}}')
    assert deepctl("memory", "list", "--json").error["code"] == "newer_format"
    file.unlink()
    file.symlink_to("/dev/null")
    assert deepctl("memory", "list").code == 6
    deepctl("wipe", "--user", "carol", "--yes").ok()


def test_use_says_what_comes_before_its_choice(deepctl: InProcess, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"commands still use carol: {shop} comes first" in deepctl("profiles", "use", "bob").ok().stderr
    monkeypatch.setenv("DEEPCTL_USER", "alice")
    assert "commands still use alice: $DEEPCTL_USER comes first" in deepctl("profiles", "use", "bob").ok().stderr


def test_the_list_at_a_terminal_marks_the_default_and_shows_the_directories(shop: Path) -> None:
    terminal = Terminal("profiles", "list", columns=200)
    terminal.wait()
    assert "alice (default)" in terminal.screen
    assert f"{shop} uses carol." in terminal.screen
    assert "This directory uses carol." in terminal.screen


@pytest.mark.parametrize("word", ["carol", "Carol", "a.b@c+d-e"])
def test_wipe_with_a_name_suggests_the_command_that_works(deepctl: InProcess, home: Path, word: str) -> None:
    deepctl("profiles", "create", word).ok()
    for command in (("wipe", word, "--yes"), ("wipe", "--yes", word), ("profiles", "delete", word, "--yes")):
        result = deepctl(*command)
        assert (result.code, result.stdout) == (2, "")
        assert f"`deepctl wipe --user {word} --yes`" in result.stderr, command
    plain = deepctl("profiles", "delete", word, "--json")
    assert f"`deepctl wipe --user {word} --json`" in plain.error["hint"]
    assert (home / "profiles" / word).is_dir()
    deepctl("wipe", "--user", word, "--yes").ok()


@pytest.mark.parametrize("words", [("carol", "bob"), ("$(id)",), ("--all", "carol"), ("--user", "bob", "carol")])
def test_wipe_with_unclear_words_suggests_no_profile(deepctl: InProcess, words: tuple[str, ...]) -> None:
    result = deepctl("wipe", *words)
    assert result.code == 2
    assert "wipe --user" not in result.stderr
