"""Every test gets a root of its own; nothing of the machine's user is read or written."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from deepctl import redaction
from deepctl.domain import key_sources
from tests.support import preflight, tool_schemas
from tests.support.command import Command, InProcess
from tests.support.tmux import Tmux

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


_LONG = (
    *("cli/test_tmux", "sandbox/test_containers", "agent/test_kill", "agent/test_interruption", "cli/test_repl_ends"),
    *("test_examples", "test_example_apps", "test_web_soak", "agent/test_compaction", "cli/test_wipe"),
    *("cli/test_user_commands", "cli/test_repl", "cli/test_work_in_tmux"),
    *(
        "agent/test_docker_sandbox",
        "projects/test_guide",
        "attacks/test_races",
        "cli/test_stopped_turns",
        "agent/test_mcp",
        "test_peers",
        "cli/test_homeless",
    ),
)
"""Files with tests that wait, or that take seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run on this machine; the reason is told at the end. Several workers begin with long tests."""
    for item in items:
        reason = preflight.reason(item.nodeid)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = _long_first(items, workers)


def _long_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in such an order that every worker begins with its share of the long ones.

    xdist gives each worker as many neighbouring tests. What a worker has left over at the end, others take: a long test
    that begins last would keep all of them waiting.
    """
    by_file: dict[str, list[pytest.Item]] = {f"tests/{name}.py": [] for name in _LONG}
    short = [item for item in items if item.nodeid.partition("::")[0] not in by_file]
    for item in items:
        if (file := by_file.get(item.nodeid.partition("::")[0])) is not None:
            file.append(item)
    files = [*by_file.values()]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        long = [item for file in files[worker::workers] for item in file]
        size = (len(items) - len(ordered)) // (workers - worker)
        rest = max(0, size - len(long))
        ordered += [*long, *short[:rest]]
        del short[:rest]
    return ordered + short


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of state, not created yet; the current directory and `$HOME` are empty directories."""
    tool_schemas.remember()
    # Keys that a test has read would be removed from the output of the next one, and not be read again.
    monkeypatch.setattr(redaction, "_KEYS_IN_USE", {})
    monkeypatch.setattr(key_sources, "_RESULTS", {})
    for variable in list(os.environ):
        if variable.startswith(("DEEPCTL_", "OPENAI_", "ANTHROPIC_", "NO_COLOR", "FORCE_COLOR")):
            monkeypatch.delenv(variable)
    root = tmp_path / "root"
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    (tmp_path / "user").mkdir()
    # Otherwise the package finds the keyrings of other tests, because their classes are loaded.
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
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


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Callable[..., Tmux]]:
    """Open alice's conversation with these further arguments."""
    opened: list[Tmux] = []

    def open_one(*arguments: str, size: tuple[int, int] = (100, 60)) -> Tmux:
        opened.append(Tmux(tmp_path, *arguments, size=size))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
