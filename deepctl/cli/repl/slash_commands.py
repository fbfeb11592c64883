"""The slash commands of a conversation: what there is, and running one.

A slash command is a shell command with profile and session filled in: `/rewind ~2 --only files` is `deepctl checkpoints
rewind ~2 --only files --user NAME --session SESSION`. A few are about the conversation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deepctl.cli import usage_errors
from deepctl.cli.ephemeral_chat import EphemeralChatSession
from deepctl.cli.repl import (
    help,
    history_commands,
    run_cli_command,
    session_commands,
    settings_commands,
    status,
    tty_modes,
)
from deepctl.cli.repl.command_names import Names
from deepctl.cli.repl.completer import Command
from deepctl.cli.repl.external_editor import edited
from deepctl.errors import NotFound, UsageError

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation

Run = Callable[["Conversation", str], None]

_DIGITS = 6


class Slash(NamedTuple):
    """A slash command. `like` is the shell command that it is, if it is one; `anywhere`: in `--ephemeral`, too."""

    command: Command
    group: str
    run: Run
    like: Sequence[str] = ()
    anywhere: bool = False


def _of_group(group: str, usual: Sequence[str], bare: Sequence[str] = ()) -> Run:
    """Run what is named of a group of shell commands; `usual` where only options are given, with `bare` without any."""

    def run(conversation: Conversation, rest: str) -> None:
        words = run_cli_command.split(rest)
        if not words:
            words = [*usual, *bare]
        elif words[0].startswith("-") and words[0] not in ("-h", "--help"):
            words = [*usual, *words]
        if group == "checkpoints" and words[0] in ("rewind", "undo", "fork"):
            import shlex

            moves = {"rewind": history_commands.rewind, "undo": history_commands.undo, "fork": history_commands.fork}
            moves[words[0]](conversation, shlex.join(words[1:]))
            return
        run_cli_command.run(conversation, group, *words)

    return run


def _diff(conversation: Conversation, rest: str) -> None:
    run_cli_command.run(conversation, "checkpoints", "diff", *run_cli_command.split(rest))


def _remember(conversation: Conversation, rest: str) -> None:
    # `memory add -` would read what is typed next.
    if rest in ("", "-"):
        raise UsageError("There is nothing to remember.", "/remember TEXT notes the TEXT as it is.")
    run_cli_command.run(conversation, "memory", "add", "--", rest)


def _edit(conversation: Conversation, rest: str) -> None:
    text, failure = edited(rest or conversation.undone)
    if failure is not None:
        conversation.talk.display.notice(failure)
    conversation.draft = text


def _compact(conversation: Conversation, rest: str) -> None:
    session = (
        None if isinstance(conversation.talk, EphemeralChatSession) else run_cli_command.at_hand(conversation).name
    )
    with tty_modes.quiet():
        conversation.talk.compact(session, rest or None)
    if session is not None:
        conversation.session = session


def _details(conversation: Conversation, rest: str) -> None:
    number = None
    if rest:
        if not (rest.isascii() and rest.isdigit() and len(rest) <= _DIGITS and int(rest)):
            raise UsageError(f"{rest!r} is not the number of a tool call.", "They are counted from 1 in every turn.")
        number = int(rest)
    details = getattr(conversation.talk.display, "details", None)
    if details is None:
        conversation.talk.display.notice("There are no details here: this terminal shows tool calls as they come.")
        return
    details(number)


def _help(conversation: Conversation, rest: str) -> None:
    words = rest.split()
    if not words:
        help.overview(
            [(one.group, one.command) for one in _possible(conversation)],
            has_shell=not isinstance(conversation.talk, EphemeralChatSession),
        )
        return
    if len(words) > 1:
        raise UsageError(f"/help takes one command; this is too much: {' '.join(words[1:])}.", "/help lists them all.")
    slash = _found(words[0] if words[0].startswith("/") else f"/{words[0]}")
    if slash.like:
        help.accepted(slash.command, slash.like, names(conversation))
    else:
        help.usage(slash.command)


def _quit(conversation: Conversation, rest: str) -> None:
    conversation.left = True


_BACK, _SESSIONS, _MEMORY, _AGENT, _HERE = "Going back", "Sessions", "Memory", "The agent", "Here"

_TABLE = (
    Slash(Command("/rewind", "[REF] [OPTION…]", "Go back to a checkpoint. Without REF, choose.", "reference"),
          _BACK, history_commands.rewind, ("checkpoints", "rewind")),
    Slash(
        Command("/undo", "[OPTION…]", "Take back the last rewind."),
        _BACK,
        history_commands.undo,
        ("checkpoints", "undo"),
    ),
    Slash(Command("/retry", "", "Take back the last turn; say its prompt again."), _BACK, history_commands.retry),
    Slash(Command("/diff", "[FROM] [TO]", "Compare checkpoints, or one with what is now.", "reference"),
          _BACK, _diff, ("checkpoints", "diff")),
    Slash(Command("/checkpoints", "[COMMAND…]", "List checkpoints, or run a command on them.",
                  "choice:list,show,diff,save,label,fork,remove,prune,verify"),
          _BACK, _of_group("checkpoints", ("list",), ("--limit", "20")), ("checkpoints",)),
    Slash(Command("/sessions", "[COMMAND…]", "List sessions, or run a command on them.",
                  "choice:list,show,search,rename,delete,export,import"),
          _SESSIONS, _of_group("sessions", ("list",)), ("sessions",)),
    Slash(Command("/new", "[NAME]", "Begin a session with the next prompt."), _SESSIONS, session_commands.new),
    Slash(Command("/switch", "[NAME]", "Go on in another session. Without NAME, list.", "session"),
          _SESSIONS, session_commands.switch),
    Slash(Command("/fork", "[REF] NAME", "Go on in a new session that begins here, or at REF.", "reference"),
          _SESSIONS, history_commands.fork, ("checkpoints", "fork")),
    Slash(Command("/compact", "[FOCUS]", "Summarise what was said, to make room for more."),
          _SESSIONS, _compact, anywhere=True),
    Slash(Command("/export", "FILE [OPTION…]", "Write this session to a .md file, else as JSON."),
          _SESSIONS, session_commands.export, run_cli_command.EXPORT),
    Slash(Command("/memory", "[COMMAND…]", "Show the agent's notes, or run a command on them.",
                  "choice:show,list,add,edit,search,forget,history,diff"),
          _MEMORY, _of_group("memory", ("show",)), ("memory",)),
    Slash(Command("/remember", "TEXT", "Note TEXT, as it is."), _MEMORY, _remember),
    Slash(Command("/model", "[NAME]", "Have another model answer. Without NAME, list.", "model"),
          _AGENT, settings_commands.model, anywhere=True),
    Slash(Command("/models", "[--all]", "List models."), _AGENT, settings_commands.models, ("models",), anywhere=True),
    Slash(Command("/approve", "[HOW]", "Answer the agent's questions: ask, auto or never.",
                  f"choice:{','.join(settings_commands.APPROVE)}"), _AGENT, settings_commands.approve, anywhere=True),
    Slash(Command("/sandbox", "[WHERE]", "Run commands in: auto, bubblewrap, docker, none.",
                  f"choice:{','.join(settings_commands.SANDBOX)}"), _AGENT, settings_commands.sandbox, anywhere=True),
    Slash(Command("/status", "", "Show how things are."), _HERE, status.status, anywhere=True),
    Slash(Command("/details", "[N]", "Show the last tool calls and results in full, or one."),
          _HERE, _details, anywhere=True),
    Slash(Command("/edit", "[TEXT]", "Write the prompt in your editor; begin with TEXT."),
          _HERE, _edit, anywhere=True),
    Slash(Command("/help", "[COMMAND]", "List the commands, or say what one takes."), _HERE, _help, anywhere=True),
    Slash(Command("/quit", "", "Leave; /exit and Ctrl-D, too."), _HERE, _quit, anywhere=True),
)  # fmt: skip

ALL: Sequence[Command] = tuple(one.command for one in _TABLE)
_BY_NAME = {one.command.name: one for one in _TABLE}
_OTHER_NAMES = {"/exit": "/quit", "/?": "/help"}
_SHELL_NAMES = {tuple(one.like): one.command.name for one in _TABLE if one.like and one.like != run_cli_command.EXPORT}
"""What shell commands are called here. `/export` takes other arguments than the command that it is."""


def run(conversation: Conversation, name: str, rest: str) -> None:
    """Run the command `name` on `rest`. Raises `UsageError` if there is none, and what it raises."""
    slash = _found(name)
    if isinstance(conversation.talk, EphemeralChatSession) and not slash.anywhere:
        raise NotFound(
            f"{slash.command.name} means nothing in an --ephemeral conversation: nothing of it is kept.",
            "Without --ephemeral, a conversation has sessions, checkpoints and memory.",
            code="ephemeral",
        )
    if rest in ("-h", "--help"):
        _help(conversation, name)
        return
    if rest and not slash.command.usage:
        raise UsageError(
            f"{slash.command.name} takes nothing; this is too much: {rest}.", f"{slash.command.name} alone does it."
        )
    slash.run(conversation, rest)


def names(conversation: Conversation) -> Names:
    """What shell commands are called in this conversation."""
    return Names(_SHELL_NAMES, None if isinstance(conversation.talk, EphemeralChatSession) else conversation.talk.name)


def offered(conversation: Conversation) -> Sequence[Command]:
    """The commands that mean something in this conversation."""
    return [one.command for one in _possible(conversation)]


def _possible(conversation: Conversation) -> list[Slash]:
    ephemeral = isinstance(conversation.talk, EphemeralChatSession)
    return [one for one in _TABLE if one.anywhere or not ephemeral]


def _found(name: str) -> Slash:
    wanted = name.lower()
    slash = _BY_NAME.get(_OTHER_NAMES.get(wanted, wanted))
    if slash is None:
        if not any(map(str.isalpha, name)) or name.startswith("/!"):
            raise UsageError(
                f"{name} is no command.", "/help lists those there are; !COMMAND runs one in the workspace."
            )
        near = usage_errors.near_to(wanted, [*_BY_NAME, *_OTHER_NAMES])
        raise UsageError(
            f"There is no command {name}.", f"Did you mean {near[0]}?" if near else "/help lists those there are."
        )
    return slash
