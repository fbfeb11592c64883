"""`deepctl profiles`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import InProcess
from tests.test_layout_names import BAD


def test_a_profile_is_created_private_whatever_the_umask(deepctl: InProcess, home: Path) -> None:
    previous = os.umask(0)
    try:
        deepctl("profiles", "create", "alice").ok()
        deepctl("chat", "--user", "alice", "remember tea").ok()
    finally:
        os.umask(previous)
    workspace = home / "profiles" / "alice" / "workspace"
    for path in [home, *home.rglob("*")]:
        if path == workspace or workspace not in path.parents:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_the_layout_is_what_the_contract_says(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    assert sorted(path.name for path in home.iterdir()) == ["locks", "profiles"]
    assert sorted(path.name for path in (home / "profiles" / "alice").iterdir()) == [
        "checkpoints",
        "profile.toml",
        "sessions",
        "usage.jsonl",
        "workspace",
    ]
    assert deepctl("profiles", "path", "alice").ok().stdout == f"{home}/profiles/alice\n"


def test_list_and_show_tell_what_there_is(deepctl: InProcess, home: Path) -> None:
    assert deepctl("profiles", "list", "--json").ok().json == {"version": 1, "profiles": [], "directories": []}
    deepctl("chat", "--user", "bob", "write a.txt: 12345").ok()
    deepctl("profiles", "create", "alice").ok()
    alice, bob = deepctl("profiles", "list", "--json").ok().json["profiles"]
    assert (alice["name"], alice["sessions"], alice["last_used_at"]) == ("alice", 0, None)
    assert bob["path"] == f"{home}/profiles/bob"
    assert bob["sessions"] == 1
    assert bob["bytes"]["workspace"] == 5
    assert bob["bytes"]["total"] == sum(
        path.stat().st_size for path in (home / "profiles" / "bob").rglob("*") if path.is_file()
    )
    assert deepctl("profiles", "list").ok().stdout.startswith("alice\t")
    assert deepctl("profiles", "show", "bob", "--json").ok().json["profiles"] == [bob]
    assert "bob" in deepctl("profiles", "show", "--user", "bob").ok().stdout


def test_names_are_compared_without_regard_to_case(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "Alice").ok()
    deepctl("chat", "--user", "aLICE", "remember tea").ok()
    assert [path.name for path in (home / "profiles").iterdir()] == ["Alice"]
    assert deepctl("profiles", "path", "ALICE").ok().stdout == f"{home}/profiles/Alice\n"
    again = deepctl("profiles", "create", "alice", "--json")
    assert (again.code, again.error["code"]) == (6, "profile_exists")


@pytest.mark.parametrize("name", [name for name in BAD if "\0" not in name])
def test_a_bad_name_is_refused_on_every_command_before_anything_is_touched(
    deepctl: InProcess, home: Path, name: str
) -> None:
    commands = [
        ("profiles", "create", "--", name),
        ("profiles", "show", f"--user={name}"),
        ("profiles", "path", f"--user={name}"),
        ("sessions", "list", f"--user={name}"),
        ("sessions", "show", f"--user={name}"),
        ("memory", "show", f"--user={name}"),
        ("memory", "list", f"--user={name}"),
        ("config", "show", f"--user={name}"),
        ("config", "set", "model", "offline", f"--user={name}"),
        ("chat", f"--user={name}", "hello"),
        ("chat", "--user=alice", f"--session={name}", "hello"),
    ]
    for command in commands:
        result = deepctl(*command)
        assert (result.code, result.stdout) == (2, ""), command
        assert result.stderr.startswith("Error: "), command
        assert "Traceback" not in result.stderr
    assert not home.exists()


def test_what_does_not_exist_is_exit_3_and_creates_nothing(deepctl: InProcess, home: Path) -> None:
    for command in (
        ("profiles", "show"),
        ("profiles", "path"),
        ("sessions", "list"),
        ("memory", "show"),
        ("config", "show"),
    ):
        result = deepctl(*command, "--user", "nobody", "--json")
        assert (result.code, result.error["code"]) == (3, "profile_not_found"), command
    assert not home.exists()


def test_a_profile_that_is_a_link_or_a_file_or_somebody_elses_is_refused(
    deepctl: InProcess, home: Path, tmp_path: Path
) -> None:
    deepctl("profiles", "create", "alice").ok()
    (home / "profiles" / "link").symlink_to(home / "profiles" / "alice")
    (home / "profiles" / "file").write_text("x")
    strangers = ["link", "file"]
    if os.geteuid() == 0:
        (home / "profiles" / "theirs").mkdir()
        os.chown(home / "profiles" / "theirs", 12345, 12345)
        strangers.append("theirs")
    for name in strangers:
        for command in (("chat", "hello"), ("memory", "show"), ("sessions", "list"), ("config", "set", "model", "x:y")):
            result = deepctl(*command, "--user", name)
            assert result.code == 6, (name, command, result)
    listed = {profile["name"]: profile for profile in deepctl("profiles", "list", "--json").ok().json["profiles"]}
    assert "problem" in listed["link"]
    assert "problem" not in listed["alice"]
    assert deepctl("sessions", "list", "--user", "alice").code == 0


def test_a_creation_that_was_killed_is_no_profile_and_the_next_one_succeeds(deepctl: InProcess, home: Path) -> None:
    leftover = home / "profiles" / ".new-alice" / "workspace"
    leftover.mkdir(parents=True)
    assert deepctl("profiles", "list", "--json").ok().json["profiles"] == []
    deepctl("profiles", "create", "alice").ok()
    assert [path.name for path in (home / "profiles").iterdir()] == ["alice"]
