"""Text that a person hands over, on the command line or through a pipe: this is where it is taken for text.

What is not UTF-8 is refused here (exit 2), before it gets to where everything else expects text. A mark of byte order
at its beginning, as Windows' editors write it, is no part of a text.
"""

from __future__ import annotations

from deepctl.errors import UsageError

_HINT = "Convert it first, for instance with iconv."


def argument(text: str, what: str, code: str = "not_utf8") -> str:
    """A text of the command line; `what` names it. Raises `UsageError`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8 text.", _HINT, code=code) from None
    return text


def decoded(raw: bytes, what: str, code: str = "not_utf8") -> str:
    """A text that was piped in; `what` names it. Raises `UsageError`."""
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = error.start
        raise UsageError(f"{what} is not UTF-8 text: byte 0x{raw[at]:02x} at offset {at}.", _HINT, code=code) from None
