"""Errors of checkpoints: which one is meant, going back, removing."""

from __future__ import annotations

import json
import os
import shutil

from deepctl.store import session_catalogue, session_reader
from tests.errors.situation import Situation, case
from tests.store.faults import Counter, kill
from tests.support.command import Result

ALICE = ("--user", "alice")


def on(*words: str) -> list[str]:
    """A command on alice's checkpoints."""
    return ["checkpoints", *words, *ALICE]


@case("checkpoints list", "the session does not exist")
def _(s: Situation) -> list[str]:
    s.story()
    return on("list", "--session", "other")


@case("checkpoints show", "the checkpoint does not exist")
def _(s: Situation) -> list[str]:
    s.story()
    return on("show", "nothing")


@case("checkpoints show", "the shell turned `~N` into a path")
def _(s: Situation) -> list[str]:
    s.story()
    return on("show", "/home/alice")


@case("checkpoints show", "REF is the beginning of several ids")
def _(s: Situation) -> list[str]:
    scene = s.story()
    with scene.work() as work:
        session = scene.session()
        position = session_reader.position(session, session_catalogue.read(session))
        for end in ("00", "01"):
            work.save(session, "manual", position, author="", id=f"abcdef{end}")
    return on("show", "abcdef")


@case("checkpoints show", "REF is `~N`, and the session has fewer turns")
def _(s: Situation) -> list[str]:
    s.story()
    return on("show", "~9")


@case("checkpoints show", "the turn N turns back has no checkpoint")
def _(s: Situation) -> list[str]:
    scene = s.alice()
    with scene.turn("one", policy="manual_only"):
        pass
    with scene.turn("two", policy="manual_only"):
        pass
    with scene.work() as work:
        work.save_now(scene.session())
    return on("show", "~2")


@case("checkpoints show", "the checkpoint N turns back was removed")
def _(s: Situation) -> list[str]:
    scene = s.story()
    end = scene.last()
    scene.write("mine.txt", "mine\n")
    scene.agent("b.txt", "x\n")
    began = next(record for record in scene.records() if record.parent == end.id)
    assert s.run(*on("remove", began.id)).code == 0
    return on("show", "~1")


@case("checkpoints show", "REF is `~N`, and the profile has no sessions")
def _(s: Situation) -> list[str]:
    s.alice()
    return on("show", "~1")


@case("checkpoints diff", "the session has no checkpoints")
def _(s: Situation) -> list[str]:
    s.alice()
    return on("diff")


@case("checkpoints save", "the label looks like the id of a checkpoint")
def _(s: Situation) -> list[str]:
    s.story()
    return on("save", "abcd")


@case("checkpoints save", "the label is not a valid name")
def _(s: Situation) -> list[str]:
    s.story()
    return on("save", "a/b")


@case("checkpoints save", "the label is empty")
def _(s: Situation) -> list[str]:
    s.story()
    return on("save", "")


@case("checkpoints save", "another checkpoint has this label")
def _(s: Situation) -> list[str]:
    scene = s.story()
    with scene.work() as work:
        work.save_now(scene.session(), "good")
    return on("save", "Good")


@case("checkpoints save", "there is no permission to enter the workspace")
def _(s: Situation) -> Result:
    s.story()
    s.workspace.chmod(0)
    # Otherwise it would be opened.
    fixed = ("--ro-bind", str(s.workspace), str(s.workspace))
    try:
        return s.confined(*on("save"), unprivileged=True, around=fixed)
    finally:
        s.workspace.chmod(0o700)


@case("checkpoints label", "another checkpoint has this label")
def _(s: Situation) -> list[str]:
    scene = s.story()
    with scene.work() as work:
        work.save_now(scene.session(), "good")
    return on("label", "~1", "good")


@case("checkpoints rewind", "another author changed a file after the agent")
def _(s: Situation) -> list[str]:
    scene = s.story()
    scene.write("a.txt", "mine\n")
    return on("rewind", "~1")


@case("checkpoints rewind", "another author made a directory with files in the place of a file")
def _(s: Situation) -> list[str]:
    s.story()
    (s.workspace / "a.txt").unlink()
    (s.workspace / "a.txt").mkdir()
    (s.workspace / "a.txt" / "mine").write_text("mine")
    return on("rewind", "~1")


@case("checkpoints rewind", "the author of a change is unknown")
def _(s: Situation) -> list[str]:
    scene = s.story()
    with scene.turn("killed", policy="manual_only"):
        scene.write("a.txt", "somebody's\n")
    return on("rewind", "~1")


@case("checkpoints rewind", "the checkpoint belongs to another session")
def _(s: Situation) -> list[str]:
    scene = s.story()
    scene.agent("b.txt", "x\n", session="other")
    return on("rewind", scene.last().id, "--session", "main")


@case("checkpoints rewind", "the checkpoint belongs to a session that no longer exists")
def _(s: Situation) -> list[str]:
    scene = s.story()
    gone = scene.last().id
    scene.agent("b.txt", "x\n", session="other")
    shutil.rmtree(s.profile / "sessions" / "main")
    return on("rewind", gone)


def taken_over(s: Situation) -> str:
    """A checkpoint that came from pydantic-deep, which kept no files; its id."""
    place = s.place / "foreign"
    place.mkdir()
    request = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hello"}]}
    for name in ("one", "two"):
        one = {"id": name, "label": name, "turn": 1, "messages": [request], "created_at": "2026-01-01T00:00:00Z"}
        (place / f"{name}.json").write_text(json.dumps(one))
    return str(place)


@case("checkpoints rewind", "the checkpoint has no files")
def _(s: Situation) -> list[str]:
    s.story()
    assert s.run("checkpoints", "import", taken_over(s), *ALICE).code == 0
    return on("rewind", "one", "--only", "files")


@case("checkpoints rewind", "the list of checkpoints to choose from is empty", only="text")
def _(s: Situation) -> Result:
    scene = s.alice()
    scene.session()
    terminal = s.terminal(*on("rewind"))
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("checkpoints rewind", "no checkpoint is chosen", only="text")
def _(s: Situation) -> Result:
    s.story()
    terminal = s.terminal(*on("rewind"))
    terminal.expect("Enter selects, Esc leaves")
    terminal.type("q")
    return s.left(terminal, terminal.wait())


def _interrupted_rewind(s: Situation) -> None:
    """A rewind that is killed right before it puts the first file in place."""
    scene = s.story()
    child = os.fork()
    if child == 0:
        with Counter(1, kill, only=("rename",), beneath=str(s.workspace)).installed():
            scene.rewind("~1")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it was not interrupted"


@case("checkpoints rewind", "an earlier rewind was interrupted, and this is a dry run")
def _(s: Situation) -> list[str]:
    _interrupted_rewind(s)
    return on("rewind", "~1", "--dry-run")


@case("checkpoints rewind", "an earlier rewind was interrupted, and this command has finished it")
def _(s: Situation) -> list[str]:
    _interrupted_rewind(s)
    return on("rewind", "~1")


@case(
    "checkpoints rewind",
    "a file that the rewind would change cannot be read, so the safety checkpoint cannot contain it",
)
def _(s: Situation) -> Result:
    s.story()
    changed = s.workspace / "a.txt"
    changed.write_text("mine")
    changed.chmod(0)
    return s.confined(*on("rewind", "~1", "--force"), unprivileged=True)


@case("checkpoints rewind", "a directory of the workspace is read-only")
def _(s: Situation) -> Result:
    scene = s.alice()
    scene.agent("d/a.txt", "one\n")
    scene.agent("d/a.txt", "two\n")
    return s.confined(*on("rewind", "~1"), around=("--ro-bind", str(s.workspace / "d"), str(s.workspace / "d")))


@case("checkpoints prune", "neither `--keep` nor `--older-than` is given")
def _(s: Situation) -> list[str]:
    s.story()
    return on("prune")


@case("checkpoints prune", "AGE is invalid")
def _(s: Situation) -> list[str]:
    s.story()
    return on("prune", "--older-than", "long")


@case("checkpoints prune", "AGE is too long")
def _(s: Situation) -> list[str]:
    s.story()
    return on("prune", "--older-than", "99999y")


@case("checkpoints undo", "the session has no rewind to undo")
def _(s: Situation) -> list[str]:
    s.story()
    return on("undo")


@case("checkpoints undo", "the safety checkpoint of the rewind was removed")
def _(s: Situation) -> list[str]:
    scene = s.story()
    done = scene.rewind("~1")
    assert done.safety is not None
    scene.agent("c.txt", "x\n")
    assert s.run(*on("remove", done.safety.id)).code == 0
    return on("undo")


@case("checkpoints fork", "the name is invalid")
def _(s: Situation) -> list[str]:
    s.story()
    return on("fork", "~1", "a/b")


@case("checkpoints fork", "a session with this name already exists")
def _(s: Situation) -> list[str]:
    s.story()
    return on("fork", "~1", "main")


@case("checkpoints remove", "the checkpoint has a label")
def _(s: Situation) -> list[str]:
    scene = s.story()
    with scene.work() as work:
        work.save_now(scene.session(), "good")
    scene.agent("c.txt", "x\n")
    return on("remove", "good")


@case("checkpoints remove", "the checkpoint is the newest one")
def _(s: Situation) -> list[str]:
    scene = s.story()
    return on("remove", scene.records()[-1].id)


@case("checkpoints import", "the directory contains no checkpoints")
def _(s: Situation) -> list[str]:
    s.alice()
    return on("import", str(s.place / "foreign"))


@case("checkpoints import", "all checkpoints of the directory are already imported")
def _(s: Situation) -> list[str]:
    s.alice()
    place = taken_over(s)
    assert s.run("checkpoints", "import", place, *ALICE).code == 0
    return on("import", place)


@case("checkpoints import", "the profile has other checkpoints with these ids")
def _(s: Situation) -> list[str]:
    s.alice()
    place = s.place / "foreign"
    assert s.run("checkpoints", "import", taken_over(s), *ALICE).code == 0
    (place / "two.json").unlink()
    (place / "one.json").write_text((place / "one.json").read_text().replace("hello", "goodbye"))
    return on("import", str(place))


@case("checkpoints import", "a session with this name already exists")
def _(s: Situation) -> list[str]:
    s.story()
    return on("import", taken_over(s), "--session", "main")
