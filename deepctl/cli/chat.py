"""`deepctl chat`: one turn from a script, or a conversation at a terminal."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Annotated, Literal

import typer

from deepctl import layout
from deepctl.cancellation import interruptible
from deepctl.cli import options
from deepctl.cli.chat_session import ChatSession, EphemeralChatSession, ProfileChat
from deepctl.cli.chat_setup import ChatDirectory, ChatSetup, allowed_for_good, known_profile
from deepctl.cli.confirm import answer_at_terminal, ask_at_terminal
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import attachments, profiles, session_choice, settings
from deepctl.domain.profile_choice import ProfileChoice
from deepctl.errors import BadName, UsageError
from deepctl.layout import UNNAMED
from deepctl.output.render import is_dumb, is_terminal
from deepctl.output.stream.display import Display, JsonDisplay, LiveDisplay, TextDisplay
from deepctl.store import log_file

app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=HELP_OPTIONS)

_HOW = "deepctl chat 'your prompt'"


@app.command(epilog="Example: git diff | deepctl chat --user alice 'review this'")
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Prompt for the agent. Piped stdin is added as context.")
    ] = None,
    user: options.User = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            metavar="NAME",
            help="Session to continue. It is created if it does not exist. Default: the session that was used last.",
        ),
    ] = None,
    new: Annotated[
        str | None,
        typer.Option(
            "--new",
            metavar="[NAME]",
            help="Start a new session. The next word is its NAME, so write the prompt before --new. The name of an "
            "existing session is refused. Default: the next free one of session-2, session-3 and so on.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Choose the session to continue from a list at the terminal."),
    ] = False,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Continue the session that was used last, which is the default.")
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            "-C",
            metavar="DIR",
            help="Directory in which the agent works, such as the clone of a repository. Sessions, memory and "
            "checkpoints stay in the profile. Default: the directory of --session, then the setting project, then the "
            "private workspace of the profile.",
            show_default=False,
        ),
    ] = None,
    no_project: Annotated[
        bool, typer.Option("--no-project", help="Work in the private workspace, and not in the setting project.")
    ] = False,
    large: Annotated[
        bool,
        typer.Option("--large", help="Work in a project with more than 20,000 files or 1 GiB without a question."),
    ] = False,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            metavar="PATH",
            help="Copy a file into the workspace and show it to the model. Can be given several times.",
            show_default=False,
        ),
    ] = None,
    model: options.Model = None,
    thinking: Annotated[
        Literal["off", "minimal", "low", "medium", "high", "xhigh", "max", "on"] | None,
        typer.Option(
            help="Effort of the model's thinking. on: the effort that the provider selects. A provider without a level "
            "uses the nearest one. Default: the setting model_settings.thinking, then the model's own default."
        ),
    ] = None,
    approve: Annotated[
        Literal["ask", "auto", "never"] | None,
        typer.Option(
            help="Answer to approval requests. ask: ask at the terminal; without a terminal, refuse. auto: approve, "
            "but refuse a command that a `deny` rule may cover, and ask if --sandbox auto finds no bubblewrap. never: "
            "refuse. Approval requests come from unsandboxed commands and from rules of the profile. Default: the "
            "setting approve, then ask."
        ),
    ] = None,
    sandbox: Annotated[
        Literal["auto", "bubblewrap", "docker", "none"] | None,
        typer.Option(
            help="Where the agent's commands run. auto: bubblewrap; if it does not work, unsandboxed after an "
            "approval request for each command. none: unsandboxed, with your rights. Default: the setting sandbox, "
            "then auto."
        ),
    ] = None,
    network: Annotated[
        bool | None,
        typer.Option(
            "--network/--no-network",
            help="Whether sandboxed commands can use the network. Default: the setting network, then no.",
            show_default=False,
        ),
    ] = None,
    ephemeral: Annotated[
        bool,
        typer.Option(
            "--ephemeral", help="Keep all state in memory. Nothing is written to disk, and only budgets are read."
        ),
    ] = False,
    timeout: options.Timeout = None,
    wait: options.Wait = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON event per line.")] = False,
) -> None:
    """Talk to the agent of a profile.

    With PROMPT or piped stdin, deepctl runs one turn and prints the answer on stdout. Without both, an interactive chat
    starts at a terminal.
    """
    flags = {"model": model, "approve": approve, "sandbox": sandbox, "model_settings.thinking": thinking}
    flags["network"] = None if network is None else "on" if network else "off"
    in_force = settings.without_files(os.environ, flags) if ephemeral else settings.load(os.environ, options=flags)
    choice = (
        ProfileChoice(layout.check_name(user or "ephemeral")) if ephemeral else options.choose(user, in_force, project)
    )
    if session is not None and new is not None:
        raise UsageError(
            "--session and --new cannot be used together.",
            "--session NAME continues a session; --new [NAME] starts one.",
        )
    _check_continuation(session, new, ephemeral, as_json, {"--resume": resume, "--continue": continue_})
    if session is not None:
        layout.check_name(session, "session")
    if new is not None and new != UNNAMED:
        _check_new(new)
    if ephemeral and (session is not None or new is not None):
        raise UsageError(
            "--ephemeral has no sessions, so --session and --new cannot be used with it.", "Leave out one of the two."
        )
    if ephemeral and (sandbox not in (None, "auto") or network):
        raise UsageError(
            "--ephemeral has no directory for commands, so --sandbox and --network cannot be used with it.",
            "Leave out one of the two.",
        )
    if project is not None and (no_project or ephemeral):
        other_option = "--no-project" if no_project else "--ephemeral"
        raise UsageError(f"-C and {other_option} cannot be used together.", "Leave out one of the two.")
    if files:
        attachments.check(files)
    if resume:
        session = _chosen_session(choice.name, project, is_private=no_project)
    text = _prompt_with_stdin(prompt, new)
    if text is None and as_json:
        raise UsageError("--json needs a PROMPT as an argument or on stdin.", "deepctl chat --json 'your prompt'")
    is_interactive = is_terminal(sys.stdin) and is_terminal(sys.stderr)
    with closing(_display(as_json, text)) as display:
        ask = None
        if is_interactive:
            ask = ask_at_terminal(display, None if ephemeral else allowed_for_good(options.root(), choice.name))
        in_memory_for = user if ephemeral else None
        setup = ChatSetup(
            choice.name,
            in_force,
            timeout,
            ask,
            answer_at_terminal(display) if is_interactive and not as_json else None,
            choice.directory,
            in_memory_for,
            shows_work=display.shows_work,
        )
        directory = None
        if not ephemeral:
            directory = ChatDirectory(options.root(), project, is_private=no_project, is_large=large, is_script=as_json)
        with closing(_session(setup, wait, display, directory)) as talk:
            if text is not None:
                if prompt is not None and prompt.lstrip().startswith("/"):
                    from deepctl.cli.repl import slash_commands

                    text = slash_commands.prompt_of(talk, text, session, new)
                talk.turn(text, session, new, files or ())
            else:
                from deepctl.cli.repl.repl import converse

                talk.notify_of_turns()
                converse(talk, session, new, files or ())


def _check_continuation(
    session: str | None, new: str | None, ephemeral: bool, as_json: bool, options_given: Mapping[str, bool]
) -> None:
    """Raises `UsageError` if --resume or --continue contradict another option."""
    names = [name for name, is_given in options_given.items() if is_given]
    contradictions = {"--session": session is not None, "--new": new is not None, "--ephemeral": ephemeral}
    # A script cannot choose from a list.
    contradictions["--json"] = as_json and "--resume" in names
    names += [name for name, is_given in contradictions.items() if is_given and names]
    if len(names) > 1:
        raise UsageError(
            f"{names[0]} and {names[1]} cannot be used together.",
            "--resume chooses the session from a list, --session NAME names it, and --continue is the default.",
        )


def _chosen_session(name: str, directory: str | None, *, is_private: bool) -> str:
    """The session for --resume. Raises `UsageError` without a terminal, `ProfileNotFound`, `NotFound`, and
    `Interrupted`.
    """
    from deepctl.cli.repl import pickers

    pickers.check_terminal("--resume")
    profile = profiles.find(options.root(), name)
    project = session_choice.project_of(profile, directory)
    return pickers.pick_session(profile, project.id if project is not None else None, is_private=is_private)


def _session(setup: ChatSetup, wait: float, display: Display, directory: ChatDirectory | None) -> ChatSession:
    """The chat in a directory; without one, an ephemeral chat."""
    if directory is None:
        return EphemeralChatSession(setup, display)
    root = options.root()
    profile = known_profile(root, setup.name)
    if profile is not None:
        setup = setup._replace(settings=setup.settings.of_profile(profile))
    return ProfileChat(setup, root, wait, display, directory)


def _display(as_json: bool, text: str | None) -> Display:
    if as_json:
        return JsonDisplay()
    if text is not None or is_dumb():
        return TextDisplay()
    return LiveDisplay()


def _check_new(new: str) -> None:
    try:
        layout.check_name(new, "session")
    except BadName as error:
        raise BadName(error.message, "The word after --new is its NAME. Write the prompt before --new.") from None


def _prompt_with_stdin(prompt: str | None, new: str | None) -> str | None:
    """The prompt together with stdin, or `None` for an interactive chat."""
    if prompt is not None:
        options.utf8_argument(prompt, "The prompt", "prompt_not_utf8")
    stdin_text = "" if is_terminal(sys.stdin) else _stdin()
    if prompt is not None and not prompt.strip() and not stdin_text.strip():
        raise UsageError(
            "The prompt is empty.", "Give a prompt, or leave it out at a terminal to start an interactive chat."
        )
    if prompt:
        # The offline model knows this tag too: it treats piped text as context, not as commands.
        return (
            f"{prompt}{log_file.PIPED}{log_file.escaped_tags(stdin_text)}\n</stdin>" if stdin_text.strip() else prompt
        )
    if stdin_text.strip():
        return stdin_text
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        return None
    if new is not None and new != UNNAMED:
        raise UsageError(f"There is no prompt; --new took {new!r} as its NAME.", "Write the prompt before --new.")
    if is_terminal(sys.stdin):
        raise UsageError("There is no prompt, and an interactive chat needs a terminal as stdout.", _HOW)
    raise UsageError("There is no prompt: PROMPT is missing, and stdin is empty.", _HOW)


def _stdin() -> str:
    try:
        raw = interruptible(sys.stdin.buffer).read()
    except OSError as error:
        if error.errno == errno.EBADF:
            return ""  # open, but not for reading: there is no piped text
        raise UsageError(f"stdin cannot be read: {error.strerror}.", code="stdin") from None
    try:
        return options.decode(raw, "stdin", "stdin_not_utf8")
    except UsageError:
        from deepctl.agent import pictures  # slow to import

        if pictures.media_type(raw[: pictures.HEAD]) is None:
            raise
    raise UsageError(
        "stdin is a picture, and a prompt is text.",
        "Save the picture in a file, and send it with the prompt: deepctl chat --file PICTURE 'your prompt'",
        code="stdin_not_utf8",
    )
