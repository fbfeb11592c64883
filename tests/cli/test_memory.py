"""`deepctl memory`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess, Result
from tests.support.terminal import Terminal

_PLACE = "profiles/default/workspace/.deep/memory/main"


@pytest.fixture
def notebook(deepctl: InProcess, home: Path) -> Path:
    """The agent's MEMORY.md, in which it has noted tea."""
    deepctl("chat", "remember tea").ok()
    return home / _PLACE / "MEMORY.md"


def test_show_prints_the_exact_bytes(deepctl: InProcess, process: Command, home: Path) -> None:
    deepctl("chat", "remember tea").ok()
    place = home / "profiles/default/workspace/.deep/memory/main"
    (place / "odd.md").write_bytes(b"no newline, not UTF-8: \xff\xfe\r\n\x1b[31m tail")
    done = subprocess.run(
        [*process.argv, "memory", "show", "odd"], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert done.stdout == (place / "odd.md").read_bytes()
    shown = deepctl("memory", "show", "odd.md", "--json").ok()
    assert shown.stdout.isascii()
    (file,) = shown.json["files"]
    assert file["content"].encode("utf-8", "surrogateescape") == done.stdout
    assert (file["name"], file["path"], file["bytes"]) == ("odd.md", ".deep/memory/main/odd.md", len(done.stdout))
    assert set(file) == {"name", "path", "bytes", "modified_at", "content", "source"}


def test_at_a_terminal_every_note_is_a_line_of_its_own(deepctl: InProcess, notebook: Path) -> None:
    deepctl("memory", "add", "first note").ok()
    deepctl("memory", "add", "second note").ok()
    prose = "- *bullet*\n  of two lines\n1. one\n2. two\n> said\nplain\n"
    more = f"{prose}```\n- code\n```py\n- more\nend\n```\nlast &#x1b;[31m\x1b[2J"
    notebook.write_text(notebook.read_text() + more)
    terminal = Terminal("memory", "show")
    assert terminal.wait() == 0
    *lines, last = [line for line in terminal.screen.splitlines() if line]
    assert lines[:5] == ["• tea", "first note", "second note", "• bullet", "  of two lines"]
    assert lines[-6:-4] == ["│ said", "plain"]
    assert lines[-4:] == ["- code", "```py", "- more", "end"]
    assert last.endswith("[31m\\x1b[2J")
    assert b"\x1b[2J" not in terminal.bytes


def test_list_names_every_notebook_and_no_bookkeeping(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "remember tea").ok()
    (home / "profiles/default/workspace/.deep/memory/main/trip.md").write_text("Lisbon")
    listed = deepctl("memory", "list", "--json").ok().json
    assert (listed["profile"], listed["agent"]) == ("default", "main")
    assert [(file["name"], file["bytes"]) for file in listed["files"]] == [("MEMORY.md", 6), ("trip.md", 6)]
    assert deepctl("memory", "list").ok().stdout.splitlines()[1].endswith("\t6")


def test_an_empty_notebook_is_no_error_and_an_unknown_one_is(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    empty = deepctl("memory", "show", "--user", "alice").ok()
    assert empty.stdout == ""
    assert "The memory of profile alice is empty" in empty.stderr
    assert deepctl("memory", "show", "--user", "alice", "--json").ok().json["files"] == []
    for arguments in (("show", "nope"), ("show", "--agent", "nobody"), ("list", "--agent", "nobody")):
        result = deepctl("memory", *arguments, "--user", "alice", "--json")
        assert (result.code, result.error["code"]) == (3, "memory_not_found"), arguments
    for file in ("../secret", "/etc/passwd", ".hidden", "a/b"):
        assert deepctl("memory", "show", file, "--user", "alice").code == 2, file
    assert deepctl("memory", "show", "--agent", "../x", "--user", "alice").code == 2


# Adding


def test_a_note_is_appended_as_it_is_and_nothing_else_changes(deepctl: InProcess, notebook: Path) -> None:
    notebook.write_bytes(b"- tea\r\nno end \xff")
    assert deepctl("memory", "add", "  *by hand*  ").ok().stdout == "Added to MEMORY.md.\n"
    assert notebook.read_bytes() == b"- tea\r\nno end \xff\n  *by hand*  \n"


@pytest.mark.parametrize("arguments", [(), ("-",)])
@pytest.mark.parametrize("piped", [b"note", b"note\n", "two\r\nlines é\n".encode()])
def test_a_note_can_be_piped_in(process: Command, notebook: Path, arguments: tuple[str, ...], piped: bytes) -> None:
    assert process("memory", "add", *arguments, stdin=piped).code == 0
    assert notebook.read_bytes() == b"- tea\n" + piped.removesuffix(b"\n") + b"\n"


@pytest.mark.parametrize("text", ["- a line of a list", "-u alice", "-5 degrees outside", "- --json"])
def test_text_that_begins_with_a_dash_is_text(deepctl: InProcess, notebook: Path, text: str) -> None:
    deepctl("memory", "add", text, "--user", "default").ok()
    assert notebook.read_text() == f"- tea\n{text}\n"
    found = deepctl("memory", "search", "--json", text).ok().json
    assert [match["text"] for match in found["matches"]] == [text]
    deepctl("memory", "forget", text, "--yes").ok()
    deepctl("memory", "add", "--", "--json").ok()
    assert notebook.read_text() == "- tea\n--json\n"
    assert deepctl("memory", "add", "-x").code == 2


@pytest.mark.parametrize("arguments", [("",), (" ",), ("\n",), (), ("-",)])
def test_an_empty_note_is_refused(deepctl: InProcess, notebook: Path, arguments: tuple[str, ...]) -> None:
    assert deepctl("memory", "add", *arguments).code == 2
    assert notebook.read_bytes() == b"- tea\n"


def test_without_a_note_at_a_terminal_nothing_waits_for_one(notebook: Path) -> None:
    terminal = Terminal("memory", "add")
    assert terminal.wait() == 2
    assert "There is no TEXT" in terminal.screen


def test_a_note_makes_its_notebook_and_nothing_else(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "default").ok()
    added = deepctl("memory", "add", "Lisbon", "--file", "trip", "--json").ok().json
    file = added["file"]
    assert (file["name"], file["path"], file["bytes"]) == ("trip.md", ".deep/memory/main/trip.md", 7)
    assert (added["checkpoint"], added["notes"]) == (None, [])
    workspace = home / "profiles/default/workspace"
    assert [path for path in workspace.rglob("*") if path.is_file()] == [home / _PLACE / "trip.md"]
    assert deepctl("sessions", "list", "--json").ok().json["sessions"] == []
    deepctl("memory", "add", "x", "--agent", "other").ok()
    assert (workspace / ".deep/memory/other/MEMORY.md").read_text() == "x\n"


def test_the_agent_finds_what_was_added(deepctl: InProcess, notebook: Path) -> None:
    deepctl("memory", "add", "Alice prefers window seats").ok()
    assert "window seats" in deepctl("chat", "recall window").ok().stdout
    deepctl("chat", "remember aisle").ok()
    assert notebook.read_text() == "- tea\nAlice prefers window seats\n- aisle\n"


def test_a_note_by_hand_survives_a_rewind_of_the_turn_after_it(deepctl: InProcess, notebook: Path) -> None:
    added = deepctl("memory", "add", "by hand", "--json").ok().json
    kept = notebook.read_bytes()
    newest = deepctl("checkpoints", "list", "--json").ok().json["checkpoints"][0]
    assert (newest["id"], newest["kind"]) == (added["checkpoint"], "manual")
    deepctl("chat", "remember coffee").ok()
    deepctl("checkpoints", "rewind", "~1").ok()
    assert notebook.read_bytes() == kept


@pytest.mark.parametrize("arguments", [("caf\udce9",), ("-",), ()])
def test_what_is_no_text_is_not_noted(deepctl: InProcess, notebook: Path, arguments: tuple[str, ...]) -> None:
    refused = deepctl("memory", "add", *arguments, stdin=b"caf\xe9")
    assert refused.code == 2
    assert "is not UTF-8 text" in refused.stderr
    assert notebook.read_bytes() == b"- tea\n"


def test_a_mark_of_byte_order_is_no_part_of_a_note(deepctl: InProcess, notebook: Path) -> None:
    deepctl("memory", "add", stdin="\ufeffnote\n".encode()).ok()
    assert notebook.read_bytes() == b"- tea\nnote\n"


def test_a_notebook_that_is_not_utf8_can_be_used_and_keeps_its_bytes(deepctl: InProcess, notebook: Path) -> None:
    """As an editor, or the agent's shell, may have left it."""
    before = b"- tea\ncaf\xe9 \xff\n- fine \xc3\xa9 \ncaf\xe9 \xff"
    notebook.write_bytes(before)
    recalled = deepctl("chat", "recall caf").ok().stdout
    assert "caf\ufffd \ufffd" in recalled
    deepctl("chat", "remember coffee").ok()
    assert notebook.read_bytes() == before + b"\n- coffee\n"
    assert deepctl("memory", "show").ok().stdout.encode("utf-8", "surrogateescape") == before + b"\n- coffee\n"
    added = deepctl("memory", "add", "milk").ok()
    assert "Line 2 of MEMORY.md is not UTF-8" in added.stderr
    assert notebook.read_bytes() == before + b"\n- coffee\nmilk\n"
    (check,) = [one for one in deepctl("doctor", "--json").json["checks"] if one["name"] == "memory"]
    assert check["status"] == "warning"
    assert check["found"] == ".deep/memory/main/MEMORY.md is not UTF-8 text in lines 2, 4"


@pytest.mark.parametrize("line", ["Die Straße nach İstanbul", "DIE STRASSE NACH ISTANBUL", "Cafe\u0301 in der Straße"])
@pytest.mark.parametrize("query", ["STRASSE", "straße"])
def test_searches_of_notes_and_of_sessions_compare_alike(
    deepctl: InProcess, notebook: Path, line: str, query: str
) -> None:
    notebook.write_text(f"{line}\n")
    deepctl("chat", line).ok()
    queries = [query]
    queries += ["istanbul", "İSTANBUL", "i\u0307stanbul"] if "anbul" in line.casefold() else ["CAF\u00c9", "cafe\u0301"]
    for one in queries:
        (match,) = deepctl("memory", "search", "--json", one).ok().json["matches"]
        found = deepctl("sessions", "search", "--role", "user", "--json", one).ok().json["matches"]
        assert [match["text"]] == [line] == [one["text"] for one in found]
        assert deepctl("memory", "forget", "-i", one, "--dry-run").ok()
    assert deepctl("memory", "search", "--json", "cafe").json["matches"] == []


@pytest.mark.timeout(170)
def test_no_note_of_several_processes_is_lost(process: Command, notebook: Path) -> None:
    """Four writers at once, and a turn of the agent in the middle of it."""
    codes: list[int] = []

    def write(writer: int) -> None:
        for number in range(1, 16):
            codes.append(process("memory", "add", f"writer {writer} note {number}", "--wait", "60").code)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for one in writers:
        one.start()
    said = process("chat", "remember from a turn", "--wait", "60")
    for one in writers:
        one.join(150)
    assert (said.code, "Remembered." in said.stdout) == (0, True)
    assert codes == [0] * 60
    lines = notebook.read_text().splitlines()
    notes = [f"writer {writer} note {number}" for writer in range(4) for number in range(1, 16)]
    assert sorted(lines) == sorted([*notes, "- tea", "- from a turn"])
    for writer in range(4):
        own = [line for line in lines if line.startswith(f"writer {writer} ")]
        assert own == notes[writer * 15 : writer * 15 + 15]


def test_a_note_waits_for_nobody_unless_it_is_told_to(process: Command, notebook: Path, home: Path) -> None:
    import fcntl

    with open(home / "locks/default", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (("add", "x"), ("forget", "tea", "--yes")):
            done = process("memory", *arguments, "--json")
            assert (done.code, done.error["code"]) == (4, "locked")
    assert notebook.read_bytes() == b"- tea\n"


# Searching


@pytest.fixture
def library(deepctl: InProcess, notebook: Path) -> Path:
    notebook.write_bytes(b"# Drinks\r\n- Tea at FOUR\r\nfour cups\n\nsix\nCaf\xc3\xa9 \xff four\n")
    (notebook.parent / "trip.md").write_text("Lisbon, four days, no tea")
    return notebook


def _found(result: Result) -> list[tuple[str, int]]:
    return [(match["file"], match["line"]) for match in result.ok().json["matches"]]


def test_all_words_are_found_in_one_line_in_any_case_and_order(deepctl: InProcess, library: Path) -> None:
    def search(*arguments: str) -> list[tuple[str, int]]:
        return _found(deepctl("memory", "search", *arguments, "--json"))

    assert search("four TEA") == [("MEMORY.md", 2), ("trip.md", 1)]
    assert search("CAFÉ") == [("MEMORY.md", 6)]
    assert search("cups six") == []
    assert search("^.{3}$", "--regex") == [("MEMORY.md", 5)]
    assert search("(?i)tea AT (?-i:FOUR)", "--regex") == [("MEMORY.md", 2)]
    assert search(".*") == []


def test_a_match_comes_with_the_lines_around_it(deepctl: InProcess, library: Path) -> None:
    found = deepctl("memory", "search", "caf", "-C", "2", "--json").ok()
    assert found.stdout.isascii()
    assert {key: found.json[key] for key in ("profile", "agent", "query")} == {
        "profile": "default",
        "agent": "main",
        "query": "caf",
    }
    (match,) = found.json["matches"]
    assert match == {
        "file": "MEMORY.md",
        "line": 6,
        "text": "Caf\xe9 \udcff four",
        "before": ["", "six"],
        "after": [],
    }
    shown = deepctl("memory", "search", "four", "-C1").ok().stdout.splitlines()
    assert shown == [
        "MEMORY.md-1-# Drinks",
        "MEMORY.md:2:- Tea at FOUR",
        "MEMORY.md:3:four cups",
        "MEMORY.md-4-",
        "MEMORY.md-5-six",
        "MEMORY.md:6:Caf\xe9 \\xff four",
        "--",
        "trip.md:1:Lisbon, four days, no tea",
    ]


def test_what_is_not_found_is_no_error_and_what_is_no_query_is(deepctl: InProcess, library: Path) -> None:
    nothing = deepctl("memory", "search", "coffee").ok()
    assert (nothing.stdout, nothing.stderr) == ("", "")
    for arguments in (("",), (" ",), ("(", "--regex"), ("", "--regex"), ("x", "-C", "-1")):
        assert deepctl("memory", "search", *arguments).code == 2, arguments
    terminal = Terminal("memory", "search", "coffee")
    assert terminal.wait() == 0
    assert "No match." in terminal.screen


# Forgetting


def test_forgotten_lines_are_named_and_brought_back_by_the_command_that_is_named(
    deepctl: InProcess, library: Path
) -> None:
    before = library.read_bytes(), (library.parent / "trip.md").read_bytes()
    foreseen = deepctl("memory", "forget", "four", "--dry-run", "--json").ok().json
    removed = [(one["file"], one["line"]) for one in foreseen["removed"]]
    assert removed == [("MEMORY.md", 3), ("MEMORY.md", 6), ("trip.md", 1)]
    assert (foreseen["dry_run"], foreseen["checkpoint"], foreseen["undo"]) == (True, None, None)
    assert library.read_bytes() == before[0]
    done = deepctl("memory", "forget", "four", "--yes", "--json").ok().json
    assert done["removed"] == foreseen["removed"]
    assert library.read_bytes() == b"# Drinks\r\n- Tea at FOUR\r\n\nsix\n"
    assert (library.parent / "trip.md").read_bytes() == b""
    newest = [one["id"] for one in deepctl("checkpoints", "list", "--json").ok().json["checkpoints"]]
    assert newest[:2] == [done["after"], done["checkpoint"]]
    deepctl("chat", "--new", "other", "remember water").ok()
    program, *command = done["undo"].split(" ")
    assert program == "deepctl"
    deepctl(*command).ok()
    assert (library.read_bytes(), (library.parent / "trip.md").read_bytes()) == before


def test_one_notebook_can_be_meant_and_any_case(deepctl: InProcess, library: Path) -> None:
    said = deepctl("memory", "forget", "FOUR", "--file", "trip", "--ignore-case", "--yes").ok()
    assert said.stdout == "trip.md:1: Lisbon, four days, no tea\nForgot 1 line in 1 notebook.\n"
    assert "checkpoints rewind" in said.stderr
    assert b"FOUR" in library.read_bytes()


def test_a_text_that_is_nowhere_is_not_found(deepctl: InProcess, library: Path) -> None:
    missing = deepctl("memory", "forget", "LISBON", "--yes", "--json")
    assert (missing.code, missing.error["code"]) == (3, "memory_text_not_found")
    assert "--ignore-case" in missing.error["hint"]
    assert "--ignore-case" not in deepctl("memory", "forget", "Rome", "--yes").stderr
    nowhere = deepctl("memory", "forget", "four", "--file", "nope", "--yes", "--json")
    assert (nowhere.code, nowhere.error["code"]) == (3, "memory_not_found")
    for text in ("", " ", "a\nb"):
        assert deepctl("memory", "forget", text, "--yes").code == 2, text
    assert deepctl("checkpoints", "list", "--json").ok().json["checkpoints"][0]["kind"] == "turn"


def test_nothing_is_forgotten_without_a_yes(deepctl: InProcess, library: Path) -> None:
    before = library.read_bytes()
    for extra in ((), ("--json",)):
        asked = deepctl("memory", "forget", "six", *extra)
        assert asked.code == 6
    terminal = Terminal("memory", "forget", "six")
    terminal.expect("[y/N]")
    assert "MEMORY.md:5: six" in terminal.screen
    terminal.type("n\r")
    assert terminal.wait() == 6
    terminal = Terminal("memory", "forget", "six")
    terminal.expect("[y/N]")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert library.read_bytes() == before


def test_the_lock_is_not_held_while_the_question_is_open(deepctl: InProcess, library: Path) -> None:
    terminal = Terminal("memory", "forget", "six")
    terminal.expect("[y/N]")
    deepctl("memory", "add", "seven").ok()
    terminal.type("y\r")
    assert terminal.wait() == 0
    assert terminal.screen.count("MEMORY.md:5: six") == 1
    assert library.read_bytes().endswith(b"FOUR\r\nfour cups\n\nCaf\xc3\xa9 \xff four\nseven\n")
    terminal = Terminal("memory", "forget", "seven")
    terminal.expect("[y/N]")
    deepctl("memory", "add", "seven too").ok()
    terminal.type("y\r")
    assert terminal.wait() == 6
    assert library.read_bytes().endswith(b"seven\nseven too\n")


# What an agent can leave in the way


def _link(place: Path, outside: Path) -> None:
    place.symlink_to(outside / "MEMORY.md")


def _fifo(place: Path, outside: Path) -> None:
    os.mkfifo(place)


def _directory(place: Path, outside: Path) -> None:
    place.mkdir()


def _file(place: Path, outside: Path) -> None:
    place.write_text("in the way\n")


def _link_to_directory(place: Path, outside: Path) -> None:
    place.symlink_to(outside)


COMMANDS = (
    ("show",),
    ("list",),
    ("add", "x"),
    ("edit",),
    ("search", "x"),
    ("forget", "tea", "--yes"),
    ("forget", "tea", "--dry-run"),
    ("history",),
    ("diff",),
)


@pytest.mark.timeout(30, method="signal")
@pytest.mark.parametrize(
    ("place", "plant"),
    [
        ("main/MEMORY.md", _link),
        ("main/MEMORY.md", _fifo),
        ("main/MEMORY.md", _directory),
        ("main", _link_to_directory),
        ("main", _fifo),
        ("main", _file),
        (".", _link_to_directory),
        (".", _fifo),
        (".", _file),
    ],
)
def test_what_is_in_the_way_of_memory_is_refused_by_every_command(
    deepctl: InProcess,
    notebook: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    plant: Callable[[Path, Path], None],
) -> None:
    monkeypatch.setenv("EDITOR", "true")
    outside = tmp_path / "outside"
    (outside / "main").mkdir(parents=True)
    for path in (outside / "MEMORY.md", outside / "main/MEMORY.md"):
        path.write_text("tea secret key\n")
    notebook.unlink()
    where = notebook.parent.parent / place
    if place != "main/MEMORY.md":
        notebook.parent.rmdir()
    if place == ".":
        for left in where.iterdir():
            left.unlink()
        where.rmdir()
    plant(where, outside)
    for command in COMMANDS:
        done = deepctl("memory", *command, "--json")
        assert (done.code, done.error["code"]) == (6, "memory_refused"), (command, done)
        assert ".deep/memory" in done.error["message"]
        assert "secret" not in done.stdout + done.stderr
    assert (outside / "MEMORY.md").read_text() == "tea secret key\n"
    assert deepctl("chat", "recall key").ok().stdout.count("secret") == 0


def test_another_notebook_that_is_none_is_refused_rather_than_left_out(deepctl: InProcess, notebook: Path) -> None:
    (notebook.parent / "trip.md").symlink_to("/etc/passwd")
    for command in (("list",), ("search", "tea"), ("forget", "tea", "--yes")):
        done = deepctl("memory", *command, "--json")
        assert (done.code, done.error["code"]) == (6, "memory_refused"), command
        assert "trip.md" in done.error["message"]
    deepctl("memory", "show").ok()
    deepctl("memory", "forget", "tea", "--file", "MEMORY.md", "--yes").ok()


@pytest.mark.parametrize(
    "command", [("add", "x"), ("edit",), ("search", "x"), ("forget", "x", "--yes"), ("history",), ("diff",), ("list",)]
)
def test_bad_names_are_refused_and_unknown_profiles_make_nothing(
    deepctl: InProcess, home: Path, command: tuple[str, ...]
) -> None:
    missing = deepctl("memory", *command, "--user", "nobody", "--json")
    assert (missing.code, missing.error["code"]) == (3, "profile_not_found")
    assert not (home / "profiles").exists()
    deepctl("profiles", "create", "alice").ok()
    for agent in ("../x", "", "a/b", "con"):
        assert deepctl("memory", *command, "--agent", agent, "--user", "alice").code == 2, agent
    if command[0] in ("add", "forget"):
        for file in ("../secret", "/etc/passwd", ".hidden", "a/b", "", "x" * 300):
            assert deepctl("memory", *command, "--file", file, "--user", "alice").code == 2, file
    if command[0] in ("edit", "history"):
        for file in ("../secret", "/etc/passwd", ".hidden", "a/b", "", "x" * 300):
            assert deepctl("memory", *command, file, "--user", "alice").code == 2, file
    assert os.listdir(home / "profiles/alice/workspace") == []


_EVIL = "\x1b]0;owned\x07\x1b[2J\u202eevil"


def test_names_and_lines_are_neutralised(deepctl: InProcess, notebook: Path) -> None:
    notebook.write_text(f"tea {_EVIL}\n")
    (notebook.parent / f"{_EVIL}.md").write_text(f"tea {_EVIL}\n")
    for command in (
        ("search", "tea", "-C1"),
        ("forget", "tea", "--dry-run"),
        ("list",),
        ("history", _EVIL),
        ("diff",),
        ("forget", "tea", "--yes"),
    ):
        terminal = Terminal("memory", *command)
        assert terminal.wait() == 0
        for bad in (b"\x1b]0;", b"\x07", b"\x1b[2J", "\u202e".encode()):
            assert bad not in terminal.bytes, (command, terminal.bytes)


READERS = (("search", "tea"), ("forget", "tea", "--dry-run"), ("history",), ("diff",), ("show", "--at", "~1"))


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_what_only_reads_loads_nothing_heavy_and_works_beside_a_writer(
    deepctl: InProcess, home: Path, notebook: Path, command: tuple[str, ...]
) -> None:
    import fcntl

    from tests.test_start import HEAVY

    deepctl("chat", "remember coffee").ok()
    deepctl("memory", "add", "water").ok()
    notebook.write_bytes(notebook.read_bytes() + b"unsaved tea\n")
    program = (
        "import sys\nfrom deepctl.cli.main import main\ncode = main(sys.argv[1:])\n"
        f"print('loaded:', *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)\nsys.exit(code)"
    )
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with open(home / "locks/default", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", program, "memory", *command], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stderr.splitlines()[-1] == "loaded:"
    assert done.stdout
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


@pytest.mark.parametrize("ephemeral", [False, True])
def test_the_agent_finds_what_memory_search_finds(deepctl: InProcess, ephemeral: bool) -> None:
    line = "Die Straße in İstanbul; naïve"
    queries = ["STRASSE", "strasse istanbul", "İSTANBUL", "nai\u0308ve", "NAÏVE", "na\u00efve"]
    prompt = "\n".join((f"remember {line}", *(f"recall {query}" for query in [*queries, "MEMORY.MD", "Strabe"])))
    said = deepctl("chat", *(["--ephemeral"] if ephemeral else []), prompt).ok().stdout
    assert said.count(line) == len(queries) + 1
    if not ephemeral:
        assert all(deepctl("memory", "search", query, "--json").ok().json["matches"] for query in queries)


def test_the_agent_is_shown_what_it_searches_for_of_a_long_notebook(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "default").ok()
    deepctl("memory", "add", stdin=("é" * 30_000 + " Straße " + "é" * 30_000).encode()).ok()
    events = deepctl("chat", "--json", "recall STRASSE").ok().events
    (found,) = [event["content"] for event in events if event["type"] == "tool_result"]
    assert "Straße" in found
    assert len(found) < 10_000
    assert deepctl("chat", "recall nothing").ok().stdout.count("Straße") == 0
