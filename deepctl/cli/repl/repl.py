"""The loop of an interactive chat: read an entry, run it, read the next one.

An entry is a slash command, a prompt, or `!command`, a command of the user that runs where the agent's commands run.
Its output is shown to the user only. `!!command` also shows it to the agent, and `!!` does so for the last command.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from deepctl import quantities
from deepctl.cli import options, tty_modes
from deepctl.cli.chat_session import ProfileChat, TurnCallbacks
from deepctl.cli.repl import named_files, settings_commands, slash_commands, status
from deepctl.cli.repl.command_catalogue import TYPED_COMMAND
from deepctl.cli.repl.completer import ConversationCandidates
from deepctl.cli.repl.line_editor import Editor, prompt_history
from deepctl.cli.repl.state import ReplState
from deepctl.cli.repl.turn_line import TurnLine
from deepctl.errors import DeepctlError, Interrupted, ModelFailed, ProfileGone, StorageError, Terminated
from deepctl.files.atomic import storage_error
from deepctl.output import render
from deepctl.output.render import has_colour, is_dumb, printable_lines, terminal_size
from deepctl.output.stream.display import LiveDisplay
from deepctl.output.stream.live_region import LiveRegion
from deepctl.quantities import counted
from deepctl.redaction import redact
from deepctl.store import log_file

if TYPE_CHECKING:
    from deepctl.agent.user_commands import CommandEnd
    from deepctl.cli.chat_session import ChatSession

_WELCOME = "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."
_ENVIRONMENT_CODES = ("model_key_missing", "bad_key", "bad_address")
"""Codes of errors about environment variables, which cannot be changed from within a chat."""
_FILE_CODES = ("file_not_found", "bad_file", "file_unreadable", "file_too_large")
_MODEL_CODES = ("unknown_model", "model_extra_missing")
_ANOTHER_MODEL = "/model NAME selects another model; /model lists the models."

_HELP = (
    "!COMMAND runs a command in the workspace. !!COMMAND also shows its output to the agent; !! shows the output of "
    "the last one."
)
_NO_CD = "Each command starts in the workspace, so cd has no effect on the next command: !cd DIR && COMMAND."
_UNSANDBOXED = "This command is unsandboxed and runs with your rights. /sandbox shows more."
_FULL_SCREEN = frozenset(
    ("vi", "vim", "nvim", "view", "nano", "emacs", "top", "htop", "btop", "tmux", "screen", "less", "more", "man")
)
"""Programs that draw on the whole screen or wait for keys."""
_SHARED = "The agent will see this with your next prompt."
_ONLY_CD = re.compile(r"cd(\s+[^\s;&|]+)?")
_RUNNING = "Running; Ctrl-C stops it."
_LONG_SECONDS = 10
MAX_OUTPUT = 20_000
"""Characters of a command's output that the agent sees. A longer output is reduced to its beginning and end."""
_MAX_COMMAND = 2_000


def converse(chat: ChatSession, session: str | None, new: str | None, files: Sequence[str] = ()) -> None:
    """Run a chat until Ctrl-D. Ctrl-C stops a turn or empties the input line; double Ctrl-C leaves.

    The lock is held only during turns, so an idle chat blocks no other process.
    """
    with tty_modes.undisturbed(), tty_modes.terminable(), tty_modes.without_echo(), tty_modes.interruptible():
        tty_modes.take_off_typed_ahead()
        chat.display.notice(chat.begin(session, new))
        chat.display.notice(_WELCOME)
        if chat.show_last_exchange(session, new):
            render.say("")
        if files:
            chat.display.notice(named_files.listing(files))
        repl = Repl(ReplState(chat, slash_commands.catalogue(chat), session, new, files))
    repl.run()


class Repl:
    """Reads entries and runs them: slash commands, commands of the user, and prompts."""

    def __init__(self, state: ReplState) -> None:
        self._state = state
        self._ended_with_blank_line = False
        """Whether the last entry has been answered, so that the line below the answer is already empty."""
        self._loading = True
        self._notice_lock = threading.Lock()
        self._is_in_turn = False
        self._is_sent = True
        """Whether the agent has received the last prompt."""
        self._line: TurnLine | None = None
        """The input line of the running turn."""
        self._latest: str | None = None
        """The latest session, once the toolbar has needed it since the prompt was drawn."""
        candidates = ConversationCandidates(state)
        history = prompt_history(state.chat.prompt_history)
        self._editor = Editor(
            history, candidates, self._toolbar, lambda: f"{state.chat.name}> ", lambda: settings_commands.is_vi(state)
        )

    def run(self) -> None:
        """Read and run entries until the user leaves."""
        self._state.chat.warm(self._on_warm)
        # On a dumb terminal the kernel edits the line, and has to echo it.
        between_entries = nullcontext() if is_dumb() else tty_modes.without_echo()
        with tty_modes.undisturbed(), tty_modes.terminable(), between_entries:
            self._loop()

    def _loop(self) -> None:
        state = self._state
        while not state.has_quit:
            self._latest = None
            state.catalogue.refresh(state)
            try:
                entry = self._next_entry()
            except (EOFError, Interrupted):
                return
            if not entry.strip():
                continue
            self._ended_with_blank_line, self._is_sent = False, True
            try:
                with (
                    tty_modes.interruptible(),
                    render.conversing(state.command_names.reword),
                    self._reporting_errors(),
                ):
                    self._run(entry)
            except Interrupted as interrupted:
                self._on_interrupt(interrupted)
            finally:
                # Ctrl-C may have come while it was stopped.
                self._show_line(None)
            if not self._ended_with_blank_line and not state.has_quit:
                render.say("")

    def _next_entry(self) -> str:
        """The next entry: of the queue, or of the line. Raises what the line raises."""
        state, queue = self._state, self._editor.queue
        entry = queue.next()
        if entry is not None:
            self._editor.show(entry)
            return entry
        if queue.is_leaving:
            raise EOFError
        draft, state.draft = state.draft, ""
        entry = self._editor.read(draft)
        queue.is_held = False
        return entry

    def _run(self, entry: str) -> None:
        line = entry.strip()
        self._state.chat.next_media = []
        slash = TYPED_COMMAND.match(line)
        if line.lower() in ("exit", "quit"):
            self._state.has_quit = True
        elif slash is not None:
            self._state.next_prompt = None
            with tty_modes.without_echo():
                # A file may have been written while the line was edited.
                self._state.catalogue.refresh(self._state)
                slash_commands.run(self._state, slash[0], line[slash.end() :].strip())
                if self._state.next_prompt is not None:
                    self._send(self._state.next_prompt)
        elif line.startswith("!"):
            run_shell_command(self._state, line[1:])
        else:
            self._send(entry)

    def _send(self, prompt: str) -> None:
        """Run a turn. Raises the errors that prevent it from ending."""
        state = self._state
        try:
            with tty_modes.without_echo():
                named_files.offer_pictures(state, prompt)
                outside_files = named_files.agreed_files(state, prompt)
        except Interrupted:
            state.draft = prompt
            raise
        state.last_prompt, state.last_prompt_at, state.undone_prompt = prompt, quantities.now(), ""
        self._is_sent = False
        stages = TurnCallbacks(self._on_begun, self._on_sent, self._on_wait)
        try:
            with tty_modes.without_echo(), tty_modes.whole_pastes(), self._in_turn():
                text = "\n\n".join([prompt, *state.shared_output])
                state.chat.turn(text, state.session, state.new, state.files, stages, outside_files)
        except (Interrupted, KeyboardInterrupt):
            if not self._is_sent:
                state.draft = prompt
            raise
        self._ended_with_blank_line = True

    def _on_begun(self, session: str) -> None:
        self._state.session, self._state.new = session, None

    def _on_wait(self, reason: str) -> None:
        self._state.chat.display.event({"type": "waiting", "message": reason})

    def _on_sent(self) -> None:
        state = self._state
        self._is_sent = True
        state.files, state.shared_output = (), []

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Report errors, so that the chat continues. Ctrl-C and errors that end the chat are raised."""
        try:
            with tty_modes.terminable():
                yield
        except (Terminated, ProfileGone, Interrupted):
            raise
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None
        except DeepctlError as error:
            self._report(error)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._report(storage_error(error))
        finally:
            self._state.chat.display.close()

    def _report(self, error: DeepctlError) -> None:
        chat = self._state.chat
        self._editor.queue.failed()
        chat.display.close()
        if isinstance(chat, ProfileChat):
            options.advise(error, chat.paths().name)
        if error.code in _ENVIRONMENT_CODES:
            error.hint = _ANOTHER_MODEL
        elif error.code in _FILE_CODES and self._state.files:
            error.hint = "/file lists the attached files; /file --remove PATH takes one back."
        elif error.code == "locked":
            error.hint = "Try again later; the Up key brings the line back."
        render.error(error, as_json=False)

    def _on_interrupt(self, error: Interrupted) -> None:
        render.new_line()
        is_plain = error.message == "Interrupted."
        stopped = "Stopped; completed steps are kept." if self._is_sent else "Stopped; nothing was sent."
        self._state.chat.display.notice(stopped if is_plain else error.message)
        if not self._editor.queue.stopped():
            self._editor.stopped()

    def _on_warm(self, failure: BaseException | None) -> None:
        """The model and the sandbox are ready, or failed: shown above the prompt. Runs in the thread of `warm`."""
        # Imported now, so that the first answer is drawn at once.
        import rich.console  # noqa: F401

        import deepctl.output.stream.turn_view  # noqa: F401

        self._loading = False
        if failure is None:
            self._state.chat.introduce(self._introduce)
        elif isinstance(failure, ModelFailed) or getattr(failure, "code", "") in (*_MODEL_CODES, *_ENVIRONMENT_CODES):
            assert isinstance(failure, DeepctlError)
            self._editor.tell(f"Error: {failure.message}")
            unknown = f"{failure.hint} " if failure.code == "unknown_model" and failure.hint else ""
            self._editor.tell(f"Hint: {unknown}{_ANOTHER_MODEL}")
        else:
            self._editor.fail(failure)
        self._editor.refresh()

    def _introduce(self, line: str) -> None:
        """Show a notice about the model: above the prompt, or in the turn that is waiting for the model."""
        line = self._state.command_names.reword(line)
        with self._notice_lock:
            if self._is_in_turn:
                self._state.chat.display.notice(line)
            else:
                self._editor.tell(line)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._notice_lock:
            self._is_in_turn = True
            for line in self._editor.take_pending():
                self._state.chat.display.notice(line)
        try:
            self._show_line(self._editor.turn_line())
            yield
        finally:
            self._is_in_turn = False
            self._show_line(None)

    def _show_line(self, line: TurnLine | None) -> None:
        """Let the person type below the answer; with `None`, no more."""
        before, display = self._line, self._state.chat.display
        if before is not None:
            before.stop()
        self._line = line
        if isinstance(display, LiveDisplay):
            display.show_line(line)
        if line is not None:
            line.start()

    def _toolbar(self) -> status.Toolbar:
        files = len(self._state.files)
        note = "loading…" if self._loading else f"{counted(files, 'file')} attached" if files else ""
        return status.toolbar(self._state, self._latest_session, note)

    def _latest_session(self) -> str | None:
        """The session of the next turn where none is chosen."""
        chat = self._state.chat
        if self._latest is None and isinstance(chat, ProfileChat):
            # Remembered, because the toolbar is drawn with every key.
            self._latest = chat.directory.next_name(chat.paths(), None)
        return self._latest


def run_shell_command(state: ReplState, text: str) -> None:
    """Run the command behind the `!` of an entry. Raises what keeps it from running, and `Interrupted`."""
    notice = state.chat.display.notice
    shares = text.startswith("!")
    line = text.removeprefix("!").strip()
    if _ONLY_CD.fullmatch(line):
        notice(_NO_CD)
        return
    if line:
        state.last_output = _run_and_show(state, line)
    elif not shares:
        notice(_HELP)
    elif state.last_output is None:
        notice("No command has run yet, so there is no output to show to the agent.")
    if shares and state.last_output is not None:
        if state.last_output not in state.shared_output:
            state.shared_output.append(state.last_output)
        notice(_SHARED)


def _run_and_show(state: ReplState, line: str) -> str:
    """Run a command and show its output. Returns the context for the agent, should the user share it."""
    output = _CommandOutput()
    try:
        with tty_modes.without_echo():
            _warn(state, line)
            output.begin()
            result = state.chat.command(line, output.add, state.session, state.new)
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
    if result.code or result.reason or result.seconds >= _LONG_SECONDS:
        state.chat.display.notice(_outcome(result))
    return context_block(line, output.printed, result.reason or f"exit code {result.code}")


def _warn(state: ReplState, line: str) -> None:
    """Tell how this differs from a shell: once that the command runs unsandboxed, and that it has no terminal."""
    notice = state.chat.display.notice
    if not state.unsandboxed_told and state.chat.commands().sandbox == "none":
        state.unsandboxed_told = True
        notice(_UNSANDBOXED)
    word = os.path.basename(line.split()[0])
    if word in _FULL_SCREEN:
        notice(f"{word} gets no terminal and no input here; only its output is shown. Ctrl-C ends it.")


def _outcome(result: CommandEnd) -> str:
    outcome = result.reason or f"exit code {result.code}"
    return outcome if result.seconds < _LONG_SECONDS else f"{outcome}, after {_duration(result.seconds)}"


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
    text = f"The user ran a command in the workspace ({outcome}) and shows you its output.\n$ {line}\n{output}"
    # The tag of piped input: wherever prompts are read, its content is not taken for the user's words.
    return f"<stdin>\n{log_file.escaped_tags(printable_lines(text))}\n</stdin>"


def _shortened(text: str, most: int) -> str:
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]}\n… {counted(left_out, 'character')} left out …\n{text[-half:]}"


class _CommandOutput:
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
        if is_dumb():
            return
        self._waiting = LiveRegion()
        dim, reset = ("\x1b[2m", "\x1b[0m") if has_colour(sys.stdout) else ("", "")
        self._draw([f"{dim}{_RUNNING[: terminal_size()[0] - 1]}{reset}"])

    def _draw(self, rows: list[str]) -> None:
        if self._waiting is not None and self.failure is None:
            try:
                self._waiting.draw([], rows, terminal_size())
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
