"""Permissions of the agent: a profile's rules, and a person's answers, before a tool call is executed."""

from __future__ import annotations

import difflib
import json
import os
import posixpath
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.workspaces import Workspace

from deepctl.agent.approver import ApprovalRequest, Approve, Approver, Ask, Choice, always
from deepctl.agent.backend import LocalBackend
from deepctl.agent.limits import profile_of
from deepctl.agent.tasks import in_worker
from deepctl.domain.globs import bad_class
from deepctl.domain.mcp_servers import METADATA
from deepctl.domain.permissions import OPERATIONS, OWN, Permissions, Rules, Verdict, about_file, first
from deepctl.errors import BadSetting
from deepctl.files.git_directories import GIT_NAMES, looks_like_git, runs_no_program
from deepctl.files.paths_beneath import is_within
from deepctl.layout import HOME_DIRECTORY

if TYPE_CHECKING:
    from deepctl.domain.commands.kinds import KindMatch

_TOOLS = {
    "read_file": "read",
    "write_file": "write",
    "edit_file": "edit",
    "execute": "execute",
}
_WHAT = {"execute": "this command; it did not run", "mcp": "this tool; it was not used"}
_THIS = {"execute": "this command", "mcp": "this tool"}
_EVERY = {"execute": "command", "write": "write", "edit": "edit", "read": "read"}
_SESSION = "session"
_KIND = "kind "
"""The beginning of the name of a choice that allows a kind of commands, and of its grant."""
_MAX_COMPARED = 1 << 20


def _check_patterns(permissions: Permissions) -> None:
    """Raise `BadSetting` for a pattern that could never match."""
    for rules in permissions.values():
        for rule in rules.rules:
            if bad_class(rule.pattern) is not None:
                raise BadSetting(f"Pattern {rule.pattern!r} of [permissions] cannot be understood.")


@dataclass
class Approvals(AbstractCapability[Any]):
    """Decides about every file operation and command inside its call, so that no later call runs before the decision.

    The profile's rules come first. Without a matching rule, file tools may do anything inside the workspace, and so may
    commands in a sandbox; other commands need approval, and so do tools of MCP servers, unless their table says
    otherwise. `approve` answers an approval request: `auto` means yes, `never` no, `ask` the answer of `ask`, which is
    no without a terminal. If a rule that denies may apply to a command, `auto` means no. A no is reported to the model,
    and the turn continues.

    Commands of a kind in `allowed_commands` need no approval where no rule applies. With `None`, a person cannot allow
    kinds either.
    """

    approve: Approve = "ask"
    ask: Ask | None = None
    permissions: Permissions = field(default_factory=dict)
    allowed_commands: Collection[str] | None = ()
    approver: Approver = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_patterns(self.permissions)
        self.approver = Approver(self.approve, self.ask)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        """Leave out tools that could do nothing: their whole operation is denied, or the model takes no tools."""
        if not profile_of(ctx.model).get("supports_tools", True):
            return []
        denied_operations = {operation for operation, rules in self.permissions.items() if rules == Rules("deny")}
        return [definition for definition in tool_defs if _TOOLS.get(definition.name) not in denied_operations]

    async def before_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        operation = _TOOLS.get(call.tool_name)
        if operation is None:
            if _is_asked_about(tool_def):
                await self._check(ctx, "mcp", call.tool_name, call.tool_name, args)
            return args
        if operation == "execute":
            command = str(args.get("command", ""))
            verdict = self._about_command(command, is_confined=_confined(ctx.workspace))
            target = real = command
        else:
            target = str(args.get("path", ""))
            normal_path, real = await spellings(ctx.workspace, target)
            if real == "/" or (operation != "read" and _is_read_only(ctx.workspace, real)):
                return args  # it leads out of the workspace or to a skill, and the tool itself refuses that
            names = {_rule_path(ctx.workspace, path) for path in (normal_path, real)}
            verdict = about_file(self.permissions, operation, names)
            if operation == "edit":
                # The result of an edit shows the content of the file.
                read_verdict = about_file(self.permissions, "read", names)
                verdict = max(verdict, read_verdict, key=lambda verdict: verdict.strictness)
            if operation != "read" and (verdict.action == "allow" or verdict.is_plain_ask):
                if await self._is_gits(ctx.workspace, operation, normal_path, real):
                    verdict = Verdict("ask", "git runs programs that the contents of its directories name")
                elif _is_protected(ctx.workspace, normal_path, real):
                    verdict = Verdict(
                        "ask", "programs of the user obey this file without a question (setting protected)"
                    )
            # In the form that the user knows, for any spelling by the model.
            target = normal_path if normal_path == real else f"{normal_path} (which is {real})"
        if verdict.action == "deny":
            reason = f" ({verdict.reason})" if verdict.reason else ""
            raise ToolFailed(
                f"The rules of this profile do not allow this{reason}. It was not done; continue without it."
            )
        if verdict.may_be_denied and self.approve == "auto":
            # `auto` answers approval requests, except those about a command that a rule may deny.
            raise ToolFailed(
                f"The rules of this profile may not allow this ({verdict.reason}). It was not done; continue "
                "without it."
            )
        kind = await self._kind(ctx, real) if operation == "execute" and verdict.is_plain_ask else None
        if kind is not None and self._is_allowed(ctx, kind):
            return args
        if verdict.action == "ask":
            await self._check(ctx, operation, target, real, args, verdict, kind)
        return args

    async def _is_gits(self, workspace: Workspace, operation: str, normal_path: str, real: str) -> bool:
        """Whether a file belongs to git, and no rule that names `.git` allows changing it."""
        rules = self.permissions.get(operation, Rules()).rules
        for path in dict.fromkeys((normal_path, real)):
            rule = first(rules, path)
            if (rule is None or ".git" not in rule.pattern) and await _lies_in_git(workspace, path):
                return True
        return False

    def _about_command(self, command: str, *, is_confined: bool) -> Verdict:
        rules = self.permissions.get("execute", Rules())
        usual = rules.default or ("allow" if is_confined else "ask")
        if not rules.rules:
            return Verdict(usual, is_default=True)
        # The command parser is imported for the first command with rules.
        from deepctl.domain.commands.rules import judge

        return judge(rules.rules, command, otherwise=usual)

    async def _check(
        self,
        ctx: RunContext[Any],
        operation: str,
        target: str,
        real: str,
        args: dict[str, Any],
        verdict: Verdict | None = None,
        kind: str | None = None,
    ) -> None:
        """Return if the answer is yes. Raises `ToolFailed`, for the model, if it is no."""
        grants = [f"{operation} {real}"]
        choices: list[Choice] = [always(_THIS.get(operation, "this file"))]
        if verdict is not None and verdict.is_default:
            # The answer for the session covers no action about which a rule, or a protection, asks.
            grants.append(operation)
            choices.append(Choice("e", f"[e]very {_EVERY[operation]} of this session", _SESSION))
        if kind is not None:
            choices.append(_kind_choice(kind))
        if not self.approver.grants(ctx).isdisjoint(grants):
            return
        is_asked = self.approve == "ask" and self.ask is not None
        preview = await _preview(ctx.workspace, operation, str(args.get("path", "")), args) if is_asked else ""
        choice = await self.approver.check(
            ctx,
            ApprovalRequest(operation, target, preview, choices=tuple(choices)),
            grants,
            refusal=_WHAT.get(operation, f"to {operation} this file; it was not done"),
            reason=verdict.reason if verdict is not None else "",
        )
        if choice == _SESSION and len(grants) > 1:
            self.approver.grants(ctx).add(operation)
        if kind is not None and choice == _KIND + kind:
            self.approver.grants(ctx, of_all_sessions=True).add(choice)

    def _is_allowed(self, ctx: RunContext[Any], kind: str) -> bool:
        return kind in (self.allowed_commands or ()) or _KIND + kind in self.approver.grants(ctx, of_all_sessions=True)

    async def _kind(self, ctx: RunContext[Any], command: str) -> str | None:
        """The kind of a command that a person can allow for good, in this workspace."""
        workspace, read = ctx.workspace, self.permissions.get("read", Rules())
        reads_all = read.default in (None, "allow") and all(rule.action == "allow" for rule in read.rules)
        # Commands are not compared with rules about files, so a person decides about each of them.
        if self.allowed_commands is None or not reads_all or not isinstance(workspace, LocalBackend):
            return None
        from deepctl.domain.commands.kinds import kind_of  # the command parser

        match = kind_of(command)
        if match is None or not await in_worker(lambda: _is_harmless_here(workspace, match)):
            return None
        return match.name


def _kind_choice(kind: str) -> Choice:
    from deepctl.domain.commands.kinds import described

    rule = f"Rule: `{kind}` needs no approval from now on, with {described(kind)}, and with paths in the workspace."
    return Choice("k", f"[k]ind `{kind}`", _KIND + kind, rule)


def _is_harmless_here(workspace: LocalBackend, match: KindMatch) -> bool:
    """Whether no operand leads out of the workspace by a link, and git has no program to run."""
    root = workspace.root_dir
    if not all(is_within(os.path.realpath(os.path.join(root, operand)), root) for operand in match.operands):
        return False
    if match.name == "diff":
        # In a directory, it opens the files of the same names, and follows links.
        return all(os.path.isfile(os.path.join(root, operand)) for operand in match.operands)
    if not match.is_of_git:
        return True
    own_dir = workspace.profile_dir or root
    home = os.path.join(own_dir, HOME_DIRECTORY) if _confined(workspace) else getattr(workspace.sandbox, "home", None)
    return runs_no_program(root, workspace.trees.first.mount, home)


def _is_asked_about(definition: ToolDefinition) -> bool:
    """Whether a tool is from an MCP server whose table does not allow it without approval."""
    server_tool = (definition.metadata or {}).get(METADATA)
    return server_tool is not None and bool(server_tool["asks"])


def _confined(workspace: Workspace) -> bool:
    sandbox = workspace.sandbox if isinstance(workspace, LocalBackend) else None
    return sandbox is not None and sandbox.confined


def _is_read_only(workspace: Workspace, path: str) -> bool:
    return isinstance(workspace, LocalBackend) and workspace.trees.tree_of(path).read_only


async def _lies_in_git(workspace: Workspace, path: str) -> bool:
    """Whether a file is in a directory that git uses as its own, or would turn a directory into one."""
    parts = path.split("/")
    if any(_folded(part) in (".git", "git~1") for part in parts):
        return True
    if not isinstance(workspace, LocalBackend):
        return False
    for depth, part in enumerate(parts):
        above = "/".join(parts[:depth])
        if path.startswith("/") and depth == 0:
            continue
        # All of them have a HEAD, so most other directories are checked once.
        if part.lower() != "head" and not await workspace.exists(posixpath.join(above, "HEAD")):
            continue
        names = {name.lower() for name in GIT_NAMES if await workspace.exists(posixpath.join(above, name))}
        if names and looks_like_git({*names, part.lower()}):
            return True
    return False


def _is_protected(workspace: Workspace, *paths: str) -> bool:
    """Whether a file of a project is one of its `protected` files, or is in one of these directories.

    A name without a slash is protected in every directory of the project.
    """
    if not isinstance(workspace, LocalBackend) or workspace.profile_dir is None:
        return False
    for path in paths:
        parts = [] if path.startswith("/") else [_folded(part) for part in path.split("/")]
        for protected in workspace.project.protected:
            words = [_folded(part) for part in protected.strip("/").split("/")]
            starts = range(len(parts)) if len(words) == 1 else range(1)
            if any(parts[start : start + len(words)] == words for start in starts):
                return True
    return False


def _folded(name: str) -> str:
    """A name as file systems compare it that ignore case or invisible characters."""
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return visible.casefold().rstrip(". ")


async def spellings(workspace: Workspace, path: str) -> tuple[str, str]:
    """A path as written, and its real target, both relative to the workspace if possible.

    In a project, paths of the profile begin with `/profile/`.
    """
    base = await workspace.working_dir()
    normal_path = posixpath.normpath(await workspace.resolve(path))
    if isinstance(workspace, LocalBackend):
        normal_path = workspace.trees.mounted_path(normal_path)
    try:
        real = await workspace.realpath(normal_path)
    except OSError:
        real = normal_path
    beginning = f"{base.rstrip('/')}/"
    return normal_path.removeprefix(beginning), real.removeprefix(beginning)


async def rule_paths(workspace: Workspace, path: str) -> set[str]:
    """The paths of a file to which rules apply: relative to the project, or below `/profile/`."""
    return {_rule_path(workspace, spelling) for spelling in await spellings(workspace, path)}


def _rule_path(workspace: Workspace, spelling: str) -> str:
    """The files of a private workspace are those of the profile."""
    is_project = isinstance(workspace, LocalBackend) and workspace.profile_dir is not None
    return spelling if is_project or spelling.startswith("/") else OWN + spelling


async def _preview(workspace: Workspace, operation: str, path: str, args: dict[str, Any]) -> str:
    if operation == "mcp":
        return json.dumps(args, indent=2, ensure_ascii=False)
    if operation not in ("write", "edit"):
        return ""
    is_new = False
    try:
        if ((await workspace.stat(path)).size or 0) > _MAX_COMPARED:
            return "(the file is too large to show what changes)"
        before = (await workspace.read_bytes(path)).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        before, is_new = "", True
    except (OSError, ValueError) as error:
        return f"(the present content cannot be shown: {error})"
    if operation == "write":
        after = str(args.get("content", ""))
    else:
        old, new = str(args.get("old_string", "")), str(args.get("new_string", ""))
        after = before.replace(old, new, -1 if args.get("replace_all") else 1) if old else before
    if len(after) > _MAX_COMPARED:
        return "(the new content is too large to show)"
    lines = list(difflib.unified_diff(_lines(before), _lines(after), "before", "after", lineterm=""))[2:]
    if not lines:
        placeholder = "(a new, empty file)" if is_new else "(unchanged)"
        return "(only the line endings change)" if before != after else placeholder
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    # `splitlines` would also split a line at a form feed.
    return text.removesuffix("\n").split("\n") if text else []


assert set(_TOOLS.values()) == set(OPERATIONS)
