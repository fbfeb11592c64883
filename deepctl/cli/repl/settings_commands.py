"""`/model`, `/models`, `/thinking`, `/approve`, `/sandbox`, `/network`, `/vim`: the settings of this conversation."""

from __future__ import annotations

import shlex

from deepctl.cli.chat_session import ProfileChat
from deepctl.cli.repl import run_cli_command
from deepctl.cli.repl.state import ReplState
from deepctl.domain.setting_table import NETWORK as NETWORK
from deepctl.domain.setting_table import THINKING as THINKING
from deepctl.domain.settings import Value
from deepctl.errors import DeepctlError, UsageError
from deepctl.output.render import is_dumb, printable

APPROVE = ("ask", "auto", "never")
SANDBOX = ("auto", "bubblewrap", "docker", "none")
_NEED = "an unsandboxed command without a rule, and an action with a rule `ask`"
_QUESTIONS = {
    "asked": f"deepctl asks you before {_NEED}.",
    "allowed": f"deepctl does not ask you: {_NEED} run at once. /approve ask turns approval requests on.",
    "denied": f"deepctl does not ask you: {_NEED} are refused. Everything else runs as before. /approve ask turns "
    "approval requests on.",
}
_SOURCES = {
    "option": "chosen for this conversation",
    "environment": "from the environment",
    "profile": "from profile.toml",
    "config": "from config.toml",
    "default": "the default",
}


def in_force(state: ReplState, key: str) -> Value:
    """A setting of the conversation, and where it is set."""
    return state.chat.setup.settings.resolve(key)


def source(value: Value) -> str:
    """Where a value was set, in words."""
    return _SOURCES.get(value.source, value.source)


def model(state: ReplState, arguments: str) -> None:
    """List the models, or change the model."""
    words = run_cli_command.split(arguments)
    if not words or words[0].startswith("-"):
        models(state, arguments)
        return
    name = _single_word("/model", words)
    state.chat.change(model=name)
    state.chat.display.notice(f"The model is now {printable(name)}.{_how_to_keep(state, 'model', name)}")


def models(state: ReplState, arguments: str) -> None:
    """`deepctl models`, after the model of this conversation."""
    value = in_force(state, "model")
    if value.source == "option" or not isinstance(state.chat, ProfileChat):
        name = printable(value.value or "offline")
        state.chat.display.notice(
            f"The model of this chat is {name} ({source(value)}). Without this choice, it would be:"
        )
    if isinstance(state.chat, ProfileChat):
        run_cli_command.run(state, "models", *run_cli_command.split(arguments))


def thinking(state: ReplState, arguments: str) -> None:
    """Show the effort of the model's thinking, or change it."""
    words = run_cli_command.split(arguments)
    key = "model_settings.thinking"
    if words:
        level = _choice("/thinking", words, THINKING)
        state.chat.change(**{key: level})
        state.chat.display.notice(f"Thinking is now {level}.{_how_to_keep(state, key, level)}")
        if (not_sent := state.chat.settings_notice()) is not None and key in not_sent:
            state.chat.display.notice(not_sent)
        return
    value = in_force(state, key)
    state.chat.display.notice(
        f"Thinking is {value.value} ({source(value)})." if value.value else "Thinking is as the model does by default."
    )


def approve(state: ReplState, arguments: str) -> None:
    """Show what happens to approval requests, or change it."""
    words = run_cli_command.split(arguments)
    if words:
        choice = _choice("/approve", words, APPROVE)
        state.chat.change(approve=choice)
        state.chat.display.notice(f"{_questions(state)}{_how_to_keep(state, 'approve', choice)}")
        return
    value = in_force(state, "approve")
    state.chat.display.notice(f"{value.value} ({source(value)}): {_questions(state)}")


def _questions(state: ReplState) -> str:
    return _QUESTIONS[state.chat.commands().questions]


def sandbox(state: ReplState, arguments: str) -> None:
    """Show where commands run, or change it."""
    _sandbox_setting(state, "sandbox", arguments, SANDBOX)


def network(state: ReplState, arguments: str) -> None:
    """Show whether sandboxed commands have the network, or change it."""
    _sandbox_setting(state, "network", arguments, NETWORK)


def _sandbox_setting(state: ReplState, key: str, arguments: str, choices: tuple[str, ...]) -> None:
    words = run_cli_command.split(arguments)
    if not words:
        value = in_force(state, key)
        setting = f" Selected: {value.value} ({source(value)})." if isinstance(state.chat, ProfileChat) else ""
        state.chat.display.notice(f"{sandbox_sentence(state)}{setting}")
        return
    choice = _choice(f"/{key}", words, choices)
    if not isinstance(state.chat, ProfileChat):
        raise UsageError("An --ephemeral chat has no directory for commands.", "Start the chat without --ephemeral.")
    state.chat.change(**{key: choice})
    state.chat.display.notice(f"{sandbox_sentence(state)}{_how_to_keep(state, key, choice)}")


def sandbox_sentence(state: ReplState) -> str:
    """Where the agent's commands run, in a sentence or two; waits until that is known."""
    commands = state.chat.commands()
    if commands.notice is None or commands.notice.startswith(commands.statement):
        return commands.notice or commands.statement
    return f"{commands.statement} {commands.notice}"


def is_vi(state: ReplState) -> bool:
    """Whether the line editor has the keys of vi: as `/vim` has left it, else as the setting says."""
    if state.has_vi_keys is None:
        try:
            state.has_vi_keys = in_force(state, "editing_mode").value == "vi"
        except DeepctlError as error:
            state.has_vi_keys = False
            state.chat.display.notice(error.message)
    return state.has_vi_keys


def vim(state: ReplState, arguments: str) -> None:
    """Switch between the keys of vi and those of Emacs."""
    if is_dumb():
        raise UsageError("A dumb terminal has no line editor.", "The kernel edits the line there.")
    state.has_vi_keys = not is_vi(state)
    name = "vi" if state.has_vi_keys else "emacs"
    keys = (
        "Escape leaves the insert mode, Ctrl-J begins a new line"
        if state.has_vi_keys
        else "Alt-Enter begins a new line"
    )
    state.chat.display.notice(
        f"The input line has the keys of {name}: {keys}.{_how_to_keep(state, 'editing_mode', name)}"
    )


def _how_to_keep(state: ReplState, key: str, value: str) -> str:
    if not isinstance(state.chat, ProfileChat):
        return ""
    return (
        f" To make this permanent, in a shell: deepctl config set {key} {shlex.quote(value)} --user {state.chat.name}"
    )


def _single_word(command: str, words: list[str]) -> str:
    if len(words) > 1:
        raise UsageError(
            f"{command} takes one word; these are too many: {' '.join(words[1:])}.", "A name has no spaces."
        )
    return words[0]


def _choice(command: str, words: list[str], choices: tuple[str, ...]) -> str:
    word = _single_word(command, words).lower()
    if word not in choices:
        raise UsageError(f"{command} has no value {words[0]!r}.", f"It must be one of: {', '.join(choices)}.")
    return word
