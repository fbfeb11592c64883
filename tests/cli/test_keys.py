"""`deepctl keys`, and references to keys: where a key comes from, who gets it, and that nothing shows it."""

from __future__ import annotations

import inspect
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic_ai.providers import infer_provider_class

from deepctl import redaction
from deepctl.domain import key_sources, provider_keys
from tests.support.command import Command, InProcess
from tests.support.keyring_in_memory import MemoryKeyring, installed
from tests.support.loopback import Answer, Provider, Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal

CANARY = "sk-canary-0123456789abcdef"
_MODEL = ("--model", "openai-chat:m")


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)


@pytest.fixture
def alice(deepctl: InProcess) -> Path:
    """The profile.toml of alice."""
    return Path(deepctl("profiles", "create", "alice", "--json").ok().json["path"]) / "profile.toml"


def _refer(settings: Path, *lines: str) -> None:
    settings.write_text(settings.read_text() + "\n[keys]\n" + "\n".join(lines) + "\n")


def _stored(deepctl: InProcess, name: str = "OPENAI_API_KEY", key: str = CANARY, user: str = "alice") -> None:
    deepctl("keys", "set", name, "--user", user, stdin=key.encode() + b"\n").ok()


def _chat(deepctl: InProcess, server: Provider, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """The authorization of the last request of a chat of alice."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    deepctl("chat", "--user", "alice", *_MODEL, *options, "hello").ok()
    return str(server.headers[-1]["authorization"])


def test_a_stored_key_is_a_private_file_beside_the_profiles_and_is_listed_without_its_value(
    deepctl: InProcess, alice: Path, home: Path
) -> None:
    stored = deepctl("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--json", stdin=f" {CANARY}\r\n".encode()).ok()
    path = home / "keys" / "alice" / "OPENAI_API_KEY"
    assert stored.json["place"] == str(path)
    assert stored.json["replaced"] is False
    assert path.read_text() == f"{CANARY}\n"
    assert [stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent, path.parents[1])] == [
        0o600,
        0o700,
        0o700,
    ]
    listed = deepctl("keys", "list", "--user", "alice", "--json").ok()
    assert listed.json["keys"] == [
        {"name": "OPENAI_API_KEY", "source": "stored", "reference": {"file": str(path)}, "ok": True, "problem": None}
    ]
    assert CANARY not in stored.stdout + listed.stdout + deepctl("keys", "list", "--user", "alice").stdout


def test_a_key_is_asked_for_at_a_terminal_and_not_shown(deepctl: InProcess, alice: Path, home: Path) -> None:
    terminal = Terminal("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file")
    try:
        terminal.expect("not shown")
        terminal.type(f"{CANARY}\r")
        assert terminal.wait() == 0
        assert CANARY not in terminal.bytes.decode()
        assert "stored in" in terminal.screen
    finally:
        terminal.close()
    assert (home / "keys" / "alice" / "OPENAI_API_KEY").read_text() == f"{CANARY}\n"


def test_sources_have_an_order_and_unset_forgets_those_of_the_profile(deepctl: InProcess, alice: Path) -> None:
    config = Path(os.environ["DEEPCTL_CONFIG"])
    config.parent.mkdir()
    config.write_text('[keys]\nOPENAI_API_KEY = { env = "SHARED" }\nGROQ_API_KEY = { env = "SHARED" }\n')

    def source() -> str:
        keys = deepctl("keys", "list", "--user", "alice", "--json").ok().json["keys"]
        return str({key["name"]: key["source"] for key in keys}["OPENAI_API_KEY"])

    assert source() == "config"
    _stored(deepctl)
    assert source() == "stored"
    _refer(alice, 'OPENAI_API_KEY = { env = "ALICE" }')
    assert source() == "profile"
    assert deepctl("keys", "set", "OPENAI_API_KEY", "--user", "alice", stdin=b"x-another\n").code == 6
    gone = deepctl("keys", "unset", "OPENAI_API_KEY", "--user", "alice", "--yes", "--json").ok().json
    assert (gone["deleted"], gone["removed"]) == (True, True)
    assert source() == "config"


@pytest.mark.parametrize("kind", ["env", "file", "command", "keyring", "stored", "stored in the keyring"])
def test_a_request_has_the_key_of_the_profile_and_nothing_of_the_environment(
    kind: str, deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the variables of the client say."""
    monkeypatch.setenv("OPENAI_API_KEY", "“of the environment”")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-environment")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer environment\nX-Who: environment")
    monkeypatch.setenv("ALICE_OPENAI", CANARY)
    path = tmp_path / "key"
    path.write_text(CANARY)
    path.chmod(0o600)
    backend = MemoryKeyring()
    backend.entries["openai-alice", "OPENAI_API_KEY"] = CANARY
    installed(monkeypatch, backend)
    if kind == "stored":
        deepctl("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=CANARY.encode()).ok()
    elif kind.startswith("stored"):
        _stored(deepctl)
        assert backend.entries["deepctl/alice/OPENAI_API_KEY", "OPENAI_API_KEY"] == CANARY
    else:
        place = {"env": "ALICE_OPENAI", "file": path, "command": f"cat {path}", "keyring": "openai-alice"}[kind]
        _refer(alice, f'OPENAI_API_KEY = {{ {kind} = "{place}" }}')
    with provider(Text(["Hi."]), repeat_last=True) as server:
        assert _chat(deepctl, server, monkeypatch) == f"Bearer {CANARY}"
        assert "environment" not in str(server.headers[-1])
        deepctl("models", "--check", "--user", "alice", *_MODEL).ok()
        assert server.headers[-1]["authorization"] == f"Bearer {CANARY}"
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "another-key")
        deepctl("chat", "--user", "alice", "--model", "anthropic:m", "hello").ok()
        assert "another-key" in str(server.headers[-1]), "a provider without a reference"
    assert CANARY not in "".join(text for name, text in os.environ.items() if name != "ALICE_OPENAI")


def test_every_provider_that_reads_a_key_of_the_environment_can_have_a_reference() -> None:
    names = set(re.findall(r"'([a-z][a-z0-9-]+)'", inspect.getsource(infer_provider_class)))
    directory = Path(inspect.getsourcefile(infer_provider_class) or "").parent
    assert len(names) > 30
    for name in names - {"elevenlabs", "voyageai"}:  # they have no chat models
        module = directory / f"{name.removesuffix('-responses').removesuffix('-decisions').replace('-', '_')}.py"
        if module.exists():
            variables = set(re.findall(r"'([A-Z][A-Z_]+_API_KEY)'", module.read_text())) - {"AZURE_VOICELIVE_API_KEY"}
            assert variables <= set(provider_keys.names_of(name)), name


def test_an_organisation_by_reference_is_sent_too(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALICE_ORG", "org-alice")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-environment")
    _stored(deepctl)
    _refer(alice, 'OPENAI_ORG_ID = { env = "ALICE_ORG" }')
    with provider(Text(["Hi."]), repeat_last=True) as server:
        _chat(deepctl, server, monkeypatch)
        assert server.headers[-1]["openai-organization"] == "org-alice"


def test_a_key_of_the_profile_precedes_another_name_of_the_same_provider_in_config_toml(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepctl.domain import settings
    from deepctl.layout import Root

    monkeypatch.setenv("SHARED", "shared-key")
    monkeypatch.setenv("ALICE", "alices-key")
    config = Path(os.environ["DEEPCTL_CONFIG"])
    config.parent.mkdir()
    config.write_text('[keys]\nGOOGLE_API_KEY = { env = "SHARED" }\n')
    _refer(alice, 'GEMINI_API_KEY = { env = "ALICE" }')
    profile = Root(os.environ["DEEPCTL_HOME"]).profile("alice")
    ring = settings.load(os.environ, profile).keys(os.environ)
    references = ring.of_provider("google")
    assert references is not None
    assert ring.value(references.key) == "alices-key"


def test_a_command_runs_once_in_a_process_only_before_a_request_and_without_stdin(
    process: Command, deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    script = tmp_path / "get-key"
    script.write_text(f"#!/bin/sh\necho run >> {log}\ncat\npwd >> {log}\necho {CANARY}\necho user: alice\n")
    script.chmod(0o700)
    _refer(alice, f'OPENAI_API_KEY = {{ command = "{script} openai/alice" }}')
    with provider(Text(["Hi."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        for command in (("keys", "list"), ("models",), ("models", "--all"), ("doctor",), ("config", "show")):
            assert deepctl(*command, "--user", "alice").ok()
        deepctl("chat", "--user", "alice", "--model", "offline", "hello").ok()
        assert not log.exists()
        listed = deepctl("keys", "list", "--user", "alice", "--json").ok().json["keys"]
        assert [(key["name"], key["ok"]) for key in listed] == [("OPENAI_API_KEY", None)]
        terminal = Terminal("chat", "--user", "alice", *_MODEL)
        try:
            terminal.expect("alice")
            assert not log.exists(), "before the first prompt"
            for number in range(3):
                terminal.type(f"hello {number}\r")
                terminal.expect("Hi.", times=number + 1)
            terminal.type("\x04")
            terminal.wait()
        finally:
            terminal.close()
        assert log.read_text() == f"run\n{os.environ['HOME']}\n"
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {CANARY}"}


def test_a_command_that_does_not_end_is_stopped_with_its_children(
    deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "get-key"
    script.write_text(f"sleep 300 & echo $! > {pids}; echo {CANARY}; wait\n")
    monkeypatch.setattr(key_sources, "SECONDS", 0.5)
    _refer(alice, f'OPENAI_API_KEY = {{ command = "sh {script}" }}')
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    result = deepctl("chat", "--user", "alice", *_MODEL, "hello")
    assert result.code == 2
    assert "took longer than" in result.stderr
    assert CANARY not in result.stderr
    shown = deepctl("sessions", "show", "--user", "alice", "--json")
    assert shown.code == 3 or not shown.json["messages"], "the turn did not start"
    _wait_for_the_end(int(pids.read_text()))


def test_a_daemon_of_a_command_delays_no_key_and_many_open_files_are_no_problem(
    deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "get-key"
    script.write_text(f"sleep 300 & echo $! > {pids}; echo {CANARY}\n")
    _refer(alice, f'OPENAI_API_KEY = {{ command = "sh {script}" }}')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with provider(Text(["hello"])) as server:
            assert _chat(deepctl, server, monkeypatch) == f"Bearer {CANARY}"
    finally:
        for descriptor in files:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(pids.read_text()), signal.SIGKILL)


def _wait_for_the_end(pid: int) -> None:
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} still runs")


def test_ctrl_c_stops_a_command(process: Command, deepctl: InProcess, alice: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = tmp_path / "get-key"
    script.write_text(f"touch {started}\nexec sleep 300\n")
    _refer(alice, f'OPENAI_API_KEY = {{ command = "sh {script}" }}')
    running = process.start("chat", "--user", "alice", *_MODEL, "hello")
    while not started.exists():
        time.sleep(0.02)
    begin = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=8) == 130
    assert time.monotonic() - begin < 5


def test_what_leaves_the_machine_has_no_key_that_another_process_read(
    deepctl: InProcess, alice: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "plain0text1without2a3form"
    _stored(deepctl, "MISTRAL_API_KEY", key)
    deepctl("chat", "--user", "alice", "--model", "offline", f"my key is {key}").ok()
    (alice.parent / "workspace/AGENTS.md").write_text(f"Use {key}.\n")
    monkeypatch.setattr(redaction, "_KEYS_IN_USE", {})
    exported = deepctl("sessions", "export", "--user", "alice", "--redact").ok().stdout
    assert key not in exported
    assert "[MISTRAL_API_KEY]" in exported
    monkeypatch.setattr(redaction, "_KEYS_IN_USE", {})
    deepctl("roles", "create", "clerk", "--from", "alice").ok()
    assert "[MISTRAL_API_KEY]" in (home / "roles/clerk/AGENTS.md").read_text()


def test_no_key_is_stored_through_a_link(deepctl: InProcess, alice: Path, home: Path, tmp_path: Path) -> None:
    (home / "keys").mkdir(mode=0o700)
    (home / "keys/alice").symlink_to(tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert deepctl("keys", "set", "OPENAI_API_KEY", "--user", "alice", stdin=CANARY.encode() + b"\n").code == 6
    assert sorted(os.listdir(tmp_path)) == before


def test_a_renamed_profile_has_no_keys_that_an_earlier_one_left(deepctl: InProcess, alice: Path, home: Path) -> None:
    _stored(deepctl)
    shutil.rmtree(home / "profiles/alice")
    deepctl("profiles", "create", "bob").ok()
    deepctl("profiles", "rename", "bob", "alice").ok()
    assert deepctl("keys", "list", "--user", "alice", "--json").ok().json["keys"] == []
    assert not (home / "keys/alice").exists()


@pytest.mark.parametrize("what", ["mode", "link", "fifo", "directory", "link above", "in a workspace", "two lines"])
def test_a_key_file_that_is_not_safe_is_refused_and_doctor_names_it(
    what: str, deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_text(CANARY + ("\nsecond" if what == "two lines" else "") + "\n")
    path.chmod(0o640 if what == "mode" else 0o600)
    if what in ("fifo", "directory"):
        path.unlink()
        os.mkfifo(path, 0o600) if what == "fifo" else path.mkdir(0o700)
    elif what == "link":
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    elif what == "link above":
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        path = Path(shutil.move(path, tmp_path / "open" / "key"))
    elif what == "in a workspace":
        path = Path(shutil.move(path, alice.parent / "workspace" / "key"))
    _refer(alice, f'OPENAI_API_KEY = {{ file = "{path}" }}')
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    with provider(Text(["Hi."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        result = deepctl("chat", "--user", "alice", *_MODEL, "hello")
        assert server.requests == [], "the key of the environment is no substitute"
    assert result.code == 2, result
    assert f'file = "{path}"' in result.stderr
    doctor = deepctl("doctor", "--user", "alice", "--json")
    problems = [
        check["found"] for check in doctor.json["checks"] if (check["name"], check["status"]) == ("keys", "problem")
    ]
    assert len(problems) == 1
    assert str(path) in problems[0]
    assert CANARY not in result.stderr + doctor.stdout


@pytest.mark.parametrize("owner", ["alice", "another"])
def test_a_key_file_must_be_the_users_own(owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text(CANARY)
    path.chmod(0o600)
    if owner == "another":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(key_sources.KeyProblem, match=r"belongs to another user|is not safe"):
            key_sources.of_file(str(path), dict(os.environ))
    else:
        assert key_sources.of_file(str(path), dict(os.environ)) == CANARY


def test_a_key_in_the_place_of_a_reference_is_shown_nowhere(
    deepctl: InProcess, alice: Path, home: Path, tmp_path: Path
) -> None:
    _refer(
        alice, f'OPENAI_API_KEY = "{CANARY}"', f'GROQ_API_KEY = {{ env = "{CANARY}" }}', f'"{CANARY}" = {{ env = "X" }}'
    )
    for arguments in (
        ("keys", "list"), ("config", "show"), ("config", "get", "model"), ("models",), ("doctor",), ("chat", "hello"),
        ("config", "get", "keys.OPENAI_API_KEY"), ("config", "set", "keys.OPENAI_API_KEY", "x"), ("sandbox", "show"),
    ):  # fmt: skip
        for mode in ((), ("--json",)):
            extra = () if arguments[:2] == ("config", "set") else ("--user", "alice")
            result = deepctl(*arguments, *extra, *mode)
            assert CANARY not in result.stdout + result.stderr, arguments
    archive = tmp_path / "alice.tgz"
    deepctl("profiles", "export", str(archive), "--user", "alice").ok()
    for arguments in (("import", str(archive), "--as", "carol"), ("trust", "carol"), ("trust", "carol", "--json")):
        result = deepctl("profiles", *arguments)
        assert CANARY not in result.stdout + result.stderr, arguments
    shown = deepctl("config", "show", "--user", "carol")
    assert CANARY not in shown.stdout + shown.stderr


def test_references_of_an_imported_profile_wait_for_trust(
    deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    _refer(alice, f'OPENAI_API_KEY = {{ command = "touch {log}" }}')
    archive = tmp_path / "alice.tgz"
    deepctl("profiles", "export", str(archive), "--user", "alice").ok()
    imported = deepctl("profiles", "import", str(archive), "--as", "carol")
    assert "it runs this command unsandboxed" in imported.stdout + imported.stderr
    with provider(Text(["Hi."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
        deepctl("chat", "--user", "carol", *_MODEL, "hello").ok()
        assert not log.exists()
        assert deepctl("keys", "list", "--user", "carol", "--json").ok().json["keys"] == []
        deepctl("profiles", "trust", "carol", "--yes").ok()
        assert deepctl("chat", "--user", "carol", *_MODEL, "hello").code == 2
        assert log.exists()
        assert len(server.requests) == 1


@pytest.mark.parametrize("in_keyring", [False, True])
def test_a_rename_moves_stored_keys_and_a_wipe_and_a_new_profile_leave_none(
    in_keyring: bool, deepctl: InProcess, alice: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MemoryKeyring()
    installed(monkeypatch, backend if in_keyring else None)
    _stored(deepctl)
    archive = tmp_path / "alice.tgz"
    deepctl("profiles", "export", str(archive), "--user", "alice").ok()
    with tarfile.open(archive) as members:
        assert not [name for name in members.getnames() if "keys" in name or "OPENAI" in name]
    deepctl("profiles", "rename", "alice", "Bob").ok()
    place = {"keyring": "deepctl/bob/OPENAI_API_KEY"} if in_keyring else {"file": str(home / "keys/bob/OPENAI_API_KEY")}
    listed = deepctl("keys", "list", "--user", "bob", "--json").ok().json["keys"]
    assert [key["reference"] for key in listed] == [place]
    assert sorted(os.listdir(home / "keys")) == ["bob"]
    assert list(backend.entries) == ([("deepctl/bob/OPENAI_API_KEY", "OPENAI_API_KEY")] if in_keyring else [])
    deepctl("profiles", "create", "alice").ok()
    assert deepctl("keys", "list", "--user", "alice", "--json").ok().json["keys"] == []
    wiped = deepctl("wipe", "--user", "bob", "--yes", "--json").ok().json
    assert "keys" in {part["part"] for part in wiped["removed"]}
    assert os.listdir(home / "keys") == []
    assert backend.entries == {}
    # A kill in the middle of a rename can leave keys under a name that no profile has any more.
    (home / "keys" / "dora").mkdir(0o700)
    (home / "keys" / "dora" / "OPENAI_API_KEY").write_text(f"{CANARY}\n")
    doctor = deepctl("doctor")
    assert "of no profile: dora" in doctor.stdout
    deepctl("profiles", "create", "dora").ok()
    assert deepctl("keys", "list", "--user", "dora", "--json").ok().json["keys"] == []


def test_a_changed_key_replaces_the_other_one_wherever_it_was(
    deepctl: InProcess, alice: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MemoryKeyring()
    installed(monkeypatch, backend)
    _stored(deepctl, key="first-key")
    deepctl("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"second-key\n").ok()
    assert backend.entries == {}
    assert os.listdir(home / "keys" / "alice") == ["OPENAI_API_KEY"]
    _stored(deepctl, key="third-key")
    assert os.listdir(home / "keys" / "alice") == ["OPENAI_API_KEY.keyring"]
    with provider(Text(["Hi."]), repeat_last=True) as server:
        assert _chat(deepctl, server, monkeypatch) == "Bearer third-key"


def test_no_output_contains_a_key_that_was_read_by_reference(
    process: Command, deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the result of a tool, in the error of a server that echoes it, and in a traceback."""
    monkeypatch.setenv("FOO", CANARY)
    _refer(alice, 'OPENAI_API_KEY = { env = "FOO" }')
    files = alice.parent / "workspace"
    (files / "notes.txt").write_text(f"the key is {CANARY}!\n")
    answers: list[Answer] = [
        ToolCalls([("read_file", {"path": "notes.txt"})]),
        Text(["Done."]),
        Status(401, f"bad key {CANARY}"),
    ]
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("DEEPCTL_DEBUG", "1")
        first = process("chat", "--user", "alice", *_MODEL, "--json", "read it")
        second = process("chat", "--user", "alice", *_MODEL, "again")
        assert first.code == 0
        assert second.code == 7
        assert CANARY not in first.stdout + first.stderr + second.stdout + second.stderr
        assert "[OPENAI_API_KEY]" in first.stdout
        assert CANARY not in str(server.requests)


def test_an_mcp_server_gets_the_key_that_its_table_names(
    deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCS_TOKEN", "of-the-environment")
    monkeypatch.setenv("OTHER_TOKEN", "of-the-environment-too")
    got = tmp_path / "got"
    key = tmp_path / "key"
    key.write_text(CANARY)
    key.chmod(0o600)
    server = Path(__file__).parents[1] / "support" / "mcp_stdio_server.py"
    launcher = tmp_path / "launch"
    launcher.write_text(f"env > {got}\nexec {sys.executable} {server} $@\n")
    tables = (
        f'[mcp_servers.docs]\ncommand = "sh"\nargs = ["{launcher}"]\nenv_vars = ["DOCS_TOKEN", "OTHER_TOKEN"]',
        '[mcp_servers.broken]\ncommand = "sh"\nenv_vars = ["BROKEN_TOKEN"]',
    )
    alice.write_text("\n".join((alice.read_text(), *tables, "")))
    _refer(
        alice, f'DOCS_TOKEN = {{ command = "cat {key}" }}', 'BROKEN_TOKEN = { command = "false" }',
        f'UNUSED_TOKEN = {{ command = "touch {tmp_path}/unused" }}',
    )  # fmt: skip
    result = deepctl("chat", "--user", "alice", "--model", "offline", "hello").ok()
    variables = got.read_text().splitlines()
    assert f"DOCS_TOKEN={CANARY}" in variables
    assert "OTHER_TOKEN=of-the-environment-too" in variables
    assert "MCP server 'broken' is left out: BROKEN_TOKEN" in result.stderr
    assert not (tmp_path / "unused").exists()


def test_models_sends_no_key_of_the_environment_for_a_profile_with_a_reference(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepctl.domain import providers, settings
    from deepctl.layout import Root

    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    profile = Root(os.environ["DEEPCTL_HOME"]).profile("alice")

    def key() -> str | None:
        return providers.own_servers(os.environ, settings.load(os.environ, profile))[0].key

    assert key() == "of-the-environment"
    _stored(deepctl)
    assert key() == CANARY
    _refer(alice, f'OPENAI_API_KEY = {{ command = "echo {CANARY}" }}')
    assert key() is None
    shown = deepctl("models", "--user", "alice", "--json").ok().json["providers"]
    assert {item["name"]: item["key"] for item in shown if item["key"]}["openai"]["source"] == "profile"


def test_an_export_for_others_has_no_key_of_the_profile(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one of an ordinary form, that a person has typed, and that is in no variable of a secret's name."""
    monkeypatch.setenv("FOO", "plain-words-as-a-key")
    _refer(alice, 'DOCS_TOKEN = { env = "FOO" }')
    _stored(deepctl, key="other-words-as-a-key")
    deepctl("chat", "--user", "alice", "try plain-words-as-a-key and other-words-as-a-key").ok()
    shared = deepctl("sessions", "export", "--format", "markdown", "--redact", "--user", "alice").ok().stdout
    assert "words-as-a-key" not in shared
    assert "[DOCS_TOKEN]" in shared
    assert "[OPENAI_API_KEY]" in shared


def test_the_agent_cannot_read_stored_keys(deepctl: InProcess, alice: Path, home: Path) -> None:
    _stored(deepctl)
    path = home / "keys" / "alice" / "OPENAI_API_KEY"
    command = f"run cat {path}; ls {home} {home / 'keys'}\nread {path}"
    result = deepctl("chat", "--user", "alice", "--sandbox", "bubblewrap", "--json", command).ok()
    assert CANARY not in result.stdout
    outputs = [event["content"] for event in result.events if event["type"] == "tool_result"]
    assert "No such file" in outputs[0]
    assert "outside the workspace" in outputs[1]


def test_a_hint_about_a_missing_key_names_the_profile_and_a_replaced_key_is_said(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `--user`, the command of the hint would replace the key of the default profile."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    deepctl("profiles", "create", "bob").ok()
    failed = deepctl("chat", "--user", "bob", *_MODEL, "hello")
    assert failed.code == 7
    assert "deepctl keys set OPENAI_API_KEY --user bob" in failed.stderr
    _stored(deepctl)
    again = deepctl("keys", "set", "OPENAI_API_KEY", "--user", "alice", stdin=b"another-key\n").ok()
    assert "instead of the former key" in again.stdout
