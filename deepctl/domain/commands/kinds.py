"""Kinds of commands that a person can allow for good: a program, or a subcommand, with options that only read.

The list is shipped, and the setting `allowed_commands` can contain nothing else. It names the options that each kind
may have, not those that are dangerous: an option that is missing here needs an approval request. No kind runs code from
its arguments, starts another program, writes a file, waits, or reads outside of the workspace: there are no
interpreters, no `find -exec`, no `rg --pre`, no `sort -o`.

A text is of a kind only if two readers agree that it is one command with plain words: the grammar of bash
(`syntax.ShellText`), and the rules of POSIX quotes (`shlex`). Variables, substitutions, patterns of file names,
redirections, assignments and comments exclude it. So does all of `rules.SEVERAL`, also in quotes, as for rules that
allow.

git obeys the settings and hooks of a repository. So kinds `is_of_git` need a repository that names no program
(`deepctl.files.git_directories.runs_no_program`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deepctl.domain.commands import arguments
from deepctl.domain.commands.rules import SEVERAL
from deepctl.domain.commands.syntax import ShellCommand, ShellText, literal

_MAX_TEXT = 2000
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
_ANY = re.compile(r"[^\x00-\x1f\x7f]*")
_LINES = re.compile(r"[0-9]{1,9}(,\+?[0-9]{1,9})?")
_PATH = re.compile(r"(?![/~-])(?!.*(?:^|[/:=])\.\.(?:[/:]|$))[^\x00-\x1f\x7f]+")
"""A path, or a revision of git, that does not lead out of the workspace by its text."""
_FORMAT = re.compile(r"(?!.*%[-+ ]?G)[^\x00-\x1f\x7f]*")
"""A format of git without signatures, which another program checks."""
_SED_SCRIPT = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})?p")
_NOTHING = re.compile(r"(?!)")
_PLAIN = re.compile(r"(?:[\w ./:,=+@%^-]|(?<=[A-Za-z0-9^])~)*", re.ASCII)
"""Text without quotes that every shell takes as it is."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"\\!]*\"")
_TILDE = re.compile(r"(?:^|[=: ])~")

_Value = re.Pattern[str]


class _Kind(NamedTuple):
    """The arguments of a kind of command.

    `flags` are letters of options without a value, `values` those with one; `long` are options without their dashes,
    which take a value if there is a pattern. `first` is the pattern of the first operand, if it is another one; an
    option in `instead_of_first` takes its place. With `digits`, `-20` is an option.
    """

    flags: str = ""
    values: dict[str, _Value] = {}
    long: dict[str, _Value | None] = {}
    operands: _Value = _PATH
    first: _Value | None = None
    instead_of_first: str = ""
    most: int = 1000
    digits: bool = False


def _long(*flags: str, **values: _Value) -> dict[str, _Value | None]:
    return {**dict.fromkeys(flags), **{name.replace("_", "-"): value for name, value in values.items()}}


_WHEN = re.compile(r"never|auto|always")

_LOG = _long(
    *("oneline", "graph", "decorate", "all", "stat", "shortstat", "numstat", "name-only", "name-status", "patch"),
    *("no-patch", "no-merges", "merges", "reverse", "follow", "first-parent", "no-color", "abbrev-commit", "summary"),
    *("cached", "staged", "ignore-all-space", "word-diff", "no-ext-diff", "no-textconv"),
    max_count=_NUMBER,
    since=_ANY,
    until=_ANY,
    after=_ANY,
    before=_ANY,
    author=_ANY,
    grep=_ANY,
    date=re.compile(r"[a-z]+"),
    format=_FORMAT,
    pretty=_FORMAT,
    unified=_NUMBER,
)
_SUMS = _Kind("b")
_KINDS: dict[str, _Kind] = {
    "ls": _Kind("aAlhtrSR1dFp", long=_long("all", "human-readable", "group-directories-first", color=_WHEN)),
    "cat": _Kind("nbAETsv"),
    "head": _Kind("qv", {"n": _NUMBER, "c": _NUMBER}, _long(lines=_NUMBER, bytes=_NUMBER), digits=True),
    "tail": _Kind("qv", {"n": _NUMBER, "c": _NUMBER}, _long(lines=_NUMBER, bytes=_NUMBER), digits=True),
    "wc": _Kind("lwcmL", long=_long("lines", "words", "bytes", "chars")),
    "stat": _Kind("", {"c": _ANY}, _long(format=_ANY)),
    "file": _Kind("bi", long=_long("brief", "mime-type")),
    "du": _Kind("ahsckmx", {"d": _NUMBER}, _long("summarize", "human-readable", max_depth=_NUMBER)),
    "tree": _Kind("adfshD", {"L": _NUMBER}, _long("noreport", "dirsfirst")),
    "sort": _Kind("nrufhVbMg", {"k": _ANY, "t": _ANY}),
    "uniq": _Kind("cdui", most=1),
    "cut": _Kind("s", {"d": _ANY, "f": _ANY, "c": _ANY, "b": _ANY}),
    # Without -r, which follows links.
    "diff": _Kind("uqNwbiBa", {"U": _NUMBER}, _long("brief", unified=_NUMBER), most=2),
    "md5sum": _SUMS,
    "sha1sum": _SUMS,
    "sha256sum": _SUMS,
    "realpath": _Kind(),
    "readlink": _Kind("f"),
    "basename": _Kind(operands=_ANY),
    "dirname": _Kind(operands=_ANY),
    "pwd": _Kind("LP", most=0),
    "date": _Kind("uR", operands=re.compile(r"\+[^\x00-\x1f\x7f]*"), most=1),
    "whoami": _Kind(most=0),
    "uname": _Kind("asrmn", most=0),
    "nproc": _Kind(most=0),
    "which": _Kind("a", operands=re.compile(r"[\w.+-]+")),
    "echo": _Kind("neE", operands=_ANY),
    "grep": _Kind(
        "rnilLcwxvEFohHsqaI",
        {"A": _NUMBER, "B": _NUMBER, "C": _NUMBER, "m": _NUMBER, "e": _ANY},
        _long(
            *("recursive", "line-number", "ignore-case", "files-with-matches", "count", "word-regexp", "invert-match"),
            *("extended-regexp", "fixed-strings", "only-matching"),
            include=_ANY,
            exclude=_ANY,
            exclude_dir=_ANY,
            color=_WHEN,
        ),
        first=_ANY,
        instead_of_first="e",
        digits=True,
    ),
    "rg": _Kind(
        "nilcwvFoSsuH",
        {"A": _NUMBER, "B": _NUMBER, "C": _NUMBER, "m": _NUMBER, "e": _ANY, "g": _ANY, "t": _ANY},
        _long(
            *("line-number", "ignore-case", "files-with-matches", "count", "word-regexp", "fixed-strings", "hidden"),
            *("no-ignore", "no-heading"),
            glob=_ANY,
            type=_ANY,
            color=_WHEN,
        ),
        first=_ANY,
        instead_of_first="e",
    ),
    "find": _Kind(),
    "sed -n": _Kind(first=_SED_SCRIPT),
    "git status": _Kind("sbv", long=_long("short", "branch", "long", "ignored", porcelain=re.compile("v[12]"))),
    "git log": _Kind("pwbis", {"n": _NUMBER, "U": _NUMBER}, _LOG, digits=True),
    "git show": _Kind("pwbs", {"U": _NUMBER}, _LOG),
    "git diff": _Kind("pwbs", {"U": _NUMBER}, _LOG),
    "git blame": _Kind("wse", {"L": _LINES}),
    "git grep": _Kind(
        "nilcwvEFohH",
        {"A": _NUMBER, "B": _NUMBER, "C": _NUMBER, "e": _ANY},
        _long("cached", "line-number", "ignore-case", "count"),
        first=_ANY,
        instead_of_first="e",
    ),
    "git ls-files": _Kind(
        "cmods", long=_long(*("cached", "modified", "others", "deleted", "stage", "exclude-standard"))
    ),
    "git branch": _Kind("arv", long=_long("all", "remotes", "verbose", "list", "show-current"), most=0),
    "git tag": _Kind("l", long=_long("list"), most=0),
    "git remote": _Kind("v", long=_long("verbose"), most=0),
}
KINDS = tuple(_KINDS)
"""The names of all kinds: a program, or a program and its first argument."""
_FIND_TESTS: dict[str, _Value | None] = {
    **dict.fromkeys(("-name", "-iname", "-path", "-ipath", "-wholename", "-size", "-mtime", "-mmin"), _ANY),
    **dict.fromkeys(("-maxdepth", "-mindepth"), _NUMBER),
    "-type": re.compile(r"[fdl](,[fdl])*"),
    "-newer": _PATH,
    **dict.fromkeys(("-empty", "-not", "-o", "-or", "-a", "-and", "-print", "-prune")),
}


class KindMatch(NamedTuple):
    """The kind of a command, and the operands that may be paths."""

    name: str
    operands: tuple[str, ...]

    @property
    def is_of_git(self) -> bool:
        return self.name.startswith("git ")


def kind_of(text: str) -> KindMatch | None:
    """The kind of a shell text; `None` for a text of no kind."""
    words = _plain_words(text.strip(" "))
    if not words or " " in words[0]:
        return None
    name, rest = words[0], words[1:]
    if name == "git" and rest[:1] == ["--no-pager"]:
        rest = rest[1:]
    if name not in _KINDS:
        if not rest:
            return None
        name, rest = f"{name} {rest[0]}", rest[1:]
    kind = _KINDS.get(name)
    if kind is None:
        return None
    operands = _find_operands(rest) if name == "find" else _operands(kind, rest)
    return KindMatch(name, tuple(operands)) if operands is not None else None


def described(name: str) -> str:
    """What a kind allows, for the person who decides about it."""
    if name == "find":
        return f"tests {' '.join(_FIND_TESTS)}"
    kind = _KINDS[name]
    letters = [f"-{letter}" for letter in (*kind.flags, *kind.values)]
    long = [f"--{option}" for option in kind.long]
    script = ["-n with line numbers, such as 1,20p"] if name == "sed -n" else []
    return f"options {' '.join([*letters, *long, *script])}" if letters or long or script else "no options"


def _plain_words(text: str) -> list[str] | None:
    """The words of a text that is one command of plain words."""
    if len(text) > _MAX_TEXT or SEVERAL.search(text) or not text.isprintable():
        return None
    unquoted = _QUOTED.sub("", text)
    if not _PLAIN.fullmatch(unquoted) or _TILDE.search(text):
        return None
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    steps = list(ShellText(text, arguments.kept_from).steps())
    if len(steps) != 1 or not isinstance(steps[0], ShellCommand):
        return None
    command = steps[0]
    if command.is_open or command.stdin is not None or [literal(word) for word in command.words] != words:
        return None
    return words


def _operands(kind: _Kind, words: Sequence[str]) -> list[str] | None:
    """The operands that may be paths; `None` if an argument is not in the list."""
    operands: list[str] = []
    has_first = kind.first is None
    pending = iter(words)
    for word in pending:
        if word == "--":
            operands += pending
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name not in kind.long or not _is_value(kind.long[name], value if equals else None):
                return None
        elif word.startswith("-"):
            if kind.digits and re.fullmatch(r"-[0-9]{1,9}", word):
                continue
            letters = _letters(kind, word[1:], pending)
            if letters is None:
                return None
            has_first = has_first or not letters.isdisjoint(kind.instead_of_first)
        else:
            operands.append(word)
    if not has_first:
        if not operands or kind.first is None or not kind.first.fullmatch(operands[0]):
            return None
        del operands[0]
    if len(operands) > kind.most or not all(map(kind.operands.fullmatch, operands)):
        return None
    return operands if kind.operands is _PATH else []


def _letters(kind: _Kind, cluster: str, pending: Iterator[str]) -> set[str] | None:
    """The letters of a word with options, with the value of the last one; `None` if one is not in the list."""
    letters = set[str]()
    for at, letter in enumerate(cluster, 1):
        letters.add(letter)
        if letter in kind.values:
            value = cluster[at:] or next(pending, None)
            return letters if value is not None and kind.values[letter].fullmatch(value) else None
        if letter not in kind.flags:
            return None
    return letters or None


def _is_value(pattern: _Value | None, value: str | None) -> bool:
    if pattern is None or value is None:
        # `--porcelain` is also complete without its value.
        return value is None and (pattern is None or pattern.pattern == "v[12]")
    return pattern.fullmatch(value) is not None


def _find_operands(words: Sequence[str]) -> list[str] | None:
    """As `_operands`, for `find`: directories first, then tests."""
    directories = []
    pending = iter(words)
    for word in pending:
        if not word.startswith("-"):
            directories.append(word)
            if not _PATH.fullmatch(word):
                return None
            continue
        pending = iter([word, *pending])
        break
    paths = list(directories)
    for word in pending:
        if word not in _FIND_TESTS:
            return None
        pattern = _FIND_TESTS[word]
        if pattern is not None:
            value = next(pending, None)
            if value is None or not pattern.fullmatch(value):
                return None
            paths += [value] if pattern is _PATH else []
    return paths
