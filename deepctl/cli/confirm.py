"""Questions to the person at the terminal: confirmations of commands, and approval requests of the agent.

A confirmation precedes an action that cannot be undone; in a script, `--yes` answers it. An approval request shows the
command or the change, and one key answers it.
"""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol, runtime_checkable

import typer

from deepctl.cancellation import interruptible
from deepctl.cli import tty_modes
from deepctl.errors import DeepctlError, Interrupted, Refused
from deepctl.output.render import has_colour, is_terminal, say, say_part, visible, wrap

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest, Ask
    from deepctl.agent.questions import Answerer, UserQuestion
    from deepctl.output.stream.display import Display

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

YES = ("y", "yes")
"""Answers that agree."""
_MAX_LINES = 20
_MAX_DIFF = 100
_MAX_WIDTH = 600
_WANTS = {"execute": "run a command", "write": "write a file", "edit": "edit a file", "read": "read a file"}
_READ_BYTES = 4096
_UNREAD_SECONDS = 0.3
"""A key that is pressed this soon is not an answer, because the request cannot have been read yet."""
_TYPING_SECONDS = 0.5
"""After this time without a key, the person has stopped typing."""
_QUIET_SECONDS = 0.03
"""Within this time a terminal has sent the rest of a paste, but a person cannot press a second key."""


def can_ask() -> bool:
    """Whether there is a terminal for a question and its answer."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def check_can_ask(
    *,
    yes: bool,
    as_json: bool,
    reason: str = "This cannot be undone",
    instead: str = "--dry-run only shows what would happen",
) -> None:
    """Raises `Refused` (exit 6) if there is neither `--yes` nor a terminal for the question."""
    if not yes and (as_json or not can_ask()):
        raise Refused(
            f"{reason}, and there is no terminal for the confirmation.",
            f"--yes confirms without a question; {instead}.",
            code="needs_yes",
        )


def confirm(
    question: str,
    *,
    yes: bool,
    as_json: bool,
    confirmation: str | None = None,
    reason: str = "This cannot be undone",
    instead: str = "--dry-run only shows what would happen",
) -> None:
    """Return if the user agrees. Raises `Refused` (exit 6) if the user declines or there is no terminal, and
    `Interrupted` (exit 130) after Ctrl-C.

    `reason` says why there is a question, and `instead` what is possible without an answer.

    With `confirmation`, that very word has to be typed. With `--json` there is no question: a script reads the answer.
    """
    check_can_ask(yes=yes, as_json=as_json, reason=reason, instead=instead)
    if yes:
        return
    answer = ask_line(f"{question} [{f'type {confirmation} to continue' if confirmation is not None else 'y/N'}]")
    if confirmation is not None and answer != confirmation:
        raise Refused(
            f"That is not {confirmation!r}, so nothing was done.", "Type it exactly as it is shown.", code="declined"
        )
    if confirmation is None and answer.lower() not in YES:
        raise Refused("Declined; nothing was done.", code="declined")


def ask_line(question: str) -> str:
    """The answer of the person at the terminal, one line. Raises `Interrupted` (exit 130) after Ctrl-C."""
    try:
        with tty_modes.line_question(f"{wrap(visible(question), sys.stderr)} "):
            line = _typed_line()
    except KeyboardInterrupt:
        # A command changes nothing before it has the answer.
        raise Interrupted("Stopped; nothing was changed.") from None
    if not line.endswith("\n"):
        say("")  # Ctrl-D leaves the cursor behind the question
    return line.strip()


def _typed_line() -> str:
    line = interruptible(sys.stdin.buffer).readline()
    return line.decode(sys.stdin.encoding, sys.stdin.errors or "strict")


def ask_hidden_line(question: str) -> str:
    """A line of the person at the terminal, which is not shown. Raises `Interrupted` (exit 130) after Ctrl-C."""
    try:
        with tty_modes.hidden_line(f"{wrap(visible(question), sys.stderr)} "):
            line = _typed_line()
    except KeyboardInterrupt:
        raise Interrupted("Stopped; nothing was changed.") from None
    finally:
        say("")  # the Enter was not shown either
    return line


@runtime_checkable
class _Pausable(Protocol):
    def paused(self) -> AbstractContextManager[None]: ...


class RuleStore(NamedTuple):
    """Where a rule is stored that a person gives as an answer. Both functions get the name of the choice; `hint` says
    where the rule goes.
    """

    hint: Callable[[str], str]
    give: Callable[[str], None]


def ask_at_terminal(display: Display, rules: RuleStore | None = None) -> Ask:
    """A function that asks the person at the terminal of `display`. Without `rules`, rules cannot be given."""

    async def ask(question: ApprovalRequest) -> ApprovalAnswer:
        choices = tuple(choice for choice in question.choices if rules is not None or not choice.rule)
        with _paused(display):
            answer = await _ask(question._replace(choices=choices), rules.hint if rules is not None else str)
            if rules is not None and any(choice.rule and choice.name == answer.choice for choice in choices):
                try:
                    rules.give(answer.choice)
                except (DeepctlError, OSError) as problem:
                    say(
                        wrap(
                            visible(f"The rule could not be stored, so it holds only this time: {problem}"), sys.stderr
                        )
                    )
                    return answer._replace(choice="")
            return answer

    return ask


def answer_at_terminal(display: Display) -> Answerer:
    """A function that asks the person at the terminal of `display` a question of the model."""

    async def answer(question: UserQuestion) -> list[str] | str | None:
        with _paused(display):
            return await _answer(question)

    return answer


@contextmanager
def _paused(display: Display) -> Iterator[None]:
    with tty_modes.without_echo():
        if isinstance(display, _Pausable):
            with display.paused():
                yield
        else:
            yield


async def _ask(question: ApprovalRequest, rule_hint: Callable[[str], str]) -> ApprovalAnswer:
    """Show the request and wait for a key. Enter, Escape and the end of the terminal mean no."""
    from deepctl.agent.approver import ApprovalAnswer

    wish = question.wish or _WANTS.get(question.operation, "use a tool outside the sandbox")
    asker = f"The sub-agent {question.agent}" if question.agent else "The agent"
    say(wrap(visible(f"{asker} wants to {wish}:"), sys.stderr))
    _show(question, _MAX_LINES, _MAX_DIFF)
    await _typing_has_stopped()
    choices = {choice.key: choice for choice in question.choices}
    is_cut = _is_cut(question.target, _MAX_LINES) or _is_cut(question.preview, _MAX_DIFF)
    texts = ["[y]es", *(choice.text for choice in question.choices), "[N]o", "[t]ell why not"]
    keys = ", ".join([*texts, "[s]how all"] if is_cut else texts)
    while True:
        say_part(f"{wrap(visible(f'Allow it? {keys}:'), sys.stderr)} ")
        try:
            key = await _key()
        except BaseException:
            say("")  # Ctrl-C: the question stays as it is
            raise
        # Some people press Enter after the key.
        key = key.rstrip("\r\n") or key[:1]
        choice = choices.get(key.lower())
        if choice is not None:
            say(visible(choice.name.partition(" ")[0]))
            if not choice.rule or await _is_agreed(f"{choice.rule}\n{rule_hint(choice.name)}"):
                return ApprovalAnswer(allow=True, choice=choice.name)
            continue
        match key:
            case "y" | "Y":
                say("yes")
                return ApprovalAnswer(allow=True)
            case "t" | "T":
                say("no")
                return ApprovalAnswer(allow=False, word=await _reason())
            case "s" | "S" if is_cut:
                say("all of it")
                _show(question, sys.maxsize, sys.maxsize)
            case "n" | "N" | "\r" | "\n" | "\x1b" | "\x04" | "":
                say("no")
                return ApprovalAnswer(allow=False)
            case _:
                # Another key, or several pasted keys, are neither yes nor no.
                say("please press one of these keys")


async def _is_agreed(rule: str) -> bool:
    """Show the rule of a choice, and ask once more. Every key but `y` means no."""
    for line in rule.split("\n"):
        say(wrap(visible(line), sys.stderr))
    say_part("Give this rule? [y]es, [N]o: ")
    is_yes = (await _key()).rstrip("\r\n").lower() == "y"
    say("yes" if is_yes else "no")
    return is_yes


def _show(question: ApprovalRequest, most: int, most_of_diff: int) -> None:
    for line in _shown(question.target, most):
        say(f"  {line}")
    colours = has_colour(sys.stderr)
    for line in _shown(question.preview, most_of_diff):
        code = {"+": 32, "-": 31, "@": 36}.get(line[:1]) if colours and question.operation != "mcp" else None
        say(f"  {line}" if code is None else f"  \x1b[{code}m{line}\x1b[0m")


def _shown(text: str, most: int) -> list[str]:
    """The lines of a request, at most `most`. Every invisible character is shown as an escape."""
    lines = [visible(line) for line in text.split("\n")] if text else []
    left_out = len(lines) - most
    if left_out > 0:
        half = most // 2
        lines = [*lines[:half], f"… {left_out} lines are not shown; s shows them …", *lines[-half:]]
    if most == sys.maxsize:
        return lines
    return [line if len(line) <= _MAX_WIDTH else _cut(line) for line in lines]


def _is_cut(text: str, most: int) -> bool:
    return _shown(text, most) != _shown(text, sys.maxsize)


def _cut(line: str) -> str:
    half = _MAX_WIDTH // 2
    return f"{line[:half]} … {len(line) - _MAX_WIDTH} characters are not shown; s shows them … {line[-half:]}"


async def _typing_has_stopped() -> None:
    """Take away the keys that were typed before the request could be read, and keys that follow without a pause."""
    # Imported here: confirmations need no asyncio, and it is slow to import.
    import asyncio

    await asyncio.sleep(_UNREAD_SECONDS)
    while select.select([sys.stdin], [], [], 0)[0]:
        try:
            tty_modes.take_unmeant_keys()
        except (OSError, termios.error):
            return  # the terminal is gone; the next read reports it
        await asyncio.sleep(_TYPING_SECONDS)


async def _key() -> str:
    """The bytes of the next key; empty if the terminal is gone."""
    import asyncio

    # Not in a thread: Ctrl-C could not stop it, and it would take the next line from the line editor.
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    keys = b""
    try:
        # Read all available bytes, so that the end of a paste or an escape sequence does not count as a key.
        while select.select([descriptor], [], [], _QUIET_SECONDS if keys else 0)[0]:
            piece = os.read(descriptor, _READ_BYTES)
            if not piece:
                break
            keys = (keys + piece)[-_READ_BYTES:]
    except OSError:
        return ""
    return keys.decode(errors="replace")


async def _reason() -> str:
    """The reason for a refusal, as a line for the agent."""
    return await _line("Reason for the agent?")


async def _line(question: str) -> str:
    """A typed line; empty if the terminal is gone, or after Ctrl-D."""
    with tty_modes.shell_mode():
        say_part(f"{question} ")
        line = await _key()
    if not line.endswith("\n"):
        say("")
    return line.strip()


async def _answer(question: UserQuestion) -> list[str] | str | None:
    """Show a question with its numbered choices, and wait for a line: numbers, or an answer in words."""
    place = f" ({question.number} of {question.total})" if question.total > 1 else ""
    say(wrap(f"The agent asks{place}: {visible(' '.join(question.text.split()))}", sys.stderr))
    for number, choice in enumerate(question.choices, 1):
        about = f": {visible(' '.join(choice.description.split()))}" if choice.description else ""
        say(wrap(f"  {number}. {visible(choice.label)}{about}", sys.stderr))
    await _typing_has_stopped()
    numbers = "Numbers, such as 1,3," if question.is_multiple else "A number"
    instruction = f"{numbers} or an answer in your words; Enter alone leaves it to the agent:"
    while True:
        line = await _line(wrap(instruction, sys.stderr))
        words = line.replace(",", " ").split()
        if not words:
            say("The agent decides.")
            return None
        if not all(word.isdecimal() for word in words):
            labels = [choice.label for choice in question.choices if choice.label.casefold() == line.casefold()]
            return labels or "".join(character for character in line if character.isprintable())
        places = [int(word) for word in words]
        if all(1 <= number <= len(question.choices) for number in places) and (question.is_multiple or len(words) == 1):
            return [question.choices[number - 1].label for number in places]
        say(f"Type {'numbers' if question.is_multiple else 'one number'} from 1 to {len(question.choices)}, or words.")
