"""The remaining places of a text in a profile after it was purged from the notebooks.

A purge changes only notebooks. Messages, other files, prompts and labels keep the text, so a user who wants to remove
it needs this list.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from deepctl.domain.purge.notebooks import Contents, TextMatcher
from deepctl.errors import Damaged, Refused
from deepctl.files import atomic, sealed_lines
from deepctl.files.paths_beneath import WalkEntry, walk
from deepctl.layout import ProfilePaths
from deepctl.store import log_file, session_catalogue
from deepctl.store.ledger import LEDGER, MESSAGES
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.trees import DIRECTORY, decode

SESSION, APPLICATION, FILE, KEPT_FILE, LEDGER_FIELD, HISTORY, SETTINGS, PROFILE, UNREAD = (
    "session", "application", "file", "checkpoint_file", "ledger", "prompt_history", "settings", "profile", "unread",
)  # fmt: skip
_SEARCHED_ELSEWHERE = (
    *("workspace", "cache", "profile.toml", "prompt_history", "checkpoints/packs"),
    *(f"checkpoints/{MESSAGES}", f"checkpoints/{LEDGER}"),
)
"""Parts of a profile's directory that have a search of their own, and the cache, which only repeats other data."""

_CHUNK = 1 << 20
_FIELDS = {"prompt": "prompts", "label": "labels"}


class PurgePlace(NamedTuple):
    """Somewhere the text stands, and how many times.

    | place | name | times |
    |---|---|---|
    | `session` | the session | its messages with the text, those that were rewound included |
    | `application` | a log of an application's conversations | the same |
    | `file` | a path in the workspace | 1 |
    | `checkpoint_file` | a path in checkpoints | how many of them have the text there |
    | `ledger` | `prompts`, `labels` or `other` | lines of the ledger |
    | `prompt_history`, `settings` | the file | lines |
    | `profile` | any other file of the profile's own, such as the draft of an edit | 1 |
    | `unread` | what could not be looked at, or not all of it | 1, or how many checkpoints have it |
    """

    place: str
    name: str
    times: int


def places(
    reader: ReadOnlyRepository, contents: Contents, report: Callable[[int], None] | None = None
) -> list[PurgePlace]:
    """Every place in the profile with the text. Never raises for unreadable data, which is listed.

    `contents` has the results of the purge.
    """
    paths, matcher = reader.paths, contents.matcher
    contents.go_on(reader.objects, report)
    return [
        *_sessions(paths, matcher),
        *_below(paths.workspace, contents, FILE),
        *_kept(reader, contents),
        *_ledger(os.path.join(paths.checkpoints, LEDGER), matcher),
        *_lines(HISTORY, paths.prompt_history, matcher),
        *_lines(SETTINGS, paths.settings, matcher),
        *_below(paths.directory, contents, PROFILE, _is_searched_elsewhere),
    ]


def _is_searched_elsewhere(path: str) -> bool:
    return path in _SEARCHED_ELSEWHERE or (path.startswith("sessions/") and path.endswith(log_file.SUFFIX))


def _sessions(paths: ProfilePaths, matcher: TextMatcher) -> Iterator[PurgePlace]:
    for name in session_catalogue.all_names(paths):
        count = 0
        for log, path in _logs(os.path.join(paths.sessions, name)):
            number = _messages(path, matcher)
            count += number or 0
            if number is None:
                yield PurgePlace(UNREAD, f"{name}/{log}", 1)
        if count:
            yield PurgePlace(SESSION, name, count)
    for log, path in _logs(os.path.join(paths.checkpoints, MESSAGES)):
        number = _messages(path, matcher)
        if number is None or number:
            yield PurgePlace(UNREAD if number is None else APPLICATION, log, number or 1)


def _logs(directory: str) -> list[tuple[str, str]]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(name, os.path.join(directory, name)) for name in names if name.endswith(log_file.SUFFIX)]


def _messages(path: str, matcher: TextMatcher) -> int | None:
    """The number of messages of a log with the text; `None` if it cannot be read. Results count with their message."""
    try:
        raw = atomic.read_file(path)
    except (OSError, Refused):
        return None
    count = 0
    start = 0
    is_pending = False
    for line in sealed_lines.parse(raw):
        if line.value is None:
            count += matcher.is_in_damaged(raw[start : line.end])
        elif "result" in line.value:
            is_pending |= matcher.is_in_json(line.value["result"])
        elif "message" in line.value:
            joins = bool(line.value.get("results") or line.value.get("replaces"))
            count += is_pending and not joins
            count += matcher.is_in_json(line.value["message"]) or (is_pending and joins)
            is_pending = False
        start = line.end
    return count + is_pending


def _below(
    root: str, contents: Contents, place: str, skip: Callable[[str], bool] = lambda path: False
) -> Iterator[PurgePlace]:
    """The files below a directory whose content, name or link target contains the text."""
    for entry in walk(root, skip):
        if entry.status is None:
            yield PurgePlace(UNREAD, entry.path or root, 1)
            continue
        try:
            holds = contents.matcher.is_in_text(entry.name)
            if stat.S_ISLNK(entry.status.st_mode):
                holds = holds or contents.matcher.is_in_text(os.readlink(entry.name, dir_fd=entry.parent))
            elif entry.is_file:
                # Read in any case, so that unreadable data is listed.
                contents.looked()
                holds = _file_holds(entry, contents.matcher) or holds
        except FileNotFoundError:
            continue
        except OSError:
            yield PurgePlace(UNREAD, entry.path, 1)
            continue
        if holds:
            yield PurgePlace(place, entry.path, 1)


def _file_holds(entry: WalkEntry, matcher: TextMatcher) -> bool:
    descriptor = os.open(entry.name, atomic.OPEN_FILE, dir_fd=entry.parent)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        return matcher.is_in(iter(lambda: os.read(descriptor, _CHUNK), b""))
    finally:
        os.close(descriptor)


def _kept(reader: ReadOnlyRepository, contents: Contents) -> list[PurgePlace]:
    """The paths in checkpoints with the text, and the number of these checkpoints."""
    trees = Counter(record.tree for record in reader.ledger.records.values() if record.tree)
    cache: dict[bytes, list[tuple[str, bytes]]] = {}

    def below(tree: bytes) -> list[tuple[str, bytes]]:
        if tree not in cache:
            cache[tree] = _in_tree(tree)
        return cache[tree]

    def _in_tree(tree: bytes) -> list[tuple[str, bytes]]:
        text_places: list[tuple[str, bytes]] = []
        try:
            entries = decode(reader.objects.read(tree))
        except Damaged:
            return [(UNREAD, b"")]
        for entry in entries:
            is_held = contents.matcher.is_in_text(os.fsdecode(entry.name))
            if entry.kind == DIRECTORY:
                text_places += [(place, entry.name + b"/" + path) for place, path in below(entry.digest)]
            else:
                is_held = contents.hold(entry.digest) or is_held
                text_places += [(UNREAD, entry.name)] if entry.digest in contents.unread else []
            text_places += [(KEPT_FILE, entry.name)] if is_held else []
        return text_places

    counts: Counter[tuple[str, bytes]] = Counter()
    for tree, number in trees.items():
        for location in below(bytes.fromhex(tree)):
            counts[location] += number
    return [PurgePlace(place, os.fsdecode(path), number) for (place, path), number in sorted(counts.items())]


def _ledger(path: str, matcher: TextMatcher) -> Iterator[PurgePlace]:
    try:
        raw = atomic.read_file(path)
    except FileNotFoundError:
        return
    except (OSError, Refused):
        yield PurgePlace(UNREAD, path, 1)
        return
    counts: Counter[str] = Counter()
    start = 0
    for line in sealed_lines.parse(raw):
        if line.value is None:
            counts["other"] += matcher.is_in_damaged(raw[start : line.end])
        else:
            counts.update(name for name in _fields(line.value, matcher))
        start = line.end
    for name in ("prompts", "labels", "other"):
        if counts[name]:
            yield PurgePlace(LEDGER_FIELD, name, counts[name])


def _fields(entry: dict[str, Any], matcher: TextMatcher) -> set[str]:
    """The kinds of text in one line of the ledger that contain the text."""
    kinds = set()
    for key, value in entry.items():
        if isinstance(value, dict) and key in ("record", "label"):
            kinds |= {_FIELDS.get(name, "other") for name, field in value.items() if matcher.is_in_json(field)}
        elif matcher.is_in_json(value):
            kinds.add("other")
    return kinds


def _lines(place: str, path: str, matcher: TextMatcher) -> Iterator[PurgePlace]:
    try:
        raw = atomic.read_file(path)
    except FileNotFoundError:
        return
    except (OSError, Refused):
        yield PurgePlace(UNREAD, os.path.basename(path), 1)
        return
    count = sum(matcher.is_in([line]) for line in raw.splitlines())
    if count:
        yield PurgePlace(place, os.path.basename(path), count)
