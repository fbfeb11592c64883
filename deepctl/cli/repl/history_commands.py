"""`/rewind`, `/undo`, `/retry` and `/fork`: the slash commands that move a conversation to another point."""

from __future__ import annotations

from typing import NamedTuple

from deepctl.cli import options
from deepctl.cli.confirm import confirm
from deepctl.cli.repl import run_cli_command
from deepctl.cli.repl.run_cli_command import has_help_option, split
from deepctl.cli.repl.state import ReplState
from deepctl.errors import Interrupted, NotFound, Refused, UsageError
from deepctl.output.render import is_dumb, printable
from deepctl.quantities import counted
from deepctl.store import log_file, lookup, session_catalogue

_MAX_SHOWN = 60
"""Characters of a prompt in a notice."""


class _Prompt(NamedTuple):
    """A prompt of a session: its position among the messages, and when it was sent."""

    position: int
    text: str
    at: str


def rewind(state: ReplState, arguments: str) -> None:
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


def undo(state: ReplState, arguments: str) -> None:
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
    text = log_file.split_typed(text)[0] if log_file.COMMAND in text else text
    prompt = state.last_prompt
    return prompt if prompt is not None and text.startswith(f"{prompt}\n\n") else text


def retry(state: ReplState, arguments: str) -> None:
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


def fork(state: ReplState, arguments: str) -> None:
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
