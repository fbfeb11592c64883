"""How notebooks look: one of them, and the list of all."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

from deepctl.domain.memory.directory import Notebook
from deepctl.output.render import notice
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import Cell, ago, table
from deepctl.quantities import size

_ITEM = re.compile(r" {0,3}(?:(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)|>)")
"""How a line begins that text below it would go on with: an item of a list, or a quotation."""
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_NOTHING = "Nothing is noted yet in the memory of profile {}."


def document(notebook: Notebook, *, content: bool = False) -> dict[str, Any]:
    """A notebook as JSON."""
    found: dict[str, Any] = {
        "name": notebook.name,
        "path": notebook.path,
        "bytes": notebook.size,
        "modified_at": notebook.modified_at,
    }
    if content:
        found["content"] = notebook.content.decode("utf-8", "surrogateescape")
    return found


class NotebookShown(NamedTuple):
    """One notebook, or none where nothing has been noted yet: the exact bytes when piped, rendered at a terminal.

    `checkpoint` is the one as of which it is shown.
    """

    profile: str
    agent: str
    notebooks: list[Notebook]
    checkpoint: str | None = None

    def document(self) -> dict[str, Any]:
        files = [document(notebook, content=True) for notebook in self.notebooks]
        as_of = {"checkpoint": self.checkpoint} if self.checkpoint is not None else {}
        return {"profile": self.profile, "agent": self.agent, **as_of, "files": files}

    def print(self) -> None:
        if not self.notebooks:
            as_of = f"Nothing had been noted in the memory of profile {self.profile} at checkpoint {self.checkpoint}."
            notice(as_of if self.checkpoint else _NOTHING.format(self.profile))
        for notebook in self.notebooks:
            if not is_terminal(sys.stdout):
                sys.stdout.flush()
                sys.stdout.buffer.write(notebook.content)
                continue
            _render(notebook.content.decode("utf-8", "replace"))


def _render(text: str) -> None:
    """Show Markdown at a terminal as answers are shown: a note is a line, so line breaks stay."""
    from deepctl.output import terminal_caps
    from deepctl.output.stream.lines import of_stdout
    from deepctl.output.stream.markdown import Markdown

    drawn, (width, _) = of_stdout(), terminal_caps.size()
    markdown = Markdown(drawn)
    markdown.feed(_apart(text))
    for line in markdown.finish(width):
        print(drawn.ansi(line))


def _apart(text: str) -> str:
    """`text` with an empty line between a list and a note below it, which Markdown would take for more of the item."""
    lines: list[str] = []
    fence, is_item = "", False
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if not fence and not _ITEM.match(line):
            if is_item and line[:1].strip():
                lines.append("")
            is_item = is_item and line[:1] in (" ", "\t")
        elif not fence:
            is_item = True
        if mark is not None and not fence:
            fence = mark[1]
        elif mark is not None and mark[1].startswith(fence) and not line[mark.end() :].strip():
            fence = ""
        lines.append(line)
    return "\n".join(lines)


class NotebookList(NamedTuple):
    profile: str
    agent: str
    notebooks: list[Notebook]

    def document(self) -> dict[str, Any]:
        files = [document(notebook) for notebook in self.notebooks]
        return {"profile": self.profile, "agent": self.agent, "files": files}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.notebooks:
            notice(_NOTHING.format(self.profile))
            return
        table(
            ("FILE", "CHANGED", "SIZE"),
            [
                (
                    notebook.name,
                    Cell(ago(notebook.modified_at) if terminal else notebook.modified_at, "faint"),
                    size(notebook.size) if terminal else str(notebook.size),
                )
                for notebook in self.notebooks
            ],
            numbers=("SIZE",),
        )
