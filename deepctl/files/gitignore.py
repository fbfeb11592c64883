r"""Patterns of a .gitignore with git's meaning, for a walk from the top of a directory to its bottom.

git's documents leave cases open, so the meaning is that of `dir.c` and `wildmatch.c`: bytes and not characters, a
bracket that does not end matches nothing, and `**` behind plain text at the start of a path (`foo**/bar`) matches
slashes. Tests compare this module with the git that is installed.

A pattern is compiled to one glob for each component of a path. A walk carries the components that are still to be
matched from directory to directory (`Level.below`), so the names in a directory are compared with the last components
only, by one set, one `endswith` and one regular expression. No expression can take exponential time: `*` is compiled
to an atomic group, which is enough because the text between two stars has a fixed length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

_LONGEST_NAME = 4096
"""Tokens of a component. No file system has names of more bytes."""
_MOST_ENDS = 8
"""Texts that a pattern such as `*.py[cod]` is replaced by."""
_UTF8_BOM = b"\xef\xbb\xbf"
_SPECIAL = re.compile(rb"[*?\[\\]")
_STARS = re.compile(rb"\*+")
_DEEP = re.compile(rb"\*+(?:(?:/\*\*+)+(?=/|\Z))?")
"""A `**` and its repetitions `/**`, which add nothing to it."""
_SLASH, _ESCAPED_SLASH, _STAR, _DOUBLE_STAR, _ANY_BYTE = b"/", b"\\/", b"*", b"**", b"."
"""Tokens of a pattern. All others are regular expressions for one byte."""


class Glob(NamedTuple):
    """One component of a pattern. `regex` matches a whole name.

    `literal` is the name if there is only one. `suffixes` are the possible ends of the names, and `prefix` is their
    start, if nothing else counts.
    """

    regex: bytes
    literal: bytes | None = None
    suffixes: tuple[bytes, ...] = ()
    prefix: bytes | None = None

    def matches(self, name: bytes) -> bool:
        """Whether the component matches a name."""
        if self.literal is not None:
            return name == self.literal
        return _compiled(self.regex)(name) is not None


@cache
def _compiled(regex: bytes) -> Callable[[bytes], object]:
    return re.compile(regex, re.DOTALL).fullmatch


_ANYTHING = Glob(rb".*", prefix=b"")


class Pattern(NamedTuple):
    """One line. `components` are globs for the directories and the name, `None` for any number of directories.

    A pattern without a slash matches names at any depth and has one component (`is_name`).
    """

    negated: bool
    directory_only: bool
    is_name: bool
    components: tuple[Glob | None, ...]


def parse(text: bytes, *, ignore_case: bool = False) -> tuple[Pattern, ...]:
    """The patterns of a .gitignore. Lines that cannot match anything are left out.

    With `ignore_case` (git's `core.ignoreCase`) the patterns are for names in lower case.
    """
    patterns: list[Pattern] = []
    for line in text.removeprefix(_UTF8_BOM).split(b"\n"):
        if not line.startswith(b"#"):
            patterns += _parse_line(_trimmed(line.removesuffix(b"\r").partition(b"\0")[0]), ignore_case)
    return tuple(patterns)


def _trimmed(line: bytes) -> bytes:
    """A line without the spaces at its end that no backslash protects."""
    shorter = line.rstrip(b" ")
    is_escaped = (len(shorter) - len(shorter.rstrip(b"\\"))) % 2
    return line[: len(shorter) + 1] if is_escaped else shorter


def _parse_line(line: bytes, ignore_case: bool) -> Iterator[Pattern]:
    negated = line.startswith(b"!")
    line = line[negated:]
    directory_only = line.endswith(b"/")
    line = line[: len(line) - directory_only]
    if b"/" not in line:
        tokens = _tokens(line, ignore_case)
        if tokens and len(tokens) <= _LONGEST_NAME:
            yield Pattern(negated, directory_only, True, (_glob(tokens),))
        return
    for alternative in _alternatives(line.removeprefix(b"/")):
        components = _components(_tokens(alternative, ignore_case))
        if components:
            yield Pattern(negated, directory_only, False, components)


def _alternatives(path: bytes) -> list[bytes]:
    """Patterns that together match what a path pattern matches, with `**` only as a whole component.

    git compares the text before the first wildcard by itself, and so takes a `**` behind it for one at the start.
    """
    special = _SPECIAL.search(path)
    at = special.start() if special else len(path)
    head = path[:at]
    if not path.startswith(b"**", at) or not head or head.endswith(b"/"):
        return [path]
    rest = _DEEP.sub(b"", path[at:], count=1)
    if not rest:
        return [head + b"*", head + b"*/**"]
    if rest.startswith(b"\\/"):
        return [head + b"*/**" + rest[1:]]
    if not rest.startswith(b"/"):
        return [path]
    directly = _alternatives(head + rest[1:]) if rest.startswith(b"/**") else [head + rest[1:]]
    return [*directly, head + b"*/**" + rest]


def _tokens(pattern: bytes, ignore_case: bool) -> list[bytes] | None:
    """The tokens of a pattern, or `None` if it matches nothing."""
    tokens: list[bytes] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        at += 1
        if byte == b"*":
            stars = _STARS.match(pattern, at)
            tokens.append(_DOUBLE_STAR if stars else _STAR)
            at = stars.end() if stars else at
        elif byte == b"?":
            tokens.append(_ANY_BYTE)
        elif byte == b"[":
            bracket = _bracket(pattern, at, ignore_case)
            if bracket is None:
                return None
            token, at = bracket
            tokens.append(token)
        elif byte == b"/":
            tokens.append(_SLASH)
        elif byte == b"\\":
            byte = pattern[at : at + 1]
            at += 1
            if not byte:
                return None
            tokens.append(_ESCAPED_SLASH if byte == b"/" else re.escape(byte))  # git does not fold its case
        else:
            tokens.append(re.escape(byte.lower() if ignore_case else byte))
    return tokens


_LOWER, _UPPER, _DIGIT = frozenset(range(97, 123)), frozenset(range(65, 91)), frozenset(range(48, 58))
_SPACE = frozenset(b" \t\n\r")
_GRAPH = frozenset(range(33, 127))
_CLASSES = {
    b"alnum": _LOWER | _UPPER | _DIGIT,
    b"alpha": _LOWER | _UPPER,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset((*range(1, 32), 127)),
    b"digit": _DIGIT,
    b"graph": _GRAPH,
    b"lower": _LOWER,
    b"print": frozenset(range(32, 127)),
    b"punct": _GRAPH - _LOWER - _UPPER - _DIGIT,
    b"space": _SPACE,
    b"upper": _UPPER,
    b"xdigit": _DIGIT | frozenset(b"ABCDEFabcdef"),
}
_EVERY_BYTE = frozenset(range(1, 256))


def _bracket(pattern: bytes, at: int, ignore_case: bool) -> tuple[bytes, int] | None:
    """The token of a bracket and the position behind it; `at` is behind `[`. `None` if it matches nothing."""
    negated = pattern.startswith((b"!", b"^"), at)
    at += negated
    allowed_bytes: set[int] = set()
    previous, first, end = 0, at, 0  # 0: no byte with which a range can begin
    while at == first or not pattern.startswith(b"]", at):
        if at >= len(pattern):
            return None
        byte = pattern[at]
        if byte == 0x5C:  # a backslash
            at += 1
            if at >= len(pattern):
                return None
            byte = pattern[at]
            allowed_bytes.add(byte)
        elif byte == 0x2D and previous and at + 1 < len(pattern) and pattern[at + 1] != 0x5D:  # `-` between two bytes
            at += 1
            if pattern[at] == 0x5C:
                at += 1
                if at >= len(pattern):
                    return None
            allowed_bytes |= _range(previous, pattern[at], ignore_case)
            byte = 0
        elif pattern.startswith(b"[:", at):
            end = pattern.find(b"]", at + 2) if end < at + 2 else end
            if end < 0:
                return None
            if end > at + 2 and pattern[end - 1] == 0x3A:
                name = pattern[at + 2 : end - 1]
                if name not in _CLASSES:
                    return None
                allowed_bytes |= _CLASSES[name] | (_LOWER if ignore_case and name == b"upper" else frozenset())
                byte, at = 0, end
            else:
                allowed_bytes.add(byte)
        else:
            allowed_bytes.add(byte)
        previous = byte
        at += 1
    matching_bytes = (_EVERY_BYTE - allowed_bytes if negated else allowed_bytes) - {0x2F}
    return (
        (b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(matching_bytes)) + b"]", at + 1)
        if matching_bytes
        else None
    )


def _range(first: int, last: int, ignore_case: bool) -> set[int]:
    byte_range = set(range(first, last + 1))
    return byte_range | {byte + 32 for byte in byte_range & _UPPER} if ignore_case else byte_range


def _components(tokens: list[bytes] | None) -> tuple[Glob | None, ...]:
    """The components of a path pattern; empty if it matches nothing."""
    components: list[Glob | None] = []
    piece: list[bytes] = []
    for token in [*(tokens or ()), b""]:
        if token not in (_SLASH, _ESCAPED_SLASH, b""):
            piece.append(token)
            continue
        if not piece or len(piece) > _LONGEST_NAME:
            return ()  # no name is empty, or as long
        if piece != [_DOUBLE_STAR]:
            components.append(_glob(piece))
        else:
            # Before an escaped slash, and at the end, git wants at least one name.
            wanted = {_SLASH: (None,), _ESCAPED_SLASH: (_ANYTHING, None), b"": (None, _ANYTHING)}[token]
            components += wanted[1:] if components and components[-1] is wanted[0] is None else wanted
        piece = []
    return tuple(components)


def _glob(tokens: Sequence[bytes]) -> Glob:
    pieces: list[bytes] = [b""]
    for token in tokens:
        if token in (_STAR, _DOUBLE_STAR):
            pieces.append(b"")
        else:
            pieces[-1] += token
    if len(pieces) == 1:
        return Glob(pieces[0], _literal(tokens))
    middle = b"".join(b"(?>.*?%b)" % piece for piece in pieces[1:-1] if piece)
    regex = pieces[0] + middle + b".*" + pieces[-1]
    if middle or (pieces[0] and pieces[-1]):
        return Glob(regex)
    plain = [token for token in tokens if token not in (_STAR, _DOUBLE_STAR)]
    if pieces[-1]:
        return Glob(regex, suffixes=_ends(plain))
    return Glob(regex, prefix=_literal(plain))


def _ends(tokens: Sequence[bytes]) -> tuple[bytes, ...]:
    """The texts that tokens stand for; empty if there are many."""
    ends = [b""]
    for token in tokens:
        if token.startswith(b"[") and len(token) <= 4 * _MOST_ENDS + 2:
            letters = [bytes([int(code, 16)]) for code in token[3:-1].split(b"\\x")]
        elif (letter := _literal([token])) is not None:
            letters = [letter]
        else:
            return ()
        ends = [end + letter for end in ends for letter in letters]
        if len(ends) > _MOST_ENDS:
            return ()
    return tuple(ends)


def _literal(tokens: Sequence[bytes]) -> bytes | None:
    """The bytes that tokens stand for, or `None` if one of them stands for several."""
    return b"".join(token[-1:] for token in tokens) if all(re.escape(token[-1:]) == token for token in tokens) else None


_FEW = 8
"""A number of names for which joining them does not pay."""


class _NameTest:
    """The globs, in order, that can match names in a directory; the last one that matches decides."""

    def __init__(self, globs: Sequence[tuple[Glob, bool]]) -> None:
        first = next((index for index, (_, negated) in enumerate(globs) if not negated), len(globs))
        self._globs = globs[first:]  # a negation with nothing before it changes nothing
        self._negations = [glob for glob, negated in self._globs if negated]
        positive = {glob: None for glob, negated in self._globs if not negated}
        self._literals = frozenset(glob.literal for glob in positive if glob.literal is not None)
        self._suffixes = tuple(suffix for glob in positive for suffix in glob.suffixes)
        self._prefixes = tuple(glob.prefix for glob in positive if glob.prefix is not None)
        self._parts = [suffix + b"/" for suffix in self._suffixes] + [b"/" + prefix for prefix in self._prefixes]
        other_expressions = [
            glob.regex for glob in positive if glob.literal is glob.prefix is None and not glob.suffixes
        ]
        self._match = (
            _compiled(b"|".join(b"(?:%b)" % regex for regex in other_expressions)) if other_expressions else None
        )

    def ignored(self, names: Collection[bytes]) -> set[bytes]:
        """Those of the names that are ignored."""
        matching_names: set[bytes] = set()
        if self._literals:
            matching_names |= self._literals.intersection(names)
        if self._parts and names:
            joined_names = b"/%b/" % b"/".join(names) if len(names) > _FEW else b""
            # A search in all names at once takes a tenth of the time of a look at each.
            if not joined_names or any(part in joined_names for part in self._parts):
                suffixes, prefixes = self._suffixes, self._prefixes
                matching_names.update([name for name in names if name.endswith(suffixes) or name.startswith(prefixes)])
        if match := self._match:
            matching_names.update([name for name in names if match(name)])
        return (
            {name for name in matching_names if self._is_ignored(name)}
            if self._negations and matching_names
            else matching_names
        )

    def _is_ignored(self, name: bytes) -> bool:
        if not any(glob.matches(name) for glob in self._negations):
            return True
        return not next(negated for glob, negated in reversed(self._globs) if glob.matches(name))


class _PatternChain:
    """All patterns that are in force in a part of a walk, in order, and the levels made for them."""

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self.patterns = patterns
        self.levels: dict[tuple[_State, ...], Level] = {}

    def level(self, states: Iterable[_State]) -> Level:
        """The level at which these components are to be matched."""
        key = tuple(sorted(set(states)))
        if key not in self.levels:
            self.levels[key] = Level(self, key)
        return self.levels[key]


_State = tuple[int, int]
"""A path pattern, by its index, and the index of its component that is to be matched next."""


class Level:
    """The patterns as they are in force for the names in one directory. Directories have one level if nothing differs.

    A caller asks nothing about names below an ignored directory: git includes nothing there again.
    """

    def __init__(self, chain: _PatternChain, states: tuple[_State, ...]) -> None:
        self._chain = chain
        self._states = states
        self._tests: dict[bool, _NameTest] = {}

    def ignored(self, names: Collection[bytes], *, are_directories: bool) -> set[bytes]:
        """Those of the names that are ignored."""
        test = self._tests.get(are_directories)
        if test is None:
            test = self._tests[are_directories] = _NameTest(list(self._globs(are_directories)))
        return test.ignored(names)

    def _globs(self, are_directories: bool) -> Iterator[tuple[Glob, bool]]:
        last = {
            index for index, position in self._states if position == len(self._chain.patterns[index].components) - 1
        }
        for index, (negated, directory_only, is_name, components) in enumerate(self._chain.patterns):
            glob = components[-1]
            if glob is not None and (is_name or index in last) and (are_directories or not directory_only):
                yield glob, negated

    @property
    def leads_on(self) -> bool:
        """Whether a pattern with a directory at its start matched the directories up to here, and may match below."""
        return any(self._chain.patterns[index].components[0] is not None for index, _ in self._states)

    def below(self, name: bytes) -> Level:
        """The level of the directory `name`."""
        if not self._states:
            return self
        states: list[_State] = []
        for index, position in self._states:
            components = self._chain.patterns[index].components
            glob = components[position]
            if glob is None:
                states += _reached(components, index, position)
            elif position + 1 < len(components) and glob.matches(name):
                states += _reached(components, index, position + 1)
        return self._chain.level(states)

    def extended(self, patterns: tuple[Pattern, ...]) -> Level:
        """The same level with the patterns of the .gitignore in its directory, which precede all others."""
        if not patterns:
            return self
        chain = _PatternChain(self._chain.patterns + patterns)
        return chain.level([*self._states, *_begin(patterns, len(self._chain.patterns))])


def level(patterns: tuple[Pattern, ...]) -> Level:
    """The level of the directory to which the paths of the patterns are relative. Later patterns precede."""
    return _PatternChain(patterns).level(_begin(patterns, 0))


def _begin(patterns: Sequence[Pattern], start: int) -> list[_State]:
    return [
        state
        for index, pattern in enumerate(patterns, start)
        if not pattern.is_name
        for state in _reached(pattern.components, index, 0)
    ]


def _reached(components: Sequence[Glob | None], index: int, position: int) -> list[_State]:
    """A component, and the one behind it if it stands for any number of directories."""
    return [(index, at) for at in ([position, position + 1] if components[position] is None else [position])]
