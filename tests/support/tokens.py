"""Tokens of requests, counted alike for every format and every tool that sends them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

_TEXTS = ("system", "instructions", "tools", "messages", "input")
"""The fields of a request that a model reads, in the formats of OpenAI and Anthropic."""


@cache
def _encoding() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # how it reads its own files
        import bpe_openai
    return bpe_openai.get_encoding("o200k_base")


def tokens(value: object) -> int:
    """The o200k tokens of a value as compact JSON, which counts a little more than a provider does."""
    return len(_encoding().encode(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))


def request_tokens(request: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of each field of a request that a model reads."""
    return {field: tokens(request[field]) for field in _TEXTS if field in request}
