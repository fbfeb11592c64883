"""Prefix commands: commands that run other commands, and which of their words form the command.

`env X=1 nice -n 5 rm v` runs `rm v`. `unfold` follows such prefixes to the end. An option that is not listed here may
or may not take a value, so both readings count. docs/isolation.md lists them for users.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from deepctl.domain.commands.syntax import (
    CODE_VARIABLE,
    TOO_MANY,
    ComputedPart,
    ShellCommand,
    Step,
    Text,
    UnclearCommand,
    Word,
    as_text,
    base_name,
    beginning,
    literal,
    sets_code,
)


class _Prefix(NamedTuple):
    """The syntax of a prefix command, up to the command that it runs.

    `values` are the letters of options with a value in the next word, `flags` the letters of other options, `long` the
    long options with a value, `operands` the number of words before the command. With `assignments`, words like `X=1`
    may precede it too.
    """

    values: str = ""
    flags: str = ""
    long: tuple[str, ...] = ()
    long_flags: tuple[str, ...] = ()
    operands: int = 0
    assignments: bool = False


_LOOSE = _Prefix()
_INTERACTIVE = {"sudo", "doas", "chroot", "unshare", "nsenter"}
"""Without a command these start a shell."""
_PREFIXES: dict[str, _Prefix] = {
    "builtin": _LOOSE,
    "command": _Prefix(flags="p"),
    "exec": _Prefix("a", "cl"),
    "nohup": _LOOSE,
    "nice": _Prefix("n", "0123456789", ("adjustment",)),
    "ionice": _Prefix("cnpPu", "t", ("class", "classdata", "pid", "pgid", "uid"), ("ignore",)),
    "time": _Prefix(
        "fo", "apvqV", ("format", "output"), ("append", "verbose", "portability", "quiet"), assignments=True
    ),
    "timeout": _Prefix("ks", "vfp", ("kill-after", "signal"), ("preserve-status", "foreground", "verbose"), operands=1),
    "stdbuf": _Prefix("ioe", "", ("input", "output", "error")),
    "setsid": _Prefix("", "cfw", (), ("ctty", "fork", "wait")),
    "env": _Prefix(
        "uCa", "i0v", ("unset", "chdir", "argv0"), ("ignore-environment", "null", "debug"), assignments=True
    ),
    "sudo": _Prefix(
        "CDghpRrTtUu",
        "AbBEeHiKklNnPSsVv",
        (
            "user",
            "group",
            "host",
            "prompt",
            "chdir",
            "chroot",
            "close-from",
            "command-timeout",
            "other-user",
            "role",
            "type",
        ),
        ("login", "shell", "preserve-env", "non-interactive", "background", "set-home", "stdin", "askpass", "bell"),
        assignments=True,
    ),
    "doas": _Prefix("Cu", "Lns"),
    "xargs": _Prefix(
        "adEILnPs",
        "0optrxeil",
        ("arg-file", "delimiter", "max-lines", "max-args", "max-procs", "max-chars", "process-slot-var"),
        ("null", "interactive", "no-run-if-empty", "verbose", "exit", "open-tty", "replace", "eof"),
    ),
    "busybox": _LOOSE,
    "chroot": _Prefix(operands=1),
    "unshare": _Prefix("SGRw"),
    "nsenter": _Prefix("tSGrw"),
    "runuser": _Prefix("ugGcsw", "lmpf"),
    "flock": _Prefix("wE", "seunxoFv", ("wait", "timeout", "conflict-exit-code"), operands=1),
    "strace": _Prefix("abeEIoOpPsSuUX"),
}
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ksh93", "mksh", "pdksh", "ash", "rbash", "yash", "fish", "csh", "tcsh"}
_RESERVED = {"!", "{", "}", "if", "then", "else", "elif", "fi", "for", "do", "done", "while", "until", "case", "esac"}
_RESERVED |= {"coproc", "function", "select", "in"}
_LEADING = {"!", "{", "then", "else", "elif", "if", "do", "while", "until"}
BY_SUBSCRIPT = {"test", "[", "printf", "read", "let", "unset", "export", "declare", "typeset", "local", "readonly"}
"""Builtins that evaluate the text in brackets after a variable's name."""
_SUBSCRIPT = re.compile(r"\[[^\]]*(?:\$\(|`)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_MAX_STEPS = 40
_MAX_READINGS = 16

_COMPUTED = "the name of a command is computed"
_ELSEWHERE = "a shell reads commands from outside this text"
_ALIAS = "an alias is defined or used"
_UNKNOWN = "a command runs a computed command"

GIT_VALUES = {
    *("-C", "-c", "--git-dir", "--work-tree", "--namespace", "--super-prefix", "--config-env", "--attr-source"),
    "--exec-path",
}
"""Options of git with a value in the next word, now or in earlier versions."""


def unfold(command: ShellCommand) -> Iterator[Step]:
    """The command, the commands that it runs, the texts that it gives to shells, and reasons why there may be more."""
    pending = [command]
    steps = 0
    while pending:
        current = pending.pop()
        steps += 1
        if steps > _MAX_STEPS:
            yield UnclearCommand(TOO_MANY)
            return
        words = _without_reserved(current.words)
        if not words:
            continue
        current = current._replace(words=words)
        yield current
        if any(sets_code(as_text(word)) for word in words[1:]):
            yield UnclearCommand(CODE_VARIABLE)
        name = literal(words[0])
        if name is None:
            yield UnclearCommand(_COMPUTED)
            continue
        for step in _run_by(base_name(name), current):
            if isinstance(step, ShellCommand):
                pending.append(step)
            else:
                yield step


def _inner(command: ShellCommand, words: tuple[Word, ...], *, is_open: bool | None = None) -> ShellCommand:
    """A command that `command` runs."""
    return command._replace(words=words, raw="", is_open=command.is_open if is_open is None else is_open)


def _without_reserved(words: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words after reserved words that the grammar took for a command: `time ! rm`."""
    at = 0
    while at < len(words) and (words[at] in _LEADING_WORDS or (at and _is_assignment(words[at]))):
        at += 1
    return words[at:]


_LEADING_WORDS: set[Word] = {(word,) for word in _LEADING}


def _run_by(name: str, command: ShellCommand) -> Iterator[Step]:
    """The command that the command `name` runs, one step further."""
    if name in _SPECIAL:
        yield from _SPECIAL[name](command)
    elif name in _PREFIXES:
        readings = 0
        for step in _prefixed(command, _PREFIXES[name]):
            readings += 1
            yield step
        if readings == 0 and name in _INTERACTIVE:
            yield UnclearCommand(_ELSEWHERE)
    elif name in BY_SUBSCRIPT and any(
        isinstance(part, str) and _SUBSCRIPT.search(part) for word in command.words[1:] for part in word
    ):
        yield UnclearCommand("a text that contains commands is evaluated")


def _prefixed(command: ShellCommand, prefix: _Prefix) -> Iterator[ShellCommand | UnclearCommand]:
    readings = list(_starts(command.words, prefix))
    if len(readings) > _MAX_READINGS:
        yield UnclearCommand(TOO_MANY)
        return
    for start in readings:
        if start is None:
            yield UnclearCommand(_UNKNOWN)
        elif start < len(command.words):
            yield _inner(command, command.words[start:])
        elif command.is_open:
            yield UnclearCommand(_UNKNOWN)


def _starts(words: tuple[Word, ...], prefix: _Prefix) -> Iterator[int | None]:
    """The index of the command after the options of a prefix; `None` if it is computed."""
    positions: set[int] = set()
    pending = [1]
    while pending and len(positions) <= _MAX_READINGS * 4:
        at = pending.pop()
        if at in positions:
            continue
        positions.add(at)
        text = literal(words[at]) if at < len(words) else ""
        if at >= len(words):
            yield len(words)
        elif text is None and ComputedPart.MANY in words[at] and _may_be_option(words[at]):
            yield None
        elif text is not None and text.startswith("-") and text not in ("-", "--"):
            pending += [at + step for step in _lengths(text, prefix)]
        elif text == "-":
            pending.append(at + 1)
        else:
            yield from _behind_options(words, at + (text == "--"), prefix)
    if len(positions) > _MAX_READINGS * 4:
        yield None


def _may_be_option(word: Word) -> bool:
    return beginning(word)[:1] in ("", "-")


def _behind_options(words: tuple[Word, ...], at: int, prefix: _Prefix) -> Iterator[int]:
    operands = prefix.operands
    while at < len(words) and (operands or (prefix.assignments and "=" in beginning(words[at]))):
        if not (prefix.assignments and "=" in beginning(words[at])):
            operands -= 1
        at += 1
    yield at


def _is_assignment(word: Word) -> bool:
    return _ASSIGNMENT.match(beginning(word)) is not None


def _lengths(option: str, prefix: _Prefix) -> tuple[int, ...]:
    """The number of words of an option: one, two, or either if it is unknown."""
    if option.startswith("--"):
        if "=" in option:
            return (1,)
        name = option[2:]
        if any(option.startswith(name) for option in prefix.long):
            return (2,)
        return (1,) if any(option.startswith(name) for option in prefix.long_flags) else (1, 2)
    for index, letter in enumerate(option[1:], 1):
        if letter in prefix.values:
            return (2,) if index == len(option) - 1 else (1,)
        if letter not in prefix.flags:
            return (1, 2)
    return (1,)


def _env(command: ShellCommand) -> Iterator[Step]:
    words = command.words
    for at, word in enumerate(words[1:], 1):
        text = literal(word) or ""
        if text == "--" or not text.startswith("-"):
            break
        split = re.match(r"-[i0v]*S(.*)|--s[a-z-]*(?:=(.*))?", text, re.DOTALL)
        if split is not None:
            value = split[1] or split[2] or ""
            rest = words[at + 1 :] if value else words[at + 2 :]
            first = value or (as_text(words[at + 1]) if at + 1 < len(words) else "")
            yield Text(" ".join(["env", first, *map(_quoted, rest)]))
            yield UnclearCommand(_UNKNOWN)
            return
    yield from _prefixed(command, _PREFIXES["env"])


def _quoted(word: Word) -> str:
    text = literal(word)
    if text is None:
        return "${_}"
    return "'" + text.replace("'", "'\\''") + "'"


_XARGS_PLACE = re.compile(r"-[^-Ii]*([Ii])(.*)", re.DOTALL)


def _xargs(command: ShellCommand) -> Iterator[Step]:
    places = []
    for at, word in enumerate(command.words[1:], 1):
        text = literal(word) or ""
        long, _, value = text.partition("=")
        if len(long) > 2 and "--replace".startswith(long):
            places.append(value or "{}")
        elif (option := _XARGS_PLACE.match(text)) is not None:
            places.append(option[2] or "{}")
            if option[1] == "I" and not option[2] and at + 1 < len(command.words):
                places.append(literal(command.words[at + 1]) or "")
    for inner in _prefixed(command._replace(is_open=True), _PREFIXES["xargs"]):
        if isinstance(inner, UnclearCommand):
            # Without a command, `xargs` prints.
            if list(_starts(command.words, _PREFIXES["xargs"])) != [len(command.words)]:
                yield inner
            continue
        if any(place and place in as_text(inner.words[0]) for place in places):
            yield UnclearCommand(_COMPUTED)
        new_words = [
            (ComputedPart.ONE,) if any(place and place in as_text(word) for place in places) else word
            for word in inner.words
        ]
        yield _inner(inner, tuple(new_words), is_open=not places)


def _shell(command: ShellCommand) -> Iterator[Step]:
    words = command.words
    is_text = reads = runs_nothing = False
    at = 1
    while at < len(words):
        text = literal(words[at])
        if text is None:
            break
        if text in ("--version", "--help"):
            return
        if text in ("--", "-"):
            at += 1
            break
        if text[:1] not in ("-", "+") or len(text) < 2:
            break
        if text.startswith("--"):
            at += 2 if text in ("--rcfile", "--init-file") else 1
            if text in ("--rcfile", "--init-file"):
                yield UnclearCommand(_ELSEWHERE)
            continue
        if text[0] == "-":
            is_text = is_text or "c" in text
            reads = reads or "s" in text
            runs_nothing = runs_nothing or "n" in text
            if "i" in text:
                yield UnclearCommand(_ELSEWHERE)  # its start-up file
        else:
            runs_nothing = False
        at += 1 + sum(letter in "oO" for letter in text[1:])
    if runs_nothing:
        return
    if is_text:
        if at >= len(words):
            if command.is_open:
                yield UnclearCommand(_UNKNOWN)
            return
        yield from _as_text(words[at : at + 1])
    elif at < len(words) and not reads:
        yield UnclearCommand(_ELSEWHERE)
    elif command.stdin is not None and not command.is_open:
        yield Text(command.stdin)
    else:
        yield UnclearCommand(_ELSEWHERE)


def _as_text(words: tuple[Word, ...]) -> Iterator[Text | UnclearCommand]:
    if not words:
        return
    yield Text(" ".join(map(as_text, words)))
    if any(literal(word) is None for word in words):
        yield UnclearCommand(_UNKNOWN)


def _find(command: ShellCommand) -> Iterator[ShellCommand | UnclearCommand]:
    yield from _behind(command, ("-exec", "-execdir", "-ok", "-okdir"))


def _behind(command: ShellCommand, options: tuple[str, ...]) -> Iterator[ShellCommand | UnclearCommand]:
    words = command.words
    at = 1
    while at < len(words):
        if literal(words[at]) in options:
            end = at + 1
            while end < len(words) and literal(words[end]) not in (";", "+"):
                end += 1
            inner = words[at + 1 : end]
            if inner and "{}" in (literal(inner[0]) or ""):
                yield UnclearCommand(_COMPUTED)
            elif inner:
                arguments = tuple((ComputedPart.ONE,) if "{}" in (literal(word) or "") else word for word in inner)
                yield _inner(command, arguments, is_open=False)
            at = end
        at += 1


def _texts_of(command: ShellCommand) -> Iterator[Text | UnclearCommand]:
    """The texts after `-c` and its long form, in every spelling."""
    words = command.words
    for at, word in enumerate(words[1:], 1):
        first = beginning(word)
        for long in ("--command=", "--session-command="):
            if first.startswith(long):
                yield from _as_text(((first.removeprefix(long), *word[1:]),))
        if literal(word) in ("--command", "--session-command") or re.fullmatch(r"-[A-Za-z]*c", literal(word) or ""):
            yield from _as_text(words[at + 1 : at + 2])
        elif (code_option := re.match(r"-[abdefq]*c(?=[^-])", first)) is not None:
            yield from _as_text(((first[code_option.end() :], *word[1:]),))


def _watch(command: ShellCommand) -> Iterator[Step]:
    yield from _words_as_text(command.words, _Prefix("nq", "bdegtxcprwC", ("interval", "equexit")))


def _parallel(command: ShellCommand) -> Iterator[Step]:
    """GNU parallel: the words after `:::` belong to the command, or are commands if there is none."""
    words = command.words
    end = next((at for at, word in enumerate(words) if beginning(word).startswith(":::")), len(words))
    for step in _words_as_text(words[:end], _LOOSE):
        yield step
        if isinstance(step, Text) and "{" in step.text.partition(" ")[0]:
            yield UnclearCommand(_COMPUTED)
    template = tuple((ComputedPart.ONE,) if "{" in as_text(word) else word for word in words[:end])
    yield from _prefixed(command._replace(words=template, is_open=True), _LOOSE)
    for word in words[end + 1 :]:
        yield from _as_text((word,))
    if end == len(words) or beginning(words[end]).startswith("::::"):
        yield from _elsewhere(command)


def _words_as_text(words: tuple[Word, ...], prefix: _Prefix) -> Iterator[Text | UnclearCommand]:
    """For commands that join their words and pass them to a shell."""
    for start in _starts(words, prefix):
        if start is None:
            yield UnclearCommand(_UNKNOWN)
        else:
            yield from _as_text(words[start:])


def _coproc(command: ShellCommand) -> Iterator[ShellCommand]:
    words = command.words
    yield _inner(command, (("!",), *words[1:]))
    if len(words) > 2 and literal(words[2]) in _RESERVED:
        yield _inner(command, words[2:])


def _git(command: ShellCommand) -> Iterator[Step]:
    """Git's own aliases: `git -c alias.x='!rm v' x`."""
    for before, word in pairwise(command.words):
        first = beginning(word)
        option = first.casefold()
        if literal(before) == "-c" and literal(word) is None and "=" not in first:
            yield UnclearCommand(_ALIAS)
            return
        if option.startswith(("alias.", "-calias.", "--config-env", "include.path", "includeif.")):
            yield UnclearCommand(_ALIAS)
            return
    words = [literal(word) for word in command.words]
    if "bisect" in words and "run" in words:
        yield _inner(command, command.words[words.index("run") + 1 :])
    for at, text in enumerate(words):
        if text in ("--exec", "-x") and "rebase" in words[:at]:
            yield from _as_text(command.words[at + 1 : at + 2])
        elif text is not None and text.startswith("--exec=") and "rebase" in words[:at]:
            yield Text(text.removeprefix("--exec="))
    if "foreach" in words and "submodule" in words:
        yield from _as_text(command.words[words.index("foreach") + 1 :])


def _eval(command: ShellCommand) -> Iterator[Step]:
    yield from _as_text(_without_dashes(command.words[1:]))


def _trap(command: ShellCommand) -> Iterator[Step]:
    yield from _as_text(_without_dashes(command.words[1:])[:1])


def _without_dashes(words: tuple[Word, ...]) -> tuple[Word, ...]:
    return words[1:] if words and literal(words[0]) == "--" else words


def _elsewhere(command: ShellCommand) -> Iterator[Step]:
    if not any(literal(word) in ("--version", "--help", "-V", "-h") for word in command.words[1:]):
        yield UnclearCommand(_ELSEWHERE)


def _alias(command: ShellCommand) -> Iterator[Step]:
    if any((text := literal(word)) is None or "=" in text for word in command.words[1:]):
        yield UnclearCommand(_ALIAS)


def _another_meaning(command: ShellCommand) -> Iterator[Step]:
    if len(command.words) > 1:
        yield UnclearCommand("a command is redefined, or stored for later")


def _hash(command: ShellCommand) -> Iterator[Step]:
    if any("p" in beginning(word) for word in command.words[1:] if beginning(word).startswith("-")):
        yield from _another_meaning(command)


def _later(command: ShellCommand) -> Iterator[Step]:
    if not any(literal(word) in ("-l", "-r", "-d") for word in command.words[1:]):
        yield from _elsewhere(command)


def _command(command: ShellCommand) -> Iterator[Step]:
    option = literal(command.words[1]) if len(command.words) > 1 else None
    # `command -v rm` prints the path of rm.
    if option is None or not option.startswith("-") or "v" not in option.lower():
        yield from _prefixed(command, _PREFIXES["command"])


def _find_files(command: ShellCommand) -> Iterator[Step]:
    yield from _behind(command, ("-x", "-X", "--exec", "--exec-batch"))


def _text_or_prompt(command: ShellCommand) -> Iterator[Step]:
    texts = list(_texts_of(command))
    yield from texts or _elsewhere(command)


def _text_or_words(command: ShellCommand) -> Iterator[Step]:
    yield from list(_texts_of(command)) or _prefixed(command, _PREFIXES[base_name(literal(command.words[0]) or "")])


def _group(command: ShellCommand) -> Iterator[Step]:
    yield from list(_texts_of(command)) or list(_as_text(command.words[2:])) or _elsewhere(command)


_SPECIAL: dict[str, Callable[[ShellCommand], Iterator[Step]]] = {
    **dict.fromkeys(SHELLS, _shell),
    **dict.fromkeys((".", "source", "batch", "newgrp"), _elsewhere),
    **dict.fromkeys(("at", "crontab"), _later),
    **dict.fromkeys(("enable", "complete", "bind", "fc"), _another_meaning),
    "hash": _hash,
    **dict.fromkeys(("fd", "fdfind"), _find_files),
    **dict.fromkeys(("script", "su"), _text_or_prompt),
    **dict.fromkeys(("flock", "runuser"), _text_or_words),
    "alias": _alias,
    "command": _command,
    "coproc": _coproc,
    "env": _env,
    "eval": _eval,
    "find": _find,
    "git": _git,
    "parallel": _parallel,
    "sg": _group,
    "trap": _trap,
    "watch": _watch,
    "xargs": _xargs,
}
FOLLOWED = {*_PREFIXES, *_SPECIAL} - {"alias", "enable", "complete", "bind", "fc", "hash"}
"""Commands with known rules for the words that they run."""
