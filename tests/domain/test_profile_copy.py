"""A copy of a profile has its settings, memory and files, and nothing that belongs to the profile itself."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.domain.transfer import profile_copy
from deepctl.domain.transfer.profile_copy import CopyOperation, ProfileCopy
from deepctl.errors import Refused
from deepctl.layout import Root
from tests.domain.test_transfer import tree
from tests.store import faults
from tests.store.scene import Scene
from tests.support.command import Command, InProcess

SOAK = os.environ.get("DEEPCTL_SOAK") == "1"  # read here: the fixtures remove the variable

SECRET = "sk-canary-0123456789abcdef"
SETTINGS = f"""# mine: {SECRET}
version = 1
model = "openai-chat:x"
base_url = "http://alice:{SECRET}@models.test/v1"
instructions = "Be brief."
disabled_tools = ["execute"]
future_setting = "x"

[keys]
OPENAI_API_KEY = {{ env = "ALICE_OPENAI" }}

[memory]
read = ["team"]
readers = ["bob"]

[limits]
seconds = 5

[permissions]
write = "ask"

[model_settings]
temperature = 0.5
extra_body = {{ api_key = "{SECRET}" }}

[mcp_servers.plain]
command = "server"
env_vars = ["TOKEN"]

[mcp_servers.local]
command = "server"
env = {{ TOKEN = "x1y2z3" }}

[mcp_servers.remote]
url = "https://tools.test/mcp"
http_headers = {{ Authorization = "Bearer x1y2z3" }}

[mcp_servers.query]
url = "https://tools.test/mcp?key=x1y2z3"

[mcp_servers.argument]
command = "server"
args = ["--token={SECRET}"]
"""


def copied(scene: Scene, name: str = "bob", parts: tuple[str, ...] = profile_copy.PARTS) -> ProfileCopy:
    root = Root(str(Path(scene.paths.directory).parent.parent))
    work = CopyOperation(root, scene.paths, parts)
    work.measure()
    with profiles.lock(root, name, command="test"):
        return work.write(name, {})


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Alice's profile with a turn, every kind of settings, and files of every kind."""
    scene = Scene(tmp_path / "root")
    scene.agent("a/b.txt", "one\n")
    memory = scene.workspace / ".deep" / "memory"
    for path in ("main/MEMORY.md", "scout/finds.md", ".memory-operations.json"):
        (memory / path).parent.mkdir(parents=True, exist_ok=True)
        (memory / path).write_text(f"{path}\n")
    for path in (".deep/todo/x.json", ".deep/home/x", "plans/trip.md", "large_tool_results/x", "AGENTS.md", ".env"):
        (scene.workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (scene.workspace / path).write_text(f"{path}\n")
    (scene.workspace / "run").write_text("#!/bin/sh\n")
    (scene.workspace / "run").chmod(0o4755)
    (scene.workspace / "empty").mkdir()
    (scene.workspace / ".deepctl-0123456789ab.tmp").write_text("x")
    Path(scene.paths.settings).write_text(SETTINGS)
    Path(scene.paths.untrusted).write_text('approve = "auto"\n')
    Path(scene.paths.prompt_history).write_text("typed")
    Path(scene.paths.directory, "projects.json").write_text("{}")
    Path(scene.paths.directory, "usage.jsonl").write_text("{}\n")
    return scene


FILES = {".env", "AGENTS.md", "a", "a/b.txt", "empty", "plans", "plans/trip.md", "run"}
MEMORY = {".deep", ".deep/memory", ".deep/memory/main", ".deep/memory/main/MEMORY.md", ".deep/memory/scout",
          ".deep/memory/scout/finds.md"}  # fmt: skip


def _paths(directory: str) -> set[str]:
    return {path.decode() for path in tree(directory)}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("settings",), set[str]()),
        (("memory",), MEMORY),
        (("files",), FILES),
        (("settings", "memory", "files"), MEMORY | FILES),
    ],
)
def test_a_copy_has_the_selected_parts_and_nothing_else(
    scene: Scene, parts: tuple[str, ...], expected: set[str]
) -> None:
    before = tree(scene.paths.directory)
    result = copied(scene, parts=parts)
    assert sorted(os.listdir(result.paths.directory)) == ["checkpoints", "profile.toml", "sessions", "workspace"]
    assert os.listdir(result.paths.sessions) == os.listdir(result.paths.checkpoints) == []
    assert _paths(result.paths.workspace) == expected
    assert ("disabled_tools" in Path(result.paths.settings).read_text()) == ("settings" in parts)
    assert tree(scene.paths.directory) == before, "the original does not change"


def test_settings_are_copied_without_keys_tokens_and_agreements(scene: Scene) -> None:
    result = copied(scene)
    text = Path(result.paths.settings).read_text()
    tables = tomllib.loads(text)
    assert tables.pop("version") == 1
    assert tables.pop("created_at")
    assert tables == {
        "model": "openai-chat:x",
        "instructions": "Be brief.",
        "disabled_tools": ["execute"],
        "limits": {"seconds": 5},
        "permissions": {"write": "ask"},
        "model_settings": {"temperature": 0.5},
        "mcp_servers": {"plain": {"command": "server", "env_vars": ["TOKEN"]}},
    }
    assert {item.key for item in result.settings_left_out} == {
        *("base_url", "future_setting", "keys.OPENAI_API_KEY", "memory.read", "memory.readers"),
        *("model_settings.extra_body", "mcp_servers.local", "mcp_servers.remote", "mcp_servers.query"),
        *("mcp_servers.argument", "untrusted.toml"),
    }
    assert SECRET not in text
    assert "x1y2z3" not in text


def test_a_value_of_a_secret_variable_is_left_out(scene: Scene) -> None:
    Path(scene.paths.settings).write_text('instructions = "Use plain-words-0815."\n')
    root = Root(str(Path(scene.paths.directory).parent.parent))
    with profiles.lock(root, "bob", command="test"):
        result = CopyOperation(root, scene.paths, ("settings",)).write("bob", {"MY_API_KEY": "plain-words-0815"})
    assert "plain-words" not in Path(result.paths.settings).read_text()


def test_files_keep_their_contents_modes_and_times(scene: Scene) -> None:
    os.utime(scene.workspace / "a/b.txt", ns=(10**18, 10**18 + 1))
    result = copied(scene)
    workspace = Path(result.paths.workspace)
    assert (workspace / "a/b.txt").read_text() == "one\n"
    assert (workspace / "a/b.txt").stat().st_mtime_ns == 10**18 + 1
    assert stat.S_IMODE((workspace / "run").stat().st_mode) == 0o755
    assert result.stripped == 1
    assert stat.S_IMODE(Path(result.paths.settings).stat().st_mode) == 0o600


def test_links_stay_links_and_what_leads_out_is_left_out(scene: Scene) -> None:
    targets = {
        "in": "a/b.txt",
        "up": "../../../secret",
        "abs": "/etc/passwd",
        "own": str(scene.workspace / "a"),
        ".deep/memory/main/link.md": "/etc/passwd",
    }
    for path, target in targets.items():
        (scene.workspace / path).symlink_to(target)
    os.mkfifo(scene.workspace / "fifo")
    os.link(scene.workspace / "a/b.txt", scene.workspace / "hard")
    result = copied(scene)
    workspace = Path(result.paths.workspace)
    assert os.readlink(workspace / "in") == "a/b.txt"
    assert {path.path.removeprefix("workspace/") for path in result.left_out} == {
        *("up", "abs", "own", "fifo", ".deep/memory/main/link.md")
    }
    (workspace / "hard").write_text("two")
    assert (scene.workspace / "a/b.txt").read_text() == "one\n", "a hard link becomes a file of its own"


def test_a_linked_memory_is_not_followed(scene: Scene, tmp_path: Path) -> None:
    memory = scene.workspace / ".deep" / "memory"
    memory.rename(tmp_path / "memory")
    memory.symlink_to(tmp_path / "memory")
    assert "workspace/.deep/memory" in {path.path for path in copied(scene).left_out}


def test_names_that_are_not_utf8_are_copied(scene: Scene) -> None:
    (scene.workspace / os.fsdecode(b"caf\xe9\n")).write_text("x")
    assert (Path(copied(scene).paths.workspace) / os.fsdecode(b"caf\xe9\n")).read_text() == "x"


def test_a_name_that_is_taken_meanwhile_is_refused(scene: Scene) -> None:
    root = Root(str(Path(scene.paths.directory).parent.parent))

    def meanwhile(count: int) -> None:
        if not profiles.exists(root, "bob"):
            profiles.create(root, "bob")

    with pytest.raises(Refused, match="already a profile 'bob'"):
        CopyOperation(root, scene.paths, profile_copy.PARTS).write("bob", {}, meanwhile)
    assert sorted(os.listdir(root.profiles)) == ["alice", "bob"]
    assert os.listdir(root.profile("bob").workspace) == []


def _small(place: Path) -> Scene:
    scene = Scene(place)
    (scene.workspace / "a.txt").write_text("one")
    (scene.workspace / ".deep/memory/main").mkdir(parents=True)
    (scene.workspace / ".deep/memory/main/MEMORY.md").write_text("- tea\n")
    return scene


def test_a_copy_that_is_killed_or_fails_at_any_call_is_whole_or_not_there(tmp_path: Path) -> None:
    counted = _small(tmp_path / "counted")
    every = faults.points(lambda: copied(counted))
    whole = _paths(str(tmp_path / "counted/profiles/bob"))
    size = len(every) if SOAK else 10
    for at, name, fault in faults.sample(every, "copy", size):
        scene = _small(tmp_path / f"{at}-{fault}")
        before = tree(scene.paths.directory)
        outcome = faults.in_child(lambda scene=scene: copied(scene), at, faults.FAULTS[fault])  # type: ignore[misc]
        assert (outcome == "killed") == (fault == "SIGKILL"), (at, name, fault, outcome)
        assert tree(scene.paths.directory) == before
        root = Root(str(tmp_path / f"{at}-{fault}"))
        if profiles.exists(root, "bob"):
            # A file of the workspace that cannot be read is left out, and listed.
            paths = _paths(root.profile("bob").directory)
            unread = whole - paths
            assert paths <= whole, (at, name, fault)
            assert not unread or fault != "SIGKILL", (at, name, fault)
            assert all(path.startswith("workspace/") for path in unread), (at, name, fault)
        else:
            copied(scene)
            assert _paths(root.profile("bob").directory) == whole, (at, name, fault)
        assert sorted(os.listdir(root.profiles)) == ["alice", "bob"], (at, name, fault)


def test_the_command_waits_for_a_turn_and_a_copied_profile_works(
    deepctl: InProcess, process: Command, home: Path
) -> None:
    deepctl("chat", "--user", "alice", "remember tea\nwrite a.txt: one").ok()
    with profiles.lock(Root(str(home)), "alice", command="chat"):
        assert process("profiles", "copy", "alice", "bob").code == 4
    assert not (home / "profiles" / "bob").exists()
    said = deepctl("profiles", "copy", "ALICE", "bob", "--only", "memory,files").ok()
    assert said.stdout.startswith("Copied alice to bob (memory, files): 2 files, ")
    assert deepctl("memory", "show", "--user", "bob").ok().stdout == "- tea\n"
    assert deepctl("sessions", "list", "--user", "bob").ok().stdout == ""
    deepctl("chat", "--user", "bob", "write a.txt: two").ok()
    deepctl("checkpoints", "rewind", "--user", "bob").ok()
    assert (home / "profiles/bob/workspace/a.txt").read_text() == "one"
    assert deepctl("checkpoints", "verify", "--user", "bob").code == 0
    full = deepctl("profiles", "copy", "bob", "carla", "--json", "--only", "settings")
    assert full.ok().json["parts"] == ["settings"]
