"""The permissions of an agent: the rules of `[permissions]` in a settings file, and the policy for its commands.

    [permissions.execute]
    default = "ask"
    rules = [{ pattern = "git push**", action = "deny" }, { pattern = "git status", action = "allow" }]

    [permissions]
    write = "ask"                                   # short for a default without rules

The names and their meaning are pydantic-ai-backend's `PermissionRuleset`: the first rule that matches decides, else the
default. Patterns match paths relative to the workspace (`globs`), or commands (`commands.rules`); `*` stops at a slash,
`**` does not. A pattern that begins with `/profile/` matches only files of the profile. Rules for commands are for
order, a sandbox is for safety. A rule that allows a command does not allow several in one, and should contain the whole
command: `git **` allows everything that `git -c alias.x='!…' x` runs.

`CommandPolicy` is the one statement about commands, for `doctor`, the start of a chat and its conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from deepctl.domain import globs
from deepctl.domain.addresses import without_passwords
from deepctl.errors import BadSetting
from deepctl.sandbox.policy import MOUNT, PROFILE_MOUNT, Unavailable

OWN = f"{PROFILE_MOUNT}/"
"""The beginning of paths and patterns of the profile's own files."""
OPERATIONS = ("read", "write", "edit", "execute")
ACTIONS = ("allow", "ask", "deny")


class Rule(NamedTuple):
    """The action for a matching path or command."""

    pattern: str
    action: str
    description: str = ""


class Rules(NamedTuple):
    """The rules of one operation. Without its own `default`, deepctl's default holds."""

    default: str | None = None
    rules: tuple[Rule, ...] = ()


class Verdict(NamedTuple):
    """The action for a file or a command, `allow`, `ask` or `deny`, and the reason.

    `may_be_denied` is for `ask`: a rule that denies may apply to the command, depending on unknown parts. `is_default`:
    no rule applies, so it is the usual action.
    """

    action: str
    reason: str = ""
    may_be_denied: bool = False
    is_default: bool = False

    @property
    def is_plain_ask(self) -> bool:
        """Whether the action is `ask` and no rule applies."""
        return self.action == "ask" and self.is_default

    @property
    def strictness(self) -> tuple[int, bool, bool]:
        """To select the strictest of several; of two equal ones, that of a rule."""
        return ACTIONS.index(self.action), self.may_be_denied, not self.is_default


_SUCH_AS = 'Example: write = "ask", or: execute = { rules = [{ pattern = "git status", action = "allow" }] }.'

Permissions = dict[str, Rules]
"""By operation; operations without rules are missing."""


def parse(tables: object, where: str) -> Permissions:
    """The rules in a settings file's table. Raises `BadSetting`, because a misspelled rule must not be ignored."""
    place = f"[permissions] in {where}"
    if not isinstance(tables, dict):
        raise BadSetting(f"{place} must be a table.", _SUCH_AS)
    try:
        return {
            operation: _rules(_known(operation, OPERATIONS, place), rules, place) for operation, rules in tables.items()
        }
    except BadSetting as error:
        error.message = without_passwords(error.message)
        raise


def _rules(operation: str, value: object, place: str) -> Rules:
    place = f"{operation!r} of {place}"
    if isinstance(value, str):
        return Rules(_known(value, ACTIONS, place))
    table = _table(value, ("default", "rules"), place)
    rules = table.get("rules", [])
    if not isinstance(rules, list):
        raise BadSetting(f"The rules of {place} must be a list.", _SUCH_AS)
    default = table.get("default")
    return Rules(
        None if default is None else _known(default, ACTIONS, place),
        tuple(_rule(operation, rule, place) for rule in rules),
    )


def _rule(operation: str, value: object, place: str) -> Rule:
    table = _table(value, ("pattern", "action", "description"), f"a rule of {place}")
    pattern = table.get("pattern")
    if not isinstance(pattern, str) or not pattern:
        raise BadSetting(f"A rule of {place} needs a pattern.", _SUCH_AS)
    description = table.get("description", "")
    if not isinstance(description, str):
        raise BadSetting(f"The description of a rule of {place} must be text.", _SUCH_AS)
    _check_classes(pattern, place)
    if operation != "execute":
        pattern = _path(pattern, place)
    return Rule(pattern, _known(table.get("action"), ACTIONS, f"rule {pattern!r} of {place}"), description)


def _path(pattern: str, place: str) -> str:
    """A pattern in the form in which paths are compared; one that cannot match is refused."""
    beginning = OWN if pattern.startswith(OWN) else ""
    relative = pattern.removeprefix(OWN if beginning else f"{MOUNT}/")
    while relative.startswith("./"):
        relative = relative.removeprefix("./")
    if relative.endswith("/"):
        relative += "**"  # as in a .gitignore: what is in that directory
    if relative.startswith("~") or any(part in ("", ".", "..") for part in relative.split("/")):
        raise BadSetting(
            f"Pattern {pattern!r} of {place} cannot match anything.",
            "Patterns are relative to the workspace, without `.` and `..`; `**` matches everything. Those that begin "
            f"with `{OWN}` are for the profile's own files.",
        )
    return beginning + relative


def _check_classes(pattern: str, place: str) -> None:
    """Refuse an invalid `[…]`, which would never match."""
    bad = globs.bad_class(pattern)
    if bad is not None:
        raise BadSetting(f"{bad!r} in pattern {pattern!r} of {place} is invalid.")


def first(rules: Sequence[Rule], path: str) -> Rule | None:
    """The first rule that matches a path: relative to the project, or below `/profile/` for a file of the profile."""
    return next((rule for rule in rules if _matches(rule.pattern, path)), None)


def _matches(pattern: str, path: str) -> bool:
    own = path.removeprefix(OWN)
    if pattern.startswith(OWN):
        return own != path and globs.matches(pattern.removeprefix(OWN), own)
    return globs.matches(pattern, own)


def about_file(permissions: Permissions, operation: str, spellings: Iterable[str]) -> Verdict:
    """The verdict of the rules of an operation for one file, by each of its paths: the strictest."""
    rules = permissions.get(operation, Rules())
    matching_rules = [first(rules.rules, path) for path in spellings]
    verdicts = [
        Verdict(rule.action, rule.description) if rule else Verdict(rules.default or "allow", is_default=True)
        for rule in matching_rules
    ]
    return max(verdicts, key=lambda verdict: verdict.strictness)


def without_sandbox(permissions: Permissions) -> Permissions:
    """The same rules without the expected sandbox: no rule allows a command by itself then."""
    rules = permissions.get("execute", Rules())
    ask_rules = tuple(rule._replace(action="ask") if rule.action == "allow" else rule for rule in rules.rules)
    return {**permissions, "execute": Rules("deny" if rules.default == "deny" else "ask", ask_rules)}


def _table(value: object, keys: tuple[str, ...], place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadSetting(f"In {place} there must be a table, not {value!r}.", _SUCH_AS)
    for key in value:
        _known(key, keys, place)
    return value


def _known(word: object, words: tuple[str, ...], place: str) -> str:
    if not isinstance(word, str) or word not in words:
        raise BadSetting(f"{word!r} is unknown in {place}.", f"It must be one of: {', '.join(words)}.")
    return word


Questions = Literal["asked", "allowed", "denied"]
Outcome = Literal["run", "asked", "refused"]

_QUESTIONED: dict[Questions, Outcome] = {"asked": "asked", "allowed": "run", "denied": "refused"}
_RULES = {"allow": "allows", "ask": "asks about", "deny": "denies"}
_UNCLEAR = "cannot tell"
"""With rules that ask or deny, an unreadable command needs approval."""


class CommandPolicy(NamedTuple):
    """Where commands run (`None`: nowhere, `none`: unsandboxed), and the approvals that they need.

    `terminal` says whether a person can be asked, `None` if that is unknown. `problem` is the reason why they do not
    run in bubblewrap although the settings leave the choice to deepctl. In that case neither `approve` nor a rule
    allows a command.
    """

    sandbox: str | None
    approve: str
    terminal: bool | None = None
    network: bool = False
    permissions: Permissions = {}
    problem: Unavailable | None = None
    image: str | None = None
    allowed_commands: Sequence[str] = ()

    @property
    def questions(self) -> Questions:
        """The result of approval requests."""
        if self.approve == "auto" and self.problem is None:
            return "allowed"
        return "asked" if self.approve != "never" and self.terminal is not False else "denied"

    @property
    def unsandboxed(self) -> bool:
        return self.sandbox == "none"

    def statement(self) -> str:
        """The whole statement, without a capital letter and a full stop."""
        if self.sandbox is None:
            return "no shell: there is no sandbox for commands, and no terminal for approval requests"
        exceptions = self._exceptions()
        statement = self._usually()
        if exceptions:
            clauses = "; ".join(
                f"what a rule {' or '.join(verbs)} {self._told(outcome)}" for outcome, verbs in exceptions.items()
            )
            statement = f"where no rule of [permissions] applies, {statement}; {clauses}"
        if self.allowed_commands and self.problem is None and self._default == "ask":
            kinds = ", ".join(self.allowed_commands)
            statement += f"; commands of these kinds need no approval: {kinds}"
        outcomes = {self._outcome(self._default), *exceptions}
        if self.terminal is None and self.problem is not None and outcomes != {"refused"}:
            return f"{statement}; without a terminal there is no shell"
        if self.terminal is None and "asked" in outcomes:
            return f"{statement}; without a terminal, approval requests are refused"
        return statement

    @property
    def _rules(self) -> Rules:
        return self.permissions.get("execute", Rules())

    @property
    def _default(self) -> str:
        """The action for a command without a matching rule."""
        return self._rules.default or ("ask" if self.unsandboxed else "allow")

    def _outcome(self, action: str) -> Outcome:
        if action == "deny":
            return "refused"
        return "run" if action == "allow" and self.problem is None else _QUESTIONED[self.questions]

    def _exceptions(self) -> dict[Outcome, list[str]]:
        """The actions of rules that differ from the action without a rule, by result."""
        actions = {rule.action for rule in self._rules.rules}
        verbs = [(action, verb) for action, verb in _RULES.items() if action in actions]
        if actions - {"allow"} and self._default == "allow":
            verbs.append(("ask", _UNCLEAR))
        exceptions: dict[Outcome, list[str]] = {}
        for action, verb in verbs:
            outcome = self._outcome(action)
            if outcome != self._outcome(self._default):
                exceptions.setdefault(outcome, []).append(verb)
        return exceptions

    @property
    def _where(self) -> str:
        if self.unsandboxed:
            return "unsandboxed, with your rights and the network"
        where = f"a container of {self.image}" if self.sandbox == "docker" and self.image else self.sandbox
        return f"in {where}, {'with' if self.network else 'without'} the network"

    def _usually(self) -> str:
        outcome = self._outcome(self._default)
        if outcome == "run":
            return f"commands run {self._where}{', without approval requests' if self.unsandboxed else ''}"
        if outcome == "asked":
            return f"commands run {self._where}, each after an approval request"
        if self._default == "deny":
            return "commands are refused: [permissions] denies them"
        need = "each unsandboxed command needs an approval" if self.unsandboxed else "[permissions] asks for approval"
        reason = "`approve` is `never`" if self.approve == "never" else "there is no terminal"
        return f"commands are refused, because {need}, and {reason}"

    def _told(self, outcome: Outcome) -> str:
        if outcome == "refused":
            return "is refused"
        if self._outcome(self._default) != "refused":
            return "is asked about" if outcome == "asked" else "runs without approval requests"
        return f"runs {self._where}, {'after an approval' if outcome == 'asked' else 'without approval requests'}"

    def sentence(self) -> str:
        """The statement as one text."""
        statement = self.statement()
        return f"{statement[:1].upper()}{statement[1:]}."

    def notice(self) -> str | None:
        """The notice before the first prompt; `None` if commands run confined and without the network."""
        is_usual = not self.unsandboxed and not self.network and self._outcome(self._default) != "refused"
        if self.sandbox is not None and is_usual:
            return None
        reason = f" Bubblewrap cannot be used: {self.problem.reason}. {self.problem.fix}" if self.problem else ""
        return f"{self.sentence()}{reason}"


LEAN_TOOLS = (
    *("ls", "read_file", "write_file", "edit_file", "glob", "grep", "execute"),
    *("read_memory", "write_memory", "search_memory", "delete_memory"),
)
"""The tools with `tools = "lean"`."""
ALL_TOOLS = (
    *LEAN_TOOLS,
    *("save_plan", "write_plan", "read_tool_result", "save_checkpoint", "list_checkpoints", "rewind_to"),
)
EXTENSION_TOOLS = ("ask_user", "delegate_task", "search_sessions", "web_fetch", "web_search")
"""The tools that a setting of their own switches on."""
SERVER_SEPARATOR = "__"
"""Separates the name of an MCP server from the name of its tool."""


def unknown_tool(names: Iterable[str]) -> str | None:
    """The first name of no tool. Names of tools of MCP servers are not checked."""
    all_names = (*ALL_TOOLS, *EXTENSION_TOOLS)
    return next((name for name in names if name not in all_names and SERVER_SEPARATOR not in name), None)


def tool_hint(name: str) -> str:
    """The names that an unknown name could be."""
    from difflib import get_close_matches

    near = get_close_matches(name, (*ALL_TOOLS, *EXTENSION_TOOLS), 3, 0.6)
    names = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Tools are: {', '.join(sorted(ALL_TOOLS))}."
    return f"{names} Tools of MCP servers are called SERVER{SERVER_SEPARATOR}TOOL."


def disabled_tools(tools: str, names: Iterable[str]) -> frozenset[str]:
    """The tools that an agent does not have, with the settings `tools` and `disabled_tools`.

    Raises `BadSetting` for an unknown name, with the most similar ones, and for another value of `tools`.
    """
    if tools not in ("full", "lean"):
        raise BadSetting(f"tools cannot be {tools!r}.", "It must be full or lean.")
    names = (names,) if isinstance(names, str) else tuple(names)
    if (name := unknown_tool(names)) is not None:
        raise BadSetting(f"There is no tool {name!r}.", tool_hint(name))
    return frozenset(names) | (frozenset(ALL_TOOLS) - frozenset(LEAN_TOOLS) if tools == "lean" else frozenset())
