"""Plain text as it arrives, wrapped between words: rows that are final are given out once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepctl.output.stream.lines import TAB, TerminalCaps, wrapped

if TYPE_CHECKING:
    from rich.text import Text


class PlainText:
    """One text on its way, in `style`. `width` may be another with every call."""

    def __init__(self, look: TerminalCaps, style: str) -> None:
        self._look = look
        self._style = style
        self._text = ""
        self._begun = False

    def feed(self, delta: str) -> None:
        """The next piece of the text."""
        self._text += self._look.safe(delta.replace("\r", "")).expandtabs(TAB)
        if not self._begun:
            self._text = self._text.lstrip()
            self._begun = bool(self._text)

    def settled(self, width: int) -> list[Text]:
        """The rows that have become final since the last call: a word that grows may still leave the last one."""
        # What ends in empty lines may end there: they are final when something follows them.
        final = self._rows(self._text.rstrip(), width)[:-1]
        if final:
            rest = self._text[self._text.rstrip().rfind("\n") + 1 :]
            last = self._rows(rest.rstrip(), width)[-1].plain
            self._text = rest[len(rest.rstrip()) - len(last) :]
        return final

    def tail(self, width: int) -> list[Text]:
        """The rows after those, as they are now."""
        return self._rows(self._text.rstrip(), width)

    def finish(self, width: int) -> list[Text]:
        """The text is complete: the rows that have not been given out yet."""
        rows, self._text = self.tail(width), ""
        return rows

    def _rows(self, text: str, width: int) -> list[Text]:
        from rich.text import Text

        return wrapped(Text(text, self._style), width) if text else []
