"""The Docker daemon that tests may use: whichever DOCKER_HOST names, with an image of `.ci/docker` in it.

With DEEPCTL_TEST_DOCKER=1 a missing one is a failure, otherwise the test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deepctl.sandbox import container, policy

IMAGE = "deepctl-test:latest"
_USER = f"{os.getuid()}:{os.getgid()}"

# Read now: tests run without any DEEPCTL_ variable.
_REQUIRED = os.environ.get("DEEPCTL_TEST_DOCKER") == "1"


def require() -> None:
    """Skip the test, or fail it, unless containers of `IMAGE` can be had."""
    try:
        container.check(IMAGE)
    except policy.Unavailable as error:
        message = f"{error.reason} (.ci/docker DIR starts a daemon with that image)"
        if _REQUIRED:
            pytest.fail(message)
        pytest.skip(message)


def docker(*arguments: str, check: bool = True, timeout: float = 60) -> str:
    """What the client prints, without the last line's end."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0 or not check, (arguments, done.stdout, done.stderr)
    return done.stdout.rstrip("\n")


@contextmanager
def tagged(name: str) -> Iterator[None]:
    """The test image has this name, too, unless the daemon has an image of that name."""
    if docker("images", "--quiet", name):
        yield
        return
    docker("tag", IMAGE, name)
    try:
        yield
    finally:
        docker("rmi", name)


def inside(name: str, script: str, *, check: bool = True) -> str:
    """What a shell script prints in the container."""
    return docker("exec", "--user", _USER, "--workdir", policy.MOUNT, name, "sh", "-c", script, check=check)


def detached(name: str, script: str) -> None:
    """Start a shell script in the container, and do not wait for it."""
    docker("exec", "--detach", "--user", _USER, "--workdir", policy.MOUNT, name, "sh", "-c", script)


def inspected(name: str, template: str) -> str:
    return docker("inspect", "--type", "container", "--format", template, name)


def exists(name: str) -> bool:
    return docker("ps", "--all", "--quiet", "--filter", f"name=^{name}$") != ""


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """How long it took until `condition` held; fails after `seconds`."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - begun
