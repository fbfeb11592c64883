"""`/rewind`, `/undo`, `/retry` and `/fork`: what moves the conversation to another point in time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from deepctl.cli import options
from deepctl.cli.confirm import confirm
from deepctl.cli.repl import run_cli_command
from deepctl.errors import Interrupted, NotFound, Refused, UsageError
from deepctl.output.text import printable
from deepctl.quantities import counted
from deepctl.store import lookup, prompt_tags, session_catalogue, session_log

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation

_SHOWN = 60


class _Prompt(NamedTuple):
    """A prompt of a session: which of its messages it is, and when it was said."""

    place: int
    text: str
    at: str


def rewind(conversation: Conversation, rest: str) -> None:
    """`checkpoints rewind`; the first prompt that is taken back comes into the line again."""
    words = run_cli_command.split(rest)
    if "--help" in words or "-h" in words:
        run_cli_command.run(conversation, "checkpoints", "rewind", *words)
        return
    session = run_cli_command.at_hand(conversation)
    _check_can_choose(words)
    before = session_catalogue.read(session)
    try:
        run_cli_command.run(conversation, "checkpoints", "rewind", *words)
    except Interrupted as left:
        # Escape in the list of checkpoints, which is no reason to ask whether to leave.
        conversation.talk.display.notice(left.message)
        return
    after = session_catalogue.read(session_catalogue.find(run_cli_command.profile(conversation), session.name))
    _goes_on(conversation, session.name)
    undone = _first_removed(before, after)
    if undone is not None:
        conversation.draft = conversation.undone = _as_typed(conversation, undone)
        conversation.asked = None


def _check_can_choose(words: list[str]) -> None:
    """Raises `UsageError` where the list to choose from could not be drawn."""
    parsed = run_cli_command.arguments("checkpoints", "rewind", *words)
    if parsed.get("ref") is None and os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        raise UsageError(
            "/rewind needs a REF at this terminal.", "/checkpoints lists them; ~1 is before the last turn."
        )


def undo(conversation: Conversation, rest: str) -> None:
    """`checkpoints undo`; asked about where it takes turns out of the conversation that were said since the rewind."""
    words = run_cli_command.split(rest)
    parsed = run_cli_command.arguments("checkpoints", "undo", *words)
    is_sure = parsed.get("force") or parsed.get("dry_run") or parsed.get("user") or {"-h", "--help"}.intersection(words)
    if not is_sure:
        _confirm_undo(conversation, parsed.get("session"))
    run_cli_command.run(conversation, "checkpoints", "undo", *words)
    session = run_cli_command.at_hand_if_any(conversation)
    if session is not None:
        _goes_on(conversation, session.name)
        conversation.asked = None


def _confirm_undo(conversation: Conversation, name: str | None) -> None:
    """Ask, if turns were said since the last rewind. Raises `Refused` if the answer is no."""
    paths = run_cli_command.profile(conversation)
    session = session_catalogue.find(paths, name) if name is not None else run_cli_command.at_hand_if_any(conversation)
    found = lookup.read_ledger(paths)
    last = found.last_rewind(session.id) if session is not None else None
    if session is None or last is None or last.only not in ("", "conversation"):
        return
    there = found.records.get(last.to)
    began = lookup.conversation_at(paths, there) if there is not None else session_log.MessageList([], [], 0)
    now = session_catalogue.read(session)
    since = _shared(began, now)
    turns = sum(one.place >= since for one in _prompts(now))
    if turns:
        gone = f"{counted(turns, 'turn')} said since then would leave it"
        confirm(f"Undo the last rewind of session {session.name}? {gone}.", yes=False, as_json=False)


def _goes_on(conversation: Conversation, session: str) -> None:
    conversation.session, conversation.new = session, None
    # How much of the context it takes now is not known before the next answer.
    conversation.talk.counts.takes(session, None)


def _first_removed(before: session_log.MessageList, after: session_log.MessageList) -> str | None:
    shared = _shared(before, after)
    return next((one.text for one in _prompts(before) if one.place >= shared), None)


def _shared(one: session_log.MessageList, other: session_log.MessageList) -> int:
    """How many messages two conversations have in common, from the first on."""
    pairs = enumerate(zip(one.messages, other.messages, strict=False))
    at_most = min(len(one.messages), len(other.messages))
    return next((place for place, (ours, theirs) in pairs if ours.message != theirs.message), at_most)


def _as_typed(conversation: Conversation, text: str) -> str:
    """A prompt without what was added to it when it was sent, as far as that is known."""
    asked = conversation.asked
    return asked if asked is not None and text.startswith(f"{asked}\n\n") else text


def retry(conversation: Conversation, rest: str) -> None:
    """Take back the last turn and send its prompt again; one that was never recorded is only sent again."""
    session = run_cli_command.at_hand_if_any(conversation)
    prompts = _prompts(session_catalogue.read(session)) if session is not None else []
    asked = conversation.asked
    if asked is not None:
        own = [number for number, one in enumerate(prompts) if one.at >= conversation.asked_at and asked in one.text]
        if not own:
            conversation.talk.display.notice(f"Nothing of the last turn was kept. Saying it again: {_short(asked)}")
            conversation.say(asked)
            return
        if own[-1] != len(prompts) - 1:
            raise Refused(
                "Your last prompt is not the last of the session any more: something else was said in it since.",
                "/checkpoints lists where to go back to, /rewind REF does.",
                code="conflict",
            )
    if session is None or not prompts:
        raise NotFound("There is no turn to take back.", "Say something first.", code="turn_not_found")
    text = prompts[-1].text
    again = text if asked is None or text.startswith(asked) else asked
    _take_back(conversation, session.name)
    _goes_on(conversation, session.name)
    conversation.talk.display.notice(f"Saying it again: {_short(prompt_tags.said(again))}")
    conversation.say(again)


def _take_back(conversation: Conversation, session: str) -> None:
    """Rewind a session to before its last turn, telling only what did not become what it was."""
    from deepctl.cli.checkpoint_views import rewound
    from deepctl.store.rewind import Conflicts

    talk = run_cli_command.profile_talk(conversation)
    try:
        with options.working(
            run_cli_command.profile(conversation).name, "checkpoints rewind", talk.wait, False
        ) as work:
            done = rewound(work, session, "~1", ("", False, False))
    except Conflicts as error:
        error.hint = "/rewind ~1 --dry-run lists them all; /rewind ~1 --force takes these back, too."
        raise
    for remark in done.remarks:
        talk.display.notice(remark)


def _prompts(conversation: session_log.MessageList) -> list[_Prompt]:
    summaries = {compaction.place for compaction in conversation.compactions}
    return [
        _Prompt(place, text, entry.at)
        for place, entry in enumerate(conversation.messages)
        if place not in summaries and (text := session_catalogue.prompt(entry.message)) is not None
    ]


def _short(prompt: str) -> str:
    line = printable(" ".join(prompt.split()))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def fork(conversation: Conversation, rest: str) -> None:
    """`checkpoints fork`, of the latest checkpoint if none is named; the conversation goes on in the new session."""
    words = run_cli_command.split(rest)
    parsed = run_cli_command.arguments("checkpoints", "fork", *words)
    reference = parsed.get("ref")
    if reference is not None and parsed.get("name") is None:
        words = [_latest(conversation), *words]
        parsed = run_cli_command.arguments("checkpoints", "fork", *words)
    run_cli_command.run(conversation, "checkpoints", "fork", *words)
    name = parsed.get("name")
    spelled = session_catalogue.spelled(run_cli_command.profile(conversation), name) if name is not None else None
    if spelled is not None:
        _goes_on(conversation, spelled)
        conversation.asked = None
        conversation.talk.display.notice(f"The conversation goes on in session {spelled}.")


def _latest(conversation: Conversation) -> str:
    """The id of the checkpoint at which the session at hand stands. Raises `NotFound`."""
    session = run_cli_command.at_hand(conversation)
    head = lookup.head(lookup.read_ledger(run_cli_command.profile(conversation)), session)
    if head is None:
        raise NotFound(
            f"Session {session.name!r} has no checkpoint to fork from.",
            "/checkpoints save makes one.",
            code="checkpoint_not_found",
        )
    return head
