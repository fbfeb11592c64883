"""`deepctl profiles rename`, `export`, `import` and `show`, as a person and as a script use them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl import layout
from deepctl.domain import sandbox_settings, settings
from deepctl.errors import Refused
from deepctl.sandbox import container
from deepctl.sandbox.policy import Unavailable
from tests.domain.test_hostile_archives import START, file, forged
from tests.domain.test_transfer import tree
from tests.support.command import Command, InProcess
from tests.support.terminal import Terminal


@pytest.fixture
def alice(deepctl: InProcess, home: Path) -> Path:
    """Alice's profile, after two turns."""
    deepctl("chat", "-u", "alice", "remember tea\nwrite a.txt: one\nplan Trip: pack; go").ok()
    deepctl("chat", "-u", "alice", "write a.txt: two").ok()
    return home / "profiles" / "alice"


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_a_profile_moves_to_another_machine_and_goes_on_there(
    deepctl: InProcess, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "alice.tgz"
    done = deepctl("profiles", "export", str(archive), "-u", "alice", "--json").ok().json
    assert done["left_out"] == []
    assert (done["profile"], done["file"], done["path"]) == ("alice", str(archive), str(archive))
    assert archive.stat().st_mode & 0o777 == 0o600
    before = tree(alice)
    sessions = deepctl("sessions", "show", "-u", "alice", "--json").ok().json["messages"]
    checkpoints = deepctl("checkpoints", "list", "--all", "-u", "alice", "--json").ok().json["checkpoints"]

    monkeypatch.setenv("DEEPCTL_HOME", str(tmp_path / "elsewhere"))
    imported = deepctl("profiles", "import", str(archive), "--as", "bob", "--json").ok().json
    bob = tmp_path / "elsewhere" / "profiles" / "bob"
    assert (imported["profile"], imported["from"], imported["path"]) == ("bob", "alice", str(bob))
    assert (imported["notes"], imported["files"], imported["bytes"]) == ([], done["files"], done["bytes"])
    assert tree(bob) == before
    assert deepctl("sessions", "show", "-u", "bob", "--json").ok().json["messages"] == sessions
    assert deepctl("checkpoints", "list", "--all", "-u", "bob", "--json").ok().json["checkpoints"] == checkpoints
    deepctl("checkpoints", "verify", "-u", "bob").ok()
    deepctl("checkpoints", "rewind", "~1", "-u", "bob").ok()
    assert (bob / "workspace" / "a.txt").read_text() == "one"
    deepctl("checkpoints", "undo", "-u", "bob").ok()
    assert (bob / "workspace" / "a.txt").read_text() == "two"
    deepctl("chat", "-u", "bob", "write a.txt: three").ok()
    (session,) = deepctl("sessions", "list", "-u", "bob", "--json").ok().json["sessions"]
    assert (session["name"], session["turns"]) == ("main", 3)
    assert "tea" in deepctl("memory", "show", "-u", "bob").ok().stdout
    deepctl("checkpoints", "verify", "-u", "bob").ok()


def test_an_archive_goes_through_a_pipe(deepctl: InProcess, process: Command, alice: Path, tmp_path: Path) -> None:
    exporting = process.start("profiles", "export", "-", "-u", "alice")
    assert exporting.stdout is not None
    importing = process.start("profiles", "import", "-", "--as", "bob", stdin=exporting.stdout)
    out, err = importing.communicate(timeout=30)
    assert (importing.returncode, err) == (0, b"")
    assert out.startswith(b"Imported bob, which was alice: ")
    assert exporting.wait(30) == 0
    assert tree(alice.parent / "bob") == tree(alice)


def test_a_pipe_that_breaks_is_no_success(process: Command, alice: Path) -> None:
    with open(alice / "workspace" / "large", "wb") as large:
        large.write(os.urandom(4 << 20))
    running = process.start("profiles", "export", "-", "-u", "alice")
    assert running.stdout is not None
    running.stdout.read(10)
    running.stdout.close()
    assert running.wait(30) == 8
    assert running.stderr is not None
    assert b"ended before the archive was complete" in running.stderr.read()


def test_where_an_archive_cannot_go_nothing_is_done(
    deepctl: InProcess, alice: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.tgz"
    there.write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("there.tgz")
    for name, code, word in (
        (str(there), 6, "file_exists"),
        (str(tmp_path / "link"), 6, "file_exists"),
        (str(tmp_path / "fifo"), 6, "file_exists"),
        (str(tmp_path), 2, "usage"),
        (str(tmp_path / "no" / "such"), 2, "usage"),
        (str(alice / "workspace" / "x.tgz"), 6, "inside_root"),
        (str(home / "x.tgz"), 6, "inside_root"),
        ("-", 2, "usage"),
    ):
        result = deepctl("profiles", "export", name, "-u", "alice", "--json")
        assert (result.code, result.error["code"], result.stdout) == (code, word, ""), name
    assert deepctl("profiles", "export", str(tmp_path / "fifo"), "-u", "alice", "--force").code == 6
    assert there.read_text() == "mine"
    deepctl("profiles", "export", str(there), "-u", "alice", "--force").ok()
    assert there.read_bytes()[:2] == b"\x1f\x8b"
    monkeypatch.chdir(tmp_path)
    relative = deepctl("profiles", "export", "there.tgz", "-u", "alice", "--force", "--json").ok().json
    assert (relative["file"], relative["path"]) == ("there.tgz", str(there))
    missing = deepctl("profiles", "export", str(tmp_path / "x.tgz"), "-u", "nobody", "--json")
    assert (missing.code, missing.error["code"]) == (3, "profile_not_found")
    assert sorted(path.name for path in tmp_path.iterdir() if "tgz" in path.name) == ["there.tgz"]


def test_what_is_left_out_is_said(deepctl: InProcess, alice: Path, tmp_path: Path) -> None:
    os.mkfifo(alice / "workspace" / "fi\nfo")
    for number in range(30):
        (alice / "workspace" / f"link-{number:02}").symlink_to("/etc/passwd")
    shown = deepctl("profiles", "export", str(tmp_path / "a.tgz"), "-u", "alice").ok()
    lines = shown.stderr.splitlines()
    assert lines[0] == "Left out: workspace/fi\\x0afo (a FIFO)"
    assert len(lines) == 21
    assert lines[-1] == "Also left out: 11 more; --json lists all."
    document = deepctl("profiles", "export", str(tmp_path / "b.tgz"), "-u", "alice", "--json").ok()
    assert len(document.json["left_out"]) == 31
    assert document.json["left_out"][0] == {"path": "workspace/fi\nfo", "reason": "a FIFO"}
    assert document.stderr == ""


def test_an_export_takes_no_lock_and_writes_nothing_in_the_root(
    deepctl: InProcess, process: Command, alice: Path, tmp_path: Path
) -> None:
    from deepctl.domain import profiles
    from deepctl.layout import Root

    before = tree(alice.parent.parent)
    root = Root(str(alice.parent.parent))
    with profiles.lock(root, "alice", command="chat"):
        deepctl("profiles", "export", str(tmp_path / "a.tgz"), "-u", "alice").ok()
        deepctl("profiles", "import", str(tmp_path / "a.tgz"), "--as", "bob").ok()
        taken = deepctl("profiles", "rename", "alice", "carol", "--json")
        assert (taken.code, taken.error["code"]) == (4, "locked")
    after = tree(alice.parent.parent)
    assert {path: value for path, value in after.items() if b"bob" not in path} == before


@pytest.mark.parametrize("name", [None, "bob"])
def test_a_name_that_is_taken_is_refused_with_what_to_do(
    deepctl: InProcess, alice: Path, tmp_path: Path, name: str | None
) -> None:
    deepctl("profiles", "export", str(tmp_path / "a.tgz"), "-u", "alice").ok()
    deepctl("profiles", "create", "BOB").ok()
    before = tree(alice.parent)
    options = ("--as", name) if name else ()
    refused = deepctl("profiles", "import", str(tmp_path / "a.tgz"), *options, "--json")
    assert (refused.code, refused.error["code"]) == (6, "profile_exists")
    assert "--as NAME" in refused.error["hint"]
    assert tree(alice.parent) == before


def test_what_is_no_archive_is_told_from_what_is_damaged_and_hostile(
    deepctl: InProcess, home: Path, tmp_path: Path
) -> None:
    good = forged(START)
    cases = {
        "no": (b"nothing of the kind", 2, "bad_archive"),
        "cut": (good[:-20], 5, "damaged"),
        "hostile": (forged([*START, file("workspace/../../../evil")]), 6, "hostile_archive"),
    }
    for name, (data, code, word) in cases.items():
        (tmp_path / name).write_bytes(data)
        result = deepctl("profiles", "import", str(tmp_path / name), "--json")
        assert (result.code, result.error["code"], result.stdout) == (code, word, ""), name
        assert str(tmp_path / name) in result.error["message"]
        piped = deepctl("profiles", "import", "-", stdin=data)
        assert piped.code == code
        assert piped.stderr.startswith("Error: What stdin has is")
        assert len(piped.stderr.splitlines()) == 2
    assert deepctl("profiles", "list", "--json").ok().json["profiles"] == []
    assert [path for path in home.rglob("*") if path.name.startswith(".")] == []
    for missing, code in ((tmp_path / "none", 3), (tmp_path, 2)):
        assert deepctl("profiles", "import", str(missing)).code == code


def test_limits_are_raised_by_options(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(forged([*START, file("workspace/a", bytes(3 << 20))]))
    command = ("profiles", "import", str(tmp_path / "a.tgz"), "--json")
    for options in (("--max-size", "2M"), ("--max-files", "5")):
        refused = deepctl(*command, *options)
        assert (refused.code, refused.error["code"]) == (6, "archive_too_large")
    for size in ("-1", "1T", "x", ""):
        assert deepctl(*command, "--max-size", size).code == 2
    deepctl(*command, "--max-size", "4M", "--max-files", "7").ok()


def test_notes_on_what_an_import_brings_are_on_stderr_and_in_json(deepctl: InProcess, tmp_path: Path) -> None:
    settings = b'version = 1\nsandbox = "none"\nbase_url = "%s"\n' % b"http://evil.example/\\u001b[31m"
    (tmp_path / "a.tgz").write_bytes(forged([file("profile.toml", settings), *START[1:]]))
    shown = deepctl("profiles", "import", str(tmp_path / "a.tgz")).ok()
    assert "sandbox = none" in shown.stderr
    assert "http://evil.example/\\x1b[31m" in shown.stderr
    assert "\x1b" not in shown.stderr
    document = deepctl("profiles", "import", str(tmp_path / "a.tgz"), "--as", "b", "--json").ok()
    assert len(document.json["notes"]) == 2
    assert document.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)])
def test_an_import_that_is_ended_in_the_middle_leaves_no_profile_and_no_lock(
    deepctl: InProcess, process: Command, alice: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (alice / "workspace" / "large").write_bytes(os.urandom(1 << 20))
    archive = tmp_path / "a.tgz"
    deepctl("profiles", "export", str(archive), "-u", "alice").ok()
    data = archive.read_bytes()
    before = tree(alice.parent.parent)
    running = process.start("profiles", "import", "-", "--as", "bob", stdin=subprocess.PIPE)
    assert running.stdin is not None
    running.stdin.write(data[: len(data) // 2])
    running.stdin.flush()
    until(lambda: list(alice.parent.glob(".import-*/workspace")), "the import has begun")
    assert deepctl("profiles", "show", "bob").code == 3
    running.send_signal(number)
    assert running.wait(30) == code
    if number == signal.SIGINT:
        assert tree(alice.parent.parent) == before
        assert running.stderr is not None
        assert b"Traceback" not in running.stderr.read()
    assert deepctl("profiles", "show", "bob").code == 3
    assert [one["name"] for one in deepctl("profiles", "list", "--json").ok().json["profiles"]] == ["alice"]
    deepctl("profiles", "import", str(archive), "--as", "bob").ok()
    assert list(alice.parent.glob(".import-*")) == []
    assert tree(alice.parent / "bob") == tree(alice)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_export_that_is_ended_in_the_middle_leaves_no_archive(
    deepctl: InProcess, process: Command, alice: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with open(alice / "workspace" / "giant", "wb") as giant:
        giant.truncate(60 << 30)
    archive = tmp_path / "a.tgz"
    running = process.start("profiles", "export", str(archive), "-u", "alice")
    until(lambda: any(path.stat().st_size > 100_000 for path in tmp_path.glob(".a.tgz.*")), "the export has begun")
    running.send_signal(number)
    assert running.wait(30) == code
    assert not archive.exists()
    os.unlink(alice / "workspace" / "giant")
    deepctl("profiles", "export", str(archive), "-u", "alice").ok()
    assert [path.name for path in tmp_path.glob("*a.tgz*")] == ["a.tgz"]


def test_a_person_sees_how_far_it_is_and_no_archive_on_the_screen(alice: Path, tmp_path: Path) -> None:
    refused = Terminal("profiles", "export", "-", "-u", "alice")
    assert refused.wait() == 2
    assert "stdout is a terminal" in refused.screen
    with open(alice / "workspace" / "giant", "wb") as giant:
        giant.truncate(60 << 30)
    watched = Terminal("profiles", "export", str(tmp_path / "a.tgz"), "-u", "alice")
    watched.expect("of 60.0 GiB")
    watched.type("\x03")
    assert watched.wait() == 130
    assert "Traceback" not in watched.screen
    assert list(tmp_path.glob("*a.tgz*")) == []
    asked = Terminal("profiles", "import", "-")
    assert asked.wait() == 2


def test_rename_keeps_everything_under_another_name(deepctl: InProcess, alice: Path, home: Path) -> None:
    before = tree(alice)
    listed = deepctl("checkpoints", "list", "-u", "alice", "--json").ok().json["checkpoints"]
    done = deepctl("profiles", "rename", "alice", "alicia", "--json").ok().json
    alicia = home / "profiles" / "alicia"
    assert done == {
        "version": 1,
        "profile": "alicia",
        "path": str(alicia),
        "from": "alice",
        "container": None,
        "notes": [],
        "directories": [],
    }
    assert tree(alicia) == before
    assert deepctl("profiles", "show", "alice").code == 3
    assert deepctl("checkpoints", "list", "-u", "alicia", "--json").ok().json["checkpoints"] == listed
    deepctl("checkpoints", "verify", "-u", "alicia").ok()
    deepctl("checkpoints", "rewind", "~1", "-u", "alicia").ok()
    deepctl("checkpoints", "undo", "-u", "alicia").ok()
    assert (alicia / "workspace" / "a.txt").read_text() == "two"
    deepctl("chat", "-u", "alicia", "write a.txt: three").ok()
    assert [one["name"] for one in deepctl("profiles", "list", "--json").ok().json["profiles"]] == ["alicia"]
    assert deepctl("profiles", "rename", "alicia", "alice").ok().stdout == "Renamed alicia to alice.\n"


def test_a_change_of_case_alone_is_a_rename_and_nothing_else_of_that_name_is_replaced(
    deepctl: InProcess, alice: Path
) -> None:
    deepctl("profiles", "rename", "ALICE", "Alice").ok()
    assert [path.name for path in alice.parent.iterdir()] == ["Alice"]
    deepctl("profiles", "create", "bob").ok()
    before = tree(alice.parent)
    for old, new, code, word in (
        ("alice", "bob", 6, "profile_exists"),
        ("alice", "BOB", 6, "profile_exists"),
        ("alice", "Alice", 6, "profile_exists"),
        ("nobody", "x", 3, "profile_not_found"),
        ("alice", "../x", 2, "bad_name"),
        ("..", "x", 2, "bad_name"),
    ):
        result = deepctl("profiles", "rename", "--json", "--", old, new)
        assert (result.code, result.error["code"]) == (code, word), (old, new)
    assert tree(alice.parent) == before


def test_renames_across_each_other_never_wait_for_each_other(process: Command, deepctl: InProcess, home: Path) -> None:
    """Two processes swap what two profiles are called, over and over."""
    for name in ("a", "b"):
        deepctl("profiles", "create", name).ok()
    results: list[int] = []

    def swap(first: str, second: str) -> None:
        for _ in range(4):
            results.append(process("profiles", "rename", first, second, "--wait", "20").code)

    both = [threading.Thread(target=swap, args=names) for names in (("a", "b"), ("b", "a"))]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
        assert not one.is_alive()
    assert set(results) == {6}
    assert sorted(path.name for path in (home / "profiles").iterdir()) == ["a", "b"]


def test_what_still_means_the_old_name_is_said(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "default_user", "Alice").ok()
    monkeypatch.setenv("DEEPCTL_USER", "alice")
    shown = deepctl("profiles", "rename", "alice", "alicia").ok()
    assert shown.stderr.splitlines() == [
        "$DEEPCTL_USER is still alice.",
        "default_user in config.toml is still alice; `deepctl config set default_user alicia` changes that.",
    ]
    assert deepctl("config", "get", "default_user").ok().stdout in ("Alice\n", "alice\n")
    assert deepctl("profiles", "rename", "alicia", "alice", "--json").ok().json["notes"] == []


class _Docker:
    """A daemon that says what it is told to, and remembers what it was asked."""

    def __init__(self, answer: bool | Unavailable) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        if isinstance(self.answer, Unavailable):
            raise self.answer
        return [name] if self.answer else []


GONE = Unavailable("No Docker daemon answers", "Start it.")


@pytest.mark.parametrize(
    ("setting", "host", "socket", "answer", "asked", "outcome"),
    [
        ("auto", False, False, True, False, None),
        ("auto", True, False, True, True, "removed"),
        ("auto", False, True, True, True, "removed"),
        ("auto", False, True, False, True, None),
        ("auto", True, True, GONE, True, None),
        ("docker", False, False, True, True, "removed"),
        ("docker", False, False, False, True, None),
        ("docker", False, False, GONE, True, "refused"),
    ],
)
def test_a_container_goes_where_there_may_be_one(
    deepctl: InProcess,
    alice: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setting: str,
    host: bool,
    socket: bool,
    answer: bool | Unavailable,
    asked: bool,
    outcome: str | None,
) -> None:
    deepctl("config", "set", "sandbox", setting, "-u", "alice").ok()
    if socket:
        (tmp_path / "docker.sock").touch()
    docker = _Docker(answer)
    monkeypatch.setattr(container, "remove_all", docker)
    monkeypatch.setattr(sandbox_settings, "_SOCKET", str(tmp_path / "docker.sock"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    environment = {**os.environ, **({"DOCKER_HOST": "unix:///x"} if host else {})}
    paths = layout.root(os.environ).profile("alice")
    if outcome == "refused":
        with pytest.raises(Refused) as raised:
            sandbox_settings.remove_container_if_any(environment, settings.load(environment, paths), paths)
        assert (raised.value.code, raised.value.hint) == ("sandbox_unavailable", "Start it.")
        refused = deepctl("profiles", "rename", "alice", "alicia", "--json")
        assert (refused.code, refused.error["code"]) == (6, "sandbox_unavailable")
        assert alice.is_dir()
        return
    name = container.container_name(str(alice))
    assert sandbox_settings.remove_container_if_any(environment, settings.load(environment, paths), paths) == (
        name if outcome else None
    )
    assert docker.asked == ([name] if asked else [])


def test_a_profile_whose_settings_are_damaged_can_be_renamed(deepctl: InProcess, alice: Path) -> None:
    (alice / "profile.toml").write_text("not = = toml")
    deepctl("profiles", "rename", "alice", "alicia").ok()


def test_show_tells_bytes_and_files_of_every_part(deepctl: InProcess, alice: Path) -> None:
    evicted = alice / "workspace" / "large_tool_results"
    evicted.mkdir()
    (evicted / "x").write_bytes(bytes(1000))
    (alice / "prompt_history").write_text("12345")
    outside = alice.parent.parent / "outside"
    outside.write_bytes(bytes(10_000_000))
    (alice / "workspace" / "link").symlink_to(outside)
    (alice / "workspace" / "up").symlink_to("..")
    os.mkfifo(alice / "workspace" / "fifo")
    (shown,) = deepctl("profiles", "show", "alice", "--json").ok().json["profiles"]
    size, files = shown["bytes"], shown["files"]

    def below(*parts: str) -> tuple[int, int]:
        found = [path for path in alice.joinpath(*parts).rglob("*") if path.is_file() and not path.is_symlink()]
        if parts:  # only the total has the reserve
            found = [path for path in found if path != alice / layout.RESERVE]
        return sum(path.stat().st_size for path in found), len(found)

    for key, parts in (
        ("workspace", ("workspace",)),
        ("sessions", ("sessions",)),
        ("checkpoints", ("checkpoints",)),
        ("cache", ("cache",)),
        ("memory", ("workspace", ".deep", "memory")),
        ("plans", ("workspace", "plans")),
        ("evicted", ("workspace", "large_tool_results")),
        ("total", ()),
    ):
        assert (size[key], files[key]) == below(*parts), key
    assert (size["evicted"], files["evicted"]) == (1000, 1)
    assert (size["prompt_history"], files["prompt_history"]) == (5, 1)
    assert list(size) == list(files)
    text = deepctl("profiles", "show", "alice").ok().stdout
    assert "  evicted:    1000 B in 1 file\n" in text


def test_show_counts_a_directory_with_very_many_directories(deepctl: InProcess, alice: Path) -> None:
    import resource

    for number in range(300):
        (alice / "workspace" / f"d{number}").mkdir()
        (alice / "workspace" / f"d{number}" / "f").touch()
    before = deepctl("profiles", "show", "alice", "--json").ok().json["profiles"][0]["files"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Other tests of this process may have left stores open.
    open_before = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_before + 80, hard))
    try:
        after = deepctl("profiles", "show", "alice", "--json").ok().json["profiles"][0]["files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert before == after
    assert after["workspace"] >= 300


def test_an_archive_does_not_hold_what_the_environment_has(
    deepctl: InProcess, alice: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gzip

    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    deepctl("chat", "-u", "alice", "hello").ok()
    deepctl("profiles", "export", str(tmp_path / "a.tgz"), "-u", "alice").ok()
    inner = gzip.decompress((tmp_path / "a.tgz").read_bytes())
    assert b"canary" not in inner
    assert str(alice).encode() not in inner, "nor where it lay"
    assert b'"profile":"alice"' in inner
