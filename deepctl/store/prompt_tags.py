"""Blocks of a prompt: tags tell the model whose words stand between them."""

from __future__ import annotations

import re

_TAG = re.compile(
    r"<(?=\s*/?\s*(attached-file|context-file|context|memory|plan-reminder|stdin|system)\b)", re.IGNORECASE
)


PIPED = "\n\n<stdin>\n"
"""What stands between what somebody typed and what was piped in, or printed, beside it."""


def said(text: str) -> str:
    """What somebody typed of a prompt, without what was piped in or printed beside it; all of it where nothing was."""
    typed = text.partition(PIPED)[0].rstrip()
    return typed or text


def contained(text: str) -> str:
    """The same as it stands in a block: it cannot end the one it is shown in, or begin another."""
    return _TAG.sub("&lt;", text)
