"""Formats: the number each one has now, and the steps that bring what was written earlier up to it.

| format | where | its number |
|---|---|---|
| `SETTINGS` | `profile.toml`, `config.toml` | `version`; a file without one is a person's, and in format 1 |
| `SESSION` | `sessions/<name>/session.json` | `v` |
| `LOG` | each line of a message log | `v` |
| `LEDGER` | each line of `checkpoints/ledger.jsonl` | `v` |
| `PACK` | `checkpoints/packs/*.pack` | in the first line |
| `TREE` | the list of a directory, an object in a pack | in the first line |
| `CACHE` | `cache/snapshots.sqlite` | SQLite's `user_version`; another number, and it is made anew |

Archives, exports of sessions, plans of what is being moved and the to-do list have numbers of their own, beside what
reads them. `cache/index`, what else lies in `cache/`, and what a lock file says of its holder have no number: nobody
relies on them, and whoever cannot read them makes them anew or does without.

A newer number is refused (`NewerFormat`) and the file left alone; a number that is none (text, a truth value, zero or
less) is damage. What is older is brought up when it is read, in memory: no file is rewritten for being read, and what
is written next bears the number of now. So one log can hold lines of several numbers.

To change a format: raise its `current`, and add the step that makes an entry of the number before one of the next. It
changes the entry in place, and stays for good.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from deepctl.errors import NewerFormat

Entry = MutableMapping[str, Any]
Step = Callable[[Entry], None]


class BadVersion(ValueError):
    """What should be the number of a format is none."""


class Format(NamedTuple):
    """One format: what it is of, the number that is written now, the steps by the number they begin at.

    A step for `current` itself is for what bore that number before its shape was settled; an entry in the settled shape
    it leaves as it is. `key` is where an entry has its number, and `without` the number of one that has none; without
    `without`, such an entry is damaged.
    """

    what: str
    current: int
    steps: Mapping[int, Step] = {}
    key: str = "v"
    without: int | None = None


def _workspace_has_one_name(entry: Entry) -> None:
    """The first messages name the workspace by its path; pydantic-ai goes on only in the place a history names."""
    message = entry.get("message")
    if isinstance(message, dict):
        named = message.get("workspace_ref")
        if isinstance(named, dict) and named.get("provider") == "local":
            message["workspace_ref"] = {"provider": "deepctl", "id": "workspace"}


SETTINGS = Format("settings", 1, key="version", without=1)
SESSION = Format("session", 1)
LOG = Format("message log", 2, {1: _workspace_has_one_name})
LEDGER = Format("ledger", 2)
PACK = Format("pack", 1)
TREE = Format("tree", 1)
CACHE = Format("cache", 2)

ALL = (SETTINGS, SESSION, LOG, LEDGER, PACK, TREE, CACHE)


def number(form: Format, entry: Mapping[str, Any]) -> int:
    """The number that an entry bears. Raises `BadVersion`."""
    found = entry.get(form.key, form.without)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise BadVersion(f"{found!r} is not the number of a format")
    return found


def bring_up(form: Format, entry: Entry, where: str) -> None:
    """Make an entry one of the present format, in place. `where` is what is named if it is refused.

    Raises `NewerFormat` or `BadVersion`; the entry is as it was then.
    """
    found = number(form, entry)
    if found > form.current:
        raise NewerFormat(where, found, form.current)
    for each in range(found, form.current + 1):
        step = form.steps.get(each)
        if step is not None:
            step(entry)
    if found != form.current:
        entry[form.key] = form.current


def is_newer(form: Format, entry: Mapping[str, Any]) -> bool:
    """Whether an entry was written by a later deepctl."""
    try:
        return number(form, entry) > form.current
    except BadVersion:
        return False


_HEADER = re.compile(rb"deepctl ([a-z]+) ([1-9][0-9]{0,8})\n")


def header(form: Format) -> bytes:
    """The first line of a binary format."""
    return b"deepctl %s %d\n" % (form.what.encode(), form.current)


def check_header(form: Format, begins: bytes, where: str) -> None:
    """Raises `NewerFormat` if something binary begins as a later deepctl would have it begin."""
    found = _HEADER.match(begins)
    if found is not None and found[1] == form.what.encode() and int(found[2]) > form.current:
        raise NewerFormat(where, int(found[2]), form.current)
