"""All errors: each class has its code, exit code and hint.

Code below the command line raises one of these; ``deepctl.cli.main`` turns it into text, or into one JSON line, and
into the exit code of the process. docs/exit-codes.md shows ``EXIT_CODES``, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "unexpected failure (a bug)",
    2: "wrong usage, bad name, bad value",
    3: "no such profile, session, checkpoint or memory file",
    4: "another process is working on this profile",
    5: "stored state is damaged",
    6: "refused",
    7: "the model, its provider or an MCP server failed",
    8: "storage unusable",
    124: "--timeout reached",
    130: "interrupted",
}


class DeepctlError(Exception):
    """An error that a user can act on.

    ``message`` is one sentence, ``hint`` the next step (or ``None``), ``code`` a stable word for scripts, and
    ``retryable`` says whether the same call may succeed later.
    """

    code = "error"
    exit_code = 1
    retryable = False
    usual_hint: str | None = None
    """The next step if the error itself has no hint."""

    def __init__(
        self, message: str, hint: str | None = None, *, code: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.usual_hint
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def document(self) -> dict[str, object]:
        """The error as the JSON object `error`."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
            "retryable": self.retryable,
        }


class UsageError(DeepctlError):
    """The command line, or a value in it, is wrong."""

    code = "usage"
    exit_code = 2


class BadName(UsageError):
    """An invalid profile, session or label name; nothing has been changed."""

    code = "bad_name"


class BadPath(UsageError):
    """A path of an application that leads elsewhere than its author means; nothing has been changed."""

    code = "bad_path"


class BadSetting(UsageError):
    """A setting that does not exist, or an invalid value."""

    code = "bad_setting"


class NotFound(DeepctlError):
    """The named item does not exist, and nothing was created."""

    code = "not_found"
    exit_code = 3


class ProfileNotFound(NotFound):
    code = "profile_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no profile {name!r}.",
            f"`deepctl profiles list` lists the profiles; `deepctl profiles create {name}` creates this one.",
        )


class ProfileGone(NotFound):
    """Another command renamed or wiped the profile of a chat; the chat does not create it again."""

    code = "profile_gone"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Profile {name!r} no longer exists: it was renamed or wiped in the meantime.",
            "`deepctl profiles list` lists the profiles.",
        )


class SessionNotFound(NotFound):
    code = "session_not_found"

    def __init__(self, name: str, profile: str) -> None:
        super().__init__(
            f"Profile {profile!r} has no session {name!r}.",
            f"`deepctl sessions list --user {profile}` lists the sessions.",
        )


class NoSession(NotFound):
    """There is no session in the private workspace; `has_projects` means that there is one in a project."""

    code = "session_not_found"

    def __init__(self, profile: str, has_projects: bool = False) -> None:
        if has_projects:
            super().__init__(
                f"Profile {profile!r} has only sessions in projects.",
                f"`-C DIR` takes the last one in DIR. `deepctl sessions list --user {profile}` lists the sessions.",
            )
            return
        super().__init__(f"Profile {profile!r} has no sessions yet.", f"`deepctl chat --user {profile}` starts one.")


class MemoryNotFound(NotFound):
    code = "memory_not_found"


class Locked(DeepctlError):
    """Another process holds the profile's lock."""

    code = "locked"
    exit_code = 4
    retryable = True
    pid: int | None = None
    """The process, if it is known."""

    def of(self, pid: int | None) -> Locked:
        """The same error, with the process that holds the lock."""
        self.pid = pid
        return self


class Damaged(DeepctlError):
    """Stored state is damaged and cannot be read."""

    code = "damaged"
    exit_code = 5


class StoreDamaged(Damaged):
    """Checkpoints or sessions are damaged; `checkpoints repair` makes the remaining state consistent."""

    usual_hint = "`deepctl checkpoints repair` keeps all readable data and lists the losses."


class NewerFormat(Damaged):
    """A file was written by a later version of deepctl."""

    code = "newer_format"

    def __init__(self, subject: str, version: object, current: int) -> None:
        super().__init__(
            f"{subject} is in format {version}; this deepctl reads up to format {current}.",
            "Update deepctl. The file was not changed.",
        )


class Refused(DeepctlError):
    """deepctl refuses an operation in the present state."""

    code = "refused"
    exit_code = 6


CONTEXT_OVERFLOW = "context_overflow"
"""The code of the error for a request that is longer than the model's context window."""


class ModelFailed(DeepctlError):
    """The model, its provider or the connection failed."""

    code = "model_failed"
    exit_code = 7


class BudgetReached(ModelFailed):
    """A request was not sent, because a budget of the day or of the month is used up."""

    code = "budget"


class McpServerFailed(DeepctlError):
    """An MCP server cannot be used; `problem` continues a sentence. `last_lines` are those of its stderr."""

    code = "mcp_server"
    exit_code = 7

    def __init__(self, name: str, problem: str, last_lines: Sequence[str] = (), *, needs_login: bool = False) -> None:
        super().__init__(
            f"MCP server {name!r} cannot be used: {problem}.",
            "`deepctl config show` shows its table; docs/mcp.md lists what such a problem means."
            if not needs_login
            else "The login needs a person and a browser that reaches this machine.",
            code="mcp_login" if needs_login else None,
        )
        if needs_login:
            self.exit_code = Refused.exit_code
        self.last_lines = last_lines


class McpPromptFailed(DeepctlError):
    """An MCP server that works did not return a prompt; `problem` is its own text without a full stop."""

    code = "mcp_prompt"
    exit_code = 7

    def __init__(self, server: str, prompt: str, problem: str) -> None:
        super().__init__(
            f"MCP server {server!r} did not return its prompt {prompt!r}: {problem}.",
            "`/help NAME` in a chat shows the arguments of a prompt.",
        )


class StorageError(DeepctlError):
    """The disk is full, read-only, broken, or access is denied."""

    code = "storage"
    exit_code = 8


class TimedOut(DeepctlError):
    """``--timeout`` was reached."""

    code = "timeout"
    exit_code = 124
    retryable = True


class Interrupted(DeepctlError):
    """Ctrl-C."""

    code = "interrupted"
    exit_code = 130
    retryable = True


class Terminated(DeepctlError):
    """A signal ended the command. The process ends itself by the same signal after cleaning up."""

    code = "terminated"

    def __init__(self, signal: int, hint: str | None = None) -> None:
        super().__init__(f"Ended by signal {signal}.", hint)
        self.signal = signal
        self.exit_code = 128 + signal


def terminate(number: int, frame: object) -> NoReturn:
    """A signal handler that raises `Terminated`."""
    raise Terminated(number)
