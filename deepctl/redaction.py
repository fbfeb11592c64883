"""Keeping secrets of the environment out of what is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET_VARIABLE = re.compile(
    r"(^|_)([A-Z]*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)|PAT|PASS|CREDENTIAL)S?(_|$)", re.IGNORECASE
)
_IN_ADDRESS = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_SHORTEST = 8


def redact(text: str, environment: Mapping[str, str]) -> str:
    """`text` with the values of variables that are named like secrets replaced by the variables' names."""
    # The longest first: one may be the beginning of another.
    for variable, value in sorted(environment.items(), key=lambda one: -len(one[1])):
        for password in _IN_ADDRESS.findall(value):
            text = text.replace(f":{password}@", f":[{variable}]@")
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(variable):
            text = text.replace(value, f"[{variable}]")
    return text
