"""The tables of `docs/errors.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
COLUMNS = ("Command", "Cause", "Message", "Hint", "Code", "Exit")
PLACEHOLDERS = {
    "NAME": r".+?",
    "PATH": r".+?",
    "ID": r"(?:[0-9a-f]{8,64}|ID)",
    "REF": r".+?",
    "KEY": r".+?",
    "VALUE": r".+?",
    "TEXT": r".+?",
    "WORD": r".+?",
    "MODEL": r".+?",
    "VARIABLE": r".+?",
    "COMMAND": r".+?",
    "OPTION": r".+?",
    "REASON": r".+?",
    "TIME": r".+?",
    "ADDRESS": r".+?",
    "N": r"(?:[0-9][0-9.,]*|N)",
    "RULE": re.escape(re.findall("^RULE: (.+)$", PAGE.read_text(), re.MULTILINE)[0]),
    "…": r".+?",
}
"""The variables of messages, and the text that each matches. Every other word matches itself."""

_PLACEHOLDER = re.compile("|".join(rf"\b{word}\b" if word.isalpha() else word for word in PLACEHOLDERS))


class Row(NamedTuple):
    """One error: `command` is the text after `deepctl`; `hint` is `None` for an error without a hint."""

    command: str
    cause: str
    message: str
    hint: str | None
    code: str
    exit_code: int

    @property
    def id(self) -> str:
        return f"{self.command}: {self.cause}"

    def differences(self, message: object, hint: object, code: object, exit_code: object) -> list[str]:
        """The differences between an error and its row."""
        found = []
        if not isinstance(message, str) or not matches(self.message, message):
            found.append(f"message\n  is   {message!r}\n  said {self.message!r}")
        if (hint is None) != (self.hint is None) or (
            self.hint is not None and (not isinstance(hint, str) or not matches(self.hint, hint))
        ):
            found.append(f"hint\n  is   {hint!r}\n  said {self.hint!r}")
        if code != self.code:
            found.append(f"code\n  is   {code!r}\n  said {self.code!r}")
        if exit_code != self.exit_code:
            found.append(f"exit code\n  is   {exit_code!r}\n  said {self.exit_code!r}")
        return found


def matches(said: str, found: str) -> bool:
    """Whether a text of the table, with its placeholders, matches the text of an error."""
    pattern, position = "", 0
    for placeholder in _PLACEHOLDER.finditer(said):
        pattern += re.escape(said[position : placeholder.start()]) + PLACEHOLDERS[placeholder[0]]
        position = placeholder.end()
    return re.fullmatch(pattern + re.escape(said[position:]), found, re.DOTALL) is not None


def rows() -> list[Row]:
    """All rows of the page."""
    found = []
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            continue
        cells = [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 2:
            continue  # the table of exit codes
        if cells[0] == COLUMNS[0]:
            assert tuple(cells) == COLUMNS, f"these columns are others: {line}"
        elif not set("".join(cells)) <= {"-", ":"}:
            assert len(cells) == len(COLUMNS), f"this row has too many or too few cells: {line}"
            command, cause, message, hint, code, exit_code = cells
            found.append(
                Row(
                    command.strip("`"),
                    cause,
                    message,
                    None if hint == "—" else hint,
                    code.strip("`"),
                    int(exit_code),
                )
            )
    return found


def _plain(cell: str) -> str:
    """A cell without the backslashes that escape Markdown characters."""
    return re.sub(r"\\([|<>*_\[\]])", r"\1", cell)
