"""Errors of commands that move, search and remove sessions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from deepctl.store import session_export
from deepctl.store.log_file import Message
from deepctl.store.session_export import ExportDocument
from tests.errors.situation import Situation, case
from tests.support.command import Result

_IMAGE = "http://127.0.0.1/secret"

ALICE = ("--user", "alice")
AT = "2026-01-01T00:00:00Z"


def sessions(*words: str) -> list[str]:
    """A command on alice's sessions."""
    return ["sessions", *words, *ALICE]


@case("sessions rename", "the session does not exist")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("rename", "other", "new")


@case("sessions rename", "a session with this name already exists")
def _(s: Situation) -> list[str]:
    scene = s.story()
    scene.session("other")
    return sessions("rename", "main", "Other")


@case("sessions rename", "the new name is invalid")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("rename", "main", "a/b")


@case("sessions compact", "the session does not exist")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("compact", "other")


@case("sessions compact", "there is nothing to summarise")
def _(s: Situation) -> list[str]:
    s.story()
    s.run(*sessions("compact", "main"))
    s.run(*sessions("compact", "main"))
    return sessions("compact", "main")


@case("sessions delete", "the session does not exist")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("delete", "other", "--yes")


@case("sessions delete", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("delete", "main")


@case("sessions delete", "the answer is no", only="text")
def _(s: Situation) -> Result:
    return _answered(s, "n")


@case("sessions delete", "the session changes before the confirmation", only="text")
def _(s: Situation) -> Result:
    return _answered(s, "y", changed=True)


def _answered(s: Situation, answer: str, *, changed: bool = False) -> Result:
    scene = s.story()
    terminal = s.terminal(*sessions("delete", "main"))
    terminal.expect("[y/N]")
    if changed:
        scene.agent("b.txt", "new\n")
    terminal.type(f"{answer}\r")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("sessions delete", "the checkpoints of the session cannot be determined")
def _(s: Situation) -> list[str]:
    scene = s.story()
    for before, name in (("main", "other"), ("other", "third")):
        assert s.run("checkpoints", "fork", "~0", name, "--session", before, *ALICE).code == 0
        scene.agent("b.txt", f"{name}\n", session=name)
    third = s.profile / "sessions" / "third"
    (third / f"{scene.session('third').log}.jsonl").unlink()
    (third / "session.json").write_text("rubbish")
    for name in ("main", "other"):
        shutil.rmtree(s.profile / "sessions" / name)
    return sessions("delete", "third", "--yes")


@case("sessions search", "QUERY is empty")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("search", " ")


@case("sessions search", "QUERY is empty and `--regex` given")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("search", "", "--regex")


@case("sessions search", "QUERY is not a valid regular expression")
def _(s: Situation) -> list[str]:
    s.story()
    return sessions("search", "(", "--regex")


def _export(s: Situation, path: Path | str, *more: str) -> list[str]:
    s.story()
    return sessions("export", "main", "--output", str(path), *more)


@case("sessions export", "FILE already exists")
def _(s: Situation) -> list[str]:
    (s.place / "there").write_text("")
    return _export(s, s.place / "there")


@case("sessions export", "FILE is a directory")
def _(s: Situation) -> list[str]:
    return _export(s, s.place)


@case("sessions export", "the directory of FILE does not exist")
def _(s: Situation) -> list[str]:
    return _export(s, s.place / "nowhere" / "file")


@case("sessions export", "the directory of FILE is not a directory")
def _(s: Situation) -> list[str]:
    (s.place / "there").write_text("")
    return _export(s, s.place / "there" / "file")


@case("sessions export", "FILE is not a regular file")
def _(s: Situation) -> list[str]:
    (s.place / "there").write_text("")
    (s.place / "link").symlink_to("there")
    return _export(s, s.place / "link", "--force")


@case("sessions export", "FILE would be inside deepctl's own state")
def _(s: Situation) -> list[str]:
    return _export(s, s.home / "profiles" / "alice" / "workspace" / "main.json")


def _import(s: Situation, content: str | bytes, *more: str) -> list[str]:
    s.story()
    file = s.place / "session.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return sessions("import", str(file), *more)


def _document(*messages: dict[str, Any], name: str = "imported") -> str:
    return session_export.as_json(ExportDocument(name, AT, [Message(1, AT, message) for message in messages]))


def _prompt(content: Any) -> dict[str, Any]:
    return {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": content}]}


@case("sessions import", "FILE does not exist")
def _(s: Situation) -> list[str]:
    s.alice()
    return sessions("import", str(s.place / "nothing"))


@case("sessions import", "FILE is not an export of a session")
def _(s: Situation) -> list[str]:
    return _import(s, "hello")


@case("sessions import", "FILE is damaged")
def _(s: Situation) -> list[str]:
    return _import(s, _document(_prompt("hello")).replace("hello", "HELLO"))


@case("sessions import", "a message in FILE is invalid")
def _(s: Situation) -> list[str]:
    return _import(s, _document(_prompt({"no": "text"})))


@case("sessions import", "FILE has the format of a later deepctl")
def _(s: Situation) -> list[str]:
    return _import(s, _document(_prompt("hello")).replace('"format": 2', '"format": 99'))


@case("sessions import", "a message in FILE refers to files on the network of this machine")
def _(s: Situation) -> list[str]:
    image = {"kind": "image-url", "url": _IMAGE, "force_download": "allow-local"}
    return _import(s, _document(_prompt([image])))


@case("sessions import", "a session with this name already exists")
def _(s: Situation) -> list[str]:
    return _import(s, _document(_prompt("hello"), name="main"))


@case("sessions import", "FILE is `-`, and stdin is a terminal", only="text")
def _(s: Situation) -> Result:
    terminal = s.terminal("sessions", "import", "-", "--user", "alice")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())
