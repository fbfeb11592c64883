"""Skills that others have published, from packages that `make soak-skills` downloads; they are never part of deepctl.

pytest runs this file only if it is named, as `make soak-skills` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deepctl.domain.skills import MAX_SKILLS
from deepctl.sandbox.policy import SKILLS_MOUNT
from tests.agent.test_skills import anthropic
from tests.domain.test_transfer import tree
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls

__all__ = ["anthropic"]
WHEELS = sorted((Path(sys.prefix) / "skills").glob("*.whl"))
CLAUSES = ("its SKILL.md has another name, ", "its SKILL.md has more than ", "its SKILL.md does not begin with ")
"""How the reasons begin for which a published skill may be off."""


def _published(wheel: Path, place: Path) -> list[Path]:
    """The directories of all skills in a package, the first of each name."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = archive.extract(member, place)
            if mode := member.external_attr >> 16 & 0o777:
                os.chmod(path, mode)
    skills = {path.parent.name: path.parent for path in sorted(place.rglob("SKILL.md"), reverse=True)}
    return [skills[name] for name in sorted(skills)]


def _contents(directory: Path) -> dict[bytes, bytes]:
    return {path: content for path, (_, content) in tree(directory).items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wheel", WHEELS, ids=lambda path: path.name.partition("-")[0])
def test_published_skills_are_listed_loaded_and_moved_and_their_scripts_run(
    deepctl: InProcess, home: Path, tmp_path: Path, anthropic: Any, wheel: Path
) -> None:
    published = _published(wheel, tmp_path / "package")
    assert 20 < len(published) <= MAX_SKILLS
    deepctl("profiles", "create", "alice").ok()
    library = home / "profiles/alice/skills"
    for directory in published:
        shutil.copytree(directory, library / directory.name)
    before = _contents(library)

    # They are listed; what is off says why.
    listed = deepctl("skills", "list", "--user", "alice", "--json").ok().json["skills"]
    assert [skill["name"] for skill in listed] == [directory.name for directory in published]
    off = {skill["name"]: skill["problem"] for skill in listed if not skill["enabled"]}
    assert all(problem.startswith(CLAUSES) for problem in off.values()), off
    assert len(off) <= len(listed) / 10, off
    enabled = [skill for skill in listed if skill["enabled"]]

    # The agent is offered all of them, loads each, runs their scripts, and can change nothing.
    scripts = [path.relative_to(library) for path in sorted(library.glob("*/scripts/*.py"))]
    assert scripts
    place = f"{SKILLS_MOUNT}/profile"
    spoil = f"find {place} -type f | while read -r f; do echo x >> $f; rm -f $f; touch $f.new; done; rm -rf {place}/*"
    server = anthropic(
        ToolCalls([("load_capability", {"id": skill["name"]}) for skill in enabled]),
        ToolCalls([("execute", {"command": f"python3 {place}/{path} --help"}) for path in scripts]),
        ToolCalls([("execute", {"command": spoil})]),
        Text(["done"]),
    )
    run = deepctl("chat", "--user", "alice", "--json", "--timeout", "300", "use the skills").ok()
    system = json.dumps(server.requests[0]["system"])
    for skill in enabled:
        assert json.dumps(f"- {skill['name']}: {skill['description']}")[1:-1] in system
    results = [event["content"] for event in run.events if event["type"] == "tool_result"]
    assert len(results) == len(enabled) + len(scripts) + 1
    loaded = json.dumps(server.requests[1]["messages"])
    for skill in enabled:
        text = (library / skill["name"] / "SKILL.md").read_text("utf-8-sig").partition("\n---")[2].partition("\n")[2]
        assert json.dumps(text.strip()[:200].rstrip())[1:-1] in loaded, skill["name"]
    outcomes = results[len(enabled) : -1]
    helped = sum("usage:" in outcome.lower() for outcome in outcomes)
    for path, outcome in zip(scripts, outcomes, strict=True):
        # Each of them was started: its file was found, and Python could read it.
        assert f"can't open file '{place}/{path}'" not in outcome, outcome
        assert "Permission denied" not in outcome, outcome
    assert helped, outcomes
    assert _contents(library) == before

    # They are off by name, and come to another profile as they are, after a confirmation.
    name = enabled[0]["name"]
    deepctl("config", "set", "disabled_skills", name, "--user", "alice").ok()
    deepctl("chat", "--user", "alice", "--new", "x", "hello").ok()
    assert f"- {name}: " not in json.dumps(server.requests[-1]["system"])
    archive = str(tmp_path / "alice.tar.gz")
    deepctl("profiles", "export", "--user", "alice", archive).ok()
    deepctl("profiles", "import", archive, "--as", "bob").ok()
    assert deepctl("skills", "list", "--user", "bob", "--json").ok().json["skills"] == []
    deepctl("profiles", "trust", "bob", "--yes").ok()
    assert _contents(home / "profiles/bob/skills") == before
    print(f"{len(listed)} skills, {len(off)} off, {len(scripts)} scripts, {helped} of them print their usage")


def test_the_packages_are_there() -> None:
    assert WHEELS, "`make soak-skills` downloads them"
    assert subprocess.run(["bwrap", "--version"], check=False, capture_output=True).returncode == 0
