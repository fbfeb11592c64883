"""Commands of a chat in a project, the network, package caches and containers, as users see them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from deepctl.sandbox import container
from tests.support import docker
from tests.support.command import InProcess


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    made = tmp_path / "shop"
    made.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=made, check=True)
    subprocess.run(["git", "config", "user.name", "Al Shop"], cwd=made, check=True)
    subprocess.run(["git", "config", "user.email", "al@example.org"], cwd=made, check=True)
    (made / "a.txt").write_text("one\n")
    return made


def test_a_command_commits_as_the_user(deepctl: InProcess, shop: Path) -> None:
    deepctl("chat", "-C", str(shop), "run git add -A && git commit -qm first").ok()
    log = subprocess.run(["git", "log", "--format=%an %ae %s"], cwd=shop, capture_output=True, text=True, check=True)
    assert log.stdout == "Al Shop al@example.org first\n"
    assert sorted(os.listdir(shop)) == [".git", "a.txt"]


def test_the_setting_protected(deepctl: InProcess, shop: Path) -> None:
    assert "protected path" in deepctl("chat", "-C", str(shop), "run echo x > .envrc").ok().stdout
    deepctl("config", "set", "protected", "a.txt,ci/").ok()
    assert "): a.txt\n" in deepctl("chat", "-C", str(shop), "run echo x > a.txt; echo y > .envrc").ok().stdout
    assert (shop / "a.txt").read_text() == "one\n"
    assert (shop / ".envrc").read_text() == "y\n"
    deepctl("config", "set", "protected", "none").ok()
    deepctl("chat", "-C", str(shop), "run echo x > a.txt").ok()
    assert (shop / "a.txt").read_text() == "x\n"


def test_package_caches_are_counted_and_wiped_and_in_no_checkpoint(deepctl: InProcess, home: Path, shop: Path) -> None:
    command = (
        "run mkdir -p $GOPATH/pkg/mod/m && head -c 5000000 /dev/urandom > $GOPATH/pkg/mod/m/f && chmod -R a-w $GOPATH"
    )
    deepctl("chat", "-C", str(shop), command).ok()
    packages = home / "profiles/default/cache/packages"
    assert (packages / "go/pkg/mod/m/f").stat().st_size == 5000000
    assert deepctl("profiles", "show", "--json").ok().json["profiles"][0]["bytes"]["total"] > 5000000
    assert re.search(r"^Cache: +4\.[89] MiB", deepctl("profiles", "show").ok().stdout, re.MULTILINE)
    deepctl("chat", "-C", str(shop), "run cat $GOPATH/pkg/mod/m/f | wc -c").ok()
    packs = home / "profiles/default/checkpoints/packs"
    assert sum(path.stat().st_size for path in packs.iterdir()) < 1_000_000
    deepctl("wipe", "--only", "checkpoints", "--yes").ok()
    assert not packages.exists()


def test_the_network_is_a_setting(deepctl: InProcess) -> None:
    off = deepctl("chat", "--json", "run true").ok().events[0]
    assert (off["network"], off["notice"]) == (False, None)
    deepctl("config", "set", "network", "on").ok()
    on = deepctl("chat", "--json", "run true").ok().events[0]
    assert (on["network"], on["notice"]) == (True, "Commands run in bubblewrap, with the network.")
    assert deepctl("chat", "--json", "--no-network", "run true").ok().events[0]["network"] is False


def test_a_path_that_commands_can_read(deepctl: InProcess, tmp_path: Path) -> None:
    tool = tmp_path / "opt" / "bin" / "tool"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho a tool\n")
    tool.chmod(0o755)
    deepctl("config", "set", "read_only_paths", str(tmp_path / "opt")).ok()
    assert "a tool" in deepctl("chat", "run tool").ok().stdout


def test_a_container_goes_with_its_project(deepctl: InProcess, home: Path, shop: Path, tmp_path: Path) -> None:
    docker.require()
    deepctl("config", "set", "sandbox", "docker").ok()
    deepctl("config", "set", "docker.image", docker.IMAGE).ok()
    private = container.container_name(str(home / "profiles/default"))
    other = tmp_path / "other"
    other.mkdir()
    first, second = (container.project_name(private, str(place)) for place in (shop, other))
    for place in (shop, other):
        assert f"{place}\n" in deepctl("chat", "-C", str(place), "run pwd -P").ok().stdout
    deepctl("chat", "--no-project", "run true").ok()
    assert [docker.exists(name) for name in (private, first, second)] == [True, True, True]
    deepctl("projects", "forget", str(shop), "--yes").ok()
    assert [docker.exists(name) for name in (private, first, second)] == [True, False, True]
    deepctl("wipe", "--yes").ok()
    assert [docker.exists(name) for name in (private, first, second)] == [False, False, False]
