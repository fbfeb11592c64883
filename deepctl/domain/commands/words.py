"""A command as a shell sees it: its words without quotes, and what of them is not known before it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


class Computed(Enum):
    """A part of a word that a shell makes up when it runs it."""

    ONE = "one"
    """Some text within one word: `"$x"`."""
    MANY = "many"
    """Any number of words: `$x`."""
    FILES = "files"
    """The names of files, or the pattern itself: `*.py`."""


CODE_VARIABLE = "a variable is set that programs run or read commands by"
VALUE = "="
"""The name of what stands for the values of variables: no command, but what it is given may be one."""


Word = tuple[str | Computed, ...]
"""The parts of a word; no two texts follow each other."""


class Command(NamedTuple):
    """A command that a text runs.

    `raw` is how it is written, empty for one that another command runs. With `is_open` more words follow that the text
    does not show, as behind `xargs rm`. `stdin` is what a here-document gives it to read, `None` if that is not known.
    `around` is the pipeline up to it, with its redirections: what it reads may be written there.
    """

    words: tuple[Word, ...]
    raw: str = ""
    is_open: bool = False
    stdin: str | None = None
    around: str = ""


class Text(NamedTuple):
    """A text that a shell is given to run; if not `is_sure`, one that may be given to one.

    With `is_code` it is meant for a shell, so that it counts what in it cannot be told.
    """

    text: str
    is_sure: bool = True
    is_code: bool = True


def literal(word: Word) -> str | None:
    """The text of a word, or `None` if part of it is computed."""
    texts = [part for part in word if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(word) else None


def beginning(word: Word) -> str:
    """The text that a word begins with, whatever comes then."""
    return word[0] if word and isinstance(word[0], str) else ""


def as_text(word: Word) -> str:
    """A word as the text of a shell: what is computed stays so."""
    return "".join(part if isinstance(part, str) else "${_}" for part in word)


def joined(parts: Iterable[str | Computed]) -> Word:
    """The parts as one word."""
    whole: list[str | Computed] = []
    for part in parts:
        if isinstance(part, str) and whole and isinstance(whole[-1], str):
            whole[-1] += part
        elif part != "":
            whole.append(part)
    return tuple(whole) or ("",)


def base_name(name: str) -> str:
    """The last part of a program's path."""
    return name.rsplit("/", 1)[-1]


_CODE_VARIABLE = re.compile(
    r"(?:BASH_ENV|PROMPT_COMMAND|PS[0-4]|SHELLOPTS|BASHOPTS"
    r"|GIT_CONFIG(?:_COUNT|_KEY_\w+|_VALUE_\w+|_PARAMETERS|_GLOBAL|_SYSTEM)?)\+?=(?!/dev/null$)"
)


def sets_code(assignment: str) -> bool:
    """Whether `NAME=value` sets a variable that programs run commands by, or find settings in that do."""
    return _CODE_VARIABLE.match(assignment) is not None
