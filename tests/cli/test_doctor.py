"""`doctor`: says what is there and what is amiss, of every profile or one, and changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl import distribution
from deepctl.domain import provider_keys
from deepctl.files import sealed_lines
from deepctl.layout import Root
from deepctl.store import session_catalogue
from tests.store.scene import Scene
from tests.support.command import Command, InProcess, Result
from tests.support.terminal import Terminal


def _all(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result.json["checks"]
    assert result.json["ok"] == all(check["status"] != "problem" for check in found)
    assert result.code == (0 if result.json["ok"] else 5)
    assert result.stderr == ""
    return found


def _of(checks: list[dict[str, Any]], name: str, profile: str | None = None) -> list[dict[str, Any]]:
    return [check for check in checks if check["name"] == name and check.get("profile") == profile]


def _amiss(checks: list[dict[str, Any]], profile: str | None = "alice") -> list[tuple[str, str]]:
    return [
        (check["name"], check["status"])
        for check in checks
        if check["status"] != "ok" and check.get("profile") == profile
    ]


def _everything(place: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in [place, *place.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_size)
    return found


@pytest.fixture
def alice(home: Path) -> Path:
    """A profile with two sessions and a handful of checkpoints; its directory."""
    scene = Scene(home)
    home.chmod(0o700)
    scene.agent("a.txt", "one")
    scene.agent("b.txt", "two", session="other")
    scene.agent("a.txt", "three")
    return home / "profiles" / "alice"


def test_a_machine_without_anything_is_well_and_stays_without(deepctl: InProcess, home: Path) -> None:
    found = _all(deepctl("doctor", "--json"))
    names = [check["name"] for check in found]
    assert {"versions", "packages", "root", "config", "disk", "sandbox", "model"} <= set(names)
    assert all("profile" not in check for check in found)
    assert "not created yet" in _of(found, "root")[0]["found"]
    assert not home.exists()
    assert not home.with_name("config").exists()


def test_a_healthy_profile_is_told_in_full_and_not_touched(deepctl: InProcess, alice: Path, home: Path) -> None:
    before = _everything(home)
    found = _all(deepctl("doctor", "--user", "alice", "--json"))
    assert _amiss(found) == []
    told = {check["name"]: check["found"] for check in found if check.get("profile") == "alice"}
    assert list(told) == [
        "settings", "model", "sandbox", "lock", "rights", "sessions", "checkpoints", "space", "budget",
    ]  # fmt: skip
    assert told["model"] == "offline: needs no key"
    assert told["lock"] == "free"
    assert told["sessions"] == "2 sessions, 3 turns, 12 messages"
    assert re.fullmatch(r"\d+ checkpoints, 0 labels; .*verify` reads their contents", told["checkpoints"])
    assert re.match(r"[\d.]+ KiB: (\w+ [\d.]+ (KiB|B)(, |$)){4,}", told["space"])
    assert _everything(home) == before


def test_a_root_whose_owner_may_not_write_there_is_named_with_its_mode(deepctl: InProcess, home: Path) -> None:
    home.mkdir(0o700)
    home.chmod(0o500)
    (check,) = _of(_all(deepctl("doctor", "--json")), "root")
    home.chmod(0o700)
    assert (check["status"], check["hint"]) == ("problem", f"Only you should have access: chmod 700 {home}")


def test_versions_are_those_that_are_installed(deepctl: InProcess) -> None:
    from importlib.metadata import version

    from deepctl import __version__

    found = {check["name"]: check["found"] for check in _all(deepctl("doctor", "--json"))}
    assert f"deepctl {__version__} (deepctl-agents), Python {sys.version.split()[0]}" in found["versions"]
    for package in ("pydantic-ai-slim", "pydantic-ai-harness", "pydantic-ai-backend", "typer"):
        assert f"{package} {version(package)}" in found["packages"]


class TestProfiles:
    """Without --user all profiles, with it that one."""

    def test_all_of_them_or_one(self, deepctl: InProcess, alice: Path) -> None:
        deepctl("profiles", "create", "bob").ok()
        both = {check.get("profile") for check in _all(deepctl("doctor", "--json"))}
        assert both == {None, "alice", "bob"}
        one = {check.get("profile") for check in _all(deepctl("doctor", "--user", "BOB", "--json"))}
        assert one == {None, "bob"}

    def test_the_default_profile_is_not_meant_by_no_name(
        self, deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DEEPCTL_USER", "ghost")
        assert {check.get("profile") for check in _all(deepctl("doctor", "--json"))} == {None, "alice"}

    def test_nobody_and_a_bad_name(self, deepctl: InProcess, alice: Path) -> None:
        assert deepctl("doctor", "--user", "ghost").code == 3
        assert deepctl("doctor", "--user", "../alice").code == 2
        assert deepctl("doctor", "--user", "").code == 2

    def test_those_that_are_well_take_a_line_together(self, deepctl: InProcess, alice: Path) -> None:
        for name in ("bob", "carol"):
            deepctl("profiles", "create", name).ok()
        deepctl("config", "set", "sandbox", "none", "--user", "carol").ok()
        shown = deepctl("doctor").ok().stdout
        assert "No problems in\n  alice, bob\n" in shown
        assert "Profile carol\n  ! sandbox" in shown
        assert "Profile alice" not in shown
        assert "Profile alice" in deepctl("doctor", "--user", "alice").ok().stdout

    def test_the_biggest_is_named_first(self, deepctl: InProcess, alice: Path) -> None:
        deepctl("profiles", "create", "bob").ok()
        (alice.parent / "bob/workspace/big.bin").write_bytes(b"\0" * 3_000_000)
        found = _all(deepctl("doctor", "--json"))
        (space,) = _of(found, "space")
        assert re.match(r"2 profiles, [\d.]+ MiB: bob 2\.9 MiB, alice", space["found"])
        assert _of(found, "space", "bob")[0]["found"].startswith("2.9 MiB: workspace 2.9 MiB")

    @pytest.mark.parametrize("kind", ["a link", "a file"])
    def test_what_is_no_profile_in_the_place_of_one(
        self, deepctl: InProcess, home: Path, alice: Path, kind: str
    ) -> None:
        place = home / "profiles" / "odd"
        if kind == "a link":
            place.symlink_to("/etc")
        else:
            place.write_text("x")
        for command in (("doctor",), ("doctor", "--user", "odd")):
            found = _all(deepctl(*command, "--json"))
            assert _amiss(found, "odd") == [("profile", "problem")]
            assert str(place) in _of(found, "profile", "odd")[0]["found"]


def _replace(path: Path, with_: Callable[[Path], object]) -> None:
    if path.is_dir():
        subprocess.run(["rm", "-r", path], check=True)
    else:
        path.unlink(missing_ok=True)
    with_(path)


def _log(alice: Path) -> Path:
    return alice / "sessions/other" / (session_catalogue.find(_paths(alice), "other").log + ".jsonl")


def _paths(alice: Path) -> Any:
    return Root(str(alice.parent.parent)).profile("alice")


def _flip(path: Path, position: int) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])


def _newer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + sealed_lines.seal({"v": 9, "x": {}}))


def _torn(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"v":1,"tu')


def _pack(alice: Path) -> Path:
    return max((alice / "checkpoints/packs").iterdir(), key=lambda path: path.stat().st_size)


DAMAGE: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]], str]] = {
    "settings that are no TOML": (
        lambda alice: (alice / "profile.toml").write_text("x = ["),
        [("settings", "problem"), ("model", "warning"), ("sandbox", "warning"), ("budget", "warning")],
        "not valid TOML",
    ),
    "a setting that cannot be": (
        lambda alice: (alice / "profile.toml").write_text('approve = "maybe"'),
        [("settings", "problem")],
        "'maybe'",
    ),
    "a rule that cannot be": (
        lambda alice: (alice / "profile.toml").write_text('[permissions]\nwrite = "maybe"'),
        [("settings", "problem")],
        "maybe",
    ),
    "a setting that means nothing": (
        lambda alice: (alice / "profile.toml").write_text('modle = "x"'),
        [("settings", "warning")],
        "modle",
    ),
    "settings of a later format": (
        lambda alice: (alice / "profile.toml").write_text("version = 9"),
        [("settings", "problem"), ("model", "warning"), ("sandbox", "warning"), ("budget", "warning")],
        "is in format 9",
    ),
    "a session of a later format": (
        lambda alice: (alice / "sessions/other/session.json").write_bytes(sealed_lines.seal({"v": 9})),
        [("sessions", "problem")],
        "is in format 9",
    ),
    "a log of a later format": (
        lambda alice: _newer(_log(alice)),
        [("checkpoints", "problem"), ("sessions", "problem")],
        "is in format 9",
    ),
    "a ledger of a later format": (
        lambda alice: _newer(alice / "checkpoints/ledger.jsonl"),
        [("checkpoints", "problem")],
        "is in format 9",
    ),
    "a pack of a later format": (
        lambda alice: _pack(alice).write_bytes(b"deepctl pack 9\n" + b"\0" * 5000),
        [("checkpoints", "problem")],
        "is in format 9",
    ),
    "a damaged line of a log": (lambda alice: _flip(_log(alice), 300), [("sessions", "problem")], "checksum"),
    "a log that was cut short by a kill": (lambda alice: _torn(_log(alice)), [("sessions", "warning")], "cut off"),
    "a log that is gone": (
        lambda alice: _log(alice).unlink(),
        [("sessions", "problem"), ("checkpoints", "problem")],
        "its message log is missing",
    ),
    "a damaged line of the ledger": (
        lambda alice: _flip(alice / "checkpoints/ledger.jsonl", 40),
        [("checkpoints", "problem")],
        "checksum does not match",
    ),
    "a pack that is gone": (lambda alice: _pack(alice).unlink(), [("checkpoints", "problem")], "its pack is missing"),
    "a pack that is cut": (lambda alice: os.truncate(_pack(alice), 20), [("checkpoints", "problem")], "cut short"),
    "a file that others can read": (
        lambda alice: _log(alice).chmod(0o644),
        [("rights", "warning")],
        "other users of this machine",
    ),
    "a directory that others can read": (
        lambda alice: (alice / "checkpoints").chmod(0o755),
        [("rights", "warning")],
        "other users of this machine",
    ),
    "a file that cannot be written": (
        lambda alice: (alice / "checkpoints/ledger.jsonl").chmod(0o400),
        [("rights", "problem")],
        "not accessible to their owner",
    ),
    "a link in the place of a directory": (
        lambda alice: _replace(alice / "cache", lambda path: path.symlink_to("/etc")),
        [("rights", "problem")],
        "not created by deepctl",
    ),
    "a link in the place of a file": (
        lambda alice: _replace(_log(alice), lambda path: path.symlink_to("/etc/passwd")),
        [("rights", "problem"), ("sessions", "problem"), ("checkpoints", "problem")],
        "not created by deepctl",
    ),
    "a file in the place of a directory": (
        lambda alice: _replace(alice / "sessions", lambda path: path.write_text("x")),
        [("rights", "problem"), ("sessions", "problem"), ("checkpoints", "problem")],
        "not a directory",
    ),
    "a deletion that was interrupted": (
        lambda alice: (alice / "sessions/.deleted-0123456789abcdef").mkdir(mode=0o700),
        [("unfinished", "warning")],
        ".deleted-0123456789abcdef",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_amiss_in_a_profile_is_named_and_the_others_are_well(
    deepctl: InProcess, alice: Path, what: str
) -> None:
    deepctl("profiles", "create", "bob").ok()
    damage, expected, text = DAMAGE[what]
    damage(alice)
    before = _everything(alice)
    found = _all(deepctl("doctor", "--json"))
    assert sorted(set(_amiss(found))) == sorted(set(expected))
    assert any(text in check["found"] for check in found), found
    assert all(check["hint"] for check in found if check["status"] == "problem" and check["name"] != "sessions"), found
    assert _amiss(found, "bob") == []
    assert _everything(alice) == before
    shown = deepctl("doctor", "--user", "alice")
    assert text in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_skills_and_commands_of_the_user_are_well_and_a_link_in_their_place_is_not(
    deepctl: InProcess, alice: Path
) -> None:
    for name in ("skills/tidy-up/SKILL.md", "commands/review.md"):
        path = alice / name
        path.parent.mkdir(parents=True)
        path.write_text("x")
        path.parent.chmod(0o755)
    assert _amiss(_all(deepctl("doctor", "--user", "alice", "--json"))) == []
    _replace(alice / "skills", lambda path: path.symlink_to("/etc"))
    found = _all(deepctl("doctor", "--user", "alice", "--json"))
    assert _amiss(found) == [("rights", "problem")]
    assert any("not created by deepctl" in check["found"] for check in found)


def test_somebody_elses_file_is_a_problem(deepctl: InProcess, alice: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(alice / "profile.toml", 12345, 12345)
    found = _all(deepctl("doctor", "--user", "alice", "--json"))
    assert ("rights", "problem") in _amiss(found)
    os.chown(alice, 12345, 12345)
    assert _amiss(_all(deepctl("doctor", "--user", "alice", "--json"))) == [("profile", "problem")]


PLACES = [
    "profile.toml",
    "sessions",
    "sessions/main",
    "sessions/main/session.json",
    "checkpoints",
    "checkpoints/ledger.jsonl",
    "checkpoints/packs",
    "cache/index",
    "workspace",
    "prompt_history",
    ".edit-0123456789ab",
    "../../locks/alice",
    "../../locks",
]


@pytest.mark.timeout(30, method="signal")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["a FIFO", "a link to itself", "a directory"])
def test_nothing_in_the_way_is_waited_for_or_followed(deepctl: InProcess, alice: Path, place: str, kind: str) -> None:
    def put(path: Path) -> None:
        if kind == "a FIFO":
            os.mkfifo(path, 0o600)
        elif kind == "a directory":
            path.mkdir(0o700)
        else:
            path.symlink_to(path.name)

    (alice.parent.parent / "locks").mkdir(exist_ok=True)
    _replace(alice / place, put)
    _all(deepctl("doctor", "--json"))


@pytest.mark.timeout(30, method="signal")
def test_a_config_file_that_is_a_fifo_is_named(deepctl: InProcess, alice: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    os.mkfifo(tmp_path / "config/config.toml")
    found = _all(deepctl("doctor", "--json"))
    assert _of(found, "config")[0]["status"] == "problem"
    assert ("model", "warning") in _amiss(found)


class TestConfig:
    def test_what_it_says(self, deepctl: InProcess, tmp_path: Path) -> None:
        (tmp_path / "config").mkdir()
        path = tmp_path / "config/config.toml"
        for text, status, told in (
            ('model = "offline"\n[limits]\nmemory = "1G"\n', "ok", "2 settings"),
            ('colour = "red"\n', "warning", "colour"),
            ('model = "offline\n', "problem", "not valid TOML"),
            ("limits = 3\n", "problem", "must be a table"),
            ('sandbox = "cardboard"\n', "problem", "cardboard"),
            ("version = 2\n", "problem", "format 2"),
            ('version = "1"\n', "problem", "version = '1'"),
        ):
            path.write_text(text)
            (check,) = _of(_all(deepctl("doctor", "--json")), "config")
            assert (check["status"], told in check["found"]) == (status, True), check


def test_a_path_that_commands_must_not_see_is_named(deepctl: InProcess, alice: Path) -> None:
    """A chat refuses the setting, so doctor says it before."""
    for value, reason in ('["/proc"]', "it is part of the system"), ('["/no/such"]', "it cannot be read"):
        (alice / "profile.toml").write_text(f"read_only_paths = {value}\n")
        (check,) = _of(_all(deepctl("doctor", "--user", "alice", "--json")), "sandbox", "alice")
        assert check["status"] == "problem"
        assert reason in check["found"]
        assert "read_only_paths" in check["hint"]


class TestRoot:
    def test_one_that_others_can_read(self, deepctl: InProcess, home: Path, alice: Path) -> None:
        home.chmod(0o755)
        assert _of(_all(deepctl("doctor", "--json")), "root")[0]["status"] == "problem"

    def test_one_that_is_no_directory(self, deepctl: InProcess, home: Path) -> None:
        home.write_text("x")
        assert _of(_all(deepctl("doctor", "--json")), "root")[0]["status"] == "problem"
        assert deepctl("doctor", "--user", "alice", "--json").code in (3, 5)

    @pytest.mark.parametrize("place", ["profiles", "locks"])
    def test_something_else_in_the_place_of_its_directories(self, deepctl: InProcess, home: Path, place: str) -> None:
        home.mkdir(0o700)
        for name in ("profiles", "locks"):
            (home / name).mkdir(0o700)
        _replace(home / place, lambda path: path.symlink_to("/etc"))
        assert (place, "problem") in _amiss(_all(deepctl("doctor", "--json")), None)

    def test_strange_things_among_profiles(self, deepctl: InProcess, home: Path, alice: Path) -> None:
        (home / "profiles/.DS_Store").write_text("x")
        (check,) = _of(_all(deepctl("doctor", "--json")), "profiles")
        assert (check["status"], ".DS_Store" in check["found"]) == ("warning", True)

    def test_one_that_cannot_be_read(self, deepctl: InProcess, home: Path, alice: Path) -> None:
        deepctl("doctor").ok()  # what is imported late is imported now
        outside = home.parent
        for above in (outside, *outside.parents):
            if above != Path("/tmp") and above != Path("/"):
                above.chmod(above.stat().st_mode | 0o011)
        (home / "profiles").chmod(0)
        effective = os.geteuid()
        if effective == 0:
            os.chown(home, 65534, -1)
            os.chown(home / "profiles", 65534, -1)
            os.seteuid(65534)
        try:
            everybody, one = deepctl("doctor", "--json"), deepctl("doctor", "--user", "alice", "--json")
        finally:
            os.seteuid(effective)
            (home / "profiles").chmod(0o700)
        assert ("root", "problem") in _amiss(_all(everybody), None)
        assert one.code in (3, 5)
        assert "Traceback" not in everybody.stdout + everybody.stderr + one.stdout + one.stderr


class TestLocks:
    def test_a_holder_is_named(self, deepctl: InProcess, process: Command, alice: Path) -> None:
        code = (
            "import sys, time\nfrom deepctl.locks import Lock\n"
            "with Lock(sys.argv[1], profile='alice', command='chat'):\n"
            "    print('held', flush=True)\n    time.sleep(60)"
        )
        holding = subprocess.Popen(
            [sys.executable, "-c", code, _paths(alice).lock], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        try:
            assert holding.stdout is not None
            assert holding.stdout.readline() == b"held\n"
            (check,) = _of(_all(deepctl("doctor", "--json")), "lock", "alice")
            assert check["status"] == "ok"
            assert re.match(rf"held by pid {holding.pid}, `deepctl chat`, since 20\d\d-", check["found"])
        finally:
            holding.kill()
            holding.wait()
            if holding.stdout is not None:
                holding.stdout.close()
        (check,) = _of(_all(deepctl("doctor", "--json")), "lock", "alice")
        assert check["found"].startswith("free; its text is from a command that was killed")

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            (b'{"pid": 4194300, "command": "chat", "since": "x"}\n', "has ended"),
            (b"rubbish", "the holder is unknown"),
            (b'{"pid": -1, "command": "chat", "since": "x"}\n', "the holder is unknown"),
            (b'{"pid": 99999999999999999999, "command": "chat", "since": "x"}\n', "held"),
        ],
    )
    def test_a_holder_that_cannot_be_right(self, deepctl: InProcess, alice: Path, said: bytes, told: str) -> None:
        path = Path(_paths(alice).lock)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_bytes(said)
        path.chmod(0o600)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (check,) = _of(_all(deepctl("doctor", "--json")), "lock", "alice")
        assert told in check["found"]

    def test_nobody_is_kept_from_a_lock_that_is_free(self, alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from deepctl import locks
        from deepctl.domain import doctor

        path = Path(_paths(alice).lock)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        tried: list[str] = []
        monkeypatch.setattr(locks, "holder", tried.append)
        assert [check.found for check in doctor._lock(_paths(alice))] == ["free"]
        assert tried == []


class TestModel:
    """Which model, and whether its key is in sight; never the key."""

    def _model(self, deepctl: InProcess) -> dict[str, Any]:
        result = deepctl("doctor", "--json")
        assert "sk-very-secret" not in result.stdout + deepctl("doctor").stdout
        (check,) = _of(_all(result), "model")
        return check

    def test_a_key_is_looked_for_and_never_shown(self, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEEPCTL_MODEL", "anthropic:claude-sonnet-4-6")
        found = self._model(deepctl)
        assert (found["status"], "no key found" in found["found"]) == ("warning", True)
        assert found["hint"] == "Set $ANTHROPIC_API_KEY."
        for blank in ("", " "):
            monkeypatch.setenv("ANTHROPIC_API_KEY", blank)
            found = self._model(deepctl)
            assert (found["status"], "it is set but empty" in found["found"]) == ("problem", True)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
        found = self._model(deepctl)
        assert (found["status"], "$ANTHROPIC_API_KEY set" in found["found"]) == ("ok", True)
        assert "(from $DEEPCTL_MODEL)" in found["found"]

    def test_a_server_of_ones_own_may_need_none(self, deepctl: InProcess) -> None:
        deepctl("config", "set", "model", "openai-chat:llama").ok()
        assert self._model(deepctl)["status"] == "warning"
        deepctl("config", "set", "base_url", "http://me:sk-very-secret@localhost:8000/v1").ok()
        found = self._model(deepctl)
        assert found["status"] == "ok"
        assert "http://me:…@localhost:8000/v1" in found["found"]

    @pytest.mark.parametrize("model", ["nobody:knows", "gpt-5", "unicorn/openai:x"])
    def test_what_is_not_known_is_said(self, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
        monkeypatch.setenv("DEEPCTL_MODEL", model)
        assert self._model(deepctl)["status"] == "warning"

    def test_a_client_that_is_not_installed_is_a_problem(
        self, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(provider_keys.CLIENTS, "groq", "no-such-package")
        monkeypatch.setenv("DEEPCTL_MODEL", "groq:llama")
        found = self._model(deepctl)
        assert (found["status"], found["hint"]) == ("problem", distribution.to_install("groq"))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:.*is deprecated")
    @pytest.mark.parametrize("provider", sorted(provider_keys.VARIABLES))
    def test_the_variables_are_those_that_pydantic_ai_asks_for(
        self, provider: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.providers import infer_provider

        for variable in list(os.environ):
            if re.search(r"KEY|TOKEN|_URL|^AWS_|^GOOGLE_|^HF_", variable):
                monkeypatch.delenv(variable)
        if provider == "azure":
            monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://x.example")
            monkeypatch.setenv("OPENAI_API_VERSION", "1")
        if provider == "snowflake":
            monkeypatch.setenv("SNOWFLAKE_ACCOUNT", "x")
        with pytest.raises((UserError, ImportError)) as caught:
            infer_provider("gateway/openai" if provider == "gateway" else provider)
        if isinstance(caught.value, ImportError):
            # It is an extra that is not here; that pydantic-ai knows the provider is all that can be told then.
            assert "pip install" in str(caught.value)
            return
        assert set(re.findall(r"`([A-Z][A-Z_]+)`", str(caught.value))) & set(provider_keys.VARIABLES[provider])


class TestLeftovers:
    def test_what_killed_commands_left(self, deepctl: InProcess, home: Path, alice: Path) -> None:
        for name in (".wipe-01234567-frank", ".wipe-parts-01234567-alice", ".new-gina", ".import-0123456789abcdef"):
            (home / "profiles" / name).mkdir(0o700)
        draft = alice / ".edit-0123456789ab"
        draft.mkdir(0o700)
        (draft / "MEMORY.md").write_text("my text")
        for place in (alice, alice / "sessions/main", alice / "checkpoints/packs"):
            (place / ".x.tmp").touch(0o600)
        found = _all(deepctl("doctor", "--json"))
        assert _amiss(found, None) == [("unfinished", "warning"), ("unfinished", "warning")]
        assert "the wipe of frank was interrupted" in json.dumps(_of(found, "unfinished"))
        assert "parts of alice" in json.dumps(_of(found, "unfinished"))
        assert ".new-gina" in json.dumps(_of(found, "leftovers"))
        assert ".import-0123456789abcdef" in json.dumps(_of(found, "leftovers"))
        assert str(draft / "MEMORY.md") in _of(found, "draft", "alice")[0]["found"]
        assert "3 temporary files" in _of(found, "leftovers", "alice")[0]["found"]
        assert "my text" not in json.dumps(found)

    def test_a_rewind_that_was_interrupted(self, deepctl: InProcess, home: Path) -> None:
        scene = Scene(home)
        home.chmod(0o700)
        scene.agent("a.txt", "one")
        scene.rewind("~1")
        path = Path(scene.paths.checkpoints) / "ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        assert b'"rewound"' in lines[-1]
        path.write_bytes(b"".join(lines[:-1]))
        (check,) = _of(_all(deepctl("doctor", "--json")), "unfinished", "alice")
        assert (check["status"], "a rewind to" in check["found"]) == ("warning", True)


@pytest.mark.parametrize(
    ("environment", "status", "found"),
    [
        ({}, "ok", "at http://127.0.0.1:11434: needs no key"),
        ({"OLLAMA_HOST": ":99"}, "ok", "at http://127.0.0.1:99: needs no key"),
        ({"OLLAMA_BASE_URL": "http://me:pw@box:1/v1"}, "ok", "at http://me:…@box:1: needs no key"),
        ({"OLLAMA_BASE_URL": ""}, "ok", "at http://127.0.0.1:11434: needs no key"),
        ({"OLLAMA_BASE_URL": " ", "OLLAMA_HOST": "box"}, "ok", "at http://box:11434: needs no key"),
    ],
)
def test_ollama_needs_no_variable_and_an_empty_one_is_none(
    deepctl: InProcess,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    status: str,
    found: str,
) -> None:
    monkeypatch.setenv("DEEPCTL_MODEL", "ollama:llama3.2")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (check,) = _of(_all(deepctl("doctor", "--json")), "model")
    assert (check["status"], found in check["found"]) == (status, True), check


def test_servers_that_the_model_does_not_use_are_no_matter(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = deepctl("doctor", "--json").json
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    after = deepctl("doctor", "--json").json
    assert [check for check in after["checks"] if check["name"] == "model"] == [
        check for check in before["checks"] if check["name"] == "model"
    ]
    assert after["ok"] is before["ok"] is True


class TestTerminal:
    """At a terminal: lines that fit, colours by meaning, `~`."""

    @pytest.mark.parametrize("columns", [60, 100])
    def test_lines_fit_and_are_aligned(
        self, alice: Path, columns: int, monkeypatch: pytest.MonkeyPatch, home: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(home.parent))
        (alice / "profile.toml").write_text('modle = "x"')
        terminal = Terminal("doctor", "--user", "alice", columns=columns)
        terminal.expect("1 warning.")
        assert terminal.wait() == 0
        lines = terminal.screen.splitlines()
        assert not any(re.search(r"\w\n\w", line) for line in lines)
        assert "Profile alice" in lines
        begins = {found.start(1) for line in lines if (found := re.match(r"  [✓!✗] [a-z]+ +(\S)", line)) is not None}
        assert len(begins) == 1
        indent = begins.pop()
        assert all(line[:indent].strip(" ") == "" for line in lines if line.startswith("   "))
        assert "~/root" in terminal.screen
        assert str(home) not in terminal.screen
        assert b"\x1b[33m!\x1b[0m" in terminal.bytes
        assert b"\x1b[32m" in terminal.bytes

    def test_piped_it_is_plain_and_whole(self, deepctl: InProcess, home: Path, alice: Path) -> None:
        (alice / "profile.toml").write_text(f'{"x" * 200} = "x"')
        shown = deepctl("doctor").ok().stdout
        assert "\x1b" not in shown
        assert "x" * 200 in shown
        assert str(home) in shown

    def test_control_characters_are_shown_as_escapes(self, deepctl: InProcess, home: Path, alice: Path) -> None:
        (home / "profiles" / ".a\x1b[31m\nb").write_text("x")
        (home / "profiles" / "z\x1b[31m").mkdir()
        shown = deepctl("doctor").stdout
        assert "\x1b" not in shown
        assert "\\x1b[31m" in shown


def test_it_reads_no_contents_and_so_stays_quick(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a pack only its first bytes, however many and however large they are."""
    read: list[int] = []
    pread = os.pread

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and ".pack" in os.readlink(f"/proc/self/fd/{descriptor}"):
            read.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    _all(deepctl("doctor", "--json"))
    assert len(read) == len(list((alice / "checkpoints/packs").iterdir()))
    assert sum(read) < 20 * len(read)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OPENAI_API_KEY", "“sk”"), ("OPENAI_BASE_URL", "localhost:8000"), ("HTTPS_PROXY", "http://x y")],
)
def test_a_variable_that_a_chat_would_refuse_is_a_problem_of_the_model(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("DEEPCTL_MODEL", "openai:gpt-5")
    monkeypatch.setenv(variable, value)
    (found,) = [check for check in deepctl("doctor", "--json").json["checks"] if check["name"] == "model"]
    assert found["status"] == "problem"
    assert f"${variable} cannot be used: it " in found["found"]
