"""Keeping secrets of the environment out of what is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)S?$")
_SHORTEST = 8


def redact(text: str, environment: Mapping[str, str]) -> str:
    """`text` with the values of variables that are named like secrets replaced by the variables' names."""
    for variable, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(variable):
            text = text.replace(value, f"[{variable}]")
    return text
