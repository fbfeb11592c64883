"""Commands that a text may run when the effect of a part is unknown: arguments, and text that the grammar overlooks.

The list of programs that run other programs has no end. So every argument of a program that `prefixes` does not follow
may be a program with the rest as its arguments (`choom -n 0 -- rm v`), and every argument with blanks may be a text for
a shell (`tmux new 'rm v'`). Programs that only print, search or store their arguments are listed here, with the
exceptions that run something. A missing entry causes at most an unnecessary approval request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from deepctl.domain.commands import prefixes
from deepctl.domain.commands.syntax import (
    TOO_MANY,
    ShellCommand,
    ShellText,
    Step,
    Text,
    UnclearCommand,
    Word,
    as_text,
    base_name,
    beginning,
    between_backquotes,
    literal,
)

_NOTHING = re.compile(r"(?!)")
_DATA: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(
        (
            *("echo", "grep", "egrep", "fgrep", "zgrep", "ag", "jq", "yq", "test", "[", ":", "true", "false", "expr"),
            *("cat", "tac", "head", "tail", "wc", "cut", "tr", "uniq", "comm", "paste", "fold", "nl", "od", "hexdump"),
            *("ls", "tree", "stat", "file", "du", "df", "cd", "pushd", "popd", "mkdir", "rmdir", "touch", "cp", "mv"),
            *("ln", "chmod", "chown", "readlink", "realpath", "basename", "dirname", "cmp", "date", "seq", "sleep"),
            *("diff", "colordiff", "strings", "column", "tee", "kill", "pkill", "pgrep", "killall", "unset", "read"),
            *("type", "which", "whereis", "whatis", "apropos", "tldr", "info", "help", "curl", "logger", "notify-send"),
        ),
        _NOTHING,
    ),
    "printf": re.compile(r"-v"),
    "man": re.compile(r"-\w*[PH]|--(?:pager|html)"),
    "rg": re.compile(r"--(?:pre|hostname-bin)"),
    **dict.fromkeys(
        ("awk", "gawk", "mawk"), re.compile(r"-\w*[fi]|--|.*(?:system|(?<!\|)\|(?!\|)|getline|@)", re.DOTALL)
    ),
    "sed": re.compile(
        r"-\w*(?:f|ee)|--file|(?!-\w+$).*(?:[^\w\s\\][gpiIMm\d]*e[gpiIMm\d]*(?:[;}\n]|$)|(?:^|[\d;{,$/!=\n])\s*e(?:[\s;}]|$))",
        re.DOTALL,
    ),
    **dict.fromkeys(
        [
            *(
                f"git {name}"
                for name in (
                    *("commit", "tag", "notes", "stash", "merge", "log", "show", "diff", "shortlog", "blame", "revert"),
                    *("cherry-pick", "rev-list", "reflog", "branch", "format-patch", "describe", "status", "add"),
                )
            ),
            *(f"{forge} {name}" for forge in ("gh", "glab") for name in ("pr", "mr", "issue", "release", "search")),
        ],
        _NOTHING,
    ),
    "git grep": re.compile(r"-\w*O|--open"),
}
"""Programs, or subcommands, whose arguments are data, unless one of these matches an argument."""
SUBCOMMANDS = {
    *("git", "docker", "podman", "nerdctl", "docker-compose", "kubectl", "helm", "lxc", "incus", "terraform", "tofu"),
    *("npm", "pnpm", "yarn", "bun", "cargo", "uv", "pip", "poetry", "pdm", "conda", "mamba", "nix", "dvc", "brew"),
    *("svn", "hg", "jj", "bzr", "gh", "glab", "aws", "gsutil", "gcloud", "az", "s3cmd", "mc", "rclone", "ollama"),
}
"""Programs whose own subcommands have names such as `rm`."""
_RUNNING = {"exec", "run", "foreach", "x", "dlx", "shell", "ssh", "develop", "--"}
"""Words after which such a program takes a command."""
_CODE = re.compile(
    r"[gmn]?awk|g?sed|perl[\d.]*|python[\d.]*|pypy3?|ruby|irb|node|nodejs|deno|bun|php[\d.]*|lua(?:jit)?[\d.]*|tclsh|expect"
    r"|r?ed|ex|r?view|n?vim?|vimdiff|emacs|gdb|lldb|sqlite3|psql|mysql|mariadb|m4|dc|gnuplot|octave|Rscript|R|guile"
    r"|ghci|jshell|ftp|sftp|lftp|mail|mailx|less|more"
)
"""Programs that read code of their own language, which may start other programs."""
_STARTS_PROGRAMS = re.compile(
    r"system|exec|popen|spawn|process|qx|%x|fork|pty|sh(?:ell)?\b|open|term|syscmd|`|!|\|", re.I
)
"""Code that starts programs, in one of the languages."""
_CODE_WORD = re.compile(r"[\w./$@%:+=~^-]+")
_MAX_CODE_WORDS = 16
_MAX_STARTS = 32
_IS_TEXT = re.compile(r"[\s;|&`(]")
_OPTION_VALUE = re.compile(r"(?:--?[\w-]+|[A-Za-z_][\w.-]*\+?)=")


def possible(command: ShellCommand, is_program: Callable[[Word], bool]) -> Iterator[Step]:
    """The commands and texts that a command may run with its arguments, if `is_program` accepts them."""
    name = base_name(literal(command.words[0]) or "")
    if name in prefixes.FOLLOWED and name != "git":
        return
    words = command.words
    data_from, is_own = _subcommand(name, words)
    if data_from is not None:
        words = words[:data_from]
    starts = 0
    for at, word in enumerate(words[1:], 1):
        if literal(word) in _RUNNING:
            is_own = False
        for text in _texts(as_text(word)):
            yield Text(text, is_sure=False, is_code=False)
        is_shell = base_name(literal(word) or "") in prefixes.SHELLS and _has_text(words[at + 1 : at + 5])
        start = _program(word)
        is_start = start is not None and is_program(start) and not (is_own and start == word)
        starts += is_shell or is_start
        if starts > _MAX_STARTS:
            yield UnclearCommand(TOO_MANY)
            return
        if is_shell:
            for step in prefixes.unfold(ShellCommand(words[at:])):
                if not isinstance(step, ShellCommand):
                    yield step._replace(is_sure=False) if isinstance(step, Text) else step
        if is_start and start is not None:
            yield ShellCommand((start, *words[at + 1 :]), "", command.is_open)
    if command.stdin is not None and any(base_name(literal(word) or "") in prefixes.SHELLS for word in words[1:]):
        yield Text(command.stdin, is_sure=False, is_code=False)


def kept_from(command: ShellCommand) -> int | None:
    """The index of the first word that a command only prints, searches or stores; `None` without such a word."""
    name = base_name(literal(command.words[0]) or "")
    if name in prefixes.BY_SUBSCRIPT and name != "printf":
        return None
    return _subcommand(name, command.words)[0]


def code(command: ShellCommand) -> str:
    """The code and the input of a program that may start others by code of its own language, if there is any."""
    name = base_name(literal(command.words[0]) or "")
    if name in prefixes.SHELLS:
        return command.around  # the output is input of a shell
    if _CODE.fullmatch(name) is None or kept_from(command) is not None:
        return ""
    text = "\n".join([*map(as_text, command.words[1:]), command.stdin or "", command.around])
    return text if name in _DATA or _STARTS_PROGRAMS.search(text) else ""


def started_commands(text: str, is_program: Callable[[Word], bool]) -> Iterator[Step]:
    """The commands that code may start: from every word on that names a program, with any separators between words."""
    words = [match[0].rstrip(".:") for match in _CODE_WORD.finditer(text)]
    starts = 0
    for at, word in enumerate(words):
        if not is_program((word,)):
            continue
        starts += 1
        if starts > _MAX_STARTS:
            yield UnclearCommand(TOO_MANY)
            return
        yield ShellCommand(tuple((word,) for word in words[at : at + _MAX_CODE_WORDS]))


def _subcommand(name: str, words: tuple[Word, ...]) -> tuple[int | None, bool]:
    """The index from which the words of a command are data, and whether its words may be subcommands."""
    if name in _DATA:
        return (1 if _are_data(name, words[1:]) else None), False
    if name not in SUBCOMMANDS:
        return None, False
    at = 1
    while at < len(words) and beginning(words[at]).startswith("-"):
        at += 2 if literal(words[at]) in prefixes.GIT_VALUES and name == "git" else 1
    key = f"{name} {literal(words[at])}" if at < len(words) else ""
    return (at + 1 if key in _DATA and _are_data(key, words[at + 1 :]) else None), True


def _are_data(key: str, words: tuple[Word, ...]) -> bool:
    return not any(_DATA[key].match(as_text(word)) for word in words)


def _has_text(words: tuple[Word, ...]) -> bool:
    return any(re.match(r"-[a-z]*c", beginning(word)) for word in words)


def _program(word: Word) -> Word | None:
    """The part of an argument that may name a program: `/bin/rm` of `--exec=/bin/rm`, `-x/bin/rm` and `X=/bin/rm`."""
    first = beginning(word)
    size = 0
    while (value := _OPTION_VALUE.match(first, size)) is not None:
        size = value.end()
    if size == 0 and first.startswith("-"):
        if first.startswith("--") or len(word) + len(first) < 4:
            return None
        size = 2
    elif size == 0:
        return word
    rest = first[size:].removeprefix("!")
    return (rest, *word[1:]) if rest else word[1:] or None


def _texts(text: str) -> Iterator[str]:
    if not _IS_TEXT.search(text):
        return
    if not text.startswith("-"):
        yield text.removeprefix("!")
    size = 0
    while (value := _OPTION_VALUE.match(text, size)) is not None:
        size = value.end()
        yield text[size:].removeprefix("!")
    if size == 0 and re.match(r"-\w", text):
        # The number of option letters before the text is unknown: `-ix 'rm v'` and `-xrm v`.
        yield from (text[size:] for size in range(2, 5))


_WITHOUT_BASH = {b"$'": b"_'", b"[[": b"test ", b"((": b"( ("}
"""Syntax of bash only, and its replacement in shells without it."""
_OPENING = re.compile(rb"\\.|`|[$<>]\(", re.DOTALL)
"""The start of a substitution, unless a backslash precedes it."""
_BACKQUOTE_END = re.compile(rb"(?<!\\)(?:\\\\)*`")
_PAREN = re.compile(rb"[()]")
_QUOTES = re.compile(rb"'[^'()]*'|\"[^\"()$`]*\"")
_HIDES_END = re.compile(rb"['\"`\\#]|case|<<")
"""The possible surroundings of a closing parenthesis that does not end a substitution."""


def other_readings(text: ShellText) -> Iterator[Text]:
    """Commands that a shell may run if it reads the text differently than the grammar."""
    yield from _substitutions(text)
    if text.bash_only:
        yield Text(_without_bash(text), is_sure=False, is_code=False)


def _substitutions(text: ShellText) -> Iterator[Text]:
    """The texts of all substitutions that the grammar may have overlooked, in any context.

    Whether a shell reads them depends on quotes in expansions, in subscripts and in arithmetic, where shells differ. So
    each of them counts, except in arguments that the command only stores.
    """
    data = text.data
    substitutions = text.substitutions if text.is_understood else set[int]()
    # A function may have the name of a program that only stores its arguments.
    kept_ranges = _Ranges(text.kept if text.is_understood and not text.has_functions else [])
    quoted = _Ranges(text.literal)
    arguments = _Ranges(text.arguments)
    ends = _closings(data)
    closing: int | None = None
    at = 0
    while (opener := _OPENING.search(data, at)) is not None:
        start, at = opener.end(), opener.end()
        token = opener[0]
        is_quoted = quoted.have(opener.start())
        if token[:1] == b"\\":
            if is_quoted:
                at = opener.start() + 1  # which is not an escape there
            continue
        if opener.start() in substitutions or kept_ranges.have(opener.start()):
            continue
        is_code = token in (b"`", b"$(") and not arguments.have(opener.start())
        if token == b"`":
            end = _BACKQUOTE_END.search(data, start)
            inner = text.part(start, end.end() - 1 if end is not None else len(data))
            is_code = is_code and opener.start() != closing
            closing = end.end() - 1 if end is not None and is_code else closing
            yield Text(between_backquotes(inner), is_sure=False, is_code=is_code)
            continue
        close = ends.get(start - 1)
        if close is not None:
            yield Text(text.part(start, close), is_sure=False, is_code=is_code)
        if close is None or _HIDES_END.search(_QUOTES.sub(b"", data[start:close])) is not None:
            yield Text(text.part(start, len(data)), is_sure=False, is_code=is_code)


def _without_bash(text: ShellText) -> str:
    """The text as a shell with fewer features than bash reads it."""
    parts: list[bytes] = []
    at = 0
    for start, token in sorted(text.bash_only.items()):
        parts += [text.data[at:start], _WITHOUT_BASH[token]]
        at = start + len(token)
    return b"".join([*parts, text.data[at:]]).decode("utf-8", "surrogatepass")


class _Ranges:
    """Ranges of positions, queried in rising order."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._left = sorted(ranges, reverse=True)

    def have(self, position: int) -> bool:
        while self._left and self._left[-1][1] <= position:
            self._left.pop()
        return bool(self._left) and self._left[-1][0] <= position


def _closings(data: bytes) -> dict[int, int]:
    """The matching closing parenthesis of each opening one, by counting only."""
    closings: dict[int, int] = {}
    stack: list[int] = []
    for paren in _PAREN.finditer(data):
        if paren[0] == b"(":
            stack.append(paren.start())
        elif stack:
            closings[stack.pop()] = paren.start()
    return closings
