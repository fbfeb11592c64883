"""The conversation at a terminal: read an entry, run it, read again."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from deepctl.cli import options
from deepctl.cli.chat_session import TurnCallbacks
from deepctl.cli.options import UNNAMED
from deepctl.cli.profile_chat import ProfileChat
from deepctl.cli.repl import missing_mentions, shell_escape, slash_commands, tty_modes
from deepctl.cli.repl.completions import ProfileCompletions
from deepctl.cli.repl.line_editor import Editor
from deepctl.cli.repl.toolbar import NEW_SESSION, NO_SANDBOX, Toolbar
from deepctl.cli.usage_totals import Used
from deepctl.errors import DeepctlError, Interrupted, ModelFailed, ProfileGone, Terminated
from deepctl.files.atomic import storage_error
from deepctl.output import command_names, render
from deepctl.store import session_catalogue
from deepctl.store.session_log import now

if TYPE_CHECKING:
    from deepctl.cli.chat_session import ChatSession

_WELCOME = "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves."
_SLASH = re.compile(r"/[A-Za-z?][\w-]*(?=\s|$)|/(?:!.*|[^\w\s]*)$")
"""What begins like this is a command, known or not: `/etc/passwd is odd` is something for the agent."""
_OF_THE_ENVIRONMENT = ("model_key_missing", "bad_key", "bad_address")
"""Codes of errors about variables, which cannot be changed from within a conversation."""
_OF_THE_MODEL = ("unknown_model", "model_extra_missing")
_ANOTHER_MODEL = "/model NAME chooses another one; /model lists what there is."


def converse(talk: ChatSession, session: str | None, new: str | None, files: Sequence[str] = ()) -> None:
    """Talk until Ctrl-D. Ctrl-C stops a turn, or empties the line that is being typed; twice, it leaves.

    The lock is held during turns only, so an idle conversation keeps nobody waiting.
    """
    with tty_modes.undisturbed(), tty_modes.terminable(), tty_modes.quiet(), tty_modes.interruptible():
        tty_modes.take_off_typed_ahead()
        talk.display.notice(talk.begin(session, new))
        talk.display.notice(_WELCOME)
        if files:
            talk.display.notice(f"With the next prompt: {', '.join(os.path.basename(file) for file in files)}")
        conversation = Conversation(talk, session, new, files)
    conversation.run()


class Conversation:
    """What a conversation is at. `commands` change it."""

    def __init__(self, talk: ChatSession, session: str | None, new: str | None, files: Sequence[str] = ()) -> None:
        self.talk = talk
        self.session = session
        """The session that the next turn is in; `None` for the latest of the profile."""
        self.new = new
        """The name of a session that the next turn begins, if it begins one."""
        self.files = files
        """What is copied into the workspace with the next prompt."""
        self.draft = ""
        """What the input line begins with."""
        self.asked: str | None = None
        """The last prompt, unless the conversation has gone somewhere else since."""
        self.asked_at = ""
        """When that was, in RFC 3339."""
        self.undone = ""
        """The last prompt that was taken back."""
        self.shared: list[str] = []
        """Commands of the user's, and what they printed, that the agent sees with the next prompt."""
        self.ran: str | None = None
        """The last of them, whether or not the agent sees it."""
        self.ran_unconfined = False
        """Whether it was said that nothing is around them."""
        self.left = False
        """Whether `/quit` was typed."""
        self._answered = False
        """Whether the last entry was answered: an empty line is below that already."""
        self._loading = True
        self._telling = threading.Lock()
        self._is_asking = False
        self._latest: str | None = None
        """The latest session when the prompt was drawn first; `None` if nobody has looked."""
        self.editor = Editor(talk.history(), ProfileCompletions(self), self._toolbar, lambda: f"{talk.name}> ")

    def run(self) -> None:
        """Read and run entries until the user leaves."""
        self.talk.warm(self._warmed)
        # The kernel edits the lines of a terminal that can do nothing but print.
        between = nullcontext() if tty_modes.is_dumb() else tty_modes.quiet()
        with tty_modes.undisturbed(), tty_modes.terminable(), between:
            self._read_and_run()

    def _read_and_run(self) -> None:
        while not self.left:
            draft, self.draft, self._latest = self.draft, "", None
            try:
                entry = self.editor.read(draft)
            except (EOFError, Interrupted):
                return
            if not entry.strip():
                continue
            self._answered = False
            try:
                with (
                    tty_modes.interruptible(),
                    command_names.conversing(slash_commands.names(self).reword),
                    self._reported(),
                ):
                    self._run(entry)
            except Interrupted as stopped:
                self._stopped(stopped)
            if not self._answered and not self.left:
                render.say("")

    def _run(self, entry: str) -> None:
        word = entry.strip()
        slash = _SLASH.match(word)
        if word.lower() in ("exit", "quit"):
            self.left = True
        elif slash is not None:
            with tty_modes.quiet():
                slash_commands.run(self, slash[0], word[slash.end() :].strip())
        elif word.startswith("!"):
            shell_escape.run(self, word[1:])
        else:
            self.say(entry)

    def say(self, prompt: str) -> None:
        """Run a turn. Raises what keeps it from ending."""
        self.asked, self.asked_at, self.undone = prompt, now(), ""
        with tty_modes.quiet(), tty_modes.whole_pastes(), self._asking():
            said = "\n\n".join([prompt, *self.shared])
            self.talk.turn(said, self.session, self.new, self.files, TurnCallbacks(self._begun, self._sent))
        self._answered = True

    def _begun(self, session: str) -> None:
        self.session, self.new = session, None

    def _sent(self) -> None:
        self.files, self.shared = (), []
        if isinstance(self.talk, ProfileChat) and self.asked is not None:
            told = missing_mentions.missing(self.asked, self.talk.paths().workspace)
            if told is not None:
                self.talk.display.notice(told)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """What goes wrong is told, and the conversation goes on; what ends it is raised, and Ctrl-C."""
        try:
            with tty_modes.terminable():
                yield
        except (Terminated, ProfileGone, Interrupted):
            raise
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None
        except DeepctlError as error:
            self.tell(error)
        except BrokenPipeError:
            raise
        except OSError as error:
            self.tell(storage_error(error))
        finally:
            self.talk.display.close()

    def tell(self, error: DeepctlError) -> None:
        """Say what went wrong."""
        self.talk.display.close()
        if isinstance(self.talk, ProfileChat):
            options.advise(error, self.talk.paths().name)
        if error.code in _OF_THE_ENVIRONMENT:
            error.hint = _ANOTHER_MODEL
        elif error.code == "locked":
            error.hint = "Try it again when that is done; Up brings the line back."
        render.error(error, as_json=False)

    def _stopped(self, stopped: Interrupted) -> None:
        render.new_line()
        note = "Stopped; what was complete is kept." if stopped.message == "Interrupted." else stopped.message
        self.talk.display.notice(note)
        self.editor.stopped()

    def _warmed(self, failed: BaseException | None) -> None:
        """Who answers is ready, or cannot be made so: told above the prompt, in whatever thread this is."""
        # So that the first answer is drawn at once.
        import rich.console  # noqa: F401

        import deepctl.output.stream.turn_view  # noqa: F401

        self._loading = False
        if failed is None:
            self.talk.introduce(self._introduced)
        elif isinstance(failed, ModelFailed) or getattr(failed, "code", "") in (*_OF_THE_MODEL, *_OF_THE_ENVIRONMENT):
            assert isinstance(failed, DeepctlError)
            self.editor.tell(f"Error: {failed.message}")
            unknown = f"{failed.hint} " if failed.code == "unknown_model" and failed.hint else ""
            self.editor.tell(f"Hint: {unknown}{_ANOTHER_MODEL}")
        else:
            self.editor.fail(failed)
        self.editor.refresh()

    def _introduced(self, line: str) -> None:
        """Say who answers: above the prompt, or at once where a turn waits for just that, and not behind its answer."""
        line = slash_commands.names(self).reword(line)
        with self._telling:
            if self._is_asking:
                self.talk.display.notice(line)
            else:
                self.editor.tell(line)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with self._telling:
            self._is_asking = True
            for line in self.editor.untold():
                self.talk.display.notice(line)
        try:
            yield
        finally:
            self._is_asking = False

    def _toolbar(self) -> Toolbar:
        facts = self.talk.facts(self.session)
        where = None
        if facts.commands is not None:
            where = facts.commands.sandbox or "no shell"
            where = NO_SANDBOX if where == "none" else f"{where} with network" if facts.commands.network else where
        session = facts.session or self._next()
        used = self.talk.counts.of(self.session)
        if self.new is not None:
            session = NEW_SESSION if self.new == UNNAMED else f"{self.new} (new)"
            used = Used()
        tokens = (used.input_tokens, used.output_tokens)
        note = "loading…" if self._loading else ""
        return Toolbar(
            facts.profile,
            session,
            facts.model,
            where,
            used.context,
            tokens if any(tokens) else None,
            used.cost or None,
            note,
        )

    def _next(self) -> str | None:
        """The session that the next turn is in where none is chosen."""
        if self._latest is None and isinstance(self.talk, ProfileChat):
            # Kept, because the toolbar is drawn with every key.
            self._latest = session_catalogue.latest(self.talk.paths()) or session_catalogue.FIRST
        return self._latest
