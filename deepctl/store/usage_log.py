"""The usage of a profile: its requests to models, one entry for each.

`usage.jsonl` in the directory of the profile is a file of sealed lines (`deepctl.files.sealed_lines`):

- the first line, `{v, at, from_logs}`: `from_logs` is null, or what of the file was computed from the message logs:
  `{requests, sessions}`, the number of the requests and the ids of the sessions;
- `{v, id, at, session, turn, model, purpose, input, cached, output, cost, estimated}`: one request. `at` is the time at
  which it was sent, `session` the id of the session. `input`, `cached` and `output` are tokens, `cached` those of
  `input` that the provider read from its cache. `cost` is in USD, null without a price. `estimated` is false if the
  provider has reported the tokens.

A request has two lines with the same `id`, and the later one counts. The first is written before the request is sent:
it has `"open": true` and an estimate of the input. The second is written when the request has ended, before the tools
of its answer run. So a request whose process was killed counts with the estimate.

A profile of deepctl 0.1 has no such file. Its usage is computed from the tokens in its message logs, once, by the next
request. Requests that are not in the logs (retries, summaries) are not in it, so these entries are estimates.

Lines are appended under a lock of their own, `<root>/locks/.usage`, because `deepctl models --check` runs while another
process has the lock of the profile. The file is never rewritten but by a repair. It has no text of a conversation, so
purges and deletions of sessions leave it unchanged.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from deepctl import layout, quantities
from deepctl.errors import DeepctlError, Locked, NewerFormat
from deepctl.files import atomic, sealed_lines
from deepctl.layout import USAGE_FORMAT, ProfilePaths
from deepctl.store import log_file

PURPOSES = ("answer", "compaction", "title", "subagent", "check")
"""The purposes of requests: the agent's answer, a summary, a title of a session, a request of a tool to the same model,
and `deepctl models --check`.
"""

_POLL_SECONDS = 0.002
_LOCK_SECONDS = 10.0
"""The lock is held for milliseconds, so only a stopped process holds it for longer."""
_OFFLINE = "offline"


class UsageEntry(NamedTuple):
    """One request to a model; the fields are those of a line. `is_open` means that the request has not ended."""

    id: str
    at: str
    session: str | None
    turn: int | None
    model: str
    purpose: str
    input: int
    cached: int
    output: int
    cost: float | None
    estimated: bool
    is_open: bool = False

    def line(self) -> bytes:
        """The entry as a sealed line."""
        value = {"v": USAGE_FORMAT.current, **self._asdict()}
        if value.pop("is_open"):
            value["open"] = True
        return sealed_lines.seal(value)


class Usage(NamedTuple):
    """The usage of a profile: its requests, and the problems of the lines that could not be read, by line number."""

    entries: list[UsageEntry]
    problems: list[tuple[int, str]]


def new_id() -> str:
    """A random id of a request."""
    return os.urandom(8).hex()


@contextmanager
def lock(paths: ProfilePaths, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """The lock of the usage of all profiles. Raises `Locked`, and `OSError`."""
    descriptor = atomic.open_regular(paths.usage_lock, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Locked(
                        f"Another process has kept the lock of the usage for {seconds:g} s: {paths.usage_lock}.",
                        "Find a stopped process of deepctl, and continue or end it.",
                        code="usage_locked",
                    ) from None
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def begin(directory: str) -> None:
    """Create the file in the directory of a new profile, without requests."""
    atomic.write_file(os.path.join(directory, layout.USAGE), _header(None))


def _header(from_logs: Mapping[str, Any] | None) -> bytes:
    return sealed_lines.seal({"v": USAGE_FORMAT.current, "at": quantities.now(), "from_logs": from_logs})


def read(paths: ProfilePaths) -> Usage:
    """The usage of a profile; without the file, that in its message logs. Takes no lock and changes nothing.

    Raises `NewerFormat`, and `Refused` if the file is of another kind.
    """
    try:
        raw = atomic.read_file(paths.usage)
    except FileNotFoundError:
        return Usage(_entries_in_logs(paths)[0], [])
    return parse(raw, paths.usage)


def parse(raw: bytes, path: str) -> Usage:
    """The usage in the bytes of a file. An incomplete last line, which a kill leaves, is no problem."""
    entries: dict[str, UsageEntry] = {}
    problems = []
    for line in sealed_lines.parse(raw):
        entry, problem = entry_of(line, path)
        if entry is not None:
            entries[entry.id] = entry
        elif problem is not None and (problem != "cut short" or line.number == 1):
            problems.append((line.number, problem))
    return Usage(list(entries.values()), problems)


def entry_of(line: sealed_lines.SealedLine, path: str) -> tuple[UsageEntry | None, str | None]:
    """The entry in a line, or its problem; neither for a first line. Raises `NewerFormat`."""
    value = line.value
    if value is None:
        return None, line.problem or "unreadable"
    try:
        layout.bring_up(USAGE_FORMAT, value, path)
    except layout.BadVersion:
        return None, "not an entry of the usage"
    if "from_logs" in value:
        return None, None
    # Patterns of `match` would take half of the time of a report.
    fields = [value.get(name, _MISSING) for name in _FIELDS]
    if not _is_valid(fields):
        return None, "not an entry of the usage"
    return UsageEntry._make([*fields, value.get("open") is True]), None


_FIELDS = UsageEntry._fields[:-1]
_MISSING = object()
_TEXT, _NUMBER, _NOTHING = {str}, {int}, type(None)


def _is_valid(fields: Sequence[Any]) -> bool:
    """Whether the fields of an entry that was read have their types."""
    identity, at, session, turn, model, purpose, sent, cached, received, cost, estimated = fields
    return (
        {type(identity), type(at), type(model), type(purpose)} == _TEXT
        and {type(sent), type(cached), type(received)} == _NUMBER
        and type(session) in (str, _NOTHING)
        and type(turn) in (int, _NOTHING)
        and type(cost) in (float, int, _NOTHING)
        and type(estimated) is bool
        and quantities.is_time(at)
        and min(sent, cached, received) >= 0
        and (cost is None or 0 <= cost < math.inf)
    )


def prepare(paths: ProfilePaths) -> None:
    """Create the file from the message logs if it does not exist. The caller holds the lock.

    Raises `FileNotFoundError` if there is no such profile.
    """
    if os.path.lexists(paths.usage):
        return
    entries, sessions = _entries_in_logs(paths)
    from_logs = {"requests": len(entries), "sessions": sessions} if entries else None
    atomic.write_file(paths.usage, _header(from_logs) + b"".join(entry.line() for entry in entries))


def append(paths: ProfilePaths, lines: Sequence[bytes]) -> int:
    """Append lines, after the removal of an incomplete last line that a kill left. The caller holds the lock.

    Returns the descriptor of the file, for `sync`. The lines are written as a whole or not at all. Raises `OSError`,
    and `NewerFormat`.
    """
    descriptor = atomic.open_regular(paths.usage, os.O_RDWR)
    try:
        end = _mended_end(descriptor)
        _check_format(descriptor, paths.usage)
        raw, written = b"".join(lines), 0
        try:
            while written < len(raw):
                written += os.pwrite(descriptor, raw[written:], end + written)
        except BaseException as error:
            os.ftruncate(descriptor, end)
            if isinstance(error, OSError):
                error.filename = paths.usage
            raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync(descriptor: int, *, is_durable: bool) -> None:
    """Close the descriptor that `append` has returned, and before that make the lines durable. Needs no lock."""
    try:
        if is_durable:
            os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mended_end(descriptor: int) -> int:
    """The offset at which the next line begins."""
    end = os.fstat(descriptor).st_size
    if not end or os.pread(descriptor, 1, end - 1) == b"\n":
        return end
    start = sealed_lines.end_of_whole_lines(descriptor)
    if start and os.pread(descriptor, 1, start - 1) != b"\n":
        os.pwrite(descriptor, b"\n", start)
        start += 1
    os.ftruncate(descriptor, start)
    return start


def _check_format(descriptor: int, path: str) -> None:
    start = b'{"v":%d,' % USAGE_FORMAT.current
    begins = os.pread(descriptor, len(start), 0)
    if begins == start:
        return
    first = next(sealed_lines.parse(os.pread(descriptor, 4096, 0)), None)
    if first is not None and first.value is not None and layout.is_newer(USAGE_FORMAT, first.value):
        raise NewerFormat(path, first.value["v"], USAGE_FORMAT.current)


def _entries_in_logs(paths: ProfilePaths) -> tuple[list[UsageEntry], list[str]]:
    """The answers in the message logs of all sessions as entries, the oldest first, and the ids of the sessions.

    Sessions share logs, and a copy of a log is shorter or longer than the other: the longest file of each log counts.
    """
    from deepctl.store import session_catalogue  # only for a profile of 0.1

    logs: dict[str, tuple[int, str, str | None]] = {}
    for directory in session_catalogue.directories(paths):
        try:
            session = session_catalogue.load(directory)
            identity, is_fork = session.id, session.forked_from is not None
        except (DeepctlError, OSError):
            identity, is_fork = None, True
        try:
            names = log_file.logs_in(directory)
        except OSError:
            continue
        for log in names:
            path = log_file.log_path(directory, log)
            try:
                size = os.lstat(path).st_size
            except OSError:
                continue
            known_size, known_path, owner = logs.get(log, (-1, "", None))
            if owner is None or not is_fork:
                owner = identity
            logs[log] = (size, path, owner) if size > known_size else (known_size, known_path, owner)
    entries: list[UsageEntry] = []
    sessions: set[str] = set()
    for log, (_, path, owner) in logs.items():
        try:
            raw = log_file.read_lines(path)
        except (DeepctlError, OSError):
            continue
        for line in log_file.parse(raw):
            entry = _entry_in_log(line.value, f"{log}:{line.number}", owner)
            if entry is not None:
                entries.append(entry)
                sessions.update([owner] if owner is not None else [])
    return sorted(entries, key=lambda entry: entry.at), sorted(sessions)


def _entry_in_log(value: Mapping[str, Any] | None, identity: str, session: str | None) -> UsageEntry | None:
    match value:
        case {"turn": int(turn), "at": str(at), "message": {"kind": "response", "usage": dict(usage)} as message}:
            pass
        case _:
            return None
    name, provider = message.get("model_name"), message.get("provider_name")
    name = name if isinstance(name, str) and name else "unknown"
    model = name if name == _OFFLINE or not isinstance(provider, str) else f"{provider}:{name}"
    cost = 0.0 if model == _OFFLINE or provider == "ollama" else None
    with suppress(KeyError, TypeError, ValueError):
        cost = float(usage["cost"])
    if not quantities.is_time(at) or not (cost is None or 0 <= cost < 1e9):
        return None
    tokens = [_count(usage.get(key)) for key in ("input_tokens", "cache_read_tokens", "output_tokens")]
    return UsageEntry(identity, at, session, turn, model, "answer", tokens[0], tokens[1], tokens[2], cost, True)


def _count(value: object) -> int:
    return min(max(value, 0), 10**9) if isinstance(value, int) else 0


class RepairedUsage(NamedTuple):
    """What a repair has done: the number of the lines that it corrected, and the problems of lines that are lost."""

    corrected: int
    lost: list[tuple[int, str]]

    @property
    def reason(self) -> str:
        """The work of the repair, in words."""
        parts = [
            f"{quantities.counted(self.corrected, 'line')} corrected" if self.corrected else "",
            f"{quantities.counted(len(self.lost), 'line')} removed" if self.lost else "",
        ]
        return ", ".join(filter(None, parts))


def repaired(paths: ProfilePaths) -> tuple[bytes, RepairedUsage] | None:
    """The bytes of the file after a repair, and the difference; `None` if there is nothing to repair."""
    try:
        before = atomic.read_file(paths.usage)
    except FileNotFoundError:
        return None
    problems = parse(before, paths.usage).problems
    if not problems:
        return None
    raw = sealed_lines.mend(before)
    lost = parse(raw, paths.usage).problems
    lost_lines = {number for number, _ in lost}
    pieces = [_header(None)] if 1 in lost_lines else []
    start = 0
    for line in sealed_lines.parse(raw):
        piece, start = raw[start : line.end], line.end
        if line.number not in lost_lines and line.problem != "cut short":
            pieces.append(piece)
    return b"".join(pieces), RepairedUsage(max(len(problems) - len(lost), 0), lost)
