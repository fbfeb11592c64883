"""Errors of commands that change memory, or look into its past."""

from __future__ import annotations

import os
import signal

from deepctl.domain.memory.directory import MAX_BYTES
from tests.errors.checkpoints import taken_over
from tests.errors.damage import spoil
from tests.errors.situation import Situation, case
from tests.errors.usage import until_waiting
from tests.store.scene import Scene
from tests.support.command import Result

ALICE = ("--user", "alice")
NOTEBOOK = ".deep/memory/main/MEMORY.md"
EDIT = ["memory", "edit", *ALICE]


def memory(*words: str) -> list[str]:
    """A command on alice's memory."""
    return ["memory", *words, *ALICE]


def notes(s: Situation, text: str = "- tea\n- coffee\n") -> Scene:
    """Alice's profile, with something noted."""
    scene = s.alice()
    scene.agent(NOTEBOOK, text)
    return scene


@case("memory add", "TEXT is empty")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("add", " ")


@case("memory add", "TEXT is missing, and stdin is empty", only="text")
def _(s: Situation) -> Result:
    s.alice()
    terminal = s.terminal(*memory("add"))
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("memory add", "the text on stdin is too large")
def _(s: Situation) -> Result:
    s.alice()
    return s.run(*memory("add"), stdin=b"x" * (MAX_BYTES + 1))


@case("memory add", "TEXT is not UTF-8")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("add", "caf\udce9")


@case("memory add", "the text on stdin is not UTF-8")
def _(s: Situation) -> Result:
    s.alice()
    return s.run(*memory("add"), stdin=b"caf\xe9")


@case("memory add", "the name of the new notebook is invalid")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("add", "tea", "--file", "to do")


@case("memory edit", "there is no terminal, and neither `$VISUAL` nor `$EDITOR` is set")
def _(s: Situation) -> list[str]:
    s.alice()
    s.patch.delenv("VISUAL", raising=False)
    s.patch.delenv("EDITOR", raising=False)
    return EDIT


@case("memory edit", "neither `$VISUAL` nor `$EDITOR` is set, and no usual editor is installed", only="text")
def _(s: Situation) -> Result:
    s.alice()
    for variable in ("VISUAL", "EDITOR"):
        s.patch.delenv(variable, raising=False)
    s.patch.setenv("PATH", "/nonexistent")
    terminal = s.terminal(*EDIT)
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


def _editor(s: Situation, command: str) -> list[str]:
    s.patch.setenv("VISUAL", command)
    return EDIT


def _script(s: Situation, script: str) -> list[str]:
    program = s.place / "editor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return _editor(s, str(program))


@case("memory edit", "`$VISUAL` or `$EDITOR` cannot be split into words")
def _(s: Situation) -> list[str]:
    notes(s)
    return _editor(s, "vi '")


@case("memory edit", "the editor cannot be started")
def _(s: Situation) -> list[str]:
    notes(s)
    return _editor(s, "/nonexistent/editor")


@case("memory edit", "the editor fails")
def _(s: Situation) -> list[str]:
    notes(s)
    return _editor(s, "false")


@case("memory edit", "the editor saves the text and then fails")
def _(s: Situation) -> list[str]:
    notes(s)
    return _script(s, 'echo "- milk" >> "$1"; exit 3')


@case("memory edit", "the editor removes the file")
def _(s: Situation) -> list[str]:
    notes(s)
    return _editor(s, "rm")


@case("memory edit", "the text from the editor is not UTF-8")
def _(s: Situation) -> list[str]:
    notes(s)
    return _script(s, 'printf "caf\\351\\n" >> "$1"')


@case("memory edit", "another author changes the same lines while the editor is open")
def _(s: Situation) -> list[str]:
    notes(s)
    return _script(s, f'echo "- mine" > "$1"; echo "- theirs" > "{s.workspace / NOTEBOOK}"')


@case("memory edit", "another process is working on the profile when the editor ends")
def _(s: Situation) -> list[str]:
    notes(s)
    s.lock()
    return _script(s, 'echo "- milk" >> "$1"')


@case("memory edit", "Ctrl-C while the command waits for another process")
def _(s: Situation) -> Result:
    notes(s)
    s.lock()
    running = s.start(*_script(s, 'echo "- milk" >> "$1"'), "--wait", "60")
    until_waiting(s, running.pid)
    running.send_signal(signal.SIGINT)
    return s.ended(running)


@case("memory search", "QUERY is empty")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("search", " ")


@case("memory search", "QUERY is empty and `--regex` given")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("search", "", "--regex")


@case("memory search", "QUERY is not a valid regular expression")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("search", "(", "--regex")


@case("memory forget", "TEXT is empty")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("forget", " ")


@case("memory forget", "TEXT has several lines")
def _(s: Situation) -> list[str]:
    s.alice()
    return memory("forget", "a\nb")


@case("memory forget", "no line contains TEXT")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("forget", "milk", "--yes")


@case("memory forget", "no line of the notebook contains TEXT")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("forget", "milk", "--yes", "--file", "MEMORY.md")


@case("memory forget", "TEXT exists only with other upper and lower case letters")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("forget", "TEA", "--yes")


@case("memory forget", "with `--purge`, neither a notebook nor a checkpoint contains TEXT")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("forget", "milk", "--yes", "--purge")


@case("memory forget", "with `--purge --ignore-case`, neither a notebook nor a checkpoint contains TEXT")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("forget", "milk", "--yes", "--purge", "--ignore-case")


@case("memory forget", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("forget", "tea")


@case("memory forget", "the answer is no", only="text")
def _(s: Situation) -> Result:
    notes(s)
    terminal = s.terminal(*memory("forget", "tea"))
    terminal.expect("[y/N]")
    terminal.type("n\r")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("memory forget", "Ctrl-C at the question", only="text")
def _(s: Situation) -> Result:
    notes(s)
    terminal = s.terminal(*memory("forget", "tea"))
    terminal.expect("[y/N]")
    terminal.type("\x03")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("memory forget", "the notebooks change before the confirmation", only="text")
def _(s: Situation) -> Result:
    return _changed(s, "[y/N]", "y", *memory("forget", "tea"))


@case("memory forget", "with `--purge`, the notebooks change before the confirmation", only="text")
def _(s: Situation) -> Result:
    return _changed(s, "type alice to continue", "alice", *memory("forget", "tea", "--purge"))


def _changed(s: Situation, question: str, answer: str, *argv: str) -> Result:
    notes(s)
    terminal = s.terminal(*argv)
    terminal.expect(question)
    (s.workspace / NOTEBOOK).write_text("- more tea\n")
    terminal.type(f"{answer}\r")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("memory forget", "with `--purge`, the directory of the notebooks is a symbolic link")
def _(s: Situation) -> list[str]:
    notes(s)
    place = s.workspace / ".deep/memory/main"
    place.rename(s.place / "elsewhere")
    place.symlink_to(s.place / "elsewhere")
    return memory("forget", "tea", "--yes", "--purge")


@case("memory forget", "with `--purge`, a notebook in a checkpoint is damaged")
def _(s: Situation) -> list[str]:
    scene = notes(s)
    notes(s, "- tea\n- milk\n")
    packs = [record.pack for record in scene.records() if record.pack]
    spoil(s.profile / "checkpoints" / "packs" / packs[0])
    return memory("forget", "tea", "--yes", "--purge")


@case("memory forget", "with `--purge`, contents of a checkpoint are damaged")
def _(s: Situation) -> list[str]:
    scene = notes(s)
    spoil(s.profile / "checkpoints" / "packs" / next(record.pack for record in scene.records() if record.pack))
    return memory("forget", "coffee", "--yes", "--purge")


@case("memory show", "the checkpoint does not contain the notebook")
def _(s: Situation) -> list[str]:
    s.story()
    notes(s)
    return memory("show", "other", "--at", "~0")


@case("memory show", "the notebook in the checkpoint is not a regular file")
def _(s: Situation) -> list[str]:
    scene = notes(s)
    with scene.turn("a link"):
        (s.workspace / NOTEBOOK).unlink()
        os.symlink("elsewhere", s.workspace / NOTEBOOK)
    return memory("show", "MEMORY.md", "--at", "~0")


@case("memory show", "the checkpoint has no files")
def _(s: Situation) -> list[str]:
    notes(s)
    assert s.run("checkpoints", "import", taken_over(s), *ALICE).code == 0
    return memory("show", "--at", "one")


@case("memory show", "the checkpoint does not contain memory, because a setting excludes it")
def _(s: Situation) -> list[str]:
    scene = s.alice()
    scene.write(NOTEBOOK, "- tea\n")
    with scene.work(exclude=[".deep/"]) as work:
        work.save_now(scene.session(), "without")
    return memory("show", "--at", "without")


@case("memory show", "the checkpoint does not exist")
def _(s: Situation) -> list[str]:
    notes(s)
    return memory("show", "--at", "nothing")


def _config_edit(s: Situation, script: str) -> list[str]:
    s.alice()
    _script(s, script)
    return ["config", "edit", "--user", "alice"]


@case("config edit", "the edited text is not TOML")
def _(s: Situation) -> list[str]:
    return _config_edit(s, 'echo "approve = " >> "$1"')


@case("config edit", "the edited text has an invalid value")
def _(s: Situation) -> list[str]:
    return _config_edit(s, 'echo \'approve = "perhaps"\' >> "$1"')


@case("config edit", "the editor fails")
def _(s: Situation) -> list[str]:
    return _config_edit(s, "exit 3")


@case("config edit", "the settings file was changed in the meantime")
def _(s: Situation) -> list[str]:
    return _config_edit(s, f"echo 'approve = \"never\"' >> \"$1\"; echo 'approve = \"auto\"' >> '{s.settings}'")
