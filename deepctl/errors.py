"""What can go wrong, said once: each error carries its code, exit code and hint.

Raise one of these anywhere below the command line; ``deepctl.cli.main`` turns it into text, or into one
JSON line, and into the exit code of the process. docs/exit-codes.md shows ``EXIT_CODES`` and a test compares the two.
"""

from __future__ import annotations

from typing import NoReturn

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "unexpected failure (a bug)",
    2: "wrong usage, bad name, bad value",
    3: "no such profile, session, checkpoint or memory file",
    4: "another process is working on this profile",
    5: "stored state is damaged",
    6: "refused",
    7: "the model or its provider failed",
    8: "storage unusable",
    124: "--timeout reached",
    130: "interrupted",
}


class DeepctlError(Exception):
    """An error a user can act on.

    ``message`` is one sentence, ``hint`` the next step (or ``None``), ``code`` a stable word for scripts,
    ``retryable`` whether the same call may succeed later.
    """

    code = "error"
    exit_code = 1
    retryable = False
    usual_hint: str | None = None
    """The next step where the error itself names none."""

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
        """The error as the JSON object `error` that scripts get."""
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
    """A profile, session or label name that the rules refuse; nothing has been touched."""

    code = "bad_name"


class BadSetting(UsageError):
    """A setting that does not exist, or a value it cannot have."""

    code = "bad_setting"


class NotFound(DeepctlError):
    """What was named does not exist, and nothing was created."""

    code = "not_found"
    exit_code = 3


class ProfileNotFound(NotFound):
    code = "profile_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no profile {name!r}.",
            f"`deepctl profiles list` shows those there are; `deepctl profiles create {name}` makes it.",
        )


class ProfileGone(NotFound):
    """The profile of a conversation was renamed or wiped by another command; it is not made anew behind their back."""

    code = "profile_gone"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Profile {name!r} is gone: it was renamed or wiped meanwhile.",
            "`deepctl profiles list` shows those there are.",
        )


class SessionNotFound(NotFound):
    code = "session_not_found"

    def __init__(self, name: str, profile: str) -> None:
        super().__init__(
            f"Profile {profile!r} has no session {name!r}.",
            f"`deepctl sessions list --user {profile}` shows those there are.",
        )


class NoSession(NotFound):
    code = "session_not_found"

    def __init__(self, profile: str) -> None:
        super().__init__(f"Profile {profile!r} has no sessions yet.", f"`deepctl chat --user {profile}` begins one.")


class MemoryNotFound(NotFound):
    code = "memory_not_found"


class Locked(DeepctlError):
    """Another process holds the profile's lock."""

    code = "locked"
    exit_code = 4
    retryable = True


class Damaged(DeepctlError):
    """Stored state cannot be read as what it should be."""

    code = "damaged"
    exit_code = 5


class StoreDamaged(Damaged):
    """What checkpoints or sessions keep cannot be read; `checkpoints repair` brings the rest back to a whole."""

    usual_hint = "`deepctl checkpoints repair` keeps what can be read, and says what is lost for good."


class NewerFormat(Damaged):
    """A file was written by a later version of deepctl."""

    code = "newer_format"

    def __init__(self, subject: str, version: object, current: int) -> None:
        super().__init__(
            f"{subject} is in format {version}; this deepctl reads up to format {current}.",
            "Update deepctl. The file has not been touched.",
        )


class Refused(DeepctlError):
    """deepctl could do this but will not, as it stands."""

    code = "refused"
    exit_code = 6


class ModelFailed(DeepctlError):
    """The model, its provider or the way there failed."""

    code = "model_failed"
    exit_code = 7


class StorageError(DeepctlError):
    """The disk is full, read-only, not permitted or broken."""

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
    """A signal ended the command; the process ends itself by the same signal once everything is put away."""

    code = "terminated"

    def __init__(self, signal: int, hint: str | None = None) -> None:
        super().__init__(f"Ended by signal {signal}.", hint)
        self.signal = signal
        self.exit_code = 128 + signal


def terminate(number: int, frame: object) -> NoReturn:
    """A handler for signals that raises `Terminated`."""
    raise Terminated(number)
