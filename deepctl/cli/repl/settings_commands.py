"""`/model`, `/approve` and `/sandbox`: who answers from now on, and what becomes of commands; for this conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepctl.cli.profile_chat import ProfileChat
from deepctl.cli.repl import run_cli_command
from deepctl.domain.settings import Value
from deepctl.errors import UsageError
from deepctl.output.text import printable

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation

APPROVE = ("ask", "auto", "never")
SANDBOX = ("auto", "bubblewrap", "docker", "none")
_NEED = "what the profile's rules ask about, and commands outside a sandbox where no rule decides,"
_ELSE = "All else runs as before. /approve ask has you asked."
_QUESTIONS = {
    "asked": f"You are asked first: {_NEED} wait for your yes.",
    "allowed": f"Nothing is asked: {_NEED} run at once. /approve ask has you asked.",
    "denied": f"Nothing is asked: {_NEED} are refused. {_ELSE}",
}
_SOURCES = {
    "option": "chosen for this conversation",
    "environment": "from the environment",
    "profile": "from profile.toml",
    "config": "from config.toml",
    "default": "the default",
}


def in_force(conversation: Conversation, key: str) -> Value:
    """A setting of the conversation, and where it is set."""
    return conversation.talk.start.settings.resolve(key)


def source(value: Value) -> str:
    """Where a value was set, in words."""
    return _SOURCES.get(value.source, value.source)


def model(conversation: Conversation, rest: str) -> None:
    """Show which models there are, or have another one answer."""
    words = run_cli_command.split(rest)
    if not words or words[0].startswith("-"):
        models(conversation, rest)
        return
    name = _one("/model", words)
    talk = conversation.talk
    talk.change(model=name)
    talk.display.notice(f"{printable(name)} answers from now on.{_kept(conversation, 'model', name)}")


def models(conversation: Conversation, rest: str) -> None:
    """`deepctl models`, after what this conversation uses."""
    value = in_force(conversation, "model")
    if value.source == "option" or not isinstance(conversation.talk, ProfileChat):
        named = printable(value.value or "offline")
        conversation.talk.display.notice(f"{named} answers here ({source(value)}). Without a choice, it would be:")
    if isinstance(conversation.talk, ProfileChat):
        run_cli_command.run(conversation, "models", *run_cli_command.split(rest))


def approve(conversation: Conversation, rest: str) -> None:
    """Say what happens to what needs a yes, or change it."""
    words = run_cli_command.split(rest)
    talk = conversation.talk
    if words:
        wanted = _choice("/approve", words, APPROVE)
        talk.change(approve=wanted)
        talk.display.notice(f"{_asked(conversation)}{_kept(conversation, 'approve', wanted)}")
        return
    value = in_force(conversation, "approve")
    talk.display.notice(f"{value.value} ({source(value)}): {_asked(conversation)}")


def _asked(conversation: Conversation) -> str:
    return _QUESTIONS[conversation.talk.commands().questions]


def sandbox(conversation: Conversation, rest: str) -> None:
    """Say where commands run, or change it."""
    words = run_cli_command.split(rest)
    talk = conversation.talk
    if not words:
        value = in_force(conversation, "sandbox")
        chosen = f" Asked for: {value.value} ({source(value)})." if isinstance(talk, ProfileChat) else ""
        talk.display.notice(f"{where(conversation)}{chosen}")
        return
    wanted = _choice("/sandbox", words, SANDBOX)
    if not isinstance(talk, ProfileChat):
        raise UsageError(
            "An --ephemeral conversation has no directory that commands could run in.", "Leave out --ephemeral for one."
        )
    talk.change(sandbox=wanted)
    talk.display.notice(f"{where(conversation)}{_kept(conversation, 'sandbox', wanted)}")


def where(conversation: Conversation) -> str:
    """Where the agent's commands run, in a sentence or two; waits while that is being found out."""
    commands = conversation.talk.commands()
    if commands.notice is None or commands.notice.startswith(commands.statement):
        return commands.notice or commands.statement
    return f"{commands.statement} {commands.notice}"


def _kept(conversation: Conversation, key: str, value: str) -> str:
    if not isinstance(conversation.talk, ProfileChat):
        return ""
    import shlex

    return f" To keep it, in a shell: deepctl config set {key} {shlex.quote(value)} --user {conversation.talk.name}"


def _one(name: str, words: list[str]) -> str:
    if len(words) > 1:
        raise UsageError(f"{name} takes one word; this is too much: {' '.join(words[1:])}.", "A name has no spaces.")
    return words[0]


def _choice(name: str, words: list[str], choices: tuple[str, ...]) -> str:
    wanted = _one(name, words).lower()
    if wanted not in choices:
        raise UsageError(f"{name} knows no {words[0]!r}.", f"It is one of: {', '.join(choices)}.")
    return wanted
