"""`!command` in a conversation: the user's own command, run where the agent's commands run; its output is shown.

The agent sees nothing of it, unless it is `!!command`, or `!!` afterwards.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deepctl.cli import tty_modes
from deepctl.cli.repl.state import ReplState
from deepctl.errors import DeepctlError, Interrupted, StorageError
from deepctl.output import render, terminal_caps
from deepctl.output.stream.live_region import LiveRegion
from deepctl.output.terminal_caps import has_colour
from deepctl.output.text import printable_lines
from deepctl.quantities import counted
from deepctl.redaction import redact
from deepctl.store import prompt_tags

if TYPE_CHECKING:
    from deepctl.agent.user_commands import Ended

_HELP = "!COMMAND runs a command in the workspace; !!COMMAND also shows the agent what it prints, !! what the last did."
_NO_CD = "Each command starts in the workspace, so a cd does nothing for the next one: !cd DIR && COMMAND."
_UNSANDBOXED = "There is no sandbox around this: it runs with your own rights. /sandbox says more."
_FULL_SCREEN = frozenset(
    ("vi", "vim", "nvim", "view", "nano", "emacs", "top", "htop", "btop", "tmux", "screen", "less", "more", "man")
)
"""Programs that draw on a whole screen, or wait for keys."""
_SHARED = "The agent will see this with your next prompt."
_ONLY_CD = re.compile(r"cd(\s+[^\s;&|]+)?")
_RUNNING = "Running; Ctrl-C stops it."
_LONG_SECONDS = 10
MAX_OUTPUT = 20_000
"""Characters of a command's output that the agent sees; of a longer one, the beginning and the end."""
_MAX_COMMAND = 2_000


def run(state: ReplState, text: str) -> None:
    """Run the command behind the `!` of an entry. Raises what keeps it from running, and `Interrupted`."""
    notice = state.chat.display.notice
    shares = text.startswith("!")
    line = text.removeprefix("!").strip()
    if _ONLY_CD.fullmatch(line):
        notice(_NO_CD)
        return
    if line:
        state.last_output = _run(state, line)
    elif not shares:
        notice(_HELP)
    elif state.last_output is None:
        notice("No command was run yet: there is nothing to show the agent.")
    if shares and state.last_output is not None:
        if state.last_output not in state.shared_output:
            state.shared_output.append(state.last_output)
        notice(_SHARED)


def _run(state: ReplState, line: str) -> str:
    """Run a command and show its output. Returns the context for the agent, should the user share it."""
    output = _Output()
    try:
        with tty_modes.quiet():
            _warn(state, line)
            output.begin()
            ended = state.chat.command(line, output.add)
    except Interrupted:
        output.end()
        state.last_output = context_block(line, output.printed, "ended by the user with Ctrl-C")
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
        state.chat.display.notice(_outcome(ended))
    return context_block(line, output.printed, ended.reason or f"exit code {ended.code}")


def _warn(state: ReplState, line: str) -> None:
    """Tell how this differs from a shell: once that the command runs unsandboxed, and that it has no terminal."""
    notice = state.chat.display.notice
    if not state.unsandboxed_told and state.chat.commands().sandbox == "none":
        state.unsandboxed_told = True
        notice(_UNSANDBOXED)
    word = os.path.basename(line.split()[0])
    if word in _FULL_SCREEN:
        notice(f"There is no terminal for {word} here, and no input: what it prints is shown. Ctrl-C ends it.")


def _outcome(ended: Ended) -> str:
    outcome = ended.reason or f"exit code {ended.code}"
    return outcome if ended.seconds < _LONG_SECONDS else f"{outcome}, after {_duration(ended.seconds)}"


def _duration(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder} s" if minutes else f"{remainder} s"


def context_block(command: str, output: str, outcome: str, environment: Mapping[str, str] = os.environ) -> str:
    """A command, its outcome and its output as context for the agent: bounded, redacted, and no line reads as a prompt.

    `outcome` is how the command ended, in words.
    """
    # Redacted before it is cut: half a key would not be recognised.
    output = _shortened(redact(output, environment), MAX_OUTPUT).rstrip("\n") or "(nothing)"
    line = _shortened(redact(command, environment), _MAX_COMMAND)
    text = f"The user ran a command in the workspace ({outcome}) and shows what it printed.\n$ {line}\n{output}"
    # The tag of piped input: wherever prompts are read, its content is not taken for the user's words.
    return f"<stdin>\n{prompt_tags.contained(printable_lines(text))}\n</stdin>"


def _shortened(text: str, most: int) -> str:
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]}\n… {counted(left_out, 'character')} left out …\n{text[-half:]}"


class _Output:
    """The output of a command, both streams as they come: shown at once, and remembered."""

    def __init__(self) -> None:
        self._decoders = (_decoder(), _decoder())
        self._printed = bytearray()
        self._at_line_start = True
        self._waiting: LiveRegion | None = None
        self.failure: StorageError | None = None
        """Why it could not be shown."""

    @property
    def printed(self) -> str:
        """The whole output, with newlines only."""
        return self._printed.decode()

    def begin(self) -> None:
        """Until there is output, show a line that says that the command runs."""
        if terminal_caps.is_dumb():
            return
        self._waiting = LiveRegion()
        dim, reset = ("\x1b[2m", "\x1b[0m") if has_colour(sys.stdout) else ("", "")
        self._draw([f"{dim}{_RUNNING[: terminal_caps.size()[0] - 1]}{reset}"])

    def _draw(self, rows: list[str]) -> None:
        if self._waiting is not None and self.failure is None:
            try:
                self._waiting.draw([], rows, terminal_caps.size())
            except StorageError as error:
                self.failure = error

    def add(self, out: bytes, err: bytes) -> bool:
        """Show output as it comes; returns whether more can be shown."""
        return self._show(
            "".join(decoder.decode(piece) for decoder, piece in zip(self._decoders, (out, err), strict=True))
        )

    def end(self) -> None:
        """Show the rest, and end the line. A second call does nothing."""
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
    """Decodes bytes in pieces. A progress bar's carriage return ends a line here: no cursor is moved."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(errors="replace"), translate=True)
