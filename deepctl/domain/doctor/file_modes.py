"""Who may look into a profile: its own files are 0600 and its directories 0700, and all of them its user's.

What is in the workspace is the agent's, with the modes it gave it; so are the copies that somebody's editor works on.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterator

from deepctl.domain.doctor.check import Check, some
from deepctl.domain.memory import drafts
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store.packs import UNCOUNTED

_DEEPEST = 8


def rights(paths: ProfilePaths) -> Iterator[Check]:
    """What is not as it should be, each kind of it once. Raises `OSError` for what cannot be looked into."""
    loose: list[str] = []
    shut: list[str] = []
    foreign: list[str] = []
    odd: list[str] = []
    for path, status, wanted in _own(paths):
        if not wanted(status.st_mode):
            odd.append(path)
        elif status.st_uid != os.geteuid():
            foreign.append(path)
        else:
            needed = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if path.endswith(".pack"):
                needed = UNCOUNTED
            if status.st_mode & 0o077:
                loose.append(path)
            if status.st_mode & needed != needed:
                shut.append(path)
    if odd:
        yield Check("rights", "problem", f"not what should be there: {some(odd)}", "Find out what replaced it.")
    if foreign:
        yield Check("rights", "problem", f"of another user of this machine: {some(foreign)}", "Find out who made it.")
    if shut:
        yield Check("rights", "problem", f"their owner may not use: {some(shut)}", f"chmod -R u+rwX {_words(shut)}")
    if loose:
        everything = f"find {shlex.quote(paths.directory)} -path {shlex.quote(paths.workspace + '/*')} -prune"
        yield Check(
            "rights",
            "warning",
            f"others of this machine may use {counted(len(loose), 'path')}: {some(loose)}",
            f"{everything} -o -exec chmod go-rwx {{}} +",
        )
    if not (odd or foreign or shut or loose):
        yield Check("rights", "ok", "yours alone (0700 and 0600)")


def _words(found: list[str]) -> str:
    return " ".join(shlex.quote(path) for path in found[:3])


def _own(paths: ProfilePaths) -> Iterator[tuple[str, os.stat_result, Callable[[int], bool]]]:
    """Everything that is deepctl's own: path, status without following links, and what it should be."""
    yield paths.directory, os.lstat(paths.directory), stat.S_ISDIR
    pending = [(paths.directory, 0)]
    while pending:
        directory, depth = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                is_directory = stat.S_ISDIR(status.st_mode)
                if depth == 0:
                    should_be = _is_directory(entry.name)
                    yield entry.path, status, stat.S_ISDIR if should_be else stat.S_ISREG
                    if not should_be or entry.name == "workspace" or entry.name.startswith(drafts.PREFIX):
                        continue
                else:
                    yield entry.path, status, stat.S_ISDIR if is_directory else stat.S_ISREG
                if is_directory and depth < _DEEPEST:
                    pending.append((entry.path, depth + 1))


def _is_directory(name: str) -> bool:
    return name in ("workspace", "sessions", "checkpoints", "cache") or name.startswith(drafts.PREFIX)
