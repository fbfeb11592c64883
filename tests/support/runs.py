"""Runs of all commands with `--json`, in a profile in which something has happened."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import InProcess, Result
from tests.support.prepared import prepare


class World:
    """A profile in which something has happened, and a directory for files that commands are given."""

    def __init__(self, deepctl: InProcess, directory: Path) -> None:
        self.deepctl = deepctl
        self.directory = directory

    def run(self, *arguments: str) -> Result:
        return self.deepctl(*arguments, stdin=KEY if arguments[:2] == ("keys", "set") else b"").ok()

    def fill(self) -> None:
        self.run("chat", "--user", "alice", "remember I like tea\nwrite a.txt: one")
        self.run("chat", "--user", "alice", "write a.txt: two\nplan Trip: pack; go")
        self.run("checkpoints", "save", "good", "--user", "alice")
        self.run("chat", "--user", "alice", "write b.bin: three")

    def exported(self, *arguments: str) -> str:
        path = str(self.directory / "exported")
        self.run(*arguments, path)
        return path


def made_world(deepctl: InProcess, home: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world of the runs; an editor in it replaces tea by coffee."""
    monkeypatch.setenv("VISUAL", "sed -i s/tea/coffee/")
    world = World(deepctl, directory)
    prepare(home, "runs", world.fill)
    return world


Run = Callable[[World], tuple[str, ...]]
ALICE = ("--user", "alice", "--json")
_MCP_SERVER = str(Path(__file__).parent / "mcp_stdio_server.py")
KEY = b"a-key-of-a-test\n"
"""What `keys set` reads from stdin."""


def _say(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    return lambda world: (*arguments, *ALICE)


def _after(*before: str) -> Callable[..., Callable[[World], tuple[str, ...]]]:
    """A run after another command has done its work."""

    def then(*arguments: str) -> Callable[[World], tuple[str, ...]]:
        def run(world: World) -> tuple[str, ...]:
            world.run(*before, "--user", "alice")
            return (*arguments, *ALICE)

        return run

    return then


def _with_server(*arguments: str) -> Run:
    """A command on a profile with an MCP server."""

    def run(world: World) -> tuple[str, ...]:
        world.deepctl("mcp", "add", "one", "--user", "alice", "--", sys.executable, _MCP_SERVER, "--prompts").ok()
        return (*arguments, *ALICE)

    return run


def _with_key(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    """A run with a stored key, and with a reference that only a command knows."""

    def run(world: World) -> tuple[str, ...]:
        path = world.run("config", "path", *ALICE).json["path"]
        with Path(path).open("a") as file:
            file.write('[keys]\nGROQ_API_KEY = { command = "cat nothing" }\nXAI_API_KEY = { env = "NOTHING" }\n')
        world.run("keys", "set", "OPENAI_API_KEY", "--store", "file", "--user", "alice")
        return (*arguments, *ALICE)

    return run


def _foreign_store(world: World) -> tuple[str, ...]:
    """What pydantic-deep would have kept: one checkpoint that can be read, and one that cannot."""
    directory = world.directory / "foreign"
    directory.mkdir()
    kept = {"id": "0-1", "label": "turn-1", "turn": 1, "created_at": "2026-01-01T10:00:00+00:00", "metadata": {}}
    said = {
        "kind": "request",
        "parts": [{"part_kind": "user-prompt", "content": "hi", "timestamp": kept["created_at"]}],
    }
    (directory / "0-1.json").write_text(json.dumps({**kept, "message_count": 1, "messages": [said]}))
    (directory / "bad.json").write_text("{")
    return ("checkpoints", "import", str(directory), *ALICE)


def _damaged_profile(world: World) -> tuple[str, ...]:
    """A repair that has something to mend, to lose and to put aside."""
    path = Path(os.environ["DEEPCTL_HOME"]) / "profiles" / "alice" / "checkpoints" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"#" * 40 + lines[0][40:] + b"".join(lines[1:]))
    return ("checkpoints", "repair", *ALICE)


def untrusted(*arguments: str, user: bool = True) -> Callable[[World], tuple[str, ...]]:
    """A run in a profile with imported settings that wait for a yes."""

    def run(world: World) -> tuple[str, ...]:
        waiting = Path(os.environ["DEEPCTL_HOME"], "profiles", "alice", "untrusted.toml")
        waiting.write_text('sandbox = "none"\n[mcp_servers.h]\ncommand = "x"\nstartup_timeout_sec = 1.5\n')
        return (*arguments, *(ALICE if user else ("--json",)))

    return run


def _project(name: str) -> Callable[..., Callable[[World], tuple[str, ...]]]:
    """A run after a chat in a project, which `{0}` names."""

    def then(*arguments: str) -> Callable[[World], tuple[str, ...]]:
        def run(world: World) -> tuple[str, ...]:
            directory = world.directory / name
            (directory / ".agents" / "skills").mkdir(parents=True)
            (directory / ".agents" / "skills" / "SKILL.md").write_text("x")
            (world.directory / "moved").mkdir()
            world.run("chat", "-C", str(directory), "--user", "alice", "write a.txt: one")
            return (*(argument.format(directory, world.directory / "moved") for argument in arguments), *ALICE)

        return run

    return then


def _imported_project(world: World) -> tuple[str, ...]:
    """A rewind in an imported session, whose checkpoints have files of a project."""
    _project("shop")("projects", "list")(world)
    world.run("profiles", "export", str(world.directory / "archive"), "--user", "alice")
    world.run("profiles", "import", str(world.directory / "archive"), "--as", "bob")
    return ("checkpoints", "rewind", "--session", "session-2", "--user", "bob", "--json")


def _directory_used(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    """A run where a directory uses alice, which `{0}` names."""

    def run(world: World) -> tuple[str, ...]:
        world.run("profiles", "use", "alice", "-C", str(world.directory))
        return (*(argument.format(world.directory) for argument in arguments), "--json")

    return run


def _shared_memory(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    """A run where the profile team shares its memory with alice, and the profile missing does not exist."""

    def run(world: World) -> tuple[str, ...]:
        world.run("profiles", "create", "team")
        world.run("memory", "add", "- tea", "--user", "team")
        world.run("config", "set", "memory.readers", "alice", "--user", "team")
        world.run("config", "set", "memory.read", "team,missing", "--user", "alice")
        return (*arguments, *ALICE)

    return run


def _imported_role(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    """A run after the import of a role with dangerous settings and other files; `{0}` is its directory."""

    def run(world: World) -> tuple[str, ...]:
        directory = world.directory / "theirs"
        (directory / "memory").mkdir(parents=True)
        (directory / "role.toml").write_text(
            'description = "Theirs"\nsandbox = "none"\ninstructions = "x"\n[keys]\nA = { env = "B" }\n'
        )
        (directory / "memory" / "MEMORY.md").write_text("- tea\n")
        (directory / "README.md").write_text("x")
        world.run("roles", "import", str(directory))
        return (*(argument.format(directory) for argument in arguments), "--json")

    return run


def _skills(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    """A run with a skill in force and one that cannot be used."""

    def run(world: World) -> tuple[str, ...]:
        library = Path(world.run("profiles", "path", "alice").stdout.strip()) / "skills"
        for name in ("tidy-up", "Bad"):
            (library / name).mkdir(parents=True)
            (library / name / "SKILL.md").write_text("---\ndescription: Tidies up.\n---\nTidy up.\n")
        return (*arguments, *ALICE)

    return run


RUNS: dict[str, list[Run]] = {
    "checkpoints list": [_say("checkpoints", "list"), _say("checkpoints", "list", "--all", "--graph")],
    "checkpoints show": [_say("checkpoints", "show", "good")],
    "checkpoints diff": [
        _say("checkpoints", "diff"),
        _say("checkpoints", "diff", "~2"),
        _say("checkpoints", "diff", "~2", "good", "--stat"),
    ],
    "checkpoints save": [_say("checkpoints", "save"), _say("checkpoints", "save", "named")],
    "checkpoints label": [_say("checkpoints", "label", "~1", "before"), _say("checkpoints", "label", "good", "")],
    "checkpoints rewind": [
        _say("checkpoints", "rewind"),
        _say("checkpoints", "rewind", "~2", "--dry-run"),
        _say("checkpoints", "rewind", "~1", "--only", "files", "--exact"),
        _imported_project,
    ],
    "checkpoints undo": [
        _after("checkpoints", "rewind")("checkpoints", "undo"),
        _after("checkpoints", "rewind")("checkpoints", "undo", "--dry-run"),
    ],
    "checkpoints fork": [_say("checkpoints", "fork", "good", "other")],
    "checkpoints remove": [_say("checkpoints", "remove", "~2", "--dry-run"), _say("checkpoints", "remove", "~2")],
    "checkpoints prune": [_say("checkpoints", "prune", "--keep", "1", "--older-than", "1d")],
    "checkpoints verify": [_say("checkpoints", "verify")],
    "checkpoints repair": [_say("checkpoints", "repair", "--dry-run"), _damaged_profile],
    "checkpoints import": [_foreign_store],
    "sessions list": [_say("sessions", "list")],
    "sessions show": [_say("sessions", "show"), _say("sessions", "show", "--full")],
    "sessions rename": [_say("sessions", "rename", "main", "first")],
    "sessions compact": [_say("sessions", "compact", "--focus", "the trip")],
    "sessions delete": [
        _say("sessions", "delete", "main", "--dry-run"),
        _say("sessions", "delete", "main", "--yes"),
        _after("checkpoints", "fork", "good", "other")("sessions", "delete", "main", "--yes"),
    ],
    "sessions search": [
        _say("sessions", "search", "tea"),
        _say("sessions", "search", "tw.", "--regex", "-C", "1", "--role", "tool"),
        _say("sessions", "search", "nothing-like-it"),
    ],
    "sessions export": [
        _say("sessions", "export"),
        _say("sessions", "export", "--format", "markdown", "--redact"),
        lambda world: ("sessions", "export", "--output", str(world.directory / "out.json"), "--redact", *ALICE),
    ],
    "sessions import": [
        lambda world: (
            "sessions",
            "import",
            world.exported("sessions", "export", "--user", "alice", "--output"),
            "--as",
            "again",
            *ALICE,
        )
    ],
    "memory show": [
        _shared_memory("memory", "show", "team:MEMORY.md"),
        _say("memory", "show"),
        _say("memory", "show", "--at", "good"),
    ],
    "memory list": [_shared_memory("memory", "list"), _say("memory", "list")],
    "memory add": [_say("memory", "add", "by hand"), _say("memory", "add", "x", "--file", "trip")],
    "memory edit": [_say("memory", "edit")],
    "memory search": [_say("memory", "search", "tea", "-C", "1")],
    "memory forget": [
        _say("memory", "forget", "tea", "--dry-run"),
        _say("memory", "forget", "tea", "--yes"),
        _say("memory", "forget", "tea", "--purge", "--dry-run"),
        _say("memory", "forget", "tea", "--purge", "--yes"),
    ],
    "memory history": [_say("memory", "history"), _after("memory", "add", "x")("memory", "history")],
    "memory diff": [_say("memory", "diff"), _say("memory", "diff", "~3"), _say("memory", "diff", "~2", "good")],
    "profiles list": [lambda world: ("profiles", "list", "--json"), _directory_used("profiles", "list")],
    "profiles show": [_say("profiles", "show")],
    "profiles create": [
        lambda world: ("profiles", "create", "bob", "--json"),
        lambda world: ("profiles", "create", "bob", "--like", "writer", "--json"),
        _imported_role("profiles", "create", "bob", "--like", "theirs"),
    ],
    "skills list": [_skills("skills", "list")],
    "roles list": [lambda world: ("roles", "list", "--json"), _imported_role("roles", "list")],
    "roles show": [lambda world: ("roles", "show", "reviewer", "--json"), _imported_role("roles", "show", "theirs")],
    "roles create": [
        untrusted("roles", "create", "ours", "--from", "alice", user=False),
        lambda world: ("roles", "create", "coder", "--from", "alice", "--description", "Ours", "--json"),
    ],
    "roles import": [_imported_role("roles", "import", "{0}", "--as", "again")],
    "roles export": [_imported_role("roles", "export", "theirs", "{0}-copy")],
    "roles delete": [_imported_role("roles", "delete", "theirs", "--yes")],
    "profiles use": [
        lambda world: ("profiles", "use", "alice", "--json"),
        lambda world: ("profiles", "use", "alice", "-C", str(world.directory), "--json"),
        _directory_used("profiles", "use", "--forget", "-C", "{0}"),
    ],
    "profiles copy": [
        lambda world: ("profiles", "copy", "alice", "bob", "--json"),
        untrusted("profiles", "copy", "alice", "bob", user=False),
    ],
    "profiles rename": [lambda world: ("profiles", "rename", "alice", "bob", "--json")],
    "profiles export": [
        lambda world: ("profiles", "export", str(world.directory / "archive"), *ALICE),
    ],
    "profiles import": [
        lambda world: (
            "profiles",
            "import",
            world.exported("profiles", "export", "--user", "alice"),
            "--as",
            "bob",
            "--json",
        ),
    ],
    "profiles trust": [_say("profiles", "trust"), untrusted("profiles", "trust", "--yes")],
    "keys list": [_say("keys", "list"), _with_key("keys", "list"), lambda world: ("keys", "list", "--json")],
    "keys set": [_say("keys", "set", "OPENAI_API_KEY", "--store", "file")],
    "keys unset": [_with_key("keys", "unset", "OPENAI_API_KEY", "--yes")],
    "mcp list": [_say("mcp", "list"), _with_server("mcp", "list")],
    "mcp add": [_say("mcp", "add", "one", "--url", "http://127.0.0.1:9/mcp")],
    "mcp test": [_with_server("mcp", "test", "one")],
    "mcp remove": [_with_server("mcp", "remove", "one")],
    "projects list": [_say("projects", "list"), _project("shop")("projects", "list")],
    "projects move": [_project("shop")("projects", "move", "{0}", "{1}")],
    "projects forget": [
        _project("shop")("projects", "forget", "{0}", "--dry-run"),
        _project("shop")("projects", "forget", "{0}", "--yes"),
    ],
    "projects trust": [
        _project("shop")("projects", "trust", "{0}", "--yes"),
        _project("shop")("projects", "trust", "{1}"),
        _project("shop")("projects", "trust", "{0}", "--dry-run"),
        _project("shop")("projects", "trust", "{0}", "--revoke"),
    ],
    "wipe": [
        _say("wipe", "--dry-run"),
        _say("wipe", "--yes"),
        _say("wipe", "--only", "memory,plans", "--yes"),
        lambda world: ("wipe", "--all", "--dry-run", "--json"),
    ],
    "profiles path": [_say("profiles", "path")],
    "sandbox show": [_say("sandbox", "show")],
    "sandbox remove": [],  # needs Docker: tests/sandbox/test_containers.py
    "usage": [
        _say("usage"),
        _say("usage", "--since", "30d", "--by", "model"),
        lambda world: ("usage", "--all", "--by", "session", "--json"),
        _after("sessions", "delete", "main", "--yes")("usage", "--by", "session"),
    ],
    "models": [_say("models"), _say("models", "--check"), lambda world: ("models", "--all", "--json")],
    "config show": [_say("config", "show"), untrusted("config", "show"), lambda world: ("config", "show", "--json")],
    "config get": [_say("config", "get", "model")],
    "config set": [_say("config", "set", "model", "offline"), _say("config", "set", "limits.processes", "99")],
    "config unset": [_after("config", "set", "model", "offline")("config", "unset", "model")],
    "config edit": [_say("config", "edit"), _after("config", "set", "instructions", "tea")("config", "edit")],
    "config path": [_say("config", "path"), lambda world: ("config", "path", "--json")],
    "doctor": [],  # it may find something: its callers run it
    "help": [],  # it has no --json
    "chat": [],  # it prints several documents: its callers run it
}
