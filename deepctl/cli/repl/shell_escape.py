"""`!command` in a conversation: the user's own command, run where the agent's run, and shown as it goes.

The agent sees nothing of it, unless it is `!!command`, or `!!` afterwards.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import TYPE_CHECKING

from deepctl.cli.repl import shell_context, tty_modes
from deepctl.errors import DeepctlError, Interrupted, StorageError
from deepctl.output import render, terminal_caps
from deepctl.output.stream.live_region import LiveRegion
from deepctl.output.text import has_colour, printable_lines

if TYPE_CHECKING:
    from deepctl.agent.user_commands import Ended
    from deepctl.cli.repl.repl import Conversation

_HELP = "!COMMAND runs a command in the workspace; !!COMMAND also shows the agent what it prints, !! what the last did."
_NO_CD = "Each command starts in the workspace, so a cd does nothing for the next one: !cd DIR && COMMAND."
_UNCONFINED = "There is no sandbox around this: it runs with your own rights. /sandbox says more."
_FULL_SCREEN = frozenset(
    ("vi", "vim", "nvim", "view", "nano", "emacs", "top", "htop", "btop", "tmux", "screen", "less", "more", "man")
)
"""Programs that draw on a whole screen, or wait for keys."""
_WILL_SEE = "The agent will see this with your next prompt."
_ONLY_CD = re.compile(r"cd(\s+[^\s;&|]+)?")
_RUNNING = "Running; Ctrl-C stops it."
_LONG_SECONDS = 10


def run(conversation: Conversation, rest: str) -> None:
    """Run what stands behind the `!` of an entry. Raises what keeps it from running, and `Interrupted`."""
    tell = conversation.talk.display.notice
    shares = rest.startswith("!")
    line = rest.removeprefix("!").strip()
    if _ONLY_CD.fullmatch(line):
        tell(_NO_CD)
        return
    if line:
        conversation.ran = _run(conversation, line)
    elif not shares:
        tell(_HELP)
    elif conversation.ran is None:
        tell("No command was run yet: there is nothing to show the agent.")
    if shares and conversation.ran is not None:
        if conversation.ran not in conversation.shared:
            conversation.shared.append(conversation.ran)
        tell(_WILL_SEE)


def _run(conversation: Conversation, line: str) -> str:
    """Run a command and show it. Returns what the agent is shown of it if it is to be."""
    output = _Output()
    try:
        with tty_modes.quiet():
            _warn(conversation, line)
            output.begin()
            ended = conversation.talk.command(line, output.add)
    except Interrupted:
        output.end()
        conversation.ran = shell_context.block(line, output.printed, "ended by the user with Ctrl-C")
        raise
    except KeyboardInterrupt:
        # While it waited for the sandbox, or for another process.
        output.end()
        raise Interrupted("The command was stopped.") from None
    except DeepctlError:
        output.end()
        raise
    output.end()
    if output.failure is not None:
        raise output.failure
    if ended.code or ended.reason or ended.seconds >= _LONG_SECONDS:
        conversation.talk.display.notice(_told(ended))
    return shell_context.block(line, output.printed, ended.reason or f"exit code {ended.code}")


def _warn(conversation: Conversation, line: str) -> None:
    """Say what is not as in a shell: once that nothing is around the command, and that there is no terminal."""
    tell = conversation.talk.display.notice
    if not conversation.ran_unconfined and conversation.talk.commands().sandbox == "none":
        conversation.ran_unconfined = True
        tell(_UNCONFINED)
    word = os.path.basename(line.split()[0])
    if word in _FULL_SCREEN:
        tell(f"There is no terminal for {word} here, and no input: what it prints is shown. Ctrl-C ends it.")


def _told(ended: Ended) -> str:
    how = ended.reason or f"exit code {ended.code}"
    return how if ended.seconds < _LONG_SECONDS else f"{how}, after {_duration(ended.seconds)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Output:
    """What a command prints, both streams as they come: shown at once, and remembered."""

    def __init__(self) -> None:
        self._decoders = (_decoder(), _decoder())
        self._printed = bytearray()
        self._at_line_start = True
        self._waiting: LiveRegion | None = None
        self.failure: StorageError | None = None
        """Why it could not be shown."""

    @property
    def printed(self) -> str:
        """All of it, line ends as they are here."""
        return self._printed.decode()

    def begin(self) -> None:
        """Until something comes, say on a line of its own that the command runs."""
        if tty_modes.is_dumb():
            return
        self._waiting = LiveRegion()
        faint = ("\x1b[2m", "\x1b[0m") if has_colour(sys.stdout) else ("", "")
        self._draw([f"{faint[0]}{_RUNNING[: terminal_caps.size()[0] - 1]}{faint[1]}"])

    def _draw(self, rows: list[str]) -> None:
        if self._waiting is not None and self.failure is None:
            try:
                self._waiting.draw([], rows, terminal_caps.size())
            except StorageError as error:
                self.failure = error

    def add(self, out: bytes, err: bytes) -> bool:
        """Show what came; whether more can be shown."""
        return self._show(
            "".join(decoder.decode(some) for decoder, some in zip(self._decoders, (out, err), strict=True))
        )

    def end(self) -> None:
        """Show what is left, and end the line; nothing if that was done."""
        self._draw([])
        self._waiting = None
        self._show("".join(decoder.decode(b"", final=True) for decoder in self._decoders))
        if not self._at_line_start:
            self._write("\n")

    def _show(self, text: str) -> bool:
        if not text:
            return self.failure is None
        self._draw([])
        self._waiting = None
        self._printed += text.encode()
        self._at_line_start = text.endswith("\n")
        return self._write(printable_lines(text))

    def _write(self, text: str) -> bool:
        if self.failure is not None:
            return False
        try:
            return render.write(text)
        except StorageError as error:
            self.failure = error
            return False


def _decoder() -> io.IncrementalNewlineDecoder:
    """Text of bytes in pieces. A progress bar's carriage return ends a line here: no cursor is moved."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(errors="replace"), translate=True)
