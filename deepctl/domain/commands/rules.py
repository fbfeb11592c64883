"""Applying rules to a text that an agent gives to a shell, and to every command in it.

A rule that denies or asks is compared with every command that the text runs, in several spellings: with and without the
directory of the program, without quotes, without options (and one value each) between two words of the pattern, and as
written. It is also compared with the whole text. There `*` is any text. A rule that allows is compared only with a
command as written, `*` stops at a slash, and the text must be one plain command. So an error in the analysis causes at
most an unnecessary question or refusal.

Comparing takes time in the length of the command times that of the pattern, by sets of positions without backtracking.

The commands of a text are all commands that it shows, nested ones included:

    X=1 env git -C . push && sh -c 'rm v'  ->  env git -C . push | git -C . push | sh -c 'rm v' | rm v

Everything unknown is a reason in `unclear`: text that does not parse, a computed name, commands that are read from
elsewhere. The analysis gives a reason rather than miss a command that the text shows. The text does not show what a
program or a script file does itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

from deepctl.domain.commands import arguments, prefixes
from deepctl.domain.commands.arguments import SUBCOMMANDS
from deepctl.domain.commands.prefixes import GIT_VALUES
from deepctl.domain.commands.syntax import (
    TOO_LONG,
    TOO_MANY,
    VALUE,
    ComputedPart,
    ShellCommand,
    ShellText,
    Step,
    Text,
    UnclearCommand,
    Word,
    base_name,
    beginning,
    literal,
)
from deepctl.domain.globs import character_class, matches, pieces
from deepctl.domain.permissions import Rule, Verdict

_MAX_NESTED = 8
"""Maximum nesting of texts in texts: `sh -c "sh -c …"`."""
_MAX_TEXTS = 2000
_MAX_READ = 16
"""Maximum number of bytes that are parsed, nested texts included, as a multiple of the length of the text."""
_MAX_COMMANDS = 5000
_MAX_PIPES = 1000
"""The grammar takes time that grows with the square of a pipeline's length."""


class Analysis(NamedTuple):
    """The commands that a text runs, those that it may run, and reasons why there may be more."""

    commands: list[ShellCommand]
    possible: list[ShellCommand]
    unclear: list[str]


def analyse(text: str, is_program: Callable[[Word], bool] = lambda _: False) -> Analysis:
    """The commands of a text, those of the texts that it gives to other shells, and those that they run.

    Arguments are searched for commands if `is_program` accepts the word that names the program.
    """
    if text.count("|") > _MAX_PIPES:
        return Analysis([], [], [TOO_MANY])
    commands: list[ShellCommand] = []
    possible: list[ShellCommand] = []
    unclear: dict[str, None] = {}
    texts = [(Text(text), 0)]
    known_texts: set[Text] = set()
    known_codes: set[str] = set()
    is_program = cache(is_program)
    budget = _MAX_READ * (len(text) + 1000)
    while texts:
        (source, is_sure, is_code), depth = texts.pop()
        budget -= len(source)
        if len(known_texts) > _MAX_TEXTS or depth > _MAX_NESTED or budget < 0:
            unclear[TOO_MANY] = None
            break
        shell_text = ShellText(source, arguments.kept_from)
        for item in chain(shell_text.steps(), arguments.other_readings(shell_text)):
            if len(commands) + len(possible) > _MAX_COMMANDS:
                unclear[TOO_MANY] = None
                return Analysis(commands, possible, list(unclear))
            for step in _steps(item, is_program):
                if isinstance(step, Text):
                    inner = Text(step.text, step.is_sure and is_sure, step.is_code and is_code)
                    if inner not in known_texts:
                        known_texts.add(inner)
                        texts.append((inner, depth + 1))
                elif isinstance(step, UnclearCommand):
                    if is_code or step.reason == TOO_MANY:
                        unclear[step.reason] = None
                else:
                    command, is_certain = step
                    (commands if is_certain and is_sure else possible).append(command)
                    if is_certain and (code := arguments.code(command)) and code not in known_codes:
                        known_codes.add(code)
                        for start in arguments.started_commands(code, is_program):
                            if isinstance(start, ShellCommand):
                                possible.append(start)
                            else:
                                unclear[TOO_MANY] = None
    return Analysis(commands, possible, list(unclear))


def _steps(
    item: Step, is_program: Callable[[Word], bool]
) -> Iterator[tuple[ShellCommand, bool] | Text | UnclearCommand]:
    """The commands that one part of a text runs (`True`) or may run, and further texts to parse."""
    if not isinstance(item, ShellCommand):
        yield item
    elif item.words[:1] == ((VALUE,),):
        yield from _possible(item, is_program)
    else:
        for step in prefixes.unfold(item):
            if isinstance(step, ShellCommand):
                yield step, True
                yield from _possible(step, is_program)
            else:
                yield step


def _possible(
    command: ShellCommand, is_program: Callable[[Word], bool]
) -> Iterator[tuple[ShellCommand, bool] | Text | UnclearCommand]:
    for step in arguments.possible(command, is_program):
        yield (step, False) if isinstance(step, ShellCommand) else step


SEVERAL = re.compile(r"[;&|<>()`$\n\r]")
"""Characters that separate commands, or make a command do more than its words say."""
UNTOLD = "there are rules, and the commands that it runs are unknown"
_MAX_COMPARED = 20_000
_WILD = re.compile(r"[*?\[]")


def judge(rules: Sequence[Rule], text: str, *, otherwise: str) -> Verdict:
    """The verdict of the rules for a shell text: the strictest of those for the text and for all commands in it.

    `otherwise` is the verdict for a text without a matching rule.
    """
    text = text.strip()
    is_plain = SEVERAL.search(text) is None
    whole = next((_says(rule) for rule in rules if _matches_text(rule, text)), None)
    if whole is None or (whole.action == "allow" and not is_plain):
        # A rule allows one command, not others that are joined to it.
        whole = Verdict(otherwise, is_default=True)
    if all(rule.action == "allow" for rule in rules):
        return whole
    patterns = [_pattern(rule.pattern) for rule in rules if rule.action != "allow"]
    analysis = analyse(text, lambda word: any(pattern.may_begin(word) for pattern in patterns))
    verdicts = [whole, *(verdict for command in analysis.commands for verdict in _restrictions(rules, command))]
    is_named = is_plain and any(
        rule.action == "allow" and rule.pattern == text and not _WILD.search(rule.pattern) for rule in rules
    )
    if not is_named:
        verdicts += [verdict for command in analysis.possible for verdict in _suspicions(rules, command)]
    if analysis.unclear and not is_named:
        # Only a text that hides something is too large to be read.
        is_too_large = TOO_MANY in analysis.unclear or TOO_LONG in analysis.unclear
        may_be_denied = is_too_large and any(rule.action == "deny" for rule in rules)
        verdicts.append(Verdict("ask", f"{UNTOLD}: {'; '.join(analysis.unclear)}", may_be_denied))
    return max(verdicts, key=lambda verdict: verdict.strictness)


def _says(rule: Rule) -> Verdict:
    return Verdict(rule.action, rule.description)


def _matches_text(rule: Rule, text: str) -> bool:
    if rule.action == "allow":
        return matches(rule.pattern, text)
    return _pattern(rule.pattern).matches_text(text)


def _restrictions(rules: Sequence[Rule], command: ShellCommand) -> Iterator[Verdict]:
    """The verdict of the first matching rule for one command, unless it allows it; uncertain matches come before it."""
    command_line = " ".join(command.raw.split()) if command.raw else _plain(command)
    is_plain = bool(command_line) and SEVERAL.search(command_line) is None
    for rule in rules:
        if rule.action == "allow":
            if is_plain and matches(rule.pattern, command_line):
                return
            continue
        pattern = _pattern(rule.pattern)
        if (command_line and pattern.matches_text(command_line)) or pattern.matches(command, surely=True):
            yield _says(rule)
            return
        if pattern.matches(command, surely=False):
            yield Verdict("ask", "a rule may apply to it, and part of it is computed", rule.action == "deny")


def _suspicions(rules: Sequence[Rule], command: ShellCommand) -> Iterator[Verdict]:
    """The verdict of the first rule for a command that may run."""
    command_line = _plain(command)
    for rule in rules:
        if rule.action == "allow":
            if command_line and matches(rule.pattern, command_line):
                return
        elif _pattern(rule.pattern).may_match(command):
            reason = f"it may run a command that has a rule: {command_line or rule.pattern}"
            yield Verdict("ask", reason, rule.action == "deny")
            return


def _plain(command: ShellCommand) -> str:
    """A possible spelling of a command that another command runs."""
    words = [literal(word) for word in command.words]
    return " ".join(word for word in words if word is not None) if None not in words else ""


_STAR = None
_Token = re.Pattern[str] | str | None
"""The condition of a pattern for one character, or `None` for any text."""
_GIT_FLAGS = {"-p", "-P", "--paginate", "--bare"}


@lru_cache(maxsize=512)
def _pattern(pattern: str) -> _RulePattern:
    return _RulePattern(pattern)


class _RulePattern:
    """A pattern of a rule that denies or asks. A position is the number of matched tokens."""

    def __init__(self, pattern: str) -> None:
        self._tokens = _tokens(" ".join(pattern.split()))
        self._end = len(self._tokens)
        self._start = self._closed([0])
        # From here on, any text matches.
        self._sure = set[int]()
        for position in range(self._end, -1, -1):
            rest = self._tokens[position:]
            if (
                rest
                and all(token is _STAR for token in rest[1:])
                and (rest[0] is _STAR or (rest[0] == " " and len(rest) > 1))
            ):
                self._sure.add(position)

    def matches_text(self, text: str) -> bool:
        """Whether it matches a text, or the beginning of a long text."""
        states = self._read(self._start, text[:_MAX_COMPARED])
        return self._accepts(states) or bool(len(text) > _MAX_COMPARED and states & self._sure)

    def matches(self, command: ShellCommand, *, surely: bool) -> bool:
        """Whether it matches the words of a command. Without `surely`: whether it could match, with any computed
        values.
        """
        name = literal(command.words[0])
        if name is None:
            return False  # which is unclear by itself
        return any(
            self._matches(self._read(self._start, spelling), name, command, surely=surely)
            for spelling in _spellings(name)
        )

    def may_begin(self, word: Word) -> bool:
        """Whether a word that may be a program's name is a name in the pattern."""
        return any(
            position and self._tokens[position - 1] is not _STAR and self._token(position) in (" ", "", _STAR)
            for position in self._named(word)
        )

    def may_match(self, command: ShellCommand) -> bool:
        """Whether it could match words that may be a command."""
        word = command.words[0]
        # If the whole name is computed, the words after it must match the pattern.
        is_told = any(isinstance(part, str) for part in word)
        return self._matches(self._named(word), beginning(word), command, surely=not is_told)

    def _named(self, word: Word) -> frozenset[int]:
        """The positions after the name of a program."""
        name = literal(word)
        if name is not None:
            return frozenset().union(*(self._read(self._start, spelling) for spelling in _spellings(name)))
        last: list[str | ComputedPart] = []
        for part in word:
            if isinstance(part, str) and "/" in part:
                last = [base_name(part)]
            else:
                last.append(part)
        if any(isinstance(part, str) and re.search(r"\w", part) for part in last):
            end = self._tokens.index(" ") if " " in self._tokens else self._end
            return self._read_parts(self._start, last, surely=False, end=end)
        if ComputedPart.FILES in last:
            return frozenset()
        return frozenset(
            position
            for position, token in enumerate(self._tokens)
            if token == " " and any(rest is not _STAR for rest in self._tokens[position + 1 :])
        )

    def _matches(self, states: frozenset[int], name: str, command: ShellCommand, *, surely: bool) -> bool:
        skip_states = frozenset[int]()
        is_value = False
        size = 0
        for word in command.words[1:]:
            all_states = states | skip_states
            if all_states & self._sure:
                return True
            if not all_states:
                return False
            size += sum(len(part) if isinstance(part, str) else 1 for part in word)
            if size > _MAX_COMPARED:
                return not surely
            # Between two words of a pattern there may be options, each with one value.
            gap_states = frozenset(position for position in all_states if self._token(position) == " ")
            value = frozenset(position for position in skip_states if self._token(position) == " ")
            states = self._read_word(states if is_value else all_states, word, surely=surely)
            skip_states, is_value = frozenset(), False
            if beginning(word).startswith("-"):
                takes = _takes_value(name, beginning(word))
                if takes is False:
                    states |= gap_states
                else:
                    skip_states, is_value = gap_states, takes is True
            states |= value
        all_states = states | skip_states
        return self._accepts(all_states) or (
            command.is_open and bool(all_states if not surely else all_states & self._sure)
        )

    def _accepts(self, positions: frozenset[int]) -> bool:
        return self._end in positions or bool(positions & self._sure)

    def _token(self, position: int) -> _Token:
        return self._tokens[position] if position < self._end else ""

    def _read_word(self, positions: frozenset[int], word: Word, *, surely: bool) -> frozenset[int]:
        return self._read_parts(self._read(positions, " "), word, surely=surely)

    def _read_parts(
        self, positions: frozenset[int], parts: Iterable[str | ComputedPart], *, surely: bool, end: int | None = None
    ) -> frozenset[int]:
        for part in parts:
            if not positions:
                break
            if isinstance(part, str):
                positions = self._read(positions, part)
            elif surely:
                positions = frozenset(position for position in positions if self._token(position) is _STAR)
            else:
                positions = frozenset(range(min(positions), (self._end if end is None else end) + 1))
        return positions

    def _read(self, positions: frozenset[int], text: str) -> frozenset[int]:
        for character in text:
            if not positions:
                break
            positions = self._closed(self._after(positions, character))
        return positions

    def _after(self, positions: Iterable[int], character: str) -> Iterator[int]:
        for position in positions:
            token = self._token(position)
            if token is _STAR:
                yield position
            elif token == character or (isinstance(token, re.Pattern) and token.match(character)):
                yield position + 1

    def _closed(self, positions: Iterable[int]) -> frozenset[int]:
        """The positions, with those after stars, which may match nothing."""
        closure = set[int]()
        for position in positions:
            closure.add(position)
            while position < self._end and self._tokens[position] is _STAR:
                position += 1
                closure.add(position)
        return frozenset(closure)


def _spellings(name: str) -> Iterator[str]:
    """A program's name without and with its directory; `git-push` is git's `push`."""
    base = base_name(name)
    yield base
    if base != name:
        yield name
    program, dash, subcommand = base.partition("-")
    if dash and program in SUBCOMMANDS:
        yield f"{program} {subcommand}"


def _takes_value(name: str, option: str) -> bool | None:
    """Whether the next word is an option's value; `None` if that is unknown."""
    if option.startswith("--") and "=" in option:
        return False
    if base_name(name) != "git":
        return None
    return False if option in _GIT_FLAGS or option.startswith("--no-") else option in GIT_VALUES or None


def _tokens(pattern: str) -> list[_Token]:
    tokens: list[_Token] = []
    for piece in pieces(pattern):
        if piece in ("**/", "**", "*"):
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif piece == "?":
            tokens.append(re.compile(".", re.DOTALL))
        elif len(piece) > 1:
            tokens.append(re.compile(character_class(piece)))
        else:
            tokens.append(piece)
    return tokens
