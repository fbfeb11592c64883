"""Rules about what the agent may do, from `[permissions]` of a settings file.

    [permissions.execute]
    default = "ask"
    rules = [{ pattern = "git push**", action = "deny" }, { pattern = "git status", action = "allow" }]

    [permissions]
    write = "ask"                                   # short for a default without rules

The names and their meaning are pydantic-ai-backend's `PermissionRuleset`: the first rule that matches decides, else the
default. Patterns match paths relative to the workspace (`globs`), or commands (`commands.rules`); `*` stops at a slash,
`**` does not. Rules about commands are for order, a sandbox is for safety. A rule that allows a command does not allow
several in one, and should name it whole: `git **` allows whatever `git -c alias.x='!…' x` runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from deepctl.domain import globs
from deepctl.domain.addresses import without_passwords
from deepctl.errors import BadSetting
from deepctl.sandbox.policy import MOUNT

OPERATIONS = ("read", "write", "edit", "execute")
ACTIONS = ("allow", "ask", "deny")


class Rule(NamedTuple):
    """What to do about what a pattern matches."""

    pattern: str
    action: str
    description: str = ""


class Rules(NamedTuple):
    """The rules of one operation. Without a `default` of its own, it is what deepctl does by itself."""

    default: str | None = None
    rules: tuple[Rule, ...] = ()


_SUCH_AS = 'Such as: write = "ask", or: execute = { rules = [{ pattern = "git status", action = "allow" }] }.'

Permissions = dict[str, Rules]
"""By operation; those without rules are missing."""


def parse(tables: object, where: str) -> Permissions:
    """The rules in a settings file's table. Raises `BadSetting`: a rule that is misspelled must not be ignored."""
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
    """A pattern for paths as they are compared; one that could match none is refused."""
    relative = pattern.removeprefix(f"{MOUNT}/")
    while relative.startswith("./"):
        relative = relative.removeprefix("./")
    if relative.endswith("/"):
        relative += "**"  # as in a .gitignore: what is in that directory
    if relative.startswith("~") or any(part in ("", ".", "..") for part in relative.split("/")):
        raise BadSetting(
            f"Pattern {pattern!r} of {place} would match nothing.",
            "Patterns are relative to the workspace, without `.` and `..`; `**` is everything.",
        )
    return relative


def _check_classes(pattern: str, place: str) -> None:
    """Refuse a `[…]` that cannot be compiled, and would then never match."""
    bad = globs.bad_class(pattern)
    if bad is not None:
        raise BadSetting(f"{bad!r} in pattern {pattern!r} of {place} cannot be understood.")


def first(rules: Sequence[Rule], path: str) -> Rule | None:
    """The first rule that matches a path, relative to the workspace."""
    return next((rule for rule in rules if globs.matches(rule.pattern, path)), None)


def without_sandbox(permissions: Permissions) -> Permissions:
    """The same rules where a sandbox was expected and there is none: no rule allows a command there by itself."""
    rules = permissions.get("execute", Rules())
    asking = tuple(rule._replace(action="ask") if rule.action == "allow" else rule for rule in rules.rules)
    return {**permissions, "execute": Rules("deny" if rules.default == "deny" else "ask", asking)}


def _table(value: object, keys: tuple[str, ...], place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadSetting(f"In {place} there must be a table, not {value!r}.", _SUCH_AS)
    for key in value:
        _known(key, keys, place)
    return value


def _known(word: object, words: tuple[str, ...], place: str) -> str:
    if not isinstance(word, str) or word not in words:
        raise BadSetting(f"{word!r} means nothing in {place}.", f"It is one of: {', '.join(words)}.")
    return word
