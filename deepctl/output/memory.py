"""How notebooks look: one of them, and the list of all."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain.memory.directory import Notebook
from deepctl.output.render import notice
from deepctl.output.text import Cell, ago, is_terminal, printable_lines, size, table

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
    """Show Markdown at a terminal. What it decodes, such as `&#x1b;`, is made harmless as well."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.segment import Segment, Segments

    console = Console()
    rendered = console.render(Markdown(printable_lines(text)))
    console.print(Segments(Segment(printable_lines(one.text), one.style, one.control) for one in rendered), end="")


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
