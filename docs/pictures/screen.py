"""A terminal's screen as SVG: rows of text in their colours, in a frame, and nothing that has to be fetched.

The fonts are those that the reader's machine has: every run of equal cells says how wide it is, so that columns stay
columns in any of them.
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from tests.support.clusters import TwoScreens

_WIDTH, _HEIGHT, _FONT = 8.43, 18.0, 14
"""Of a cell, and of its letters, in pixels."""
_MARGIN, _BAR = 14, 34
_BASELINE = 13.5
_FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"

_PAPER, _INK, _FRAME, _TITLE = "#161b22", "#dfe5ec", "#444c56", "#9aa5b1"
_NAMES = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
_DARK = ("#2d333b", "#ff7b72", "#57c96a", "#d9a741", "#6cb6ff", "#d2a8ff", "#4fd0dc", "#c9d1d9")
_BRIGHT = ("#8b949e", "#ffa198", "#7ee787", "#f2cc60", "#a5d6ff", "#e2c5ff", "#86e6ee", "#ffffff")
_COLOURS = {
    **dict(zip(_NAMES, _DARK, strict=True)),
    **{f"bright{name}": colour for name, colour in zip(_NAMES, _BRIGHT, strict=True)},
    "bfightmagenta": _BRIGHT[5],  # as pyte spells it
}
_FAINT = 0.4
"""How much of the paper is in faint ink."""


class Screen(TwoScreens):
    """A screen that answers where its cursor is, which the line editor asks, and knows faint letters, which pyte does
    not: their colour is called `faint` and a colour.
    """

    def __init__(self, columns: int, lines: int, answer: Any) -> None:
        self._answer = answer
        self._faint = False
        super().__init__(columns, lines)

    def write_process_input(self, data: str) -> None:
        self._answer(data)

    def select_graphic_rendition(self, *attrs: int, **how: Any) -> None:
        self.cursor.attrs = self.cursor.attrs._replace(fg=self.cursor.attrs.fg.removeprefix("faint "))
        super().select_graphic_rendition(*attrs, **how)
        codes = iter(attrs or (0,))
        for code in codes:
            if code in (38, 48):  # a colour by number or by its parts, which are no codes
                parts = 1 if next(codes, 0) == 5 else 3
                list(itertools.islice(codes, parts))
            elif code in (0, 22):
                self._faint = False
            elif code == 2:
                self._faint = True
        if self._faint:
            self.cursor.attrs = self.cursor.attrs._replace(fg=f"faint {self.cursor.attrs.fg}")


class _Style(NamedTuple):
    ink: str
    paper: str
    bold: bool
    italic: bool
    underlined: bool
    struck: bool

    @property
    def css(self) -> str:
        lines = " ".join(name for name, on in (("underline", self.underlined), ("line-through", self.struck)) if on)
        return (
            f"fill:{self.ink}"
            + (";font-weight:700" if self.bold else "")
            + (";font-style:italic" if self.italic else "")
            + (f";text-decoration:{lines}" if lines else "")
        )


class _Run(NamedTuple):
    column: int
    cells: int
    text: str
    style: _Style


def svg(screen: Screen, title: str) -> str:
    """The screen, without the empty rows at its end, as a document of its own; `title` is also what it is about for
    those who cannot see it.
    """
    rows = [_runs(screen.buffer[line], screen.columns) for line in range(screen.lines)]
    while rows and not any(run.text.strip() or run.style.paper != _PAPER for run in rows[-1]):
        rows.pop()
    width = round(2 * _MARGIN + screen.columns * _WIDTH)
    height = round(_BAR + len(rows) * _HEIGHT + _MARGIN)
    classes: dict[str, str] = {}
    papers: list[str] = []
    lines: list[str] = []
    for number, row in enumerate(rows):
        top = _BAR + number * _HEIGHT
        spans = []
        for run in row:
            left, wide = _MARGIN + run.column * _WIDTH, run.cells * _WIDTH
            if run.style.paper != _PAPER:
                papers.append(
                    f'<rect x="{left:.1f}" y="{top:g}" width="{wide:.1f}" height="{_HEIGHT:g}" fill="{run.style.paper}"'
                    ' shape-rendering="crispEdges"/>'
                )
            if run.text.strip() or run.style.underlined:
                name = classes.setdefault(run.style.css, f"c{len(classes)}")
                text = escape(run.text.replace(" ", "\u00a0"))
                spans.append(f'<tspan class="{name}" x="{left:.1f}" textLength="{wide:.1f}">{text}</tspan>')
        if spans:
            lines.append(f'<text y="{top + _BASELINE:g}">{"".join(spans)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>text{{font:{_FONT}px {_FONTS};white-space:pre}}",
            *(f".{name}{{{css}}}" for css, name in classes.items()),
            "</style>",
            f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="{_PAPER}" stroke="{_FRAME}"/>',
            *(
                f'<circle cx="{20 + 18 * place}" cy="17" r="5.5" fill="{colour}"/>'
                for place, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
            ),
            f'<text x="{width / 2:g}" y="21.5" text-anchor="middle" style="fill:{_TITLE}">{escape(title)}</text>',
            *papers,
            *lines,
            "</svg>\n",
        ]
    )


def _runs(row: Any, columns: int) -> list[_Run]:
    """Cells of a row that look the same, together; the second cell of a wide letter is empty."""
    cells = [(row[column].data, _style(row[column])) for column in range(columns)]
    runs = []
    column = 0
    for style, group in itertools.groupby(cells, key=lambda cell: cell[1]):
        data = [text for text, _ in group]
        text = "".join(data)
        kept = text.rstrip() if style.paper == _PAPER and not style.underlined else text
        blank = len(kept) - len(kept.lstrip()) if style.paper == _PAPER and not style.underlined else 0
        runs.append(_Run(column + blank, len(data) - (len(text) - len(kept)) - blank, kept[blank:], style))
        column += len(data)
    return runs


def _style(cell: Any) -> _Style:
    ink, paper = _colour(cell.fg, _INK), _colour(cell.bg, _PAPER)
    if cell.reverse:
        ink, paper = paper, ink
    if cell.fg.startswith("faint "):
        ink = _blend(ink, paper)
    return _Style(ink, paper, cell.bold, cell.italics, cell.underscore, cell.strikethrough)


def _colour(name: str, default: str) -> str:
    name = name.removeprefix("faint ")
    if name == "default":
        return default
    return _COLOURS.get(name, f"#{name}")


def _blend(ink: str, paper: str) -> str:
    pairs = ((int(ink[at : at + 2], 16), int(paper[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(one * (1 - _FAINT) + other * _FAINT):02x}" for one, other in pairs)


_ID = re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8}(?:[0-9a-f]{8})?\b")
_SPINNER = re.compile("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
_AGE = re.compile(r"just now|\b\d+ (?:seconds?|minutes?) ago|\b\d+(?:\.\d+)? ?s\b")


def settled(picture: str) -> str:
    """A picture, or what is to be read in it, with ids, ages and spinners as a sign that there is one."""
    return _SPINNER.sub("(spinner)", _AGE.sub("(age)", _ID.sub("(id)", picture)))


def text(picture: str) -> str:
    """What is to be read in a picture that `svg` made: its title, and a line for each row that is not empty."""
    rows: list[str] = []
    for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text"):
        row, end = element.text or "", float(_MARGIN)
        for span in element:
            left = float(span.attrib["x"])
            row += " " * round((left - end) / _WIDTH) + (span.text or "")
            end = left + float(span.attrib["textLength"])
        rows.append(row.replace("\u00a0", " ").rstrip())
    return "\n".join(rows)
