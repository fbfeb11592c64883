"""Code as lines in the terminal's own colours, line by line as it arrives.

Only colours are added, so selected and copied text is the code. The cost per line is constant in a long block, because
a line is coloured with at most the last `_CONTEXT` lines as context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from deepctl.output.stream.lines import TAB, TerminalCaps

if TYPE_CHECKING:
    from rich.text import Text

_CONTEXT = 60
_LONGEST = 500
"""Longer lines are not coloured, because colouring can take time that grows with the square of their length."""
_MOST = 4000
"""Characters that are coloured at once, and characters of context before them, for the same reason."""

LANGUAGES = frozenset([
    "python", "python3", "py", "pycon", "bash", "sh", "shell", "zsh", "console", "javascript", "js", "typescript",
    "ts", "jsx", "tsx", "json", "yaml", "yml", "toml", "ini", "html", "xml", "css", "scss", "c", "cpp", "c++",
    "kotlin", "go", "golang", "rust", "rs", "ruby", "rb", "php", "sql", "diff", "docker",
    "dockerfile", "make", "makefile", "cmake", "lua", "perl", "r", "swift", "csharp", "c#", "cs", "scala",
    "haskell", "hs", "powershell", "ps1", "nginx", "hcl", "terraform", "graphql", "protobuf", "dart", "elixir",
    "markdown", "md",
])  # fmt: skip
"""The coloured languages. Each of these was timed, because some lexers take minutes for one line and cannot be
interrupted. Other languages are shown without colours, for example Java, whose method heads take seconds.
"""

_COLOURS = (
    ("Token.Comment", "dim"),
    ("Token.Keyword", "magenta"),
    ("Token.Operator.Word", "magenta"),
    ("Token.Literal.String", "green"),
    ("Token.Literal.Number", "yellow"),
    ("Token.Name.Function", "cyan"),
    ("Token.Name.Class", "cyan"),
    ("Token.Name.Builtin", "cyan"),
    ("Token.Name.Decorator", "cyan"),
    ("Token.Name.Tag", "cyan"),
    ("Token.Name.Attribute", "yellow"),
    ("Token.Generic.Inserted", "green"),
    ("Token.Generic.Deleted", "red"),
    ("Token.Generic.Heading", "bold"),
    ("Token.Generic.Subheading", "cyan"),
)
"""Colours of the terminal's palette that are readable on dark and on light backgrounds."""


class Highlighter:
    """Colours the lines of one block of code; `info` is the text after the fence."""

    def __init__(self, info: str, caps: TerminalCaps) -> None:
        self._caps = caps
        self._lexer = _lexer(info) if caps.colour else None
        self._context: list[str] = []

    def lines(self, code: Sequence[str]) -> list[Text]:
        """The next lines of the block, each coloured."""
        code_lines = [self._caps.safe(line).expandtabs(TAB) for line in code]
        return [line for portion in _portions(code_lines) for line in self._portion(portion)]

    def _portion(self, code_lines: list[str]) -> list[Text]:
        from rich.text import Text

        if self._lexer is None or max(map(len, code_lines)) > _LONGEST:
            self._context.clear()
            return [Text(line) for line in code_lines]
        texts = _coloured(self._lexer, self._context + code_lines)
        self._remember(code_lines, texts)
        return texts[-len(code_lines) :]

    def peek(self, code: str) -> Text:
        """The present colouring of an incomplete line."""
        context = list(self._context)
        line = self.lines([code])[0]
        self._context = context
        return line

    def _remember(self, code_lines: list[str], texts: list[Text]) -> None:
        """Keep the lines that the next ones depend on, starting outside of strings and comments."""
        self._context += code_lines
        if sum(map(len, self._context)) > _MOST:
            self._context.clear()
        if len(self._context) <= _CONTEXT:
            return
        start = next(
            (
                number
                for number in range(len(self._context) - 1, len(self._context) - _CONTEXT, -1)
                if self._context[number][:1].strip() and not _begins_inside(texts[number])
            ),
            len(self._context) - 1,
        )
        del self._context[:start]


def _portions(code_lines: list[str]) -> Iterator[list[str]]:
    """The lines in groups that are coloured at once; a line without colours is a group of its own."""
    portion: list[str] = []
    length = 0
    for line in code_lines:
        length += len(line)
        if portion and (len(portion) == _CONTEXT or length > _MOST or max(len(line), len(portion[0])) > _LONGEST):
            yield portion
            portion, length = [], len(line)
        portion.append(line)
    if portion:
        yield portion


def _begins_inside(line: Text) -> bool:
    return any(span.start == 0 and span.style in ("green", "dim") for span in line.spans)


def _lexer(info: str) -> Any:
    name = info.split()[0].strip("{}.").partition("{")[0].lower() if info.split() else ""
    if name not in LANGUAGES:
        return None
    from pygments.lexers import get_lexer_by_name

    # Otherwise code inside Markdown would be coloured by any lexer that it names.
    return get_lexer_by_name(name, stripnl=False, ensurenl=True, handlecodeblocks=False)


def _coloured(lexer: Any, code: list[str]) -> list[Text]:
    from rich.text import Text

    lines = [Text()]
    for kind, value in lexer.get_tokens("\n".join([*code, ""])):
        style = _style(kind)
        for number, piece in enumerate(value.split("\n")):
            if number:
                lines.append(Text())
            if piece:
                lines[-1].append(piece, style)
    lines.pop()
    if [line.plain for line in lines] != code:
        return [Text(line) for line in code]
    return lines


_STYLES: dict[Any, str] = {}


def _style(kind: Any) -> str:
    if kind not in _STYLES:
        name = str(kind)
        _STYLES[kind] = next((style for start, style in _COLOURS if name.startswith(start)), "")
    return _STYLES[kind]
