"""Which names profiles, sessions and labels may have.

A name becomes a directory name, so the rules are those every file system can keep: a bad name is refused
before anything is touched and never repaired into another one.
"""

from __future__ import annotations

import re

from deepctl.errors import BadName

MAX_LENGTH = 64

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
_RULE = (
    "A name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, starts with a letter or a digit, does not end in a dot "
    "and is none that Windows reserves."
)


def check(name: str, what: str = "profile") -> str:
    """`name` itself, if it may be the name of a `what`. Raises `BadName` (exit 2) otherwise."""
    if not name:
        raise BadName(f"The {what} name is empty.", _RULE)
    quoted = ascii(name[:MAX_LENGTH]) + ("…" if len(name) > MAX_LENGTH else "")
    kind = f"an {what}" if what[0] in "aeiou" else f"a {what}"
    if len(name) > MAX_LENGTH:
        raise BadName(f"The {what} name {quoted} has {len(name)} characters; {MAX_LENGTH} are allowed.", _RULE)
    if not _ALLOWED.fullmatch(name) or name.endswith("."):
        raise BadName(f"{quoted} cannot be the name of {kind}.", _RULE)
    if _RESERVED.fullmatch(name):
        raise BadName(f"{quoted} is a name that Windows reserves, so it cannot be the name of {kind}.", _RULE)
    return name


def is_good(name: str) -> bool:
    """Whether `name` may be a name."""
    try:
        check(name)
    except BadName:
        return False
    return True


def fold(name: str) -> str:
    """The form in which names are compared: `Alice` and `alice` are the same name."""
    return name.lower()
