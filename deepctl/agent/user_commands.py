"""A command of the user, run like the agent's commands: same place, same environment, same limits.

It needs no approval, because the user typed it. It has no terminal and an empty stdin.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from pydantic_ai.workspaces import (
    WorkspaceError,
    WorkspaceOutputLimitError,
    WorkspaceTimeoutError,
    WorkspaceUnavailableError,
)

from deepctl.agent.backend import LocalBackend, open_backend
from deepctl.agent.interruption import AbandonedRun, Interruption, close
from deepctl.agent.sandboxes import Sandbox, heard_by
from deepctl.errors import Interrupted, StorageError, UsageError
from deepctl.layout import ProfilePaths
from deepctl.quantities import size
from deepctl.sandbox.container import Sink
from deepctl.sandbox.policy import OUTPUT_BYTES, PROTECTED

_LONGEST = 100_000
"""Maximum length of a command in bytes; Linux accepts 128 KiB as one argument of a program."""


class CommandEnd(NamedTuple):
    """The end of a command: an exit code, or `None` with a `reason` (a clause). `seconds` is its duration."""

    code: int | None
    reason: str | None
    seconds: float


def run(
    profile: ProfilePaths,
    sandbox: Sandbox,
    line: str,
    sink: Sink,
    *,
    project: str | None = None,
    protected: Sequence[str] = PROTECTED,
) -> CommandEnd:
    """Run a shell line in a workspace; `sink` receives its output while it runs. The caller holds the lock.

    `project` is a directory of the user, with its `protected` files. The line then runs there.

    Ctrl-C, SIGTERM and SIGHUP end the command, and its child processes as far as the sandbox can end them. Raises
    `Interrupted` or `Terminated` then, `UsageError` for an invalid line, and `Refused` or `StorageError` if the sandbox
    or the workspace cannot be used.
    """
    _check(line)
    began = time.monotonic()
    stops, runner = Interruption(), asyncio.Runner()
    try:
        with (
            stops.watched(),
            closing(open_backend(profile, project, sandbox, protected=protected, by_user=True)) as backend,
        ):
            code, reason = stops.run(runner, _run(backend, sandbox, line, sink))
    except (Interrupted, AbandonedRun, KeyboardInterrupt):
        raise Interrupted("The command was stopped.") from None
    finally:
        close(runner)
    return CommandEnd(code, reason, time.monotonic() - began)


def _check(line: str) -> None:
    try:
        length = len(os.fsencode(line))
    except UnicodeEncodeError:
        raise UsageError("The command is not UTF-8 text.") from None
    if "\0" in line:
        raise UsageError("The command contains a NUL character.")
    if length > _LONGEST:
        raise UsageError(
            f"The command is longer than {_LONGEST:,} bytes.", "Write the command to a file, and run the file."
        )


async def _run(backend: LocalBackend, sandbox: Sandbox, line: str, sink: Sink) -> tuple[int | None, str | None]:
    task = asyncio.current_task()
    assert task is not None
    enough = False

    def hear(out: bytes, err: bytes) -> None:
        nonlocal enough
        if not enough and not sink(out, err):
            enough = True
            task.cancel()

    with heard_by(hear):
        try:
            # As a list of words: a line that looks like a search of the agent would be run as that search.
            result = await backend.run(["/bin/sh", "-c", line])
        except asyncio.CancelledError:
            if enough:
                task.uncancel()
                return None, "ended: its output cannot be shown"
            raise
        except WorkspaceTimeoutError:
            return None, f"ended: it took longer than {sandbox.limits.seconds:g} s (limits.seconds)"
        except WorkspaceOutputLimitError:
            return None, f"ended: it printed more than {size(OUTPUT_BYTES)}"
        except WorkspaceUnavailableError as error:
            hint = "`deepctl checkpoints rewind` restores its files."
            raise StorageError(f"The workspace cannot be used: {error}.", hint, code="workspace") from error
        except WorkspaceError as error:
            return None, str(error)
    return result.exit_code, None
