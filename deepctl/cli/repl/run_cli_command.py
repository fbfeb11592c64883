"""Shell commands in a conversation: profile, session and `--wait` filled in, run in this process.

So every option of a command works here as it does in a shell, and says the same when something is wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepctl.cli.options import UNNAMED
from deepctl.cli.profile_chat import ProfileChat
from deepctl.errors import DeepctlError, NoSession, NotFound, ProfileGone, ProfileNotFound, UsageError
from deepctl.layout import ProfilePaths
from deepctl.store import lookup, session_catalogue
from deepctl.store.session_record import Session

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation

EXPORT = ("sessions", "export")
_OF_A_SESSION = (("sessions", "show"), EXPORT)
"""Commands whose argument NAME is the session at hand if it is left out."""
_OF_ALL_SESSIONS = (("checkpoints", "import"), ("sessions", "search"))
"""Commands whose option --session does not mean the session at hand."""
_RENAMING = (("sessions", "rename"), ("sessions", "delete"))


def split(text: str) -> list[str]:
    """The words of a command, split as a shell does. Raises `UsageError` for a quote that is not closed."""
    try:
        return shlex.split(text)
    except ValueError:
        raise UsageError(
            "A quote is not closed, or nothing follows the last backslash.",
            "Words are split as in a shell: quotes hold several together, \\' is an apostrophe.",
        ) from None


def profile_talk(conversation: Conversation) -> ProfileChat:
    """The chat, which is one of a profile: `commands` lets nothing else come here."""
    assert isinstance(conversation.talk, ProfileChat)
    return conversation.talk


def profile(conversation: Conversation) -> ProfilePaths:
    """The profile of the conversation. Raises `ProfileGone`, which ends it, if it was renamed or wiped meanwhile."""
    try:
        return profile_talk(conversation).paths()
    except ProfileNotFound:
        raise ProfileGone(conversation.talk.name) from None


def at_hand(conversation: Conversation) -> Session:
    """The session that the next turn would go on in. Raises `NotFound` if there is none yet."""
    if conversation.new is not None:
        raise NotFound(
            "The new session has not begun yet.",
            "Your next prompt begins it; /switch NAME goes on in another.",
            code="session_not_found",
        )
    paths = profile(conversation)
    return lookup.current_session(paths, profile_talk(conversation).renamed(paths, conversation.session))


def at_hand_if_any(conversation: Conversation) -> Session | None:
    """The same, or `None`."""
    try:
        return at_hand(conversation)
    except NotFound:
        return None


def run(conversation: Conversation, *words: str) -> None:
    """Run the shell command `deepctl WORDS…` on the profile and the session at hand. Raises what it raises.

    If it renames or deletes the session at hand, the conversation follows.
    """
    from deepctl.cli import main

    command, count = found(words)
    name, given = words[:count], words[count:]
    if "--help" in given or "-h" in given:
        from deepctl.cli.repl import help, slash_commands

        help.accepted(None, name, slash_commands.names(conversation))
        return
    paths = profile(conversation)
    filled = _filled(conversation, paths, name, command, given)
    # However it is spelled: in one word with other options, or behind a `--` that is an option's value.
    if "user" in _known(command) and _parsed(command, [*filled, *given]).get("user") != paths.name:
        raise UsageError(
            f"This conversation is of profile {paths.name!r}, and so are its commands.",
            f"For another profile, in a shell: deepctl {' '.join(name)} --user NAME",
        )
    before = at_hand_if_any(conversation) if name in _RENAMING else None
    try:
        main.call([*name, *filled, *given])
    finally:
        if before is not None:
            _follow(conversation, paths, before)


def found(words: Sequence[str]) -> tuple[Any, int]:
    """The command that the first words name, as Typer has it, and how many words these are."""
    from typer.main import get_command

    from deepctl.cli import main

    command: Any = get_command(main.app)
    count = 0
    for word in words:
        below = getattr(command, "commands", {})
        if word not in below:
            break
        command = below[word]
        count += 1
    return command, count


def arguments(*words: str) -> Mapping[str, Any]:
    """What the arguments and options of a shell command are given as, by their names; `None` if they are left out."""
    command, count = found(words)
    return _parsed(command, words[count:])


def _known(command: Any) -> set[str]:
    """The names of a command's arguments and options; a group has none of ours."""
    return set() if hasattr(command, "commands") else {parameter.name for parameter in command.params}


def filled_in(name: Sequence[str], command: Any) -> set[str]:
    """The arguments and options of a command that nobody has to give here."""
    ours = {"user", "wait"}
    if tuple(name) not in _OF_ALL_SESSIONS:
        ours.add("session")
    if tuple(name) in _OF_A_SESSION:
        ours.add("name")
    return ours & _known(command)


def _parsed(command: Any, given: Sequence[str]) -> Mapping[str, Any]:
    # Complaints are for `main.call`, in the words of the shell command.
    with command.make_context("", list(given), resilient_parsing=True) as context:
        parsed: dict[str, Any] = context.params
        return parsed


def _filled(
    conversation: Conversation, paths: ProfilePaths, name: Sequence[str], command: Any, given: Sequence[str]
) -> list[str]:
    if hasattr(command, "commands"):
        return []  # no command of that name: the group says so
    known = _known(command)
    parsed = _parsed(command, given)
    filled = ["--user", paths.name] if "user" in known else []
    wait = profile_talk(conversation).wait
    if "wait" in known and wait:
        filled += ["--wait", str(wait)]
    if "session" in known and parsed.get("session") is None and tuple(name) not in _OF_ALL_SESSIONS:
        session = _session_name(conversation)
        filled += ["--session", session] if session is not None else []
    if tuple(name) in _OF_A_SESSION and parsed.get("name") is None:
        session = _session_name(conversation)
        filled += [session] if session is not None else []
    return filled


def _session_name(conversation: Conversation) -> str | None:
    """The session at hand; `None` where the command itself can say that there is none."""
    try:
        return at_hand(conversation).name
    except NoSession:
        return None


def _follow(conversation: Conversation, paths: ProfilePaths, before: Session) -> None:
    try:
        name = session_catalogue.by_id(paths).get(before.id)
    except (DeepctlError, OSError):
        return
    if name == before.name:
        return
    conversation.session, conversation.asked = name, None
    if name is None:
        conversation.new = UNNAMED
        conversation.talk.display.notice(f"Session {before.name} is gone: your next prompt begins another one.")
