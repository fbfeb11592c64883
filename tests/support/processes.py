"""The processes of this machine, for tests that look whether a command still runs."""

import os
from collections.abc import Iterator


def with_command(*command: str) -> list[int]:
    """Ids of the processes with exactly that command line, those in containers among them."""
    return [pid for pid, arguments in _command_lines() if arguments == [os.fsencode(word) for word in command]]


def with_argument(argument: str) -> list[int]:
    """Ids of the processes that have `argument` among the words of their command line."""
    return [pid for pid, arguments in _command_lines() if os.fsencode(argument) in arguments]


def _command_lines() -> Iterator[tuple[int, list[bytes]]]:
    # As bytes: other tests start commands with arguments that are no UTF-8.
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                yield int(entry), file.read().split(b"\0")[:-1]
        except OSError:
            pass  # It has just ended.
