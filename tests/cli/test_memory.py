"""`deepctl memory`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess


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
    assert set(file) == {"name", "path", "bytes", "modified_at", "content"}


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
    assert "Nothing is noted" in empty.stderr
    assert deepctl("memory", "show", "--user", "alice", "--json").ok().json["files"] == []
    for arguments in (("show", "nope"), ("show", "--agent", "nobody"), ("list", "--agent", "nobody")):
        result = deepctl("memory", *arguments, "--user", "alice", "--json")
        assert (result.code, result.error["code"]) == (3, "memory_not_found"), arguments
    for file in ("../secret", "/etc/passwd", ".hidden", "a/b"):
        assert deepctl("memory", "show", file, "--user", "alice").code == 2, file
    assert deepctl("memory", "show", "--agent", "../x", "--user", "alice").code == 2


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "link above"])
def test_what_is_not_a_plain_file_is_refused_and_never_hangs(
    deepctl: InProcess, home: Path, tmp_path: Path, kind: str
) -> None:
    deepctl("chat", "remember tea").ok()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "MEMORY.md").write_text("secret key")
    place = home / "profiles/default/workspace/.deep/memory/main"
    (place / "MEMORY.md").unlink()
    match kind:
        case "link":
            (place / "MEMORY.md").symlink_to(secret / "MEMORY.md")
        case "fifo":
            os.mkfifo(place / "MEMORY.md")
        case "directory":
            (place / "MEMORY.md").mkdir()
        case "link above":
            place.rmdir()
            place.symlink_to(secret)
    shown = deepctl("memory", "show")
    assert (shown.code, shown.stdout) == (6, "")
    assert "MEMORY.md" in shown.stderr
    listed = deepctl("memory", "list", "--json")
    assert "secret" not in listed.stdout.replace(str(home), "")
    assert listed.code in (0, 6)
    assert deepctl("chat", "recall key").ok().stdout.count("secret") == 0
