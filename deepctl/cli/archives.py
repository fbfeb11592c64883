"""Archives as arguments: FILE, or `-` for a standard stream."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from deepctl.domain import settings
from deepctl.errors import NotFound, StorageError, UsageError
from deepctl.output.render import discard_stdout
from deepctl.output.terminal_caps import is_terminal


class Archive(NamedTuple):
    """An archive to read, and what errors call it. `size` is in bytes, `None` where it cannot be known beforehand."""

    stream: BinaryIO
    name: str
    size: int | None


@contextmanager
def opened(file: str) -> Iterator[Archive]:
    """The archive FILE. Raises `NotFound`, or `UsageError` for a directory or a terminal."""
    if file == "-":
        if is_terminal(sys.stdin):
            raise UsageError("- means stdin, and that is a terminal.", "Name a file, or pipe an archive in.")
        yield Archive(sys.stdin.buffer, "What stdin has", None)
        return
    try:
        stream = open(file, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise NotFound(f"There is no file {file!r}.", code="file_not_found") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a directory.", "FILE is an archive that `deepctl profiles export` made.") from None
    with stream:
        status = os.fstat(stream.fileno())
        yield Archive(stream, file, status.st_size if stat.S_ISREG(status.st_mode) else None)


@contextmanager
def stdout(as_json: bool) -> Iterator[BinaryIO]:
    """The standard output, for an archive. Raises `UsageError` if it is a terminal, or is to have the document."""
    if as_json:
        raise UsageError("--json and - both want stdout.", "Name a file, or leave out --json.")
    if is_terminal(sys.stdout):
        raise UsageError(
            "- means stdout, and that is a terminal.",
            "Name a file, or redirect stdout: deepctl profiles export - > FILE",
        )
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Unlike a list, half an archive is of no use, and whoever wanted it should hear of it.
        discard_stdout()
        raise StorageError("Whoever read stdout left before the archive was whole.", code="stdout") from None


def bytes_of(size: str | None) -> int | None:
    """The bytes that `--max-size` means. Raises `UsageError`."""
    if size is None:
        return None
    try:
        return settings.size(size)
    except ValueError:
        raise UsageError(
            f"--max-size cannot be {size!r}.", "It is a number of bytes, or one with K, M or G behind it."
        ) from None
