"""The loop of a conversation at a terminal: read an entry, run it, read the next one."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from deepctl import times
from deepctl.cli import options, tty_modes
from deepctl.cli.chat_session import ProfileChat, TurnCallbacks
from deepctl.cli.repl import shell_escape, slash_commands, status
from deepctl.cli.repl.completer import ConversationCandidates
from deepctl.cli.repl.line_editor import Editor
from deepctl.cli.repl.state import ReplState
from deepctl.domain import attachments
from deepctl.errors import DeepctlError, Interrupted, ModelFailed, ProfileGone, Terminated
from deepctl.files.atomic import storage_error
from deepctl.files.paths_beneath import Outside, Tree
from deepctl.output import render, terminal_caps
from deepctl.sandbox.policy import MOUNT
from deepctl.store import session_catalogue

if TYPE_CHECKING:
    from deepctl.cli.chat_session import ChatSession

_WELCOME = "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."
_SLASH = re.compile(r"/[A-Za-z?][\w-]*(?=\s|$)|/(?:!.*|[^\w\s]*)$")
"""The beginning of a command, known or not. `/etc/passwd is odd` is a prompt."""
_ENVIRONMENT_CODES = ("model_key_missing", "bad_key", "bad_address")
"""Codes of errors about variables, which cannot be changed from within a conversation."""
_MODEL_CODES = ("unknown_model", "model_extra_missing")
_ANOTHER_MODEL = "/model NAME chooses another one; /model lists what there is."
_MAX_MISSING, _MAX_PATH = 5, 60
"""Mentioned files that a notice lists, and characters of each."""


def converse(chat: ChatSession, session: str | None, new: str | None, files: Sequence[str] = ()) -> None:
    """Run a conversation until Ctrl-D. Ctrl-C stops a turn, or empties the input line; Ctrl-C twice leaves.

    The lock is held during turns only, so an idle conversation blocks no other process.
    """
    with tty_modes.undisturbed(), tty_modes.terminable(), tty_modes.quiet(), tty_modes.interruptible():
        tty_modes.take_off_typed_ahead()
        chat.display.notice(chat.begin(session, new))
        chat.display.notice(_WELCOME)
        if files:
            chat.display.notice(f"With the next prompt: {', '.join(os.path.basename(file) for file in files)}")
        repl = Repl(ReplState(chat, slash_commands.names(chat), session, new, files))
    repl.run()


class Repl:
    """Reads entries and runs them: slash commands, commands of the user, and prompts."""

    def __init__(self, state: ReplState) -> None:
        self._state = state
        self._ended_with_blank_line = False
        """Whether the last entry was answered: an empty line is below an answer already."""
        self._loading = True
        self._notice_lock = threading.Lock()
        self._is_in_turn = False
        self._latest: str | None = None
        """The latest session, once the toolbar has needed it since the prompt was drawn."""
        candidates = ConversationCandidates(state)
        self._editor = Editor(state.chat.history(), candidates, self._toolbar, lambda: f"{state.chat.name}> ")

    def run(self) -> None:
        """Read and run entries until the user leaves."""
        self._state.chat.warm(self._on_warm)
        # On a dumb terminal the kernel edits the line, and has to echo it.
        between_entries = nullcontext() if terminal_caps.is_dumb() else tty_modes.quiet()
        with tty_modes.undisturbed(), tty_modes.terminable(), between_entries:
            self._loop()

    def _loop(self) -> None:
        state = self._state
        while not state.has_quit:
            draft, state.draft, self._latest = state.draft, "", None
            try:
                entry = self._editor.read(draft)
            except (EOFError, Interrupted):
                return
            if not entry.strip():
                continue
            self._ended_with_blank_line = False
            try:
                with (
                    tty_modes.interruptible(),
                    render.conversing(state.command_names.reword),
                    self._reporting_errors(),
                ):
                    self._run(entry)
            except Interrupted as interrupted:
                self._on_interrupt(interrupted)
            if not self._ended_with_blank_line and not state.has_quit:
                render.say("")

    def _run(self, entry: str) -> None:
        line = entry.strip()
        slash = _SLASH.match(line)
        if line.lower() in ("exit", "quit"):
            self._state.has_quit = True
        elif slash is not None:
            self._state.next_prompt = None
            with tty_modes.quiet():
                slash_commands.run(self._state, slash[0], line[slash.end() :].strip())
                if self._state.next_prompt is not None:
                    self._send(self._state.next_prompt)
        elif line.startswith("!"):
            shell_escape.run(self._state, line[1:])
        else:
            self._send(entry)

    def _send(self, prompt: str) -> None:
        """Run a turn. Raises what keeps it from ending."""
        state = self._state
        state.last_prompt, state.last_prompt_at, state.undone_prompt = prompt, times.now(), ""
        with tty_modes.quiet(), tty_modes.whole_pastes(), self._in_turn():
            text = "\n\n".join([prompt, *state.shared_output])
            state.chat.turn(text, state.session, state.new, state.files, TurnCallbacks(self._on_begun, self._on_sent))
        self._ended_with_blank_line = True

    def _on_begun(self, session: str) -> None:
        self._state.session, self._state.new = session, None

    def _on_sent(self) -> None:
        state = self._state
        state.files, state.shared_output = (), []
        if isinstance(state.chat, ProfileChat) and state.last_prompt is not None:
            notice = missing_mentions(state.last_prompt, state.chat.paths().workspace)
            if notice is not None:
                state.chat.display.notice(notice)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Report errors, so that the conversation continues. Ctrl-C and errors that end the conversation are raised."""
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
        chat.display.close()
        if isinstance(chat, ProfileChat):
            options.advise(error, chat.paths().name)
        if error.code in _ENVIRONMENT_CODES:
            error.hint = _ANOTHER_MODEL
        elif error.code == "locked":
            error.hint = "Try it again when that is done; Up brings the line back."
        render.error(error, as_json=False)

    def _on_interrupt(self, interrupted: Interrupted) -> None:
        render.new_line()
        is_plain = interrupted.message == "Interrupted."
        self._state.chat.display.notice("Stopped; what was complete is kept." if is_plain else interrupted.message)
        self._editor.stopped()

    def _on_warm(self, failure: BaseException | None) -> None:
        """The model and the sandbox are ready, or cannot be: shown above the prompt. Runs in the thread of `warm`."""
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
            yield
        finally:
            self._is_in_turn = False

    def _toolbar(self) -> status.Toolbar:
        return status.toolbar(self._state, self._latest_session, "loading…" if self._loading else "")

    def _latest_session(self) -> str | None:
        """The session of the next turn where none is chosen."""
        if self._latest is None and isinstance(self._state.chat, ProfileChat):
            # Remembered, because the toolbar is drawn with every key.
            self._latest = session_catalogue.latest(self._state.chat.paths()) or session_catalogue.FIRST
        return self._latest


def missing_mentions(prompt: str, workspace: str) -> str | None:
    """A notice about files that a prompt mentions with `@` and that do not exist; `None` if there are none."""
    tree = Tree(workspace, follow=False, mount=MOUNT)
    words = [
        readings[-1] for readings in attachments.mentions(prompt) if not any(_exists(tree, path) for path in readings)
    ]
    if not words:
        return None
    mentions = [
        attachments.mention(word if len(word) <= _MAX_PATH else f"{word[:_MAX_PATH]}…") for word in dict.fromkeys(words)
    ]
    more = ", …" if len(mentions) > _MAX_MISSING else ""
    return f"Not in the workspace, so sent as written: {', '.join(mentions[:_MAX_MISSING])}{more}"


def _exists(tree: Tree, path: str) -> bool:
    try:
        tree.entry(path)
    except Outside as error:
        # A link out of the workspace is reported where files are attached.
        return "link" in (error.strerror or "")
    except (OSError, ValueError):
        return False
    return True
