"""The slash commands of a conversation: those that move it (`/rewind`, `/fork`, …), the table of all, and running one.

Most slash commands are shell commands with profile and session filled in: `/rewind ~2 --only files` is `deepctl
checkpoints rewind ~2 --only files --user NAME --session SESSION`. A few are about the conversation itself.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from deepctl import layout
from deepctl.cli import editor, options, tty_modes, usage_errors
from deepctl.cli.chat_session import ChatSession, EphemeralChatSession
from deepctl.cli.confirm import confirm
from deepctl.cli.repl import command_names, help, named_files, run_cli_command, settings_commands, status
from deepctl.cli.repl.command_names import CommandNames
from deepctl.cli.repl.run_cli_command import has_help_option, split
from deepctl.cli.repl.state import ReplState, SlashCommand
from deepctl.errors import Interrupted, NotFound, Refused, UsageError
from deepctl.layout import UNNAMED
from deepctl.output.render import is_dumb, printable
from deepctl.quantities import counted
from deepctl.store import log_file, lookup, session_catalogue

_MAX_DIGITS = 6
_MAX_SHOWN = 60
"""Characters of a prompt in a notice."""
_VALUE_OPTIONS = ("-f", "--format", "-o", "--output")
_MARKDOWN = (".md", ".markdown")


class _Prompt(NamedTuple):
    """A prompt of a session: its position among the messages, and when it was sent."""

    position: int
    text: str
    at: str


def _rewind(state: ReplState, arguments: str) -> None:
    """`checkpoints rewind`; the first prompt that is taken back comes into the input line again."""
    words = split(arguments)
    if has_help_option(words):
        run_cli_command.run(state, "checkpoints", "rewind", *words)
        return
    session = state.current_session()
    _check_can_choose(words)
    before = session_catalogue.read(session)
    try:
        run_cli_command.run(state, "checkpoints", "rewind", *words)
    except Interrupted as interrupted:
        # Escape in the list of checkpoints. It is no Ctrl-C, after which the next one would leave.
        state.chat.display.notice(interrupted.message)
        return
    after = session_catalogue.read(session_catalogue.find(state.profile(), session.name))
    _continue_in(state, session.name)
    prompt = _first_removed(before, after)
    if prompt is not None:
        state.draft = state.undone_prompt = _as_typed(state, prompt)
        state.last_prompt = None


def _check_can_choose(words: list[str]) -> None:
    """Raises `UsageError` where the list to choose from could not be drawn."""
    values = run_cli_command.parse("checkpoints", "rewind", *words)
    if values.get("ref") is None and is_dumb():
        raise UsageError(
            "/rewind needs a REF at a dumb terminal.",
            "/checkpoints lists the checkpoints; ~1 is the state before the last turn.",
        )


def _undo(state: ReplState, arguments: str) -> None:
    """`checkpoints undo`; asks first if it would take turns out of the conversation that came after the rewind."""
    words = split(arguments)
    values = run_cli_command.parse("checkpoints", "undo", *words)
    is_sure = values.get("force") or values.get("dry_run") or values.get("user") or has_help_option(words)
    if not is_sure:
        _confirm_undo(state, values.get("session"))
    run_cli_command.run(state, "checkpoints", "undo", *words)
    session = state.current_session_if_any()
    if session is not None:
        _continue_in(state, session.name)
        state.last_prompt = None


def _confirm_undo(state: ReplState, name: str | None) -> None:
    """Ask, if there were turns since the last rewind. Raises `Refused` if the answer is no."""
    paths = state.profile()
    session = session_catalogue.find(paths, name) if name is not None else state.current_session_if_any()
    ledger = session_catalogue.read_ledger(paths)
    last_rewind = ledger.last_rewind(session.id) if session is not None else None
    if session is None or last_rewind is None or last_rewind.only not in ("", "conversation"):
        return
    target = ledger.records.get(last_rewind.to)
    rewound = lookup.conversation_at(paths, target) if target is not None else log_file.MessageList([], [], 0)
    now = session_catalogue.read(session)
    shared_length = _shared_length(rewound, now)
    turns = sum(prompt.position >= shared_length for prompt in _prompts(now))
    if turns:
        consequence = f"{counted(turns, 'turn')} made since then would leave the session"
        confirm(f"Undo the last rewind of session {session.name}? {consequence}.", yes=False, as_json=False)


def _continue_in(state: ReplState, session: str) -> None:
    """The next turn continues a session that has just moved to another point."""
    state.session, state.new = session, None
    state.follow_directory()
    # How much of the context window it takes now is not known before the next answer.
    state.chat.counts.takes(session, None)


def _first_removed(before: log_file.MessageList, after: log_file.MessageList) -> str | None:
    shared_length = _shared_length(before, after)
    return next((prompt.text for prompt in _prompts(before) if prompt.position >= shared_length), None)


def _shared_length(first: log_file.MessageList, second: log_file.MessageList) -> int:
    """How many messages two conversations have in common, from the first on."""
    pairs = enumerate(zip(first.messages, second.messages, strict=False))
    at_most = min(len(first.messages), len(second.messages))
    return next((position for position, (a, b) in pairs if a.message != b.message), at_most)


def _as_typed(state: ReplState, text: str) -> str:
    """A prompt without what was added to it when it was sent, as far as that is known."""
    prompt = state.last_prompt
    return prompt if prompt is not None and text.startswith(f"{prompt}\n\n") else text


def _retry(state: ReplState, arguments: str) -> None:
    """Take back the last turn and send its prompt again; one that was never recorded is only sent again."""
    session = state.current_session_if_any()
    prompts = _prompts(session_catalogue.read(session)) if session is not None else []
    last = state.last_prompt
    if last is not None:
        indexes = [
            number for number, prompt in enumerate(prompts) if prompt.at >= state.last_prompt_at and last in prompt.text
        ]
        if not indexes:
            state.chat.display.notice(
                f"No part of the last turn was stored. Sending its prompt again: {_shortened(last)}"
            )
            state.next_prompt = last
            return
        if indexes[-1] != len(prompts) - 1:
            raise Refused(
                "Your last prompt is not the last one of the session: another prompt was sent since.",
                "/checkpoints lists the checkpoints, and /rewind REF returns to one.",
                code="conflict",
            )
    if session is None or not prompts:
        raise NotFound("There is no turn to undo.", "Send a prompt first.", code="turn_not_found")
    text = prompts[-1].text
    prompt = text if last is None or text.startswith(last) else last
    _take_back_last_turn(state, session.name)
    _continue_in(state, session.name)
    state.chat.display.notice(f"Sending the prompt again: {_shortened(log_file.typed_part(prompt))}")
    state.next_prompt = prompt


def _take_back_last_turn(state: ReplState, session: str) -> None:
    """Rewind a session to before its last turn; only remarks are shown."""
    from deepctl.store import projects
    from deepctl.store.rewind import RewindConflicts, request_rewind, run

    chat = state.profile_chat()
    try:
        with options.working(state.profile().name, "checkpoints rewind", chat.wait, False) as repository:
            target, request = request_rewind(repository, session, "~1")
            with projects.lock(repository.paths, target, wait=chat.wait):
                result = run(repository, target, request)
    except RewindConflicts as error:
        error.hint = "/rewind ~1 --dry-run lists all of them; /rewind ~1 --force also undoes these changes."
        raise
    for remark in result.remarks:
        chat.display.notice(remark)


def _prompts(conversation: log_file.MessageList) -> list[_Prompt]:
    summaries = {compaction.place for compaction in conversation.compactions}
    return [
        _Prompt(position, text, entry.at)
        for position, entry in enumerate(conversation.messages)
        if position not in summaries and (text := log_file.prompt(entry.message)) is not None
    ]


def _shortened(prompt: str) -> str:
    line = printable(" ".join(prompt.split()))
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


def _fork(state: ReplState, arguments: str) -> None:
    """`checkpoints fork`, by default of the latest checkpoint; the conversation continues in the new session."""
    words = split(arguments)
    values = run_cli_command.parse("checkpoints", "fork", *words)
    if values.get("ref") is not None and values.get("name") is None:
        words = [_latest_checkpoint(state), *words]
        values = run_cli_command.parse("checkpoints", "fork", *words)
    run_cli_command.run(state, "checkpoints", "fork", *words)
    name = values.get("name")
    existing_name = session_catalogue.stored_name(state.profile(), name) if name is not None else None
    if existing_name is not None:
        _continue_in(state, existing_name)
        state.last_prompt = None
        state.chat.display.notice(f"The chat continues in session {existing_name}.")


def _latest_checkpoint(state: ReplState) -> str:
    """The id of the checkpoint at which the current session stands. Raises `NotFound`."""
    session = state.current_session()
    head = session_catalogue.read_ledger(state.profile()).head(session)
    if head is None:
        raise NotFound(
            f"Session {session.name!r} has no checkpoint to fork from.",
            "/checkpoints save makes one.",
            code="checkpoint_not_found",
        )
    return head


def _new(state: ReplState, arguments: str) -> None:
    """Let the next prompt begin a session."""
    words = split(arguments)
    if not words:
        _go_to(state, state.session, UNNAMED)
        state.chat.display.notice("Your next prompt starts a new session.")
        return
    if len(words) > 1:
        raise UsageError(
            f"/new takes one name; these are too many: {' '.join(words[1:])}.",
            "Type the first prompt of the session as the next entry.",
        )
    name = layout.check_name(words[0], "session")
    existing_name = session_catalogue.stored_name(state.profile(), name)
    if existing_name is not None:
        raise Refused(
            f"There is already a session {existing_name!r}.",
            f"/switch {existing_name} continues it.",
            code="session_exists",
        )
    _go_to(state, state.session, name)
    state.chat.display.notice(f"Your next prompt starts session {name}.")


def _switch(state: ReplState, arguments: str) -> None:
    """Continue another session, or list them."""
    words = split(arguments)
    if not words or words[0].startswith("-"):
        run_cli_command.run(state, "sessions", "list", *words)
        return
    if len(words) > 1:
        raise UsageError(
            f"/switch takes one name; these are too many: {' '.join(words[1:])}.", "/sessions lists the sessions."
        )
    name = layout.check_name(words[0], "session")
    paths = state.profile()
    existing_name = session_catalogue.stored_name(paths, name)
    if existing_name is None:
        near = get_close_matches(name, session_catalogue.all_names(paths), 1, 0.5)
        suggestion = f"Did you mean {near[0]}? " if near else ""
        raise NotFound(
            f"There is no session {name!r}.",
            f"{suggestion}/sessions lists the sessions; /new {name} starts it.",
            code="session_not_found",
        )
    session_catalogue.find(paths, existing_name)
    _go_to(state, existing_name, None)
    summary = session_catalogue.summary(paths, existing_name)
    title = f": {summary.title}" if summary.title else ""
    state.chat.display.notice(f"Session {existing_name}, {counted(summary.turns, 'turn')}{title}")


def _go_to(state: ReplState, session: str | None, new: str | None) -> None:
    """The next turn is in another session, or begins it."""
    state.session, state.new, state.last_prompt = session, new, None
    state.follow_directory()


def _export(state: ReplState, arguments: str) -> None:
    """`sessions export` of the current session; a name ending in `.md` means Markdown."""
    words = split(arguments)
    if has_help_option(words):
        run_cli_command.run(state, "sessions", "export", *words)
        return
    files, options = _separated(words)
    if len(files) > 1:
        raise UsageError(
            f"/export takes one FILE; these are too many: {' '.join(files[1:])}.",
            "/switch NAME continues another session.",
        )
    if not files and not any(word in ("-o", "--output") or word.startswith("--output=") for word in options):
        raise UsageError(
            "/export needs a FILE.",
            "/export talk.md writes Markdown to read, /export talk.json writes JSON for `sessions import`.",
        )
    if files:
        # There is no shell here that expands `~`.
        path = os.path.expanduser(files[0])
        options += ["--output", path]
        if path.lower().endswith(_MARKDOWN) and not any(word.startswith(("-f", "--format")) for word in options):
            options += ["--format", "markdown"]
    run_cli_command.run(state, "sessions", "export", state.current_session().name, *options)


def _separated(words: list[str]) -> tuple[list[str], list[str]]:
    """Arguments and options."""
    files: list[str] = []
    options: list[str] = []
    words_left = iter(words)
    for word in words_left:
        if word == "--":
            files += words_left
        elif word in _VALUE_OPTIONS:
            options += [word, *(value for value in (next(words_left, None),) if value is not None)]
        elif word.startswith("-") and word != "-":
            options.append(word)
        else:
            files.append(word)
    return files, options


def _group(group: str, default: Sequence[str], default_options: Sequence[str] = ()) -> Callable[[ReplState, str], None]:
    """Run a command of a group of shell commands: `default` if only options are given, with its options if none are."""

    def run(state: ReplState, arguments: str) -> None:
        words = run_cli_command.split(arguments)
        if not words:
            words = [*default, *default_options]
        elif words[0].startswith("-") and words[0] not in ("-h", "--help"):
            words = [*default, *words]
        if group == "checkpoints" and words[0] in ("rewind", "undo", "fork"):
            moves = {"rewind": _rewind, "undo": _undo, "fork": _fork}
            moves[words[0]](state, shlex.join(words[1:]))
            return
        run_cli_command.run(state, group, *words)

    return run


def _diff(state: ReplState, arguments: str) -> None:
    run_cli_command.run(state, "checkpoints", "diff", *run_cli_command.split(arguments))


def _usage(state: ReplState, arguments: str) -> None:
    words = run_cli_command.split(arguments)
    if "--all" in words and not run_cli_command.has_help_option(words):
        from deepctl.cli import main

        main.call(["usage", *words])  # without the profile of the chat
    else:
        run_cli_command.run(state, "usage", *words)


def _remember(state: ReplState, arguments: str) -> None:
    # `memory add -` would read the next input from the terminal.
    if arguments in ("", "-"):
        raise UsageError("There is no TEXT to remember.", "/remember TEXT adds TEXT to the memory, unchanged.")
    run_cli_command.run(state, "memory", "add", "--", arguments)


def _edit(state: ReplState, arguments: str) -> None:
    text, failure = editor.edit_text(arguments or state.undone_prompt)
    if failure is not None:
        state.chat.display.notice(failure)
    state.draft = text


def _compact(state: ReplState, arguments: str) -> None:
    session = None if isinstance(state.chat, EphemeralChatSession) else state.current_session().name
    with tty_modes.without_echo():
        state.chat.compact(session, arguments or None)
    if session is not None:
        state.session = session


def _details(state: ReplState, arguments: str) -> None:
    number = None
    if arguments:
        if not (arguments.isascii() and arguments.isdigit() and len(arguments) <= _MAX_DIGITS and int(arguments)):
            raise UsageError(
                f"{arguments!r} is not the number of a tool call.", "Tool calls are counted from 1 in every turn."
            )
        number = int(arguments)
    details = getattr(state.chat.display, "details", None)
    if details is None:
        state.chat.display.notice("There are no details to show: this terminal shows each tool call in full.")
        return
    details(number)


def _help(state: ReplState, arguments: str) -> None:
    words = arguments.split()
    if not words:
        help.show_overview(available(state.chat), has_shell=not isinstance(state.chat, EphemeralChatSession))
        return
    if len(words) > 1:
        raise UsageError(
            f"/help takes one command; these are too many: {' '.join(words[1:])}.", "/help lists all commands."
        )
    help.show_command(state, _find(words[0] if words[0].startswith("/") else f"/{words[0]}"))


def _quit(state: ReplState, arguments: str) -> None:
    state.has_quit = True


_BACK, _SESSIONS, _MEMORY, _AGENT, _HERE = "Going back", "Sessions", "Memory", "The agent", "Here"

ALL = (
    SlashCommand("/rewind", "[REF] [OPTION…]", "Return to a checkpoint. Without REF, choose one.",
                 _BACK, _rewind, "reference", ("checkpoints", "rewind")),
    SlashCommand("/undo", "[OPTION…]", "Undo the last rewind.",
                 _BACK, _undo, shell_words=("checkpoints", "undo")),
    SlashCommand("/retry", "", "Undo the last turn and send its prompt again.", _BACK, _retry),
    SlashCommand("/diff", "[FROM] [TO]", "Compare two checkpoints, or one with now.",
                 _BACK, _diff, "reference", ("checkpoints", "diff")),
    SlashCommand("/checkpoints", "[COMMAND…]", "List checkpoints, or run a command on them.",
                 _BACK, _group("checkpoints", ("list",), ("--limit", "20")),
                 "choice:list,show,diff,save,label,fork,remove,prune,verify", ("checkpoints",)),
    SlashCommand("/sessions", "[COMMAND…]", "List sessions, or run a command on them.",
                 _SESSIONS, _group("sessions", ("list",)),
                 "choice:list,show,search,rename,delete,export,import", ("sessions",)),
    SlashCommand("/new", "[NAME]", "Start a session with the next prompt.", _SESSIONS, _new),
    SlashCommand("/switch", "[NAME]", "Continue another session. Without NAME, list.",
                 _SESSIONS, _switch, "session"),
    SlashCommand("/fork", "[REF] NAME", "Start a session from here, or from REF.",
                 _SESSIONS, _fork, "reference", ("checkpoints", "fork")),
    SlashCommand("/compact", "[FOCUS]", "Summarise older messages, to free context.",
                 _SESSIONS, _compact, in_ephemeral=True),
    SlashCommand("/export", "FILE [OPTION…]", "Write this session as Markdown (FILE.md) or JSON.",
                 _SESSIONS, _export, shell_words=command_names.EXPORT),
    SlashCommand("/memory", "[COMMAND…]", "Show the memory, or run a command on it.",
                 _MEMORY, _group("memory", ("show",)),
                 "choice:show,list,add,edit,search,forget,history,diff", ("memory",)),
    SlashCommand("/remember", "TEXT", "Add TEXT to the memory, unchanged.", _MEMORY, _remember),
    SlashCommand("/model", "[NAME]", "Select another model. Without NAME, list.",
                 _AGENT, settings_commands.model, "model", in_ephemeral=True),
    SlashCommand("/models", "[--all]", "List models.",
                 _AGENT, settings_commands.models, shell_words=("models",), in_ephemeral=True),
    SlashCommand("/thinking", "[LEVEL]", "Set the effort of thinking, from off to max.",
                 _AGENT, settings_commands.thinking, f"choice:{','.join(settings_commands.THINKING)}",
                 in_ephemeral=True),
    SlashCommand("/approve", "[HOW]", "Answer approval requests: ask, auto or never.",
                 _AGENT, settings_commands.approve, f"choice:{','.join(settings_commands.APPROVE)}",
                 in_ephemeral=True),
    SlashCommand("/sandbox", "[WHERE]", "Run commands in: auto, bubblewrap, docker, none.",
                 _AGENT, settings_commands.sandbox, f"choice:{','.join(settings_commands.SANDBOX)}",
                 in_ephemeral=True),
    SlashCommand("/network", "[on|off]", "Give sandboxed commands the network, or not.",
                 _AGENT, settings_commands.network, f"choice:{','.join(settings_commands.NETWORK)}",
                 in_ephemeral=True),
    SlashCommand("/status", "", "Show the state of the chat.", _HERE, status.show_status, in_ephemeral=True),
    SlashCommand("/usage", "[OPTION…]", "Show requests, tokens and cost by day.",
                 _HERE, _usage, shell_words=("usage",)),
    SlashCommand("/details", "[N]", "Show the last calls, diffs and thinking in full.",
                 _HERE, _details, in_ephemeral=True),
    SlashCommand("/file", "[PATH…]", named_files.FILE_HELP,
                 _HERE, named_files.run_file_command, "files", in_ephemeral=True),
    SlashCommand("/edit", "[TEXT]", "Write the prompt in your editor, starting from TEXT.",
                 _HERE, _edit, in_ephemeral=True),
    SlashCommand("/help", "[COMMAND]", "List the commands, or explain one.", _HERE, _help, in_ephemeral=True),
    SlashCommand("/quit", "", "Leave the chat; also /exit and Ctrl-D.", _HERE, _quit, in_ephemeral=True),
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
            f"{command.name} needs stored state, and an --ephemeral chat stores nothing.",
            "Without --ephemeral, a chat has sessions, checkpoints and memory.",
            code="ephemeral",
        )
    if arguments in ("-h", "--help"):
        _help(state, name)
        return
    if arguments and not command.usage:
        raise UsageError(f"{command.name} takes no argument; unexpected: {arguments}.", f"Type {command.name} alone.")
    command.run(state, arguments)


def names_for(chat: ChatSession) -> CommandNames:
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
                f"{name} is not a command.", "/help lists the commands; !COMMAND runs a shell command in the workspace."
            )
        near = usage_errors.near_to(lower, [*_BY_NAME, *_ALIASES])
        raise UsageError(
            f"There is no command {name}.", f"Did you mean {near[0]}?" if near else "/help lists the commands."
        )
    return command
