"""Files that a prompt brings along: how `@path` is written in it, and how files from elsewhere get into the workspace.

`attach` copies files of the user's into a workspace, all of them or none, under names of their own. A name that deepctl
itself gives a meaning to is never given to a copy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count, islice

from deepctl import layout
from deepctl.domain import copy_in
from deepctl.files import atomic
from deepctl.layout import ProfilePaths
from deepctl.store.prompt_tags import PIPED

MAX_MENTIONS = 200
"""How many words of a prompt are looked at."""
_MAX_READINGS = 8
"""How many paths a word may stand for: each is looked for, and a word may be thousands of dots."""

_MENTION = re.compile(r"""(?:^|(?<=[\s(\[{,;:'"]))@(?:"(?P<quoted>[^"\n]+)"|(?P<plain>[^\s"]+))""")
_ONLY_MENTIONS = re.compile(r"""\s*@(?:"[^"\n]+"|[^\s"]+)(?:\s+@(?:"[^"\n]+"|[^\s"]+))*\s*""")
_PLAIN = re.compile(r"[\w./+=:%~-]*[\w/+=%~-]")
_ENDINGS = ".,;:!?)]}'>"
_MAX_PATH = 4096
_MAX_NAME = 255

_OWN = frozenset({".deep", layout.PLANS_DIRECTORY, layout.EVICTED_DIRECTORY})
_TOLD = frozenset(name.casefold() for name in layout.CONTEXT_FILES)

Tell = Callable[[str], None]


def mentions(prompt: str) -> list[list[str]]:
    """The words of a prompt that may name files, in order; each as the paths it may stand for, the likeliest first.

    `@path` begins a line or follows a blank, a bracket or a quote, so an address is none; `@"a path"` may have blanks.
    Punctuation behind one may belong to the sentence.
    """
    found: list[list[str]] = []
    # What is piped in names no files: who wrote it is not known.
    for match in _MENTION.finditer(prompt.partition(PIPED)[0]):
        if len(found) == MAX_MENTIONS:
            break
        word = match["quoted"] or match["plain"]
        if len(word) <= _MAX_PATH:
            found.append([word] if match["quoted"] else list(islice(_readings(word), _MAX_READINGS)))
    return found


def _readings(word: str) -> Iterator[str]:
    yield word
    while word.endswith("'s") or word[-1:] in tuple(_ENDINGS):
        word = word[:-2] if word.endswith("'s") else word[:-1]
        if not word.strip("."):
            return  # what is left of an ellipsis is no directory
        yield word


def only_mentions(line: str) -> bool:
    """Whether a line names files and says nothing else."""
    return _ONLY_MENTIONS.fullmatch(line) is not None


def mention(path: str) -> str:
    """How a file is named in a prompt."""
    return f"@{path}" if _PLAIN.fullmatch(path) else f'@"{path}"'


def mentioned(prompt: str, names: Sequence[str]) -> str:
    """The prompt with mentions of these files added, in a line of their own, unless it has them already."""
    there = {path for readings in mentions(prompt) for path in readings}
    missing = [mention(name) for name in names if name not in there]
    if not missing:
        return prompt
    typed, tag, piped = prompt.partition(PIPED)
    return f"{typed}\n\n{' '.join(missing)}{tag}{piped}"


def check(files: Sequence[str]) -> None:
    """Whether these files can be attached, before anything is done. Raises `UsageError`."""
    for path in files:
        with copy_in.opened(path):
            pass


def content(path: str) -> tuple[str, bytes]:
    """Name and content of a file that is attached where there is no directory. Raises `UsageError`."""
    with copy_in.opened(path) as source:
        return source.name, b"".join(copy_in.chunks(source))


def attach(profile: ProfilePaths, files: Sequence[str], tell: Tell = lambda message: None) -> list[str]:
    """Copy files into the workspace of a profile; returns their paths there. The caller holds the profile's lock.

    A copy is a regular file with mode 0600, or 0700 where the original can be executed. Where the workspace has another
    file of the name, the copy gets a free one and `tell` hears of it; where it has the same, nothing is copied.
    Raises `UsageError` for a file that cannot be read, `StorageError` where there is no room; then nothing is copied.
    """
    with ExitStack() as stack:
        staged = [stack.enter_context(copy_in.staged(profile, path)) for path in files]
        if not staged:
            return []
        try:
            atomic.make_directory(profile.workspace)
            workspace = copy_in.Workspace(profile.workspace)
        except OSError as error:
            raise atomic.storage_error(error, copy_in.NOTHING) from error
        stack.callback(workspace.close)
        try:
            names = [settle(one.name, partial(workspace.take, one), tell) for one in staged]
            workspace.sync()
        except BaseException as error:
            workspace.clear()
            if isinstance(error, OSError):
                raise atomic.storage_error(error, copy_in.NOTHING) from error
            raise
        return list(dict.fromkeys(names))


def settle(name: str, take: Callable[[str, bool], bool], tell: Tell) -> str:
    """Find a name for a file. `take` takes one if it is free or has the same content, and says whether it did.

    With `False`, `take` only looks whether the same is there: the name means something to deepctl.
    """
    meaning = _meaning(name)
    for candidate in _candidates(name):
        if take(candidate, candidate != name or meaning is None):
            break
    if candidate != name:
        why = meaning or "The workspace has another file of that name"
        tell(f"{why}: the copy of {name} is called {candidate}.")
    return candidate


def _meaning(name: str) -> str | None:
    folded = name.casefold()
    if folded in _TOLD:
        return f"{name} would tell the agent what to do in every conversation"
    return f"deepctl keeps things of its own in {name}" if folded in _OWN else None


def _candidates(name: str) -> Iterator[str]:
    yield name
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > _MAX_NAME // 2:
        stem, suffix = name, ""
    for number in count(2):
        ending = f"-{number}{suffix}"
        room = _MAX_NAME - len(ending.encode())
        yield stem.encode()[:room].decode(errors="ignore") + ending
