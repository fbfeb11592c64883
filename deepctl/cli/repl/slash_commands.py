"""The slash commands of a conversation: the table of them, and running one.

Most slash commands are shell commands with profile and session filled in: `/rewind ~2 --only files` is `deepctl
checkpoints rewind ~2 --only files --user NAME --session SESSION`. A few are about the conversation itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from deepctl.cli import editor, tty_modes, usage_errors
from deepctl.cli.chat_session import ChatSession, EphemeralChatSession
from deepctl.cli.repl import command_names, help, run_cli_command, session_commands, settings_commands, status
from deepctl.cli.repl.command_names import CommandNames
from deepctl.cli.repl.state import ReplState, SlashCommand
from deepctl.errors import NotFound, UsageError

_MAX_DIGITS = 6


def _group(group: str, default: Sequence[str], default_options: Sequence[str] = ()) -> Callable[[ReplState, str], None]:
    """Run a command of a group of shell commands: `default` if only options are given, with its options if none are."""

    def run(state: ReplState, arguments: str) -> None:
        words = run_cli_command.split(arguments)
        if not words:
            words = [*default, *default_options]
        elif words[0].startswith("-") and words[0] not in ("-h", "--help"):
            words = [*default, *words]
        if group == "checkpoints" and words[0] in ("rewind", "undo", "fork"):
            moves = {"rewind": session_commands.rewind, "undo": session_commands.undo, "fork": session_commands.fork}
            moves[words[0]](state, shlex.join(words[1:]))
            return
        run_cli_command.run(state, group, *words)

    return run


def _diff(state: ReplState, arguments: str) -> None:
    run_cli_command.run(state, "checkpoints", "diff", *run_cli_command.split(arguments))


def _remember(state: ReplState, arguments: str) -> None:
    # `memory add -` would read the next input from the terminal.
    if arguments in ("", "-"):
        raise UsageError("There is nothing to remember.", "/remember TEXT notes the TEXT as it is.")
    run_cli_command.run(state, "memory", "add", "--", arguments)


def _edit(state: ReplState, arguments: str) -> None:
    text, failure = editor.edit_text(arguments or state.undone_prompt)
    if failure is not None:
        state.chat.display.notice(failure)
    state.draft = text


def _compact(state: ReplState, arguments: str) -> None:
    session = None if isinstance(state.chat, EphemeralChatSession) else state.current_session().name
    with tty_modes.quiet():
        state.chat.compact(session, arguments or None)
    if session is not None:
        state.session = session


def _details(state: ReplState, arguments: str) -> None:
    number = None
    if arguments:
        if not (arguments.isascii() and arguments.isdigit() and len(arguments) <= _MAX_DIGITS and int(arguments)):
            raise UsageError(
                f"{arguments!r} is not the number of a tool call.", "They are counted from 1 in every turn."
            )
        number = int(arguments)
    details = getattr(state.chat.display, "details", None)
    if details is None:
        state.chat.display.notice("There are no details here: this terminal shows tool calls as they come.")
        return
    details(number)


def _help(state: ReplState, arguments: str) -> None:
    words = arguments.split()
    if not words:
        help.show_overview(available(state.chat), has_shell=not isinstance(state.chat, EphemeralChatSession))
        return
    if len(words) > 1:
        raise UsageError(f"/help takes one command; this is too much: {' '.join(words[1:])}.", "/help lists them all.")
    help.show_command(state, _find(words[0] if words[0].startswith("/") else f"/{words[0]}"))


def _quit(state: ReplState, arguments: str) -> None:
    state.has_quit = True


_BACK, _SESSIONS, _MEMORY, _AGENT, _HERE = "Going back", "Sessions", "Memory", "The agent", "Here"

ALL = (
    SlashCommand("/rewind", "[REF] [OPTION…]", "Go back to a checkpoint. Without REF, choose.",
                 _BACK, session_commands.rewind, "reference", ("checkpoints", "rewind")),
    SlashCommand("/undo", "[OPTION…]", "Take back the last rewind.",
                 _BACK, session_commands.undo, shell_words=("checkpoints", "undo")),
    SlashCommand("/retry", "", "Take back the last turn; say its prompt again.", _BACK, session_commands.retry),
    SlashCommand("/diff", "[FROM] [TO]", "Compare checkpoints, or one with what is now.",
                 _BACK, _diff, "reference", ("checkpoints", "diff")),
    SlashCommand("/checkpoints", "[COMMAND…]", "List checkpoints, or run a command on them.",
                 _BACK, _group("checkpoints", ("list",), ("--limit", "20")),
                 "choice:list,show,diff,save,label,fork,remove,prune,verify", ("checkpoints",)),
    SlashCommand("/sessions", "[COMMAND…]", "List sessions, or run a command on them.",
                 _SESSIONS, _group("sessions", ("list",)),
                 "choice:list,show,search,rename,delete,export,import", ("sessions",)),
    SlashCommand("/new", "[NAME]", "Begin a session with the next prompt.", _SESSIONS, session_commands.new),
    SlashCommand("/switch", "[NAME]", "Go on in another session. Without NAME, list.",
                 _SESSIONS, session_commands.switch, "session"),
    SlashCommand("/fork", "[REF] NAME", "Go on in a new session that begins here, or at REF.",
                 _SESSIONS, session_commands.fork, "reference", ("checkpoints", "fork")),
    SlashCommand("/compact", "[FOCUS]", "Summarise what was said, to make room for more.",
                 _SESSIONS, _compact, in_ephemeral=True),
    SlashCommand("/export", "FILE [OPTION…]", "Write this session to a .md file, else as JSON.",
                 _SESSIONS, session_commands.export, shell_words=command_names.EXPORT),
    SlashCommand("/memory", "[COMMAND…]", "Show the agent's notes, or run a command on them.",
                 _MEMORY, _group("memory", ("show",)),
                 "choice:show,list,add,edit,search,forget,history,diff", ("memory",)),
    SlashCommand("/remember", "TEXT", "Note TEXT, as it is.", _MEMORY, _remember),
    SlashCommand("/model", "[NAME]", "Have another model answer. Without NAME, list.",
                 _AGENT, settings_commands.model, "model", in_ephemeral=True),
    SlashCommand("/models", "[--all]", "List models.",
                 _AGENT, settings_commands.models, shell_words=("models",), in_ephemeral=True),
    SlashCommand("/approve", "[HOW]", "Answer the agent's questions: ask, auto or never.",
                 _AGENT, settings_commands.approve, f"choice:{','.join(settings_commands.APPROVE)}",
                 in_ephemeral=True),
    SlashCommand("/sandbox", "[WHERE]", "Run commands in: auto, bubblewrap, docker, none.",
                 _AGENT, settings_commands.sandbox, f"choice:{','.join(settings_commands.SANDBOX)}",
                 in_ephemeral=True),
    SlashCommand("/status", "", "Show how things are.", _HERE, status.show_status, in_ephemeral=True),
    SlashCommand("/details", "[N]", "Show the last tool calls and results in full, or one.",
                 _HERE, _details, in_ephemeral=True),
    SlashCommand("/edit", "[TEXT]", "Write the prompt in your editor; begin with TEXT.",
                 _HERE, _edit, in_ephemeral=True),
    SlashCommand("/help", "[COMMAND]", "List the commands, or say what one takes.", _HERE, _help, in_ephemeral=True),
    SlashCommand("/quit", "", "Leave; /exit and Ctrl-D, too.", _HERE, _quit, in_ephemeral=True),
)  # fmt: skip

_BY_NAME = {command.name: command for command in ALL}
_ALIASES = {"/exit": "/quit", "/?": "/help"}
# Not `/export`, which takes other arguments than its shell command.
_BY_SHELL_WORDS = {
    command.shell_words: command.name
    for command in ALL
    if command.shell_words and command.shell_words != command_names.EXPORT
}


def run(state: ReplState, name: str, arguments: str) -> None:
    """Run the command `name` on `arguments`. Raises `UsageError` if there is none, and what it raises."""
    command = _find(name)
    if isinstance(state.chat, EphemeralChatSession) and not command.in_ephemeral:
        raise NotFound(
            f"{command.name} means nothing in an --ephemeral conversation: nothing of it is kept.",
            "Without --ephemeral, a conversation has sessions, checkpoints and memory.",
            code="ephemeral",
        )
    if arguments in ("-h", "--help"):
        _help(state, name)
        return
    if arguments and not command.usage:
        raise UsageError(
            f"{command.name} takes nothing; this is too much: {arguments}.", f"{command.name} alone does it."
        )
    command.run(state, arguments)


def names(chat: ChatSession) -> CommandNames:
    """The slash commands by their shell commands, for the conversation of `chat`."""
    return CommandNames(_BY_SHELL_WORDS, None if isinstance(chat, EphemeralChatSession) else chat.name)


def available(chat: ChatSession) -> list[SlashCommand]:
    """The commands that exist in the conversation of `chat`."""
    is_ephemeral = isinstance(chat, EphemeralChatSession)
    return [command for command in ALL if command.in_ephemeral or not is_ephemeral]


def _find(name: str) -> SlashCommand:
    lower = name.lower()
    command = _BY_NAME.get(_ALIASES.get(lower, lower))
    if command is None:
        if not any(map(str.isalpha, name)) or name.startswith("/!"):
            raise UsageError(
                f"{name} is no command.", "/help lists those there are; !COMMAND runs one in the workspace."
            )
        near = usage_errors.near_to(lower, [*_BY_NAME, *_ALIASES])
        raise UsageError(
            f"There is no command {name}.", f"Did you mean {near[0]}?" if near else "/help lists those there are."
        )
    return command
