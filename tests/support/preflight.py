"""What the tests need of a machine, what of it is missing, and how to get it.

`make test` runs this before pytest. `tests/conftest.py` uses the same list: tests whose needs are missing are skipped,
and pytest names them and the reason at the end. CI fails if a test is skipped.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

_CORE_SECONDS = 1450
"""Time of all tests times the number of cores. Measured on 2 cores: 735 s without Docker and models, with some other
work beside it."""


class Need(NamedTuple):
    """Something that a machine has or lacks."""

    name: str
    is_there: Callable[[], bool]
    tests: str
    """An expression that finds the ids of the tests that need it; empty where these skip themselves."""
    packages: dict[str, str]
    """What to install, by package manager; where one is missing, the system has no package of it."""
    instead: str = ""
    """How to get it where it is no package."""


def _program(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


def _docker() -> bool:
    if shutil.which("docker") is None:
        return False
    from deepctl.sandbox import container, policy
    from tests.support.docker import IMAGE

    try:
        container.check(IMAGE)
    except policy.Unavailable:
        return False
    return True


def _projects() -> bool:
    from tests.projects import sdists

    return all(sdists.archive(package) is not None for package in sdists.DOWNLOADED)


def _models() -> bool:
    from tests.models import templates

    return importlib.util.find_spec("xllamacpp") is not None and bool(templates.names())


def _everywhere(name: str) -> dict[str, str]:
    return {"apt-get": name, "dnf": name, "brew": name}


NEEDS = (
    Need(
        "bubblewrap",
        _program("bwrap"),
        r"^tests/(attacks/test_attacks|attacks/test_rules|cli/test_homeless|cli/test_sandbox|sandbox/test_bubblewrap)\.py"
        r"|^tests/(agent/test_host_paths|agent/test_temporary_files|test_fuzz_commands|test_errors)\.py"
        r"|bubblewrap",
        {"apt-get": "bubblewrap", "dnf": "bubblewrap"},
        "It exists on Linux only.",
    ),
    Need(
        "git", _program("git"), r"^tests/(agent/test_git_directories|domain/test_command_rules)\.py", _everywhere("git")
    ),
    Need(
        "zsh",
        _program("zsh"),
        r"^tests/test_completions\.py.*zsh|^tests/domain/test_command_rules\.py.*zsh",
        _everywhere("zsh"),
    ),
    Need("fish", _program("fish"), r"^tests/test_completions\.py.*fish", _everywhere("fish")),
    Need("tmux", _program("tmux"), r"^tests/cli/test_tmux\.py", _everywhere("tmux")),
    Need(
        "perl",
        _program("perl"),
        r"^tests/(attacks/test_attacks|cli/test_sandbox|sandbox/test_\w+|domain/test_command_rules)\.py",
        _everywhere("perl"),
    ),
    Need(
        "patch",
        _program("patch"),
        r"test_a_piped_diff_is_exact_bytes_for_patch|test_memory_history\.py.*patch",
        {"apt-get": "patch", "dnf": "patch", "brew": "gpatch"},
    ),
    Need(
        "util-linux",
        _program("unshare", "setpriv", "pivot_root"),
        r"test_what_is_mounted_in_a_workspace|test_shared_root|projects/test_guide",
        {"apt-get": "util-linux", "dnf": "util-linux"},
        "It exists on Linux only.",
    ),
    Need(
        "a Docker daemon with the test image",
        _docker,
        "",
        {},
        "As root on Debian, `.ci/docker DIR` starts one and prints the DOCKER_HOST to export.",
    ),
    Need(
        "llama.cpp and the chat templates of open models",
        _models,
        r"^tests/models/",
        {},
        "`make models` installs them; it downloads 110 MB.",
    ),
    Need(
        "the source distributions of three packages",
        _projects,
        r"^tests/projects/",
        {},
        "`make projects` downloads them; they have 50 MB.",
    ),
    Need(
        "root",
        lambda: os.geteuid() == 0,
        "",
        {},
        "Tests that mount file systems or give files away run as root only; CI does.",
    ),
)


@functools.cache
def missing() -> tuple[Need, ...]:
    """What this machine lacks."""
    return tuple(need for need in NEEDS if not need.is_there())


def reason(test: str) -> str | None:
    """Why the test with that id cannot run here; None where it can."""
    for need in missing():
        if need.tests and re.search(need.tests, test):
            return f"needs {need.name}"
    return None


def advice(needs: tuple[Need, ...], manager: str) -> list[str]:
    """Lines that name what is missing, and how to get it."""
    packages = [need.packages[manager] for need in needs if manager in need.packages]
    lines = [f"  {need.name}: {need.instead}" for need in needs if manager not in need.packages]
    if packages:
        sudo = "" if os.geteuid() == 0 or manager == "brew" else "sudo "
        lines.insert(0, f"  {', '.join(packages)}: {sudo}{manager} install {' '.join(packages)}")
    return lines


def _package_managers() -> tuple[str, ...]:
    """The one of this machine; all that are known, where it has none of them."""
    candidates = ("brew",) if platform.system() == "Darwin" else ("apt-get", "dnf", "brew")
    return next(((name,) for name in candidates if shutil.which(name)), candidates)


def main() -> int:
    """Say what is missing and how long the tests take."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    minutes = max(2, round(_CORE_SECONDS / cores / 60))
    needs = missing()
    if needs:
        print("This machine lacks something; tests that need it are skipped, and named at the end:")
        for manager in _package_managers():
            print("\n".join(advice(needs, manager)))
    print(
        f"All tests take about {minutes} minutes on {cores} cores; `make test-quick` takes less than two.", flush=True
    )
    if needs and os.environ.get("DEEPCTL_TEST_COMPLETE") == "1":
        print("DEEPCTL_TEST_COMPLETE is set: no test may be skipped.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
