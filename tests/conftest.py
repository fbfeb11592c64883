"""Every test gets a root of its own; nothing of the machine's user is read or written."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import preflight, tool_schemas
from tests.support.command import Command, InProcess

# A shell ignores Ctrl-C in what it runs in the background, and nohup SIGHUP; what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Examples write and sync files: how long that takes says nothing about the code where a machine is busy. They are the
# same in every run, so that a change fails for what it changes; `make soak` draws others each time.
settings.register_profile(
    "deepctl",
    deadline=None,
    derandomize=os.environ.get("DEEPCTL_SOAK") != "1",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("deepctl")

# A test process holds a million objects of the agent stack; looking through them for garbage every time the default
# thresholds are reached takes a tenth of its time.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run on this machine; the reason is told at the end."""
    for item in items:
        reason = preflight.reason(item.nodeid)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of state, not created yet; the current directory and `$HOME` are empty directories."""
    tool_schemas.remember()
    for variable in list(os.environ):
        if variable.startswith(("DEEPCTL_", "OPENAI_", "ANTHROPIC_", "NO_COLOR", "FORCE_COLOR")):
            monkeypatch.delenv(variable)
    root = tmp_path / "root"
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("DEEPCTL_HOME", str(root))
    monkeypatch.setenv("DEEPCTL_CONFIG", str(tmp_path / "config" / "config.toml"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(elsewhere)
    yield root
    assert list(elsewhere.iterdir()) == [], "deepctl wrote to the current directory"
    assert list((tmp_path / "user").iterdir()) == [], "deepctl wrote to $HOME"


@pytest.fixture
def deepctl() -> InProcess:
    """Run a command in this process: fast, and everything but signals and the terminal is real."""
    return InProcess()


@pytest.fixture
def process() -> Iterator[Command]:
    """Run a command in a process of its own; what is still running when the test ends is ended."""
    command = Command()
    yield command
    command.stop()
