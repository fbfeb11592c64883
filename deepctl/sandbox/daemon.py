"""The Docker daemon: a connection to it, and its errors in words that help.

Needs the extra `docker`, which is imported only when a function here is called.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepctl import distribution
from deepctl.sandbox.policy import Unavailable

SECONDS = 30
"""How long the daemon may take for an answer."""


def sdk() -> Any:
    try:
        return importlib.import_module("docker")
    except ImportError:
        raise Unavailable(
            "The Python package `docker` is not installed.", f"Install it with: {distribution.to_install('docker')}"
        ) from None


def connect() -> Any:
    """A client of the daemon that the environment names, which has answered.

    Raises `Unavailable` for one on another machine: what is mounted there would be that machine's directories.
    """
    package = sdk()
    try:
        address = package.utils.parse_host(os.environ.get("DOCKER_HOST"))
    except (package.errors.DockerException, ValueError) as error:
        raise Unavailable(
            f"$DOCKER_HOST is {os.environ.get('DOCKER_HOST')}, which is no address of a Docker daemon.",
            "Let it name a socket of this machine's.",
        ) from error
    options = package.utils.kwargs_from_env()
    if not address.startswith("http+unix://"):
        raise Unavailable(
            f"$DOCKER_HOST is {options.get('base_url')}, a daemon that may be on another machine.",
            "Let it name a socket of this machine's.",
        )
    # The SDK leaves a socket open if it cannot connect, and wraps the reason three times.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(SECONDS)
        probe.connect(address.removeprefix("http+unix://"))
    try:
        return package.APIClient(version="auto", timeout=SECONDS, **options)
    except (AttributeError, TypeError, ValueError) as error:
        # The SDK takes for granted what is in that file. Some errors of `requests` are of these kinds as well.
        if isinstance(error, OSError):
            raise
        raise Unavailable(
            "Docker's own settings cannot be understood.", "Look at ~/.docker/config.json, or at $DOCKER_CONFIG."
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Whatever goes wrong between here and the daemon, as `Unavailable`."""
    errors = sdk().errors
    # Those of `requests`, which come through bare, are `OSError`s.
    try:
        yield
    except errors.APIError as error:
        said = " ".join(str(error.explanation or error).split())
        raise Unavailable(f"The Docker daemon refused: {said[:300]}", "`docker info` may tell more.") from error
    except (errors.DockerException, OSError) as error:
        raise _unreachable(error) from error


def _unreachable(error: BaseException) -> Unavailable:
    where = os.environ.get("DOCKER_HOST") or "the default socket"
    beneath = _beneath(error)
    numbers = {each.errno for each in beneath if isinstance(each, OSError)}
    if numbers & {errno.EACCES, errno.EPERM}:
        return Unavailable(
            f"You may not use the Docker daemon at {where}.",
            'Add yourself to the docker group (sudo usermod -aG docker "$USER"), and log in again.',
        )
    if numbers & {errno.ENOENT, errno.ECONNREFUSED}:
        return Unavailable(
            f"No Docker daemon answers at {where}.",
            "Start the Docker daemon, or let DOCKER_HOST name the one that runs.",
        )
    if any(isinstance(each, TimeoutError) for each in beneath):
        return Unavailable(f"The Docker daemon at {where} did not answer in time.", "See whether `docker info` works.")
    return Unavailable(f"The Docker daemon at {where} cannot be reached.", "See whether `docker info` works.")


def _beneath(error: BaseException) -> list[BaseException]:
    """`error` and all that it wraps, by cause or as an argument: the SDK buries the system's error deep."""
    found = [error]
    for current in found:
        inner = (*current.args, current.__cause__, current.__context__)
        found.extend(
            each for each in inner if isinstance(each, BaseException) and not any(each is one for one in found)
        )
    return found
