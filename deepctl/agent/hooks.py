"""Running the hooks of a profile around the tools of its agent.

Exit code 0 goes on; 2 refuses a tool, or gives the model a message after one; any other code, a timeout and a hook that
cannot start are warnings. No hook ends a turn. What a hook changes in the workspace counts as changed by a command of
the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, WrapToolExecuteHandler
from pydantic_ai.exceptions import ToolFailed, ToolFailedError
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.workspaces import WorkspaceError, WorkspaceTimeoutError

from deepctl.agent import delegation
from deepctl.agent.backend import LocalBackend
from deepctl.agent.checkpoints import TurnCheckpoints
from deepctl.agent.interruption import Emit
from deepctl.agent.tasks import in_worker
from deepctl.domain.addresses import without_passwords
from deepctl.domain.hooks import AFTER_TOOL, BEFORE_TOOL, TURN_END, Hook, problem
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.layout import HOME_DIRECTORY
from deepctl.redaction import redact
from deepctl.sandbox.policy import COMMAND_PATH, MOUNT, PROFILE_MOUNT
from deepctl.store.records import COMMAND
from deepctl.unicode import whole

_REFUSED = 2
_MAX_TEXT = 20_000
"""Characters of a text in the JSON of a hook."""
_MAX_JSON = 1 << 20
_MAX_MESSAGE = 4_000
_MAX_OUTPUT = 1 << 20
_SHOWN = 60
_POLL = 0.05
"""Seconds between two looks at whether a hook has ended."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_WITH_STDIN = 'exec /bin/sh -c "$2" <"$1"'
_VARIABLES = (
    *("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"),
    "DBUS_SESSION_BUS_ADDRESS",
)
"""Variables that an unsandboxed hook gets. None of them has a key."""


class HookEnd(NamedTuple):
    """The end of a hook: its exit code, or `None` with the reason in `message`, which is its output otherwise."""

    code: int | None
    message: str


@dataclass
class CommandHooks(AbstractCapability[Any]):
    """Runs hooks. `environment` has the keys that are removed from their output; `emit` receives a notice for each."""

    hooks: Sequence[Hook]
    environment: Mapping[str, str]
    emit: Emit = field(default=lambda event: None, repr=False)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Reached only if the call is allowed."""
        name = call.tool_name
        event: dict[str, Any] = {"event": BEFORE_TOOL, "tool": name, "arguments": args}
        messages = await self._run_all(ctx, BEFORE_TOOL, name, event)
        if messages:
            raise ToolFailed(f"A hook of the user refused this call; it was not done. {' '.join(messages)}".rstrip())
        if not self._has(AFTER_TOOL, name):
            return await handler(args)
        try:
            result = await handler(args)
        except (ToolFailed, ToolFailedError) as failure:
            after = {**event, "event": AFTER_TOOL, "ok": False, "result": str(failure)}
            messages = await self._run_all(ctx, AFTER_TOOL, name, after, is_in_call=True)
            if messages:
                raise ToolFailed(_with_messages(str(failure), messages)) from failure
            raise
        after = {**event, "event": AFTER_TOOL, "ok": True, "result": result if isinstance(result, str) else ""}
        messages = await self._run_all(ctx, AFTER_TOOL, name, after, is_in_call=True)
        return _with_messages(result, messages) if messages and isinstance(result, str) else result

    async def after_run(self, ctx: RunContext[Any], *, result: AgentRunResult[Any]) -> AgentRunResult[Any]:
        """The turn has an answer; that of a sub-agent is no end of a turn."""
        if delegation.current() is not None:
            return result
        answer = result.output if isinstance(result.output, str) else ""
        await self._run_all(ctx, TURN_END, "", {"event": TURN_END, "answer": answer})
        return result

    def _has(self, event: str, tool: str) -> bool:
        return any(hook.is_for(event, tool) for hook in self.hooks)

    async def _run_all(
        self, ctx: RunContext[Any], event: str, tool: str, value: dict[str, Any], *, is_in_call: bool = False
    ) -> list[str]:
        """Run the hooks of an event in their order; the first that refuses a tool is the last. Returns the messages.

        `is_in_call` means that the call of a tool has begun for the checkpoints of the turn.
        """
        if not self._has(event, tool):
            return []
        checkpoints = getattr(ctx.deps, "checkpoint_store", None)
        turn = checkpoints if isinstance(checkpoints, TurnCheckpoints) else None
        if turn is not None:
            if is_in_call:
                await turn.tool_done(tool)
            await turn.tool_starts(ctx, COMMAND)
        messages: list[str] = []
        for hook in self.hooks:
            if hook.is_for(event, tool) and (message := await self._run(ctx, hook, tool, value)) is not None:
                messages.append(message)
                if event == BEFORE_TOOL:
                    break
        # After a tool, the end of its call also ends this; after an interruption, the end of the turn does.
        if turn is not None and not is_in_call:
            await turn.tool_done(COMMAND)
        return messages

    async def _run(self, ctx: RunContext[Any], hook: Hook, tool: str, value: dict[str, Any]) -> str | None:
        """Run one hook and show it. Returns its message if it refuses."""
        workspace = ctx.workspace
        directory = await workspace.working_dir() if hook.is_sandboxed else getattr(workspace, "root_dir", "")
        session, agent = getattr(ctx.deps, "session", None), delegation.agent_name() or None
        text = _document({**value, "workspace": directory, "session": session, "agent": agent})
        began = time.monotonic()
        end = await (self._in_sandbox(workspace, hook, text) if hook.is_sandboxed else self._outside(hook, text))
        message = self._clean(end.message)
        is_refusal = end.code == _REFUSED
        outcome = "refused" if is_refusal and hook.event == BEFORE_TOOL else f"exit code {end.code}"
        if end.code is None:
            outcome = f"Warning: {message}"
        elif end.code not in (0, _REFUSED):
            outcome = f"Warning: exit code {end.code}"
        outcome = "" if end.code == 0 else f" → {outcome}"
        first = message.partition("\n")[0] if end.code not in (None, 0) else ""
        excerpt = f": {first[: 2 * _SHOWN]}" if first else ""
        line = self._clean(without_passwords(hook.command.strip())).partition("\n")[0]
        where = " ".join(filter(None, (hook.event, tool)))
        seconds = time.monotonic() - began
        short_line = line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
        self.emit({"type": "notice", "message": f"Hook {where}: {short_line}{outcome}{excerpt}  {seconds:.1f} s"})
        return message if is_refusal else None

    async def _in_sandbox(self, workspace: Any, hook: Hook, text: str) -> HookEnd:
        if not isinstance(workspace, LocalBackend) or workspace.sandbox is None:
            return HookEnd(None, "there is no sandbox for it, so it did not run")
        own_dir = workspace.profile_dir or workspace.root_dir
        mount = MOUNT if workspace.profile_dir is None else PROFILE_MOUNT
        tree = DirectoryTree(own_dir, follow=False, mount=mount)
        # In a file, because other users of the machine see the arguments of a process. No checkpoint contains it.
        name = f"{HOME_DIRECTORY}/.deepctl-hook-{secrets.token_hex(6)}.tmp"
        path = posixpath.join(mount if workspace.sandbox.confined else own_dir, name)
        try:
            await in_worker(tree.write, name, text.encode())
            result = await workspace.run(["/bin/sh", "-c", _WITH_STDIN, "sh", path, hook.command], timeout=hook.timeout)
        except WorkspaceTimeoutError:
            return HookEnd(None, f"it took longer than {hook.timeout:g} s and was ended")
        except (WorkspaceError, OSError) as error:
            return HookEnd(None, f"it could not run: {error}")
        finally:
            with suppress(OSError):
                tree.remove(name)
        return HookEnd(result.exit_code, result.stderr.strip() or result.stdout.strip())

    async def _outside(self, hook: Hook, text: str) -> HookEnd:
        if (reason := problem(hook, self.environment)) is not None:
            return HookEnd(None, f"{reason}; it did not run")
        variables = {name: self.environment[name] for name in _VARIABLES if name in self.environment}
        try:
            process = _started(hook.command, text, variables)
        except OSError as error:
            return HookEnd(None, f"it could not start: {error.strerror}")
        try:
            async with asyncio.timeout(hook.timeout):
                output = await _output(process)
        except TimeoutError:
            return HookEnd(None, f"it took longer than {hook.timeout:g} s and was ended")
        finally:
            # Also after Ctrl-C; and processes that it has left running.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return HookEnd(process.returncode, output.decode(errors="replace").strip())

    def _clean(self, message: str) -> str:
        message = redact(_CONTROL.sub("", whole(message)), self.environment)
        return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]} …"


def _started(command: str, text: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """An unsandboxed hook that reads the text. Raises `OSError`.

    It is not a process of asyncio: if a start of asyncio is cancelled, its process can go on without an owner.
    """
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=variables.get("HOME") or "/",
            env={"PATH": COMMAND_PATH, **variables},
            start_new_session=True,
        )


async def _output(process: subprocess.Popen[bytes]) -> bytes:
    """The output of a process, up to a limit, once the process has ended.

    A program that it has left in the background may have its output open, so the end of the output is not waited for.
    """
    assert process.stdout is not None
    output = bytearray()
    with process.stdout as stdout:
        os.set_blocking(stdout.fileno(), False)
        seconds = _POLL / 16
        while True:
            has_ended = process.poll() is not None
            with suppress(BlockingIOError):
                # Not all at once: a hook that never stops writing must not keep the event loop.
                chunk = os.read(stdout.fileno(), _MAX_OUTPUT)
                output.extend(chunk[: _MAX_OUTPUT - len(output)])
                if chunk and not has_ended:
                    await asyncio.sleep(0)
                    continue
            if has_ended:
                return bytes(output)
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _POLL)


def _document(value: dict[str, Any]) -> str:
    """The JSON for a hook: long texts are cut, and arguments that are too large are left out."""
    text = json.dumps(_shortened(value), default=str)
    if len(text) <= _MAX_JSON:
        return text
    return json.dumps(_shortened({**value, "arguments": None, "result": None, "is_cut": True}), default=str)


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}…").replace("\0", "")
    if isinstance(value, dict):
        return {str(key): _shortened(inner) for key, inner in value.items()}
    return [_shortened(inner) for inner in value] if isinstance(value, list | tuple) else value


def _with_messages(result: str, messages: list[str]) -> str:
    text = "\n".join(filter(None, messages))
    return f"{result}\n\nA hook of the user says: {text}" if text else result
