"""The commands in a shell text and their words without quotes, by tree-sitter's grammar of bash.

The grammar was made for editors: it accepts more than bash and skips unknown text. So its result is checked (no gaps,
no adjacent words, here-documents with bash's limits), and a text that fails a check counts as unparsable.
`tests/domain/test_command_rules.py` compares it with real shells. Time is linear in the length of the text, which is
bounded, and no function recurses with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Node, Parser


class ComputedPart(Enum):
    """A part of a word that a shell computes."""

    ONE = "one"
    """Some text within one word: `"$x"`."""
    MANY = "many"
    """Any number of words: `$x`."""
    FILES = "files"
    """The names of files, or the pattern itself: `*.py`."""


CODE_VARIABLE = "a variable is set that makes programs run commands"
TOO_MANY = "it has too many parts"
TOO_LONG = "it is too long"
VALUE = "="
"""The name that stands for commands which evaluate variables: not a command itself, but its argument may be one."""


Word = tuple[str | ComputedPart, ...]
"""The parts of a word; adjacent texts are joined."""


class ShellCommand(NamedTuple):
    """A command that a text runs.

    `raw` is its spelling, empty for a command that another command runs. `is_open`: more words follow that the text
    does not show, as after `xargs rm`. `stdin` is the here-document of the command, `None` if the input is unknown.
    `around` is the pipeline up to it, with its redirections, which may write the input of the command.
    """

    words: tuple[Word, ...]
    raw: str = ""
    is_open: bool = False
    stdin: str | None = None
    around: str = ""


class Text(NamedTuple):
    """A text for a shell. Without `is_sure`, it only may be one.

    With `is_code` it is certainly meant for a shell, so its unknown parts count.
    """

    text: str
    is_sure: bool = True
    is_code: bool = True


class UnclearCommand(NamedTuple):
    """Why it cannot be told what runs."""

    reason: str


Step = ShellCommand | Text | UnclearCommand
"""What a text or a command runs: a command, a text to be read in its turn, or the reason why there may be more."""


def literal(word: Word) -> str | None:
    """The text of a word, or `None` if part of it is computed."""
    texts = [part for part in word if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(word) else None


def beginning(word: Word) -> str:
    """The literal beginning of a word."""
    return word[0] if word and isinstance(word[0], str) else ""


def as_text(word: Word) -> str:
    """A word as a shell text; computed parts stay computed."""
    return "".join(part if isinstance(part, str) else "${_}" for part in word)


def join_parts(parts: Iterable[str | ComputedPart]) -> Word:
    """The parts as one word."""
    whole: list[str | ComputedPart] = []
    for part in parts:
        if isinstance(part, str) and whole and isinstance(whole[-1], str):
            whole[-1] += part
        elif part != "":
            whole.append(part)
    return tuple(whole) or ("",)


def base_name(name: str) -> str:
    """The last part of a program's path."""
    return name.rsplit("/", 1)[-1]


_CODE_VARIABLE = re.compile(
    r"(?:BASH_ENV|PROMPT_COMMAND|PS[0-4]|SHELLOPTS|BASHOPTS"
    r"|GIT_CONFIG(?:_COUNT|_KEY_\w+|_VALUE_\w+|_PARAMETERS|_GLOBAL|_SYSTEM)?)\+?=(?!/dev/null$)"
)


def sets_code(assignment: str) -> bool:
    """Whether `NAME=value` sets a variable that makes programs run commands, or read settings that do."""
    return _CODE_VARIABLE.match(assignment) is not None


MAX_TEXT = 128 << 10
"""Bytes of a text that is parsed."""
_MAX_RAW = 4096

# Characters that a terminal or an editor may show as a blank or a line end, and that bash takes for part of a word, or
# the reverse.
_ODD = re.compile(r"[^\S \t\n]|[\x00-\x08\x0e-\x1f\x7f]")
_SPLIT_WORD = re.compile(r"[^ \t\n]\\\n[^ \t\n]")
_BLANK = re.compile(rb"(?:[ \t\n]|\\\n)*")
_ON_A_LINE = re.compile(rb"(?:[ \t]|\\\n)*(?:-[ \t]+)?")
"""Text that may be between the parts of one command; a lone dash before a here-document has no node."""
_NOTHING = re.compile(b"")
_ONE_LINE = {
    *(
        "command",
        "declaration_command",
        "unset_command",
        "variable_assignment",
        "file_redirect",
        "redirected_statement",
    ),
    *("herestring_redirect", "concatenation", "command_name"),
}
_UNPARSED = "it cannot be parsed"
_COMPUTED_TEXT = re.compile(r"\$\(|`|\$\{")
_TRANSLATED = re.compile(r'(\\.|\$\$)|\$(?=")', re.DOTALL)
"""The dollar of `$"…"`, which is `"…"` to bash."""
_MAX_PIPELINE = 64
_VARIABLE = re.compile(r"\{\w+\}")
_HEREDOC_END = re.compile(r"""(\w+)|\\(\w+)|'(\w+)'|"(\w+)\"""")


@cache
def _parser() -> Parser:
    # Slow to import, and needed only if there are rules for commands.
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


KeptFrom = Callable[[ShellCommand], int | None]
"""The index of the first word that a command only prints, searches or stores; `None` without such a word."""


class _PartContext(NamedTuple):
    """The context of a part of a text: its pipeline, and the use of its output."""

    around: str = ""
    is_passed: bool = False
    """Other commands read the output, or a variable stores it."""
    is_kept: bool = False
    """It is an argument of a command that only stores or prints it."""


class ShellText:
    """A shell text. `steps` come from its syntax tree; the other fields are complete after all steps were taken.

    `data` is the text in UTF-8, empty if it is too long. Ranges are byte offsets, end exclusive.
    """

    def __init__(self, text: str, kept_from: KeptFrom) -> None:
        self._written = _TRANSLATED.sub(lambda match: match[1] or "", text)
        data = self._written.encode("utf-8", "surrogatepass")
        self._is_too_long = len(data) > MAX_TEXT
        self.data = b"" if self._is_too_long else data
        self.is_understood = False
        self.has_functions = False
        self.substitutions: set[int] = set()
        """The starts (and for backquotes the ends) of substitutions in the tree."""
        self.kept: list[tuple[int, int]] = []
        """Quoted arguments of commands that only store or print them."""
        self.arguments: list[tuple[int, int]] = []
        """All quoted arguments, and comments."""
        self.literal: list[tuple[int, int]] = []
        """Texts in which nothing is expanded."""
        self.bash_only: dict[int, bytes] = {}
        """Syntax of bash only, with its positions."""
        self._kept_from = kept_from
        self._redirects: dict[int, list[Node]] = {}
        self._heredoc_lines: set[int] = set()
        self._has_prompt = b"@P" in self.data
        self._has_expansion = b"$" in self.data

    def part(self, start: int, end: int) -> str:
        """Bytes of the text. If the grammar has added a missing quote, they may end within a character."""
        data = self.data[start:end]
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def steps(self) -> Iterator[Step]:
        """The commands of the text, nested texts to parse, and reasons why there may be more."""
        if self._is_too_long:
            yield UnclearCommand(TOO_LONG)
            return
        if _ODD.search(self._written) or _SPLIT_WORD.search(self._written):
            yield UnclearCommand("it contains characters that a shell reads differently than a person")
        root = _parser().parse(self.data).root_node
        self.is_understood = not root.has_error
        if not self.is_understood:
            yield UnclearCommand(_UNPARSED)
        yield from self._walk(root)

    def _walk(self, root: Node) -> Iterator[Step]:
        pending = [(root, _PartContext())]
        while pending:
            node, place = pending.pop()
            children = node.children
            if not self._has_no_gaps(node, children, is_root=node is root):
                yield UnclearCommand(_UNPARSED)
            match node.type:
                case "redirected_statement":
                    body = node.child_by_field_name("body")
                    redirects = node.children_by_field_name("redirect")
                    # The grammar redirects the whole list, a shell only its last command.
                    while body is not None and body.type in ("list", "pipeline", "negated_command"):
                        body = body.children[-1]
                    if body is not None:
                        self._redirects.setdefault(body.id, []).extend(redirects)
                    elif redirects:
                        yield from self._command(node, [], redirects)
                    place = place._replace(around=place.around or self._text(node))
                case "pipeline":
                    if len(children) > _MAX_PIPELINE:
                        yield UnclearCommand(TOO_MANY)
                    elif not place.around:
                        for child in reversed(children):
                            before = self.part(node.start_byte, child.end_byte)
                            pending.append((child, _PartContext(before, is_passed=True)))
                        continue
                    place = place._replace(is_passed=True)
                case "command":
                    redirects = self._redirects.get(node.id, [])
                    for item in self._command(node, children, redirects):
                        yield item._replace(around=place.around or item.raw) if isinstance(item, ShellCommand) else item
                    is_kept = self._keeps(children, redirects, is_passed=place.is_passed)
                    place = place._replace(is_kept=is_kept)
                case "declaration_command" | "unset_command":
                    yield from self._declaration(node, children)
                case "variable_assignment":
                    yield from self._assignment(node)
                case "file_redirect" if self.data[node.start_byte : node.start_byte + 2] == b"&>":
                    # In shells other than bash these are two operators, and a command may follow.
                    extra = node.children_by_field_name("destination")[1:]
                    if extra:
                        yield ShellCommand(tuple(self._word(word) for word in extra))
                case "for_statement":
                    words = [self._word(child) for child in node.children_by_field_name("value")]
                    yield ShellCommand(((VALUE,), *words))
                case "command_substitution" if children and children[0].type == "`":
                    self.substitutions |= {children[0].start_byte, node.end_byte - 1}
                    place = _PartContext(place.around, is_passed=not place.is_kept)
                    yield from self._backquoted(node)
                case "command_substitution" | "process_substitution" if children:
                    self.substitutions.add(children[0].start_byte)
                    place = _PartContext(place.around, is_passed=not place.is_kept)
                case "ansi_c_string":
                    self.bash_only[node.start_byte] = b"$'"
                    self.literal.append((node.start_byte, node.end_byte))
                case "raw_string":
                    self.literal.append((node.start_byte, node.end_byte))
                case "comment":
                    self.arguments.append((node.start_byte, node.end_byte))
                case "arithmetic_expansion":
                    self.substitutions.add(node.start_byte)
                case "function_definition":
                    self.has_functions = True
                case "[[" | "((" if self.data.startswith(node.type.encode(), node.start_byte):
                    self.bash_only[node.start_byte] = node.type.encode()
                case "heredoc_redirect":
                    yield from self._heredoc(node, children)
                case "expansion" if self._has_prompt:
                    yield UnclearCommand("a value is expanded as a prompt")
                case _:
                    pass
            pending.extend((child, place) for child in reversed(children))

    def _has_no_gaps(self, node: Node, children: list[Node], *, is_root: bool) -> bool:
        """Whether only blanks are between the parts of a node, because the grammar skips some text."""
        if node.type in ("string", "heredoc_body", "string_content", "heredoc_redirect") or not children:
            return True
        gap = _ON_A_LINE if node.type in _ONE_LINE else _NOTHING if node.type == "simple_expansion" else _BLANK
        # The root begins where its first child does.
        at, end = (0, len(self.data)) if is_root else (node.start_byte, node.end_byte)
        for child in children:
            if child.start_byte > at and not gap.fullmatch(self.data, at, child.start_byte):
                return False
            at = child.end_byte
        return bool(_BLANK.fullmatch(self.data, at, end))

    def _command(
        self, node: Node, children: list[Node], redirects: list[Node]
    ) -> Iterator[ShellCommand | UnclearCommand]:
        words: list[Node] = []
        redirects = list(redirects)
        for child in children:
            if child.type == "command_name":
                words.append(child)
            elif child.type in ("file_redirect", "herestring_redirect", "heredoc_redirect"):
                redirects.append(child)
            elif child.type != "variable_assignment":
                words.append(child)
        stdin: str | None = None
        for redirect in redirects:
            extra, input_text = self._redirected(redirect)
            words += extra
            stdin = input_text if input_text is not None else stdin
        words.sort(key=lambda word: word.start_byte)
        if any(word.end_byte == next_word.start_byte for word, next_word in pairwise(words)):
            yield UnclearCommand(_UNPARSED)
        if not words:
            return
        yield ShellCommand(tuple(self._word(word) for word in words), self._raw(node), stdin=stdin)
        starts = {redirect.start_byte for redirect in redirects}
        command_words = [
            word for word in words if not (word.end_byte in starts and _VARIABLE.fullmatch(self._text(word)))
        ]
        if len(command_words) < len(words):  # `{name}>file` is a redirection, in bash
            yield ShellCommand(tuple(self._word(word) for word in command_words), stdin=stdin)

    def _keeps(self, children: list[Node], redirects: list[Node], *, is_passed: bool) -> bool:
        """Whether a command only stores or prints its arguments; its quoted texts are recorded."""
        words = [child for child in children if child.type != "variable_assignment" and "redirect" not in child.type]
        spans = [
            (at, (part.start_byte, part.end_byte))
            for at, word in enumerate(words)
            for part in (word.children if word.type == "concatenation" else [word])
            if part.type == "raw_string"
        ]
        self.arguments += [span for _, span in spans]
        if not words or (start := self._kept_from(ShellCommand(tuple(self._word(word) for word in words)))) is None:
            return False
        if is_passed or any(
            child.type in ("pipeline", "list") for redirect in redirects for child in redirect.children
        ):
            return False  # its output is passed on
        self.kept += [span for at, span in spans if at >= start]
        for redirect in redirects:
            parts = {child.type: child for child in redirect.children}
            if "heredoc_body" in parts and _QUOTE.search(self._text(parts["heredoc_start"])):
                self.kept.append((parts["heredoc_body"].start_byte, parts["heredoc_body"].end_byte))
        return True

    def _redirected(self, redirect: Node) -> tuple[list[Node], str | None]:
        """The words of the command after a redirection, and the text that the redirection gives the command to read."""
        if redirect.type == "file_redirect":
            # The grammar takes every word after `> file` for a further file.
            return redirect.children_by_field_name("destination")[1:], None
        if redirect.type == "herestring_redirect":
            targets = [child for child in redirect.named_children if child.type != "file_descriptor"]
            return targets[1:], as_text(self._word(targets[0])) if targets else None
        words: list[Node] = []
        body: str | None = None
        for index, child in enumerate(redirect.children):
            if child.type == "heredoc_body":
                body = self._text(child)
                start = next((child for child in redirect.children if child.type == "heredoc_start"), None)
                if start is not None and not _QUOTE.search(self._text(start)):
                    body = _IN_HEREDOC.sub(lambda match: "" if match[1] == "\n" else match[1], body)
            elif child.type == "file_redirect":
                words += child.children_by_field_name("destination")[1:]
            elif redirect.field_name_for_child(index) == "argument":
                words.append(child)
        return words, body

    def _declaration(self, node: Node, children: list[Node]) -> Iterator[ShellCommand | UnclearCommand]:
        words = [self._word(child) if child.is_named else (self._text(child),) for child in children]
        yield ShellCommand(tuple(words), self._raw(node))

    def _assignment(self, node: Node) -> Iterator[ShellCommand | UnclearCommand]:
        source = self.part(node.start_byte, min(node.end_byte, node.start_byte + _MAX_RAW))
        if sets_code(source):
            yield UnclearCommand(CODE_VARIABLE)
        value = node.child_by_field_name("value")
        if value is None:
            return
        words = value.named_children if value.type == "array" else [value]
        # A value that is only the beginning of a command may be completed where the variable is used.
        yield ShellCommand(((VALUE,), *(self._word(word) for word in words)), is_open=self._has_expansion)
        # Arithmetic runs commands in a value: a='x[$(…)]'; echo $((a)).
        if value.type in ("raw_string", "ansi_c_string") and _COMPUTED_TEXT.search(source.partition("=")[2]):
            yield UnclearCommand("a variable holds a text with commands")

    def _backquoted(self, node: Node) -> Iterator[Text | UnclearCommand]:
        """Text between backquotes is read twice: backslashes before some characters are removed first."""
        inner = self.part(node.start_byte + 1, node.end_byte - 1)
        if _BACKQUOTE.search(inner) is not None:
            yield UnclearCommand(_UNPARSED)
        elif "\\" in inner:
            in_quotes = node.parent is not None and node.parent.type == "string"
            yield Text(_in_quotes(inner) if in_quotes else between_backquotes(inner))

    def _heredoc(self, node: Node, children: list[Node]) -> Iterator[UnclearCommand]:
        """A here-document must have the limits that bash sees, because the text after it runs."""
        start = next((child for child in children if child.type == "heredoc_start"), None)
        end = next((child for child in children if child.type == "heredoc_end"), None)
        word = _HEREDOC_END.fullmatch(self._text(start)) if start is not None else None
        line = node.start_point[0]
        if start is None or end is None or word is None or line in self._heredoc_lines:
            yield UnclearCommand(_UNPARSED)
            return
        self._heredoc_lines.add(line)
        begins = self.data.find(b"\n", start.end_byte) + 1
        behind = [child for child in children if start.end_byte <= child.start_byte and child.type != "heredoc_body"]
        at = start.end_byte
        for child in behind:
            if child is end:
                continue
            if not _BLANK.fullmatch(self.data, at, child.start_byte) or child.end_byte >= begins:
                yield UnclearCommand(_UNPARSED)
            at = child.end_byte
        name = next(group for group in word.groups() if group is not None)
        *lines, last = self.part(begins, end.end_byte).split("\n")
        if children[0].type == "<<-":
            lines, last = [line.lstrip("\t") for line in lines], last.lstrip("\t")
        if (
            self.data[at:begins].strip(b" \t") != b"\n"
            or last != name
            or name in lines
            or self.data[end.end_byte : end.end_byte + 1] not in (b"", b"\n")
        ):
            yield UnclearCommand(_UNPARSED)
        elif word[1] is not None and _BACKQUOTE.search("\n".join(lines)) is not None:
            yield UnclearCommand(_UNPARSED)  # the grammar overlooks them there

    def _word(self, node: Node) -> Word:
        """A word without its quotes. Unknown parts count as computed."""
        if node.type == "command_name":
            node = node.children[0] if node.child_count else node
        if self._text(node) == "[":
            return ("[",)
        if node.type == "concatenation":
            plain = "".join(self._text(child) for child in node.children if child.type in ("word", "brace_expression"))
            if "{" in plain and ("," in plain or ".." in plain):
                return (ComputedPart.MANY,)
            parts: list[str | ComputedPart] = []
            for child in node.children:
                parts += self._part(child)
                if child.type == "word" and _BRACKET.search(self._text(child)):
                    break
            return join_parts(parts)
        return join_parts(self._part(node))

    def _part(self, node: Node) -> Word:
        match node.type:
            case "word" | "number" | "test_operator" | "variable_name" | "special_variable_name":
                return _unquoted(self._text(node))
            case "raw_string":
                return (self._text(node)[1:-1],)
            case "ansi_c_string":
                return (_ansi(self._text(node)[2:-1]),)
            case "string":
                return self._string(node)
            case "translated_string":
                return tuple(part for child in node.named_children for part in self._part(child))
            case "command_substitution" | "simple_expansion" | "expansion" | "process_substitution":
                return (ComputedPart.MANY,)
            case "arithmetic_expansion":
                return (ComputedPart.ONE,)
            case "variable_assignment":
                name = node.child_by_field_name("name")
                value = node.child_by_field_name("value")
                operator = next((self._text(child) for child in node.children if not child.is_named), "=")
                before = self._text(name) if name is not None else ""
                return (before + operator, *(self._word(value) if value is not None else ()))
            case _ if not node.is_named and node.child_count == 0:
                return _unquoted(self._text(node))
            case _:
                return (ComputedPart.MANY,)

    def _string(self, node: Node) -> Word:
        parts: list[str | ComputedPart] = []
        at = node.start_byte + 1
        for child in node.named_children:
            if child.type == "string_content":
                continue
            raw = self.data[child.start_byte : child.start_byte + 64]
            start = child.start_byte + len(raw) - len(raw.lstrip())  # the grammar includes the blanks before it
            parts += [_in_quotes(self.part(at, start)), ComputedPart.ONE]
            at = child.end_byte
            if child.type in ("simple_expansion", "expansion") and b"@" in self.data[start : start + 4]:
                parts[-1] = ComputedPart.MANY
        parts.append(_in_quotes(self.part(at, node.end_byte - 1)))
        return tuple(parts)

    def _text(self, node: Node) -> str:
        return self.part(node.start_byte, node.end_byte)

    def _raw(self, node: Node) -> str:
        size = node.end_byte - node.start_byte
        return self._text(node) if size <= _MAX_RAW else ""


_BRACKET = re.compile(r"(?<!\\)\[")
_ESCAPED = re.compile(r"\\(\n|.)|([*?\[])", re.DOTALL)


def _unquoted(text: str) -> Word:
    parts: list[str | ComputedPart] = []
    at = 0
    for match in _ESCAPED.finditer(text):
        parts.append(text[at : match.start()])
        at = match.end()
        if match[2] is None:
            parts.append("" if match[1] == "\n" else match[1])
        elif match[2] == "[":
            # The possible characters and the text after them are not read.
            return join_parts([*parts, ComputedPart.FILES])
        else:
            parts.append(ComputedPart.FILES)
    parts.append(text[at:])
    return join_parts(parts)


_BACKQUOTE = re.compile(r"(?<!\\)(?:\\\\)*`")
_IN_BACKQUOTES = re.compile(r"\\([$`\\])")
_IN_HEREDOC = re.compile(r"\\([$`\\\n])")
_QUOTE = re.compile(r"['\"\\]")
_IN_QUOTES = re.compile(r'\\([$`"\\\n])')


def between_backquotes(text: str) -> str:
    """The text that a shell runs for one between backquotes, without the backslashes before some characters."""
    return _IN_BACKQUOTES.sub(r"\1", text)


def _in_quotes(text: str) -> str:
    return _IN_QUOTES.sub(lambda match: "" if match[1] == "\n" else match[1], text)


_ANSI = re.compile(
    r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|([0-7]{1,3})|c(.)|(.))", re.DOTALL
)
_ANSI_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v"}


def _ansi(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] or match[2] or match[3]:
            code = int(match[1] or match[2] or match[3], 16)
            return chr(code) if code < 0x110000 else "\ufffd"
        if match[4]:
            return chr(int(match[4], 8) & 0xFF)
        if match[5]:
            return chr(ord(match[5]) & 0x1F)
        return _ANSI_LETTERS.get(match[6], match[6])

    # Bash ends the text at a NUL.
    return _ANSI.sub(one, text).partition("\0")[0]
