"""An agent that wants out, by the real tools and in the real sandbox: nothing it tries gets anywhere."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepctl import Bubblewrap, Docker, LocalBackend, NoSandbox
from deepctl.sandbox import cgroups, container
from tests.attacks.attempts import ATTEMPTS, NONE, ONLY_BY_GROUPS, ONLY_FOR_ROOT, TOO_LONG, Attempt
from tests.attacks.scene import LIMITS, Scene, Seen, opened
from tests.support import docker


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.close()


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def backend(request: pytest.FixtureRequest, scene: Scene) -> Iterator[LocalBackend]:
    if request.param == "bubblewrap":
        with opened(scene, Bubblewrap(limits=LIMITS)) as made:
            yield made
        return
    docker.require()
    name = container.container_name(scene.alice.directory)
    with opened(scene, Docker(name, docker.IMAGE, limits=LIMITS)) as made:
        yield made
    assert container.remove(name)


@pytest.mark.parametrize("attempt", [one for one in ATTEMPTS if one.holds_in_none is False], ids=lambda one: one.name)
def test_it_is_no_empty_threat(attempt: Attempt, tmp_path: Path) -> None:
    """Without a sandbox the same attempt gets somewhere, so that holding means something."""
    scene = Scene(tmp_path)
    try:
        with opened(scene, NoSandbox(limits=LIMITS)) as backend:
            achieved, _ = got_somewhere(scene, backend, attempt)
    finally:
        scene.close()
    assert (achieved == "") == (attempt.name in ONLY_FOR_ROOT and os.geteuid() != 0)


def got_somewhere(scene: Scene, backend: LocalBackend, attempt: Attempt) -> tuple[str, list[str]]:
    """What an attempt achieved, nothing if it held, and what the agent was told."""
    scene.empty_workspace()
    before = scene.outside()
    began = time.monotonic()
    seen = scene.run(backend, attempt.calls)
    return _achieved(scene, attempt, seen, before, time.monotonic() - began), seen.results


def _achieved(scene: Scene, attempt: Attempt, seen: Seen, before: dict[str, str], seconds: float) -> str:
    if any(scene.canary in result for result in seen.results):
        return f"a secret came back: {seen.results}"
    after = scene.outside()
    if after != before:
        return f"changed outside the workspace: {sorted(set(after.items()) ^ set(before.items()))}"
    if any("{victim}" in str(call) for call in attempt.calls) and not scene.victim_lives():
        return "the victim is dead"
    if seconds > TOO_LONG:
        return "it took too long"
    return f"{seen.results}" if attempt.broken(scene, seen) else ""


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_it_holds(attempt: Attempt, scene: Scene, backend: LocalBackend) -> None:
    achieved, _ = got_somewhere(scene, backend, attempt)
    if attempt.name == ONLY_BY_GROUPS and backend.sandbox is not None and backend.sandbox.name == "bubblewrap":
        # The stated limit of an ordinary user's sandbox, which is why the kernel ends it first.
        assert (achieved == "") == cgroups.available()
        return
    assert achieved == ""


def test_the_documentation_has_every_attempt_and_what_becomes_of_it_without_a_sandbox() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "isolation.md").read_text().partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| .* \| (.+?) \|$", text, re.MULTILINE))
    assert {attempt.name: NONE[attempt.holds_in_none] for attempt in ATTEMPTS} == {
        name: verdict for name, verdict in rows.items() if name not in ("attempt", "---")
    }
    held = re.findall(r"\| (held|\*\*not held\*\*): ", text)
    assert held == ["held"] * 2 * len(ATTEMPTS)
