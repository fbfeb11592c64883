"""The values of settings by their kinds: as text, in a settings file, and as a value for Python.

The text of a value is its form for the command line, for `config show` and for comparisons. Lists of texts and tables
are JSON, because a text in them can contain any character.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from deepctl.domain import agent_tools
from deepctl.domain.addresses import address_problem, without_passwords
from deepctl.domain.setting_table import Setting
from deepctl.errors import BadSetting

_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)")
_LARGEST = 1 << 50
_SMALLEST = {
    "limits.memory": 16 << 20,
    "limits.tmp": 1 << 20,
    "limits.disk": 1 << 20,
    "limits.processes": 4,
    "retries": 0,
    "context_window": 1000,
}
_PERCENT = range(10, 96)
_COST = re.compile(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
TYPED = ("flag", "integer", "decimal", "texts", "table")
"""Kinds whose values are usually no text in a settings file."""
_OWN_FIELDS = frozenset({"input", "messages", "model", "stream", "tools"})
"""Fields of a request that `extra_body` may not replace, because the turn depends on them."""


def check(key: str, setting: Setting, value: str, place: str) -> str:
    """`value` if it is valid for the setting. Raises `BadSetting`; `place` is ` in FILE`, or empty."""
    hint = _problem(key, setting, value)
    if hint is not None:
        raise BadSetting(f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.", hint)
    if setting.kind == "patterns":
        _check_patterns(value, place)
    if key == "base_url":
        value = value.strip()
        if (problem := address_problem(value)) is not None:
            raise BadSetting(
                f"Setting {key!r}{place} cannot be {without_passwords(value)!r}: it {problem}.",
                "It must be an address such as http://127.0.0.1:8000/v1.",
            )
    return value


def _problem(key: str, setting: Setting, value: str) -> str | None:
    """The rule that an invalid value breaks, as a hint."""
    kind = setting.kind
    if setting.choices and value not in setting.choices:
        return f"It must be one of: {', '.join(setting.choices)}."
    if kind == "cost" and not (_COST.fullmatch(value) and value.strip("0.")):
        return "It must be a sum in USD above 0 and below 1000000, such as 0.50."
    if kind == "percent" and value not in ("never", *map(str, _PERCENT)):
        return f"It must be a percentage from {_PERCENT.start} to {_PERCENT.stop - 1}, or never."
    if kind in ("count", "seconds", "size"):
        return _number_problem(key, kind, value)
    if kind in ("integer", "decimal"):
        return _bounds_problem(setting, value)
    if kind == "names" and not (patterns(value) and all(map(_TOOL_NAME.fullmatch, patterns(value)))):
        return "It must be names of tools, separated by commas."
    if kind == "names" and (unknown := agent_tools.unknown(patterns(value))) is not None:
        return f"There is no tool {unknown!r}. {agent_tools.hint(unknown)}"
    if kind == "texts" and not _is_texts(_json(value)):
        return """It must be a list of texts that are not empty, such as '["END", "STOP"]'."""
    if key == "model_profile.thinking_tags" and len(_json(value)) != 2:
        return """It must be two texts, such as '["<think>", "</think>"]'."""
    if kind == "table":
        table = _json(value)
        if not isinstance(table, dict):
            return """It must be a JSON object without null, such as '{"min_p": 0.1}'."""
        if own := sorted(_OWN_FIELDS & table.keys()):
            return f"deepctl sets {own[0]!r} itself. Remove it."
    return None


def _number_problem(key: str, kind: str, value: str) -> str | None:
    try:
        number = size(value) if kind == "size" else size(value, units="")
    except ValueError:
        if kind == "size":
            return "It must be a number of bytes, optionally followed by K, M or G."
        return "It must be a whole number."
    least = _SMALLEST.get(key, 1)
    if least <= number < _LARGEST:
        return None
    return f"It must be at least {_shortest_number(least, kind)} and less than {_shortest_number(_LARGEST, kind)}."


def _bounds_problem(setting: Setting, value: str) -> str | None:
    least, largest = setting.bounds
    if setting.kind == "integer":
        number: float = int(value) if _INTEGER.fullmatch(value) else math.nan
    else:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    kind = "whole number" if setting.kind == "integer" else "number"
    return None if least <= number <= largest else f"It must be a {kind} from {least} to {largest}."


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _json(text: str) -> Any:
    """The value of a JSON text; `None` for a text that is not JSON, or contains a value that TOML or UTF-8 lacks."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return None if _has_null(value) else value


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _shortest_number(number: int, kind: str) -> str:
    """A number in the shortest form for a setting of this kind."""
    for unit, bits in (("G", 30), ("M", 20), ("K", 10)) if kind == "size" else ():
        if number % (1 << bits) == 0:
            return f"{number >> bits}{unit}"
    return str(number)


def size(value: str, *, units: str = "KMG") -> int:
    """The bytes of a value of kind `size`. Raises `ValueError`."""
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r} is no size")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _check_patterns(value: str, place: str) -> None:
    from pathspec import GitIgnoreSpec

    try:
        GitIgnoreSpec.from_lines(patterns(value))
    except ValueError as error:
        raise BadSetting(
            f"Setting 'snapshot.exclude'{place} cannot be {without_passwords(value)!r}: "
            f"{without_passwords(str(error))}."
        ) from None


def patterns(value: str | None) -> list[str]:
    """The values of a setting with several values, separated by commas."""
    return [pattern.strip() for pattern in (value or "").split(",") if pattern.strip()]


def to_text(setting: Setting, value: Any) -> Any:
    """The text of a value in a settings file; the value itself if its type is wrong for the setting."""
    kind = setting.kind
    if kind in ("patterns", "names"):
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return ",".join(value) if is_list else value
    if isinstance(value, bool):
        if "off" in setting.choices:
            return "on" if value else "off"
        return str(value).lower() if "false" in setting.choices else value
    if kind == "cost" and isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) < 1e7 else str(value)
    if kind == "decimal" and isinstance(value, float):
        return repr(value)
    if kind in ("texts", "table") and isinstance(value, list | dict):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return value  # a time, which JSON lacks
    return str(value) if kind != "text" and isinstance(value, int) else value


def to_value(setting: Setting, valid_text: str) -> Any:
    """The value of a valid text: a number, a flag, a list, a table or a text."""
    kind = setting.kind
    if kind in ("count", "seconds", "integer") or (kind == "percent" and valid_text != "never"):
        return int(valid_text)
    if kind in ("patterns", "names"):
        return patterns(valid_text)
    if kind == "decimal":
        return float(valid_text)
    if kind == "flag" or (valid_text == "false" and setting.choices):
        return valid_text == "true"
    return _json(valid_text) if kind in ("texts", "table") else valid_text
