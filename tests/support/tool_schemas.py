"""Schemas of tools, made once for each function rather than for each agent.

Every chat makes an agent of its own, with thirty tools whose schemas pydantic-ai reads out of signatures and
docstrings. A process that runs one chat makes each once. A test process runs thousands of chats, and this would be half
of its work: so a function defined at the same place, with the same signature and docstring, gets a copy of what it got
before.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any

_MODULE = "pydantic_ai._function_schema"


def remember() -> None:
    """From now on, schemas are made once; nothing where the agent stack has not been imported."""
    module: Any = sys.modules.get(_MODULE)
    if module is None or hasattr(module.function_schema, "__wrapped__"):
        return
    make = module.function_schema
    made: dict[Any, Any] = {}

    @functools.wraps(make)
    def remembering(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        identity = _identity(function)
        if identity is None:
            return make(function, *arguments, **options)
        key = (identity, arguments, tuple(sorted(options.items())))
        try:
            before = made.get(key)
        except TypeError:  # a default that has no hash
            return make(function, *arguments, **options)
        if before is None:
            before = made[key] = make(function, *arguments, **options)
        return replace(
            before,
            function=function,
            json_schema=copy.deepcopy(before.json_schema),
            return_schema=copy.deepcopy(before.return_schema),
        )

    module.function_schema = remembering


def _identity(function: Any) -> tuple[Any, ...] | None:
    """All that a schema is made of; None for callables that are no plain functions or methods."""
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType) or hasattr(plain, "__signature__"):
        return None
    wrapped = getattr(plain, "__wrapped__", None)
    inner = _identity(wrapped) if wrapped is not None else ()
    if inner is None:
        return None
    return (
        isinstance(function, MethodType),
        plain.__code__,
        plain.__module__,
        plain.__qualname__,
        plain.__doc__,
        plain.__defaults__,
        tuple((plain.__kwdefaults__ or {}).items()),
        tuple(plain.__annotations__.items()),
        inner,
    )
