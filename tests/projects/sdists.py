"""The source distributions that `make projects` downloads, and a repository with the files of one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(sys.prefix) / "sdists"

PACKAGES = ("click", "markupsafe")
"""The packages whose files are projects."""

DOWNLOADED = (*PACKAGES, "pydantic_deep-0.3.32", "pydantic_deep-0.3.50")
"""The beginnings of the names of all distributions. 0.3.32 has the guide to applications with many users in the form
that deepctl follows; later versions have another interface.
"""

_IGNORED = "__pycache__/\n.pytest_cache/\n/build/\n"


class Entry(NamedTuple):
    """One entry of a directory: its kind, permission bits, and content or target."""

    kind: str
    mode: int
    content: bytes


def archive(package: str) -> Path | None:
    """The source distribution of a package; `None` if `make projects` did not run."""
    return next(iter(sorted(DIRECTORY.glob(f"{package}*.tar.gz"))), None)


def text(package: str, path: str) -> str:
    """A file of a distribution."""
    source = archive(package)
    assert source is not None, "`make projects` downloads the source distributions"
    with tarfile.open(source) as files:
        # Not by name, which would read the whole archive first.
        file = next(files.extractfile(member) for member in files if member.name.partition("/")[2] == path)
        assert file is not None
        return file.read().decode()


def git(directory: Path, *arguments: str) -> str:
    """Run git as the user, without the configuration of this machine."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0"}
    identity = ("-c", "user.name=Alice", "-c", "user.email=alice@localhost")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=directory, env=environment, check=True, capture_output=True, text=True
    ).stdout


def unpack(package: str, place: Path) -> Path:
    """The files of a package in a new repository with one commit, and some that git knows little about."""
    path = archive(package)
    assert path is not None, "`make projects` downloads the source distributions"
    with tarfile.open(path) as source:
        source.extractall(place, filter="data")
    (directory,) = place.iterdir()
    (directory / ".gitignore").write_text(_IGNORED)
    (directory / "run-tests").write_text("#!/bin/sh\nexec python -m pytest\n")
    (directory / "run-tests").chmod(0o755)
    (directory / "latest").symlink_to("src")
    (directory / "dangling").symlink_to("no/such/file")
    (directory / "private").write_text("0600\n")
    (directory / "private").chmod(0o600)
    git(directory, "init", "--quiet")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "as published")
    (directory / "untracked.txt").write_text("not in git\n")
    (directory / "private").write_text("changed by the user\n")
    return directory


def contents(directory: Path, *, ignored: bool = False) -> dict[str, Entry]:
    """Every entry below a directory but `.git`, and those that git ignores with `ignored` only."""
    found: dict[str, Entry] = {}
    for place, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name != ".git"]
        if not ignored:
            directories[:] = [name for name in directories if name not in ("__pycache__", ".pytest_cache", "build")]
        for name in (*directories, *files):
            path = Path(place, name)
            status = path.lstat()
            kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "file"
            content = os.fsencode(os.readlink(path)) if kind == "link" else b""
            mode = 0 if kind == "link" else status.st_mode & 0o7777
            content = path.read_bytes() if kind == "file" else content
            found[str(path.relative_to(directory))] = Entry(kind, mode, content)
    return found


def repository_digest(directory: Path) -> str:
    """A hash of all entries of `.git`: names, modes, times of change and bytes."""
    hasher = hashlib.sha256()
    for path in sorted((directory / ".git").rglob("*")):
        status = path.lstat()
        times = (status.st_mtime_ns, status.st_ctime_ns) if path.is_file() else ()
        hasher.update(f"{path} {status.st_mode} {times}\n".encode())
        if path.is_file() and not path.is_symlink():
            hasher.update(path.read_bytes())
    return hasher.hexdigest()
