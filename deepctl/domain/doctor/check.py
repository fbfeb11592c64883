"""The result of a check, and how checks continue after unreadable data."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from deepctl.errors import DeepctlError

Status = Literal["ok", "warning", "problem"]
_SHOWN = 3
_HELP = {
    errno.ENOTDIR: "Find out what replaced it.",
    errno.ELOOP: "Find out what created the link.",
    errno.EACCES: "Give yourself read and write permission (chmod u+rwX).",
    errno.EPERM: "Find out who may change it.",
}


class Check(NamedTuple):
    """The result of one check, of a profile if it has one.

    A `warning` is information, a `problem` does not work. `hint` is the remedy.
    """

    name: str
    status: Status
    found: str
    hint: str | None = None
    profile: str | None = None


def run_guarded(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks of `look`. Its error becomes a problem, and its earlier checks stay."""
    checks: list[Check] = []
    try:
        checks += look()
    except DeepctlError as error:
        checks.append(Check(name, "problem", error.message, error.hint))
    except OSError as error:
        checks.append(Check(name, "problem", error_in_words(error), _HELP.get(error.errno or 0, "Check the disk.")))
    except RecursionError as error:
        checks.append(
            Check(name, "problem", error_in_words(error), "Its contents are nested too deeply to come from deepctl.")
        )
    return checks


def error_in_words(error: Exception) -> str:
    """An error in words, with its path."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror.lower()}"
    return str(error) or type(error).__name__


def first_few(names: Iterable[str]) -> str:
    """The first names of many, and the number of the others."""
    all_names = list(names)
    remainder = len(all_names) - _SHOWN
    return ", ".join(all_names[:_SHOWN]) + (f" and {remainder} more" if remainder > 0 else "")
