"""pydantic-deep's own tests of its checkpoints, with deepctl's classes: a plugin of pytest.

It makes a package `pydantic_deep` of deepctl's names. Its middleware and its toolset are its own, from its source
distribution, and work with deepctl's stores. The results are written to the file in `$RESULTS`, as JSON.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import deepctl
from deepctl.agent import checkpoint_stores

_OTHERS = {"include_subagents", "include_skills", "cost_tracking", "context_manager"}
"""Options of `create_deep_agent` for what deepctl's agents do not have."""

_RESULTS: dict[str, str] = {}


def _create_deep_agent(**options: Any) -> Any:
    assert {name for name in _OTHERS if options.pop(name, False)} == set()
    if "middleware" in options:
        options["capabilities"] = options.pop("middleware")
    return deepctl.create_deep_agent(**options)


def _make_checkpoint(label: str, turn: int, messages: list[Any], metadata: Any = None) -> deepctl.Checkpoint:
    return checkpoint_stores.new_checkpoint(label, turn, messages, metadata)


async def _save_and_prune(store: Any, checkpoint: Any, max_checkpoints: int) -> None:
    await store.save(checkpoint)
    await checkpoint_stores.prune(store, max_checkpoints)


def _module(name: str, **names: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    module.__path__ = []
    sys.modules[name] = module
    return module


def _make_package(source: Path) -> None:
    """The package, and its toolset from `source`."""
    package = _module("pydantic_deep", __getattr__=lambda name: getattr(deepctl, name))
    package.create_deep_agent = _create_deep_agent  # type: ignore[attr-defined]
    _module("pydantic_deep.deps", DeepAgentDeps=deepctl.DeepAgentDeps)
    _module("pydantic_deep.features")
    names = ("Checkpoint", "CheckpointStore", "FileCheckpointStore", "InMemoryCheckpointStore", "RewindRequested")
    ours = {name: getattr(deepctl, name) for name in (*names, "fork_from_checkpoint")}
    own = {"_make_checkpoint": _make_checkpoint, "_save_and_prune": _save_and_prune}
    checkpointing = _module("pydantic_deep.features.checkpointing", **ours)
    _module("pydantic_deep.features.checkpointing.store", **ours, **own)
    name = "pydantic_deep.features.checkpointing.toolset"
    found = importlib.util.spec_from_file_location(name, source)
    assert found is not None
    assert found.loader is not None
    toolset = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(toolset)
    for tool in ("CheckpointMiddleware", "CheckpointToolset"):
        setattr(checkpointing, tool, getattr(toolset, tool))


def pytest_configure(config: pytest.Config) -> None:
    _make_package(Path(os.environ["TOOLSET"]))


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function to its end."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" or report.outcome == "failed":
        name = item.nodeid.partition("::")[2].replace("::", ".")
        failure = report.longrepr.reprcrash.message.splitlines()[0] if report.failed else ""
        _RESULTS[name] = failure
    return report


def pytest_sessionfinish() -> None:
    Path(os.environ["RESULTS"]).write_text(json.dumps(_RESULTS))
