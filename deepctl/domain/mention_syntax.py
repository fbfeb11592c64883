r"""The syntax of `@path` in a prompt: which words name files, and how a file is written so that it is found again.

| form | meaning |
|---|---|
| `@notes.txt` | a file or a directory |
| `@"my notes.txt"`, `@my\ notes.txt` | a path with blanks; after a backslash, each character is an ordinary one |
| `@notes.txt:10`, `@notes.txt:10-20`, `@notes.txt:10-` | one line, lines, or the lines to the end |
| `@notes.txt#L10-L20`, `@notes.txt:10:5` | the same as web pages and compilers write it; the column is ignored |

The spellings are those of other agents: quotes as in Codex and Claude Code, backslashes as in Gemini CLI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from deepctl.store.log_file import split_typed

MAX_MENTIONS = 200
"""The number of words of a prompt that are searched."""
_MAX_READINGS = 8
"""The number of paths that a word may stand for. Each path is looked up, and a word may be thousands of dots."""
_MAX_PATH = 4096

_LINES = r"(?::|#L)(?P<first>\d{1,9})(?:(?P<dash>-)(?:L?(?P<last>\d{1,9}))?|:\d{1,9})?"
_WORD = r'@(?:"(?P<quoted>[^"\n]+)"(?P<lines>(?::|#L)[\dL:-]*\d-?)?|(?P<plain>(?:\\[^\n]|[^\s"\\])+))'
_BEFORE = r"""(?:^|(?<=[\s(\[{,;:'"]))"""
_MENTION = re.compile(_BEFORE + _WORD)
_ANY_WORD = r'@(?:"[^"\n]+"|(?:\\[^\n]|[^\s"\\])+)'
_ONLY_MENTIONS = re.compile(rf"\s*{_ANY_WORD}(?:\s+{_ANY_WORD})*\s*")
_TYPED = re.compile(_BEFORE + r'@(?:"(?P<quoted>[^"\n]*)|(?P<plain>(?:\\[^\n]|[^\s"\\])*)\\?)$')
_LINES_AT_END = re.compile(_LINES + r"\Z")
_ESCAPED = re.compile(r"\\(.)")
_SPECIAL = re.compile(r"""[\s"'\\]""")
_PLAIN = re.compile(r"[\w./+=:%~-]*[\w/+=%~-]")
_ENDINGS = ".,;:!?)]}'>"

_TOP_DIRECTORY = re.compile(
    r"/(?:bin|boot|data|dev|etc|home|lib|media|mnt|opt|private|proc|profile|root|run|sbin|srv|sys|tmp|usr|var|workspace"
    r"|Applications|Library|System|Users|Volumes)(?:/|\Z)"
)
"""The start of an absolute path. `@/components/x` is an import in some languages."""
_FILE_NAME = re.compile(
    r"""(?:.*/)?(?:changelog|dockerfile|license|makefile|readme|[^/]*\.(?:
    avif|bash|bat|bmp|c|cc|cfg|conf|cpp|cs|css|csv|cxx|diff|doc|docx|env|gif|go|gz|h|heic|hpp|html?|ini|ipynb|java|jpe?g
    |jsx?|json|jsonl|kt|lock|log|lua|md|mjs|odt|patch|pdf|php|pl|png|pptx?|ps1|pyi?|rb|rs|rst|scala|sh|sql|svg|swift|tar
    |tex|tiff?|toml|tsx?|tsv|txt|vue|webp|xlsx?|xml|ya?ml|zip|zsh))\Z""",
    re.IGNORECASE | re.VERBOSE,
)
"""The name of a file, by its end. No attribute ends so: `@app.route` is a decorator."""


class LineRange(NamedTuple):
    """A range of lines, counted from 1, both ends included. `last` is `None` for the end of the file."""

    first: int
    last: int | None

    def __str__(self) -> str:
        if self.last == self.first:
            return str(self.first)
        return f"{self.first}-{'' if self.last is None else self.last}"


class Reading(NamedTuple):
    """A path that a word may stand for, and the lines of that file, if only these are meant."""

    path: str
    lines: LineRange | None = None


class Mention(NamedTuple):
    """A word of a prompt that may name a file: its readings, the most likely first.

    `looks_like_path` says whether the author meant a file, even if it does not exist.
    """

    readings: Sequence[Reading]
    looks_like_path: bool

    @property
    def text(self) -> str:
        """The spelling of the word in a notice, without the punctuation of the sentence."""
        path, lines = self.readings[-1]
        return mention(path) + (f":{lines}" if lines is not None else "")


def mentions(prompt: str) -> list[Mention]:
    """The words of a prompt that may name files, in order.

    `@path` starts a line or follows a blank, a bracket or a quote, so an e-mail address does not count. Punctuation
    after a path may belong to the sentence.
    """
    result: list[Mention] = []
    # Piped text and the text of a command name no files, because the user did not type them.
    for match in _MENTION.finditer(split_typed(prompt)[0]):
        if len(result) == MAX_MENTIONS:
            break
        quoted, plain = match["quoted"], match["plain"]
        if quoted is not None and len(quoted) <= _MAX_PATH:
            lines = _LINES_AT_END.fullmatch(match["lines"] or "")
            result.append(Mention([Reading(quoted, _lines(lines) if lines else None)], looks_like_path=True))
        elif plain is not None and len(plain) <= _MAX_PATH:
            readings = list(islice(_readings(plain), _MAX_READINGS))
            result.append(Mention(readings, _is_path(plain, readings)))
    return result


def _readings(word: str) -> Iterator[Reading]:
    yield from _readings_of(word)
    while word.endswith("'s") or word[-1:] in tuple(_ENDINGS):
        word = word[:-2] if word.endswith("'s") else word[:-1]
        if not word.strip("."):
            return  # the rest of an ellipsis is not a directory
        yield from _readings_of(word)


def _readings_of(word: str) -> Iterator[Reading]:
    path = unescaped(word)
    if path != word:
        yield Reading(word)  # a name with backslashes
    yield Reading(path)
    match = _LINES_AT_END.search(path)
    if match is not None and match.start():
        yield Reading(path[: match.start()], _lines(match))


def _lines(match: re.Match[str]) -> LineRange:
    first = int(match["first"])
    if match["dash"] is None:
        return LineRange(first, first)
    return LineRange(first, int(match["last"]) if match["last"] else None)


def _is_path(word: str, readings: Sequence[Reading]) -> bool:
    if word.startswith(("./", "../", "~/")) or readings[-1].path == "~" or re.search(r"\\\s", word):
        return True
    if word.startswith("/"):
        return _TOP_DIRECTORY.match(word) is not None
    return any(_FILE_NAME.match(path) for path, _ in readings)


def only_mentions(line: str) -> bool:
    """Whether a line contains only file names."""
    return _ONLY_MENTIONS.fullmatch(line) is not None


class TypedPath(NamedTuple):
    """A path that is being typed: what it has so far, and the number of characters that its spelling takes."""

    path: str
    length: int
    is_quoted: bool


def typed(line: str) -> TypedPath | None:
    """The mention at the end of a line that is being typed."""
    match = _TYPED.search(line)
    if match is None:
        return None
    is_quoted = match["quoted"] is not None
    return TypedPath(match["quoted"] if is_quoted else unescaped(match["plain"]), len(match[0]), is_quoted)


def mention(path: str) -> str:
    """The spelling of a file in a prompt."""
    if _PLAIN.fullmatch(path) and _LINES_AT_END.search(path) is None:
        return f"@{path}"
    return f'@"{path}"' if '"' not in path else f"@{escaped(path)}"


def escaped(path: str) -> str:
    """A path with backslashes before blanks, quotes and backslashes; a shell reads it as one word, too."""
    return _SPECIAL.sub(r"\\\g<0>", path)


def unescaped(word: str) -> str:
    """The path that a word with backslashes stands for."""
    return _ESCAPED.sub(r"\1", word)


def with_mentions(prompt: str, names: Sequence[str]) -> str:
    """The prompt with mentions of these files on a line of their own, unless it already has them."""
    present = {reading.path for word in mentions(prompt) for reading in word.readings if reading.lines is None}
    missing = [mention(name) for name in names if name not in present]
    if not missing:
        return prompt
    text, addition = split_typed(prompt)
    return f"{text}\n\n{' '.join(missing)}{addition}"
