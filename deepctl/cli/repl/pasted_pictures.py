"""The offer to attach pictures whose paths are in a prompt, as after dragging a file into the terminal.

Terminals paste the absolute path of a dragged file: bare, in quotes, with backslashes before blanks, or as `file://`.
The question comes when the prompt is sent, so it does not matter how the path came into the line.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from deepctl.cli.confirm import YES, ask_line
from deepctl.cli.repl import file_command
from deepctl.cli.repl.state import ReplState
from deepctl.domain.mention_syntax import mentions
from deepctl.quantities import size
from deepctl.store.log_file import PIPED

_WORD = re.compile(
    r"""(?:^|(?<=[ \t\n]))\(?(?P<word>'[^'\n]*'(?:\\''[^'\n]*')*|"(?:\\.|[^"\\\n])*"|(?:\\[^\n]|[^ \t\n'"\\])+)"""
)
"""A word as a shell reads it. Only ASCII blanks end it: macOS has others in the names of its screenshots."""
_PATH = re.compile(r"(?:~?/|file://)")
_PICTURE = re.compile(r".+\.(?:png|jpe?g|gif|webp|bmp|tiff?|heic|heif|avif)", re.IGNORECASE | re.DOTALL)
_ENDINGS = ".,;:!?)]}'\">"
_MAX_PROMPT = 20_000
"""Characters of a prompt that are searched."""
_MAX_PICTURES = 20


def offer(state: ReplState, prompt: str) -> None:
    """Ask whether to attach the pictures that a prompt names by absolute paths, and attach them after a yes.

    There is no second question about a picture after a no, and none at all after `never`. Raises `Interrupted`.
    """
    if not state.offers_pictures:
        return
    attached = set(map(os.path.abspath, state.files))
    mentioned = {os.path.basename(path) for mention in mentions(prompt) for path, _ in mention.readings}
    pictures = [
        path
        for path in find(prompt)
        if path not in state.declined_pictures | attached and os.path.basename(path) not in mentioned
    ]
    if not pictures:
        return
    names = ", ".join(f"{os.path.basename(path)} ({size(os.stat(path).st_size)})" for path in pictures)
    answer = ask_line(f"Attach {names} to the prompt? [y/N/never]").lower()
    if answer in YES:
        file_command.attach(state, pictures)
        return
    state.declined_pictures.update(pictures)
    state.offers_pictures = answer != "never"


def find(prompt: str) -> list[str]:
    """The pictures that a prompt names by absolute paths: regular files with the name and the content of a picture."""
    text = prompt.partition(PIPED)[0][:_MAX_PROMPT]
    pictures: dict[str, None] = {}
    for candidate in _candidates(text):
        if _PATH.match(candidate) and (path := _existing(candidate)) is not None:
            pictures[path] = None
            if len(pictures) == _MAX_PICTURES:
                break
    return list(pictures)


def _candidates(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        # Some terminals escape nothing.
        yield line.strip(" \t")
        for match in _WORD.finditer(line):
            try:
                words = shlex.split(match["word"])
            except ValueError:
                continue
            if words:
                yield words[0]


def _existing(word: str) -> str | None:
    while word:
        if _PICTURE.fullmatch(word):
            path = _local(word)
            return path if path is not None and _is_picture(path) else None
        if word[-1] not in _ENDINGS:
            return None
        word = word[:-1]
    return None


def _local(word: str) -> str | None:
    """The path of a word; `None` for an address of another machine."""
    if word.startswith("file://"):
        try:
            address = urlsplit(word)
        except ValueError:
            return None
        # A `#` or a `?` in a name is not escaped by every terminal.
        rest = word.removeprefix("file://").removeprefix(address.netloc)
        word = unquote(rest) if address.netloc in ("", "localhost") else ""
    path = os.path.expanduser(word)
    return os.path.normpath(path) if os.path.isabs(path) else None


def _is_picture(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    from deepctl.agent import pictures  # slow to import

    try:
        return pictures.media_type(os.read(descriptor, pictures.HEAD)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)
