"""Make the table of docs/isolation.md from a real run: `python -m tests.attacks`, with the daemon of `.ci/docker`."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from deepctl import Bubblewrap, Docker
from deepctl.agent.sandboxes import Sandbox
from deepctl.sandbox import container
from tests.attacks.attempts import ATTEMPTS, NONE
from tests.attacks.scene import LIMITS, Scene, opened
from tests.attacks.test_attacks import got_somewhere
from tests.support import docker

_SEEN = 60


def main() -> None:
    """Print a row for each attempt: what was seen, and whether it held."""
    seen: dict[str, list[str]] = {attempt.name: [] for attempt in ATTEMPTS}
    with tempfile.TemporaryDirectory() as directory:
        scene = Scene(Path(directory))
        name = container.container_name(scene.alice.directory)
        for sandbox in (Bubblewrap(limits=LIMITS), Docker(name, docker.IMAGE, limits=LIMITS)):
            _all(scene, sandbox, seen)
        container.remove(name)
        scene.close()
    print("| attempt | bubblewrap | Docker | none |\n|---|---|---|---|")
    for attempt in ATTEMPTS:
        print(f"| {attempt.name} | {' | '.join(seen[attempt.name])} | {NONE[attempt.holds_in_none]} |")


def _all(scene: Scene, sandbox: Sandbox, seen: dict[str, list[str]]) -> None:
    with opened(scene, sandbox) as backend:
        for attempt in ATTEMPTS:
            print(f"{sandbox.name}: {attempt.name}", file=sys.stderr)
            achieved, results = got_somewhere(scene, backend, attempt)
            seen[attempt.name].append(f"{'**not held**' if achieved else 'held'}: {_short(scene, results)}")


def _short(scene: Scene, results: list[str]) -> str:
    """The end of the last result, with what differs from run to run named instead."""
    text = " ".join(results[-1].split()) if results else ""
    text = "".join(one if one.isprintable() else "·" for one in text)
    text = text.replace(str(scene.directory), "…").replace(str(scene.victim), "PID")
    text = re.sub(r"\d{4,}", "N", text.removeprefix("Command failed "))
    text = text if len(text) <= _SEEN else f"{text[:_SEEN]}…"
    return f"`{text.replace('|', '¦').replace('`', ' ')}`" if text else "nothing"


if __name__ == "__main__":
    main()
