"""`deepctl chat`: one turn from a script, or a conversation at a terminal."""

from __future__ import annotations

import errno
import gc
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS, UNNAMED
from deepctl.domain import names, profiles, settings
from deepctl.domain.layout import ProfilePaths, Root
from deepctl.domain.sessions import catalogue
from deepctl.errors import BadName, UsageError
from deepctl.output.chat import Display, Events, Text
from deepctl.output.text import is_terminal

if TYPE_CHECKING:
    from deepctl.agent.chat import Chat

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)

_HOW = "deepctl chat 'your prompt'"


@app.command(epilog="Example: git diff | deepctl chat --user alice 'review this'")
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to say. Piped stdin is added to it as context.")
    ] = None,
    user: options.User = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="Session to continue, begun if there is none.")
    ] = None,
    new: Annotated[
        str | None,
        typer.Option(
            "--new",
            metavar="[NAME]",
            help="Begin a new session. The next word is its NAME, so write the prompt before --new.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Model, as provider:name.")
    ] = None,
    approve: Annotated[
        Literal["ask", "auto", "never"] | None,
        typer.Option(
            help="What happens to commands: ask at the terminal (the default; without one, no), auto is yes, never no."
        ),
    ] = None,
    sandbox: Annotated[
        Literal["auto", "bubblewrap", "docker", "none"] | None,
        typer.Option(
            help="Where the agent's commands run. none: with your own rights and nothing around them. bubblewrap and "
            "docker are not in this version; with auto, the default, there is no shell."
        ),
    ] = None,
    timeout: options.Timeout = None,
    wait: options.Wait = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON event a line.")] = False,
) -> None:
    """Talk to the agent of a profile.

    With a PROMPT or piped stdin: one turn, the answer on stdout, exit. Without either, at a terminal: a conversation.
    """
    display: Display = Events() if as_json else Text()
    name = options.user(user)
    if session is not None and new is not None:
        raise UsageError("--session and --new exclude each other.")
    if session is not None:
        names.check(session, "session")
    if new is not None and new != UNNAMED:
        _check_new(new)
    said = _said(prompt, new)
    if said is None and as_json:
        raise UsageError("--json needs a PROMPT, or one on stdin.", "deepctl chat --json 'your prompt'")
    root = options.root()
    profile = profiles.find(root, name) if profiles.exists(root, name) else None
    with closing(display), closing(_chat(profile, model, approve, sandbox, timeout)) as agent:
        talk = Talk(root, name, agent, wait, display)
        if said is not None:
            talk.turn(said, session, new)
        else:
            from deepctl.cli.interactive import converse

            converse(talk, session, new)


def _check_new(new: str) -> None:
    try:
        names.check(new, "session")
    except BadName as error:
        raise BadName(error.message, "The word after --new is its NAME: write the prompt before --new.") from None


def _said(prompt: str | None, new: str | None) -> str | None:
    """The prompt with what was piped in, or `None` for a conversation at a terminal."""
    if prompt is not None:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError("The prompt is not UTF-8 text.", code="prompt_not_utf8") from None
    piped = "" if is_terminal(sys.stdin) else _stdin()
    if prompt is not None and not prompt.strip() and not piped.strip():
        raise UsageError("The prompt is empty.", "Say something, or leave the prompt out at a terminal.")
    if prompt:
        # The offline model knows this tag too: what is piped in is context, not commands.
        return f"{prompt}\n\n<stdin>\n{piped}\n</stdin>" if piped.strip() else prompt
    if piped.strip():
        return piped
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        return None
    if new is not None and new != UNNAMED:
        raise UsageError(f"There is no prompt; --new took {new!r} as its NAME.", "Write the prompt before --new.")
    if is_terminal(sys.stdin):
        raise UsageError("There is no prompt, and no conversation where stdout is not a terminal.", _HOW)
    raise UsageError("There is no prompt: none was given, and stdin is empty.", _HOW)


def _stdin() -> str:
    try:
        raw = sys.stdin.buffer.read()
    except OSError as error:
        if error.errno == errno.EBADF:
            return ""  # open, but not for reading: nothing was piped in
        raise UsageError(f"stdin cannot be read: {error.strerror}.", code="stdin") from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset {error.start}.",
            "Convert it first, for instance with iconv.",
            code="stdin_not_utf8",
        ) from None


def _chat(
    profile: ProfilePaths | None, model: str | None, approve: str | None, sandbox: str | None, timeout: float | None
) -> Chat:
    given = {"model": model, "approve": approve, "sandbox": sandbox}
    found = {
        key: settings.resolve(key, environment=os.environ, profile=profile, option=given.get(key)).value
        for key in ("model", "base_url", "instructions", "sandbox", "approve")
    }
    # pydantic-ai greets new users of the library on stderr; these are not.
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")
    # A second of imports: only now that there is something to say. None of what they make is garbage, so looking for
    # some meanwhile is a waste.
    gc.disable()
    from deepctl.agent.chat import Chat, Options

    gc.freeze()
    gc.enable()

    chosen = Options(
        model=found["model"] or "offline",
        base_url=found["base_url"],
        instructions=found["instructions"],
        sandbox=found["sandbox"] or "auto",
        approve=cast("Literal['ask', 'auto', 'never']", found["approve"] or "ask"),
        timeout=timeout,
    )
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return Chat(chosen, environment=os.environ)
    from deepctl.cli.interactive import ask_at_terminal

    return Chat(chosen, environment=os.environ, ask=ask_at_terminal)


class Talk:
    """One profile's chat as the command line runs it: the lock for every turn, and every turn shown."""

    def __init__(self, root: Root, user: str, chat: Chat, wait: float, display: Display) -> None:
        self._chat = chat
        self.root = root
        self.wait = wait
        self.user = user
        self.display = display
        self.model = chat.model
        self._introduced = False

    def turn(self, prompt: str, session: str | None, new: str | None) -> str:
        """Take the lock, run one turn and show it. Returns the name of the session it was in."""
        with profiles.lock(self.root, self.user, command="chat", wait=self.wait):
            profile = self.profile()
            name = _session(profile, session, new, self.display)
            self.introduce()
            start = {"type": "start", "profile": profile.name, "session": name, "model": self.model}
            self.display.event(start)
            with options.opened(profile, self.display.notice) as work:
                done = self._chat.turn(work, name, prompt, self.display.event)
        for message in done.notices:
            self.display.notice(message)
        self.display.event(
            {
                "type": "result",
                "output": done.outcome.output,
                "session": done.session,
                "checkpoint": done.checkpoint,
                "usage": done.outcome.usage._asdict(),
            }
        )
        return done.session

    def introduce(self) -> None:
        """Say once who answers, if it is no LLM."""
        if self.model == "offline" and not self._introduced:
            self.display.notice(
                "The offline model answers: it follows a few commands and is not an LLM. "
                "Choose a model with --model or `deepctl config set model provider:name`."
            )
        self._introduced = True

    def profile(self) -> ProfilePaths:
        """The profile, made if this is its first turn. The caller holds the lock."""
        if profiles.exists(self.root, self.user):
            return profiles.find(self.root, self.user)
        made = profiles.create(self.root, self.user)
        self.display.notice(f"Created profile {made.name}.")
        return made


def _session(profile: ProfilePaths, session: str | None, new: str | None, display: Display) -> str:
    if new is not None:
        return catalogue.start(profile, new if new != UNNAMED else catalogue.free_name(profile)).name
    wanted = session if session is not None else catalogue.latest(profile) or catalogue.FIRST
    found = catalogue.spelled(profile, wanted)
    if found is not None:
        return found
    if session is not None:
        display.notice(f"Began session {session}.")
    return catalogue.start(profile, wanted).name
