"""Searches of a workspace that runs no commands, such as one in memory: patterns are matched in a child process.

A pattern of the model's can take for ever. In this process that would hold up the event loop, with every user of an
application, and no time limit or signal could end it. Where a workspace has commands, `find` and `grep` are the child.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from pydantic_ai.workspaces import SupportsCommands, Workspace, WorkspaceError
from pydantic_ai_backends.toolsets._workspace import WorkspaceOps
from wcmatch import glob as wcglob
from wcmatch._wcparse import PatternLimitException

from deepctl.agent.backend import Line

_SECONDS = 120.0
_MEMORY = 2 << 30
_LIBRARIES = "LD_LIBRARY_PATH"
"""What a Python that was built with a shared library may need to start; nothing else is passed on."""

_CHILD = """
import json, re, resource, sys
task = json.load(sys.stdin.buffer)
resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"], task["seconds"] + 1))
resource.setrlimit(resource.RLIMIT_AS, (task["memory"], task["memory"]))
found = []
try:
    if "lines" in task:
        pattern = re.compile(task["lines"])
        for file, text in enumerate(task["texts"]):
            for number, line in enumerate(text.splitlines(), 1):
                if pattern.search(line):
                    found.append([file, number, line])
    else:
        wanted, unwanted = ([re.compile(one) for one in task[which]] for which in ("wanted", "unwanted"))
        for number, name in enumerate(task["names"]):
            if any(one.match(name) for one in wanted) and not any(one.match(name) for one in unwanted):
                found.append(number)
except (re.error, OverflowError, RecursionError) as error:
    found = "Invalid regex pattern: " + str(error)
except MemoryError:
    found = "the search took too much memory"
sys.stdout.write(json.dumps(found))
"""


def runs_commands(workspace: Workspace) -> bool:
    """Whether searches are commands there."""
    return not workspace.read_only and isinstance(workspace.backend, SupportsCommands)


async def paths(workspace: Workspace, pattern: str, where: str) -> list[str]:
    """The files below `where` that match `pattern` at any depth, sorted. Raises `WorkspaceError`."""
    base = await workspace.resolve("." if where.strip() in ("", "/", ".") else where)
    files = await WorkspaceOps(workspace)._files_under(base)
    anywhere = f"**/{pattern.removeprefix('**/')}"
    names = [posixpath.relpath(file, base) for file in files]
    return sorted(files[number] for number in await _named(names, anywhere, wcglob.GLOBSTAR))


async def lines(workspace: Workspace, pattern: str, where: str, names: str | None, *, hidden: bool) -> list[Line]:
    """The lines below `where` that match `pattern`, in text files whose name matches `names`.

    Files below a name that begins with a dot only if `hidden`. Raises `WorkspaceError`.
    """
    base = await workspace.resolve(where)
    try:
        is_file = not (await workspace.stat(base)).is_dir
    except OSError as error:
        raise WorkspaceError(str(error)) from error
    files = [base] if is_file else await WorkspaceOps(workspace)._files_under(base)
    if not is_file and not hidden:
        files = [file for file in files if not posixpath.relpath(file, base).startswith(".")]
        files = [file for file in files if "/." not in posixpath.relpath(file, base)]
    if names:
        found = await _named([posixpath.basename(file) for file in files], names, wcglob.BRACE)
        files = [files[number] for number in found]
    texts: list[str] = []
    readable: list[str] = []
    for file in files:
        try:
            texts.append((await workspace.read_bytes(file)).decode())
        except (OSError, UnicodeDecodeError):
            continue
        readable.append(file)
    matches = await _matched({"lines": pattern, "texts": texts})
    return [Line(readable[file], number, line) for file, number, line in matches]


async def _named(names: Sequence[str], pattern: str, flags: int) -> list[int]:
    """Which of the names match a pattern, by their places."""
    try:
        wanted, unwanted = wcglob.translate(pattern, flags=flags)
    except PatternLimitException as error:
        raise WorkspaceError(str(error)) from error
    places: list[int] = await _matched({"wanted": wanted, "unwanted": unwanted, "names": names})
    return places


async def _matched(task: dict[str, Any]) -> list[Any]:
    raw = json.dumps({**task, "seconds": int(_SECONDS), "memory": _MEMORY}).encode()
    environment = {_LIBRARIES: os.environ[_LIBRARIES]} if _LIBRARIES in os.environ else {}
    # Of a session of its own, so that Ctrl-C reaches it through us.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _CHILD),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            printed, _ = await process.communicate(raw)
    except TimeoutError:
        raise WorkspaceError(f"the search took longer than {_SECONDS:g} s and was ended") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise WorkspaceError("the search was ended by the system: it took too long, or too much memory")
    found = json.loads(printed)
    if isinstance(found, str):
        raise WorkspaceError(found)
    return list(found)
