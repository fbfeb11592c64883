"""Typer's errors about a command line, in the wording of deepctl's other errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from deepctl.errors import UsageError
from deepctl.layout import is_good_name

_MAX_LENGTH = 300
_ALIKE = 0.7
"""From this ratio of common letters, in order, a word counts as a typing error for another."""
_LONGEST = 100
"""The number of characters of a word that are compared with names."""
_OURS = {
    "a valid float range": "a number",
    "a valid int range": "a whole number",
    "is not in the range x>=": "is not at least ",
}


def error(complaint: Any, root: Any, arguments: Sequence[str]) -> UsageError:
    """One sentence, with a hint to the help of the command.

    `complaint` is Typer's exception, `root` is the root of the command tree.
    """
    context = getattr(complaint, "ctx", None)
    command = context.command_path if context is not None else _typed(root, arguments)
    message, hint = _error_and_correction(complaint, command, arguments)
    is_unknown_command = message.startswith(f"`{command}` has no command ")
    see = f"`{command} --help` {'lists the commands' if is_unknown_command else 'shows how it is used'}."
    for phrase, replacement in _OURS.items():
        message = message.replace(phrase, replacement)
    if len(message) > _MAX_LENGTH:
        message = message[: _MAX_LENGTH - 1] + "…"
    return UsageError(f"{message}.", f"{hint} {see}" if hint else see)


def _error_and_correction(complaint: Any, command: str, arguments: Sequence[str]) -> tuple[str, str]:
    """The error without its full stop, and the correction if there is one. `arguments` is the command line."""
    message = complaint.format_message().rstrip(".")
    option, missing = getattr(complaint, "option_name", None), getattr(complaint, "param", None)
    if message.startswith("No such option"):
        near = near_to(option or "", getattr(complaint, "possibilities", None) or ())
        if option == "--json" and command == "deepctl":
            return "--json is before the command", "Write --json after the command: `deepctl profiles list --json`."
        number = next((word for word in arguments if re.fullmatch(r"-\.?[0-9].*", word)), None)
        if number is not None and number.startswith(option or number):
            return f"`{command}` has no option {number}", f"A value that begins with - needs -- before it: -- {number}."
        return f"`{command}` has no option {option}", f"Did you mean {' or '.join(near)}?" if near else ""
    if message.startswith("No such command"):
        name = message.removeprefix("No such command ").partition(". Did you mean ")[0]
        commands = getattr(getattr(complaint.ctx, "command", None), "commands", ()) if complaint.ctx is not None else ()
        word = name.strip("'")
        near = [repr(near_name) for near_name in near_to(word, commands)]
        groups = [group for group in commands if word in getattr(commands[group], "commands", ())]
        near = near or [repr(f"{group} {word}") for group in groups]
        if command == "deepctl profiles" and word in _WIPES:
            return f"`{command}` has no command {name}", f"To delete a profile: `{_wipe(arguments[2:])}`."
        return f"`{command}` has no command {name}", f"Did you mean {' or '.join(near)}?" if near else ""
    if message.startswith("Missing ") and missing is not None:
        missing_name = (
            missing.opts[0] if missing.param_type_name == "option" else missing.make_metavar(complaint.ctx).upper()
        )
        return f"{missing_name} is missing", ""
    if option is not None and message.endswith("requires an argument"):
        return f"{option} needs a value", ""
    if option is not None and message.endswith("does not take a value"):
        return f"{option} takes no value", ""
    if "unexpected extra argument" in message:
        words = message.partition("(s) (")[2].removesuffix(")")
        if command == "deepctl wipe" and (wipe := _wipe(arguments[1:])) != _WIPE:
            return f"`{command}` takes no NAME; unexpected: {words}", f"To name the profile: `{wipe}`."
        return f"`{command}` takes fewer arguments; unexpected: {words}", "Several words need quotes around them."
    return message, ""


_WIPE = "deepctl wipe --user NAME"
_WIPES = ("delete", "remove", "rm", "wipe", "del")
"""What people type for `wipe`."""


def _wipe(words: Sequence[str]) -> str:
    """The command that wipes the one profile among `words`, with the flags among them; `_WIPE` if it is unclear."""
    names = [word for word in words if not word.startswith("-")]
    flags = [word for word in words if word in ("--dry-run", "--yes", "-y", "--json")]
    if len(names) != 1 or len(names) + len(flags) != len(words) or not is_good_name(names[0]):
        return _WIPE
    return " ".join(["deepctl wipe --user", names[0], *flags])


def near_to(spelling: str, names: Iterable[str]) -> list[str]:
    """Which of `names` may be meant by `spelling`, the likeliest first: what it is short for or adds to, or
    what has nearly the same letters. Dashes and slashes before them do not count: they make all options somewhat alike.
    """
    from difflib import SequenceMatcher

    word = spelling.lstrip("-/")[:_LONGEST]
    matches = []
    for name in names:
        letters = name.lstrip("-/")
        begins = min(len(word), len(letters)) > 1 and (letters.startswith(word) or word.startswith(letters))
        alike = SequenceMatcher(None, word, letters).ratio()
        if begins or alike >= _ALIKE:
            matches.append((-alike, name))
    return [name for _, name in sorted(matches)]


def _typed(root: Any, arguments: Sequence[str]) -> str:
    """The command of the command line, as far as it exists. Typer does not always report where an option is wrong."""
    words, command = ["deepctl"], root
    for argument in arguments:
        below = getattr(command, "commands", {})
        if argument not in below:
            break
        command = below[argument]
        words.append(argument)
    return " ".join(words)
