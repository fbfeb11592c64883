"""The line editor, at real pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from tests.support.clusters import ClusterScreen
from tests.support.template import ForkedProcess, can_fork

_DRIVER = r"""
import os, sys, threading, time
from deepctl.cli.repl.completer import workspace_paths
from deepctl.cli.repl.completer import Candidate
from deepctl.cli.repl.line_editor import Editor, prompt_history
from deepctl.cli.repl.command_catalogue import SlashCommand
from deepctl.cli.repl.status import Toolbar
from deepctl.cli.tty_modes import without_echo
from deepctl.errors import Interrupted, StorageError, Terminated

class Candidates:
    commands = [SlashCommand("/rewind", "[REF]", "Go back.", "", print, "reference"),
                SlashCommand("/resume", "[NAME]", "Go on.", "", print, "session"),
                SlashCommand("/models", "NAME", "Hangs.", "", print, "model")]
    def references(self): return [Candidate("ab12cd34", "fix the tests"), Candidate("cd56", "other")]
    def sessions(self): raise StorageError("Broken.")
    def models(self): time.sleep(60); return []
    def paths(self, prefix): return workspace_paths(os.environ["ROOT"], prefix)
    mentions = paths

def toolbar():
    if os.environ.get("BROKEN"): raise StorageError("Broken.")
    return Toolbar("alice", "main", "offline", "bubblewrap", 0.12, (3400, 1200), 0.03, note)

note = ""
if os.environ.get("SLOW"):
    print("starting", flush=True); time.sleep(1)
editor = Editor(prompt_history(os.environ["HISTORY"]), Candidates(), toolbar, lambda: "alice> ")
print("ready", flush=True)
text = ""
while True:
    try:
        entry = editor.read(text)
    except EOFError:
        print("END"); break
    except Interrupted:
        print("INTERRUPTED"); break
    except Terminated as error:
        try: print("TERMINATED", error.signal, flush=True)
        except OSError: pass
        if os.environ.get("MARK"): open(os.environ["MARK"], "w").write(str(error.signal))
        break
    except ConnectionError:
        print("FAILED", ascii(editor.left_over), flush=True); text = editor.left_over; continue
    text = ""
    print("GOT", ascii(entry) if len(entry) < 300 else f"{len(entry)} {entry.count(chr(10))}", flush=True)
    if entry == "stopped": editor.stopped()
    if entry == "stopping":
        with without_echo(): print("quiet", flush=True); time.sleep(0.5)
        editor.stopped()
    if entry == "put": text = "put into\nthe line"
    if entry == "tell": threading.Timer(0.3, editor.tell, ["words\x1b[2J from behind"]).start()
    if entry == "fail": threading.Timer(0.3, editor.fail, [ConnectionError()]).start()
    if entry == "failed": editor.fail(ConnectionError())
    if entry == "note":
        def change():
            global note; note = "changed"; editor.refresh()
        threading.Timer(0.3, change).start()
    if entry == "busy": time.sleep(1)
"""


class _Child:
    """The editor in a process forked off the template process, with as much of `pexpect.spawn` as `Tty` needs."""

    def __init__(self, environment: dict[str, str], columns: int, lines: int) -> None:
        self.child_fd, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = ForkedProcess((), (there, there, there), environment=environment, terminal=True, program=_DRIVER)
        os.close(there)
        self.pid = self.process.pid
        self.closed = False

    def read_nonblocking(self, size: int, seconds: float) -> bytes:
        if not select.select([self.child_fd], [], [], seconds)[0]:
            raise pexpect.TIMEOUT("")
        try:
            return os.read(self.child_fd, size)
        except OSError:
            raise pexpect.EOF("") from None

    def send(self, raw: bytes) -> None:
        while raw:
            raw = raw[os.write(self.child_fd, raw) :]

    def expect(self, end: type[pexpect.EOF]) -> None:
        with suppress(end):
            while True:
                self.read_nonblocking(65536, 20)

    def close(self, *, force: bool) -> None:
        if not self.closed:
            os.close(self.child_fd)
        self.process.kill()
        self.process.wait()


class Tty:
    """The editor at a pseudo-terminal, and what a person would see."""

    def __init__(
        self, environment: dict[str, str], columns: int, lines: int, arguments: list[str] | None = None
    ) -> None:
        self.child: Any
        if arguments is None and can_fork(environment):
            self.child = _Child(environment, columns, lines)
        else:
            command = arguments or [sys.executable, "-c", _DRIVER]
            self.child = pexpect.spawn(
                command[0], command[1:], env=environment, dimensions=(lines, columns), timeout=20
            )
            self.child.delaybeforesend = 0
        self.before = termios.tcgetattr(self.child.child_fd)
        self.bytes = b""
        self._typed = -1
        self._screen = ClusterScreen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def cursor(self) -> tuple[int, int]:
        return self._screen.cursor.y, self._screen.cursor.x

    def read(self, seconds: float) -> bool:
        try:
            piece = self.child.read_nonblocking(65536, seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.bytes += piece
        self._stream.feed(piece)
        return True

    def until(self, seen: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not seen():
            assert time.monotonic() < end, self.screen
            self.read(0.1)

    def expect(self, text: str) -> None:
        self.until(lambda: text in self.screen)

    def prompt(self, line: str = "alice>") -> None:
        """Wait until the line with the cursor is this one; not as it was before a key was pressed."""
        self.until(
            lambda: (
                not self.read(0.05)
                and len(self.bytes) != self._typed
                and self._screen.display[self._screen.cursor.y].rstrip() == line
            )
        )

    def type(self, *texts: str) -> None:
        self._typed = len(self.bytes)
        for text in texts:
            self.child.send(text.encode())

    def got(self, entry: str) -> None:
        self.expect(f"GOT {entry!a}")

    def wait(self) -> None:
        while self.read(2):
            pass
        self.child.expect(pexpect.EOF)

    def resize(self, columns: int, lines: int) -> None:
        self._screen.resize(lines, columns)
        fcntl.ioctl(self.child.child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    (root / "src").mkdir(parents=True)
    (root / "a b.txt").write_text("")
    (root / "src" / "one.py").write_text("")
    return root


@pytest.fixture
def start(tmp_path: Path, workspace: Path) -> Iterator[Callable[..., Tty]]:
    opened: list[Tty] = []

    def started(columns: int = 80, lines: int = 24, arguments: list[str] | None = None, **environment: str) -> Tty:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        given = {"TERM": "xterm-256color", "ROOT": str(workspace), "HISTORY": str(tmp_path / "history"), **environment}
        opened.append(Tty({**kept, **given}, columns, lines, arguments))
        return opened[-1]

    yield started
    for tty in opened:
        with suppress(ProcessLookupError):
            os.killpg(tty.child.pid, signal.SIGKILL)
        with suppress(OSError, pexpect.ExceptionPexpect):
            tty.child.close(force=True)


@pytest.fixture
def tty(start: Callable[..., Tty]) -> Tty:
    one = start()
    one.prompt()
    return one


def test_enter_sends_and_three_ways_begin_a_new_line(tty: Tty) -> None:
    tty.type("one\x1b\rtwo\nthree\\\rfour \\\\\r")
    tty.got("one\ntwo\nthree\nfour \\\\")
    assert "alice> one\n       two\n       three" in tty.screen


def test_a_paste_stays_whole_and_nothing_in_it_is_a_key(tty: Tty) -> None:
    lines = "\r\n".join(f"line {number}\x03\x04\x1b[31m\x07" for number in range(500))
    tty.type("\x1b[200~", lines, "\x1b[201~")
    tty.expect("line 499[31m")
    assert "GOT" not in tty.screen
    tty.type("\r")
    tty.expect(f"GOT {len(''.join(f'line {number}[31m' for number in range(500))) + 499} 499")
    tty.prompt()
    tty.type("\x1b[200~/re\tx\r\x1b[201~", "!\r")
    tty.got("/re\tx\n!")


def test_a_paste_of_a_megabyte_in_one_line_keeps_the_keys_quick(tty: Tty) -> None:
    tty.type("\x1b[200~", "x y " * 262_144, "\x1b[201~")
    tty.expect("1,048,576 characters: too long to be shown")
    begun = time.monotonic()
    tty.type("abc", "\x7f", "d")
    tty.expect("1,048,579 characters")
    tty.type("\r")
    tty.expect("GOT 1048579 0")
    assert time.monotonic() - begun < 3


def test_history_goes_up_and_down_at_the_edges_of_an_entry(tty: Tty) -> None:
    tty.type("first\r")
    tty.got("first")  # not the prompt that was there before
    tty.prompt()
    tty.type("second a\nsecond b\r")
    tty.got("second a\nsecond b")
    tty.prompt()
    tty.type("\x1b[A")
    tty.expect("second a\n       second b\nalice")
    tty.type("\x1b[A", "\x1b[A")
    tty.prompt("alice> first")
    tty.type("\x1b[B", "\x1b[B", "\x1b[B")
    tty.prompt()


def test_history_is_searched_with_ctrl_r(tty: Tty) -> None:
    for entry in ("find the needle", "other", "third"):
        tty.type(f"{entry}\r")
        tty.prompt()
    tty.type("\x12need")
    tty.expect("reverse-i-search")
    tty.type("\r")
    tty.prompt("alice> find the needle")
    tty.type("\x12zzz", "\x03")
    tty.prompt("alice> find the needle")
    tty.type("\r")
    tty.got("find the needle")


def test_history_keeps_what_it_should(tty: Tty, start: Callable[..., Tty], tmp_path: Path) -> None:
    for entry in ("same", "same", " a secret", "   ", "x" * 70_000):
        tty.type(f"\x1b[200~{entry}\x1b[201~\r")
        tty.prompt()
    tty.type("\x1b[A")
    tty.expect("70,000 characters")
    tty.type("\x1b[A")
    tty.prompt("alice> same")
    history = (tmp_path / "history").read_text()
    assert history.count("+") == 1
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600
    again = start()
    again.type("\x1b[A\r")
    again.got("same")
    other = start(HISTORY=str(tmp_path / "of-bob"))
    other.type("\x1b[A\r")
    other.got("")


def test_a_long_history_is_there_at_once(start: Callable[..., Tty], tmp_path: Path) -> None:
    entry = "".join(f"+{'y' * 99}\n" for _ in range(10))
    (tmp_path / "history").write_text(f"\n# then\n{entry}" * 30_000 + "\n# then\n+the last\n")
    tty = start()
    tty.prompt()
    begun = time.monotonic()
    tty.type("\x1b[A")
    tty.prompt("alice> the last")
    assert time.monotonic() - begun < 2


def test_a_link_in_place_of_the_history_is_not_read(tty: Tty, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("\n# then\n+not mine\n")
    (tmp_path / "history").unlink()
    (tmp_path / "history").symlink_to(tmp_path / "elsewhere")
    tty.type("hello\r")
    tty.got("hello")
    assert (tmp_path / "elsewhere").read_text() == "\n# then\n+not mine\n"


def test_ctrl_c_empties_the_line_then_says_how_to_leave_then_leaves(tty: Tty) -> None:
    tty.type("half a line\x03")
    tty.prompt()
    assert "again leaves" not in tty.screen
    tty.type("\x03")
    tty.expect("Ctrl-C again leaves, Ctrl-D too.")
    tty.type("x")
    tty.until(lambda: "again leaves" not in tty.screen)
    tty.type("\x7f\x03")
    tty.expect("again leaves")
    tty.type("\x03")
    tty.expect("INTERRUPTED")


def test_a_signal_from_elsewhere_is_what_the_key_is(tty: Tty) -> None:
    tty.type("half a line")
    tty.prompt("alice> half a line")
    os.kill(tty.child.pid, signal.SIGINT)
    tty.prompt()
    os.kill(tty.child.pid, signal.SIGINT)
    tty.expect("again leaves")
    os.kill(tty.child.pid, signal.SIGINT)
    tty.expect("INTERRUPTED")


def test_after_something_was_stopped_ctrl_c_leaves_unless_it_comes_at_once(tty: Tty) -> None:
    tty.type("stopped\r")
    tty.expect("again leaves")
    tty.type("\x03", "\x03")
    time.sleep(0.8)
    assert not tty.read(0.1) or "INTERRUPTED" not in tty.screen
    assert "again leaves" in tty.screen
    tty.type("\x03")
    tty.expect("INTERRUPTED")


def test_what_was_typed_before_something_was_stopped_is_in_the_line_and_not_sent(tty: Tty) -> None:
    tty.type("stopping\r")
    tty.expect("quiet")
    tty.type("one\rtwo\x1b[200~\r\x1b[201~three\r")
    tty.expect("three")
    assert "alice> one\n       two\n       three" in tty.screen
    tty.type("!\r")
    tty.got("one\ntwo\nthree!")


def test_ctrl_d_deletes_forward_and_leaves_an_empty_line(tty: Tty) -> None:
    tty.type("abc\x01\x04\r")
    tty.got("bc")
    tty.prompt()
    tty.type("\x04")
    tty.expect("END")
    tty.wait()
    assert termios.tcgetattr(tty.child.child_fd) == tty.before


def test_ctrl_x_ctrl_e_edits_in_a_private_file_that_is_gone_afterwards(
    start: Callable[..., Tty], tmp_path: Path
) -> None:
    program = tmp_path / "edit.sh"
    program.write_text(
        '#!/bin/sh\nstat -c "%a %n" "$1" "$(dirname "$1")" >"$SEEN"\ncat "$1" >>"$SEEN"\n'
        'printf "from the\\r\\neditor\\033[31m\\n" >"$1"\nexit ${STATUS:-0}\n'
    )
    program.chmod(0o700)
    seen = tmp_path / "seen"
    tty = start(EDITOR=str(program), VISUAL="", SEEN=str(seen))
    tty.prompt()
    tty.type("draft\x18\x05")
    tty.expect("editor[31m")
    tty.type("\r")
    tty.got("from the\neditor[31m")
    first, second, content = seen.read_text().split("\n")
    assert (first[:4], second[:4], content) == ("600 ", "700 ", "draft")
    assert not Path(first[4:]).exists()
    assert not Path(second[4:]).exists()
    broken = start(EDITOR=str(program), VISUAL="", SEEN=str(seen), STATUS="3")
    broken.prompt()
    broken.type("draft\x18\x05")
    broken.expect("The editor failed (exit status 3); the line is unchanged.")
    broken.prompt("alice> draft")


def test_ctrl_z_stops_it_and_it_comes_back_whole(start: Callable[..., Tty], tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER)
    shell = start(arguments=["bash", "--norc", "--noprofile", "-i"], PS1="shell$ ")
    shell.prompt("shell$")
    shell.type(f"{sys.executable} {driver}\r")
    shell.prompt()
    shell.type("half a\nline\x1a")
    shell.expect("Stopped")
    shell.type("echo $((6*7))\r")
    shell.expect("\n42")
    shell.type("fg\r")
    shell.prompt("       line")
    shell.type("!\r")
    shell.got("half a\nline!")


def test_ctrl_l_clears_and_keeps_the_line(tty: Tty) -> None:
    tty.type("one\r")
    tty.prompt()
    tty.type("two\x0c")
    tty.until(lambda: tty.screen.startswith("alice> two"))


def test_tab_completes_commands_and_what_they_are_about(tty: Tty) -> None:
    tty.type("/re")
    tty.expect("/rewind [REF]")
    tty.expect("Go back.")
    tty.type("w\t")
    tty.prompt("alice> /rewind")
    tty.type("\t")
    tty.expect("fix the tests")
    tty.type("a\t")
    tty.prompt("alice> /rewind ab12cd34")
    tty.type("\r")
    tty.got("/rewind ab12cd34")


def test_a_chosen_offer_is_taken_by_enter_and_only_then_sent(tty: Tty) -> None:
    tty.type("/re")
    tty.expect("/resume")
    tty.type("\x1b[B\x1b[B\r")
    tty.prompt("alice> /resume")
    assert "GOT" not in tty.screen
    tty.type("\r")
    tty.got("/resume ")


def test_an_at_sign_shows_files_while_typing_and_escape_hides_them(tty: Tty) -> None:
    tty.type("read @")
    tty.expect("a b.txt")
    tty.expect("src/")
    tty.type("\x1b")
    tty.until(lambda: "a b.txt" not in tty.screen)
    tty.type("\x15" + "read @a\t")
    tty.prompt(r"alice> read @a\ b.txt")
    tty.type("\x15" + "@sr\t", "\t")
    tty.until(lambda: "@src/one.py" in tty.screen or "one.py" in tty.screen)


def test_what_cannot_be_looked_up_or_takes_for_ever_is_no_hindrance(start: Callable[..., Tty]) -> None:
    tty = start(BROKEN="1")
    tty.prompt()
    tty.type("/resume \tx\r")
    tty.got("/resume x")
    tty.prompt()
    begun = time.monotonic()
    tty.type("/models \t", "abc", "\t", "d\r")
    tty.got("/models abcd")
    assert time.monotonic() - begun < 5


def test_other_threads_speak_above_the_line_and_what_is_typed_stays(tty: Tty) -> None:
    tty.type("tell\r")
    tty.got("tell")
    tty.type("half a line")
    tty.expect("words\\x1b[2J from behind\nalice> half a line")
    tty.prompt("alice> half a line")
    tty.type("\x15note\r")
    tty.expect("  changed")


def test_a_failure_from_elsewhere_ends_the_line_and_leaves_what_was_typed(tty: Tty) -> None:
    tty.type("fail\r")
    tty.got("fail")
    tty.type("half a line")
    tty.expect("FAILED 'half a line'")
    tty.prompt("alice> half a line")
    tty.type("\x15failed\r")
    tty.expect("FAILED ''")
    tty.prompt()
    tty.type("put\r")
    tty.prompt("       the line")
    tty.type("\r")
    tty.got("put into\nthe line")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_before(tty: Tty, number: signal.Signals) -> None:
    tty.type("half a line")
    tty.prompt("alice> half a line")
    assert termios.tcgetattr(tty.child.child_fd) != tty.before
    os.kill(tty.child.pid, number)
    tty.expect(f"TERMINATED {int(number)}")
    tty.wait()
    assert termios.tcgetattr(tty.child.child_fd) == tty.before
    assert tty.bytes.rfind(b"\x1b[?2004l") > tty.bytes.rfind(b"\x1b[?2004h")
    assert tty.bytes.rfind(b"\x1b[?25h") > tty.bytes.rfind(b"\x1b[?25l")


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_terminal_that_is_closed_ends_it(start: Callable[..., Tty], tmp_path: Path, term: str) -> None:
    mark = tmp_path / "mark"
    # Not the leader of its session, so that no signal tells it: only what it reads does.
    tty = start(
        TERM=term,
        MARK=str(mark),
        arguments=["sh", "-c", f'trap "" HUP; {sys.executable} -c "$DRIVER"; true'],
        DRIVER=_DRIVER,
    )
    tty.prompt()
    os.close(tty.child.child_fd)
    end = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert mark.exists()
    tty.child.closed = True


def test_what_is_typed_too_early_is_kept(start: Callable[..., Tty]) -> None:
    tty = start(SLOW="1")
    tty.expect("starting")
    tty.type("first\rsec")
    tty.got("first")
    tty.prompt("alice> sec")
    tty.type("ond\r")
    tty.got("second")
    tty.prompt()
    tty.type("busy\r")
    tty.got("busy")
    tty.type("third\rfour")
    tty.got("third")
    tty.type("th\r")
    tty.got("fourth")


def test_wide_characters_are_edited_as_they_look(tty: Tty) -> None:
    tty.type("日本語é👍\x02\x02\x7f")
    tty.expect("alice> 日本é👍\n")
    tty.type("\r")
    tty.got("日本é👍")


_CLUSTERS = {
    "flag": "🇯🇵",
    "family": "👨\u200d👩\u200d👧",
    "keycap": "1\ufe0f\u20e3",
    "picture": "☺\ufe0f",
    "skin": "👍🏽",
    "accents": "e\u0301\u0323",
    "jamo": "\u1112\u1161\u11ab",
    "tags": "🏴\U000e0067\U000e0062\U000e007f",
}


@pytest.mark.parametrize("cluster", _CLUSTERS.values(), ids=_CLUSTERS)
def test_what_a_person_takes_for_one_character_is_one(tty: Tty, cluster: str) -> None:
    """Left and right, Backspace, Delete, Ctrl-T and words; and where the cursor is does not depend on the terminal."""
    width = 1 if cluster.startswith("e") else 2
    tty.type(f"a{cluster}b")
    tty.until(lambda: tty.cursor[1] == len("alice> ab") + width and not tty.read(0.05))
    tty.type("\x02\x02")
    tty.until(lambda: tty.cursor[1] == len("alice> a") and not tty.read(0.05))
    tty.type("c\x06\x7f\r")
    tty.got("acb")
    tty.prompt()
    tty.type(f"{cluster}{cluster}x\x01\x04\r")
    tty.got(f"{cluster}x")
    tty.prompt()
    tty.type(f"a{cluster}\x14\r")
    tty.got(f"{cluster}a")
    tty.prompt()
    tty.type(f"one {cluster}{cluster}\x17two\r")
    tty.got("one two")


def test_a_flag_can_be_typed_before_a_flag(tty: Tty) -> None:
    tty.type("🇩🇪\x01", "🇯", "🇵", "\r")
    tty.got("🇯🇵🇩🇪")


def test_bytes_that_are_no_text_are_replaced(tty: Tty) -> None:
    tty.child.send(b"a\xffb\r")
    tty.got("a\ufffdb")


@pytest.mark.parametrize("columns", [80, 200])
def test_the_toolbar_is_dim_under_the_line_and_fits(start: Callable[..., Tty], columns: int) -> None:
    tty = start(columns=columns)
    tty.expect("alice · session main · offline · bubblewrap   context 12%  3.4k in 1.2k out")
    assert b"\x1b[0;2m" in tty.bytes
    assert not re.search(rb"\x1b\[[0-9;]*(?<![0-9])(7|3[0-8]|4[0-8])(;[0-9;]*)?m", tty.bytes.split(b"ready")[1])
    tty.type("sent\r")
    tty.got("sent")
    assert tty.screen.count("context") <= 1
    tty.prompt()
    tty.resize(30, 20)
    tty.expect("alice>\nalice · offline   context 12%")


def test_a_low_window_has_no_toolbar(start: Callable[..., Tty]) -> None:
    tty = start(lines=2)
    tty.prompt()
    tty.type("one\ntwo\nthree\r")
    tty.got("one\ntwo\nthree")
    tty.prompt()
    assert "context" not in tty.screen
    tty.type("\x03")
    tty.expect("again leaves")


def test_a_narrow_window_still_takes_a_line(start: Callable[..., Tty]) -> None:
    tty = start(columns=8, lines=10)
    tty.type("something long\r")
    tty.until(lambda: "GOT" in tty.screen.replace("\n", ""))


def test_no_color_means_none(start: Callable[..., Tty]) -> None:
    tty = start(NO_COLOR="1")
    tty.prompt()
    tty.type("hello\r")
    tty.got("hello")
    assert set(re.findall(rb"\x1b\[([0-9;]*)m", tty.bytes)) <= {b"0", b""}


def test_a_dumb_terminal_gets_no_escapes_and_works(start: Callable[..., Tty]) -> None:
    tty = start(TERM="dumb")
    tty.prompt()
    tty.type("one\\\r")
    tty.type("two\r")
    tty.got("one\ntwo")
    tty.type("tell\r")
    tty.expect("words\\x1b[2J from behind")
    tty.type("fail\r")
    tty.expect("FAILED")
    tty.prompt()
    tty.type("half\x03")
    tty.expect("Ctrl-C again leaves")
    tty.type("hello\r")
    tty.got("hello")
    tty.type("\x04")
    tty.expect("END")
    assert b"\x1b" not in tty.bytes


@pytest.mark.parametrize("key", ["\x03\x03", "TERM"])
def test_a_dumb_terminal_is_left(start: Callable[..., Tty], key: str) -> None:
    tty = start(TERM="dumb")
    tty.prompt()
    if key == "TERM":
        os.kill(tty.child.pid, signal.SIGTERM)
        tty.expect("TERMINATED 15")
        return
    tty.type("\x03")
    tty.expect("again leaves")
    tty.type("\x03")
    tty.expect("INTERRUPTED")
