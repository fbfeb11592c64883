"""Keeping secrets of the environment out of what is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|CREDENTIAL)S?$", re.IGNORECASE)
_SHORTEST = 8


def redact(text: str, environment: Mapping[str, str]) -> str:
    """`text` with the values of variables that are named like secrets replaced by the variables' names."""
    # The longest first: one may be the beginning of another.
    for variable, value in sorted(environment.items(), key=lambda one: -len(one[1])):
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(variable):
            text = text.replace(value, f"[{variable}]")
    return text
