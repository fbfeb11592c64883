"""The views of config, keys, models, sandbox and doctor: settings, models, and the state of this machine.

Those of keys contain no values.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl import distribution
from deepctl.domain.addresses import without_passwords
from deepctl.domain.keys import KeyReference, KeyState
from deepctl.domain.mcp_servers import McpServer
from deepctl.domain.providers import ModelServer, Provider, model_name
from deepctl.domain.settings import Value
from deepctl.layout import UNTRUSTED
from deepctl.output import profiles
from deepctl.output.render import (
    Cell,
    has_colour,
    home,
    is_terminal,
    notice,
    print_sentence,
    printable,
    table,
    terminal_width,
    tint,
    visible,
)
from deepctl.quantities import counted, size

if TYPE_CHECKING:
    from deepctl.agent.models import ModelCheck
    from deepctl.domain.doctor import Check
    from deepctl.domain.hooks import Hook
    from deepctl.domain.sandbox_settings import SandboxDescription
    from deepctl.domain.trust import TrustItem


_SOURCE_MEANINGS = {"default": "faint"}
_WAITS = Cell(f"{UNTRUSTED}, not in force", "warning")


class SettingsView(NamedTuple):
    """Every setting in force, unknown keys of the file, MCP servers, and hooks in the order in which they run.

    `untrusted_items` are imported settings that are not in force; `problem` is the reason why they cannot be read.
    """

    profile: str | None
    path: str
    values: list[Value]
    unknown_keys: list[str]
    servers: list[McpServer] = []
    untrusted_items: list[TrustItem] = []
    problem: str | None = None
    hooks: list[Hook] = []

    def document(self) -> dict[str, Any]:
        from deepctl.output.mcp import server_document  # only for JSON

        return {
            "profile": self.profile,
            "path": self.path,
            "settings": [_value_document(value) for value in self.values],
            "unknown": self.unknown_keys,
            "mcp_servers": [server_document(server) for server in self.servers],
            "hooks": [_hook_document(hook) for hook in self.hooks],
            "untrusted": profiles.documents(self.untrusted_items),
        }

    def print(self) -> None:
        rows: list[tuple[str | Cell, ...]] = [
            (
                value.key,
                "-" if value.value is None else without_passwords(value.value),
                Cell(value.source, _SOURCE_MEANINGS.get(value.source, "")),
            )
            for value in self.values
        ]
        rows += [
            (
                f"mcp_servers.{server.name}",
                without_passwords(server.target) if server.enabled else "switched off",
                server.source,
            )
            for server in self.servers
        ]
        rows += [
            (f"hooks.{hook.event}", _one_line(hook) + ("" if hook.is_sandboxed else " (unsandboxed)"), hook.source)
            for hook in self.hooks
        ]
        rows += [(key, "-", Cell("unknown setting, ignored", "warning")) for key in self.unknown_keys]
        rows += [(item["key"], _text(item["value"]), _WAITS) for item in profiles.documents(self.untrusted_items)]
        table(("SETTING", "VALUE", "FROM"), rows)
        if self.untrusted_items:
            notice(f"The settings in {UNTRUSTED} are not in force until `deepctl profiles trust {self.profile}`.")
        if self.problem is not None:
            notice(self.problem)


def _one_line(hook: Hook) -> str:
    line, remainder, _ = without_passwords(hook.command.strip()).partition("\n")
    return f"{line} …" if remainder else line


def _hook_document(hook: Hook) -> dict[str, Any]:
    return {
        "event": hook.event,
        "command": without_passwords(hook.command),
        "tools": list(hook.tools),
        "timeout": hook.timeout,
        "sandbox": hook.is_sandboxed,
        "source": hook.source,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value_document(value: Value) -> dict[str, Any]:
    return {**value._asdict(), "value": without_passwords(value.value)}


class SettingView(NamedTuple):
    """One setting. Piped, its exact value, without the password of an address."""

    profile: str | None
    value: Value

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, **_value_document(self.value)}

    def print(self) -> None:
        text = without_passwords(self.value.value) or ""
        print(printable(text) if is_terminal(sys.stdout) else text)


class SettingChangeView(NamedTuple):
    """A setting that was set, or removed (`None`)."""

    profile: str | None
    path: str
    key: str
    value: str | None

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path, "key": self.key, "value": without_passwords(self.value)}

    def print(self) -> None:
        where = f"profile {self.profile}" if self.profile else self.path
        change = (
            f"{self.key} = {without_passwords(self.value)!r}"
            if self.value is not None
            else f"{self.key} is no longer set"
        )
        print(f"{printable(change)} in {printable(where)}")


class SettingsEditView(NamedTuple):
    """An edit of a settings file; `is_changed` says whether the text is another one."""

    profile: str | None
    path: str
    is_changed: bool

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path, "changed": self.is_changed}

    def print(self) -> None:
        if self.is_changed:
            print(f"Changed {printable(home(self.path))}.")
        else:
            notice(f"{home(self.path)} was not changed.")


_MODEL_SOURCES = {
    "environment": "$DEEPCTL_MODEL",
    "profile": "profile.toml",
    "config": "config.toml",
    "default": "the default",
}


class ModelsView(NamedTuple):
    """The model in force, providers, and the models of your own servers; `everything` includes unusable providers."""

    profile: str | None
    model: Value
    providers: list[Provider]
    servers: list[ModelServer]
    everything: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "model": {"value": without_passwords(self.model.value), "source": self.model.source},
            "providers": [
                {**item._asdict(), "key": item.key._asdict() if item.key is not None else None}
                for item in self.providers
            ],
            "servers": [{**item._asdict(), "models": list(item.models)} for item in self.servers],
        }

    def print(self) -> None:
        model = without_passwords(self.model.value) or ""
        providers = [item for item in self.providers if item.usable or self.everything]
        rows: list[tuple[str | Cell, ...]] = [
            (model_name(server, name), "server", server.url) for server in self.servers for name in server.models
        ]
        rows += [
            (model_name(server, "…"), "server", Cell(f"{server.url}: {server.reason}", "faint"))
            for server in self.servers
            if not server.reachable
        ]
        rows += [
            (model_name(server, "…"), "server", Cell(f"{server.url}: it has no models", "warning"))
            for server in self.servers
            if server.reachable and not server.models
        ]
        rows += [
            (item.name if item.key is None else f"{item.name}:…", "provider", _standing(item)) for item in providers
        ]
        if not is_terminal(sys.stdout):
            table(
                ("MODEL", "KIND", "STANDING"),
                [(without_passwords(self.model.value) or "", "model", self.model.source), *rows],
            )
            return
        where = _MODEL_SOURCES.get(self.model.source, self.model.source)
        print(f"The model is {tint(printable(model), 'strong')} (from {where}).\n")
        table(("MODEL", "KIND", "STANDING"), rows)
        hidden_count = len(self.providers) - len(providers)
        remainder = f" --all lists {hidden_count} more providers." if hidden_count else ""
        print()
        notice(
            f"`deepctl chat --model NAME` selects a model once, `deepctl config set model NAME` permanently.{remainder}"
        )


class ModelCheckView(NamedTuple):
    """The result of a test request to a model."""

    model: str
    check: ModelCheck

    def document(self) -> dict[str, Any]:
        return {"model": without_passwords(self.model), **self.check._asdict(), "hints": list(self.check.hints)}

    def print(self) -> None:
        check = self.check
        print(f"Model    {printable(without_passwords(self.model))}")
        print(f"Answers  {_yes_no(check.answers)}")
        print(f"Tools    {_yes_no(check.tools)}")
        print(f"Usage    {_yes_no(check.usage)}")
        print(f"Window   {'unknown' if check.window is None else counted(check.window, 'token')}")
        for hint in check.hints:
            print(f"Hint: {hint}")


def _yes_no(value: bool) -> str:
    return tint("yes", "good") if value else tint("no", "warning")


def _standing(provider: Provider) -> Cell:
    if not provider.installed:
        if provider.extra is not None:
            return Cell(f"its client is not installed: {distribution.to_install(provider.extra)}", "faint")
        return Cell("its client is not installed", "faint")
    if provider.key is None:
        return Cell("needs neither network nor key", "")
    if provider.key.set:
        return Cell(provider.key.meaning, "good")
    if provider.usable:
        return Cell(f"{provider.key.meaning}, and may not be needed", "")
    return Cell(provider.key.meaning, "faint")


class SandboxView(NamedTuple):
    """Where commands run, and their limits."""

    description: SandboxDescription

    def document(self) -> dict[str, Any]:
        sandbox = self.description
        return {
            **sandbox._asdict(),
            "image": without_passwords(sandbox.image),
            "limits": sandbox.limits._asdict(),
            "permissions": {
                operation: {"default": rules.default, "rules": [rule._asdict() for rule in rules.rules]}
                for operation, rules in sandbox.permissions.items()
            },
        }

    def print(self) -> None:
        sandbox = self.description
        limits = sandbox.limits
        rows = [
            ("Profile", sandbox.profile),
            ("Sandbox", sandbox.sandbox),
            ("Approval", sandbox.approve),
            ("Network", sandbox.network),
            ("Protected", ", ".join(sandbox.protected) or "no paths of projects"),
            ("Readable", ", ".join(["the system", *sandbox.read_only_paths])),
            ("Time", f"{limits.seconds:g} s a command"),
            ("Memory", size(limits.memory)),
            ("Processes", str(limits.processes)),
            ("/tmp", size(limits.tmp)),
            ("Disk", f"{size(limits.disk)} a command"),
        ]
        if sandbox.sandbox == "docker":
            rows += [("Image", without_passwords(sandbox.image)), ("Container", sandbox.container)]
        for operation, rules in sandbox.permissions.items():
            rows.append((f"Rules: {operation}", f"else {rules.default}" if rules.default else "else as usual"))
            rows += [("", f"{rule.action}  {rule.pattern}") for rule in rules.rules]
        behind = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{behind}}  {printable(value)}")


class ContainerRemovalView(NamedTuple):
    """A container that was removed, if there was one."""

    profile: str
    container: str
    removed: bool

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        if self.removed:
            print(f"Removed the container {self.container} of {printable(self.profile)}.")
        else:
            print(f"{printable(self.profile)} has no container.")


_MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}
_COLOURS = {"ok": "32", "warning": "33", "problem": "31"}
_DIM, _BOLD = "2", "1"


class DiagnosisView(NamedTuple):
    """All checks. Without `in_full`, profiles without problems are shown in one line."""

    checks: Sequence[Check]
    in_full: bool = True

    @property
    def has_problems(self) -> bool:
        """Whether something does not work."""
        return any(check.status == "problem" for check in self.checks)

    def document(self) -> dict[str, Any]:
        return {"ok": not self.has_problems, "checks": [_check_document(check) for check in self.checks]}

    def print(self) -> None:
        groups = [(profile, list(checks)) for profile, checks in groupby(self.checks, lambda check: check.profile)]
        groups_in_full: list[tuple[str | None, list[Check]]] = []
        well: list[str] = []
        for profile, checks in groups:
            if profile is None or self.in_full:
                groups_in_full.append((profile, checks))
            elif amiss := [check for check in checks if check.status != "ok"]:
                groups_in_full.append((profile, amiss))
            else:
                well.append(profile)
        page = _Page(max((len(check.name) for _, checks in groups_in_full for check in checks), default=0))
        for profile, checks in groups_in_full:
            page.heading("This machine" if profile is None else f"Profile {profile}")
            for check in checks:
                page.check(check)
        if well:
            page.heading("No problems in")
            page.text(", ".join(well))
        page.text(self._summary(), indent="")

    def _summary(self) -> str:
        numbers = {status: sum(check.status == status for check in self.checks) for status in ("problem", "warning")}
        counts = [f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in numbers.items() if number]
        return f"\n{' and '.join(counts)}." if counts else "\nEverything is in order."


def _check_document(check: Check) -> dict[str, Any]:
    document = check._asdict()
    if check.profile is None:
        del document["profile"]
    return document


class _Page:
    """Text in aligned columns, wrapped at the width of a terminal; piped text is not wrapped."""

    def __init__(self, names: int) -> None:
        self._names = names
        self._terminal = is_terminal(sys.stdout)
        self._coloured = has_colour(sys.stdout)
        self._width = terminal_width()
        self._begun = False

    def heading(self, text: str) -> None:
        if self._begun:
            print()
        self._begun = True
        print(self._in(_BOLD, printable(text)))

    def check(self, check: Check) -> None:
        indent = " " * (self._names + 6)
        mark = self._in(_COLOURS[check.status], _MARKS[check.status])
        first, *further = self._wrapped(check.found, len(indent))
        print(f"  {mark} {check.name:<{self._names}}  {first}")
        for line in further:
            print(indent + line)
        if check.hint and check.status != "ok":
            # Unchanged, because it may be a command, and quotes prevent a shell from expanding `~`.
            for line in self._wrapped(check.hint, len(indent), at_home=False):
                print(indent + self._in(_DIM, line))

    def text(self, text: str, indent: str = "  ") -> None:
        blank, text = ("\n", text[1:]) if text.startswith("\n") else ("", text)
        print(blank + "\n".join(indent + line for line in self._wrapped(text, len(indent))))

    def _wrapped(self, text: str, indent: int, *, at_home: bool = True) -> list[str]:
        line = printable(text)
        if not self._terminal:
            return [line]
        line = _at_home(line) if at_home else line
        room = max(20, (self._width or 80) - indent)
        return textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


def _at_home(text: str) -> str:
    """`text` with `~` for the home directory at the start of each path."""
    start = printable(os.path.expanduser("~"))
    return re.sub(rf"(?<![\w/.~-]){re.escape(start)}(?=/|\s|$|[,;:)])", "~", text) if len(start) > 1 else text


_KEY_SOURCES = {"profile": "profile.toml", "config": "config.toml", "stored": "stored"}


class ListedKey(NamedTuple):
    """A reference, and whether its key is there."""

    reference: KeyReference
    state: KeyState


class KeyListView(NamedTuple):
    """The keys of a profile."""

    profile: str
    keys: list[ListedKey]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "keys": [
                {
                    "name": reference.name,
                    "source": reference.source,
                    "reference": {reference.kind: without_passwords(reference.place)},
                    "ok": state.ok,
                    "problem": state.problem,
                }
                for reference, state in self.keys
            ],
        }

    def print(self) -> None:
        if not self.keys and is_terminal(sys.stdout):
            notice(
                f"Profile {self.profile} has no keys of its own, so they come from the environment. "
                f"`deepctl keys set NAME --user {self.profile}` stores one."
            )
            return
        rows = [
            (
                reference.name,
                _KEY_SOURCES[reference.source],
                f"{reference.kind}: {visible(home(without_passwords(reference.place)))}",
                _key_state(state),
            )
            for reference, state in self.keys
        ]
        table(("NAME", "SOURCE", "REFERENCE", "STATE"), rows)
        for reference, state in self.keys:
            if state.ok is False:
                notice(f"{reference.name} {state.problem}. {state.hint or ''}".rstrip())


def _key_state(state: KeyState) -> Cell:
    if state.ok is None:
        return Cell("not tried", "faint")
    return Cell("ok", "good") if state.ok else Cell("not usable", "bad")


class KeyStoredView(NamedTuple):
    """A stored key. `store` is `keyring` or `file`; `place` is the service or the path.

    `replaced` means that the profile had a stored key of that name.
    """

    profile: str
    name: str
    store: str
    place: str
    replaced: bool

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        where = f"in the keyring, as {self.place}" if self.store == "keyring" else f"in {home(self.place)}"
        instead = ", instead of the former key" if self.replaced else ""
        print_sentence(f"{self.name} of {self.profile} stored {visible(where)}{instead}.")


class KeyForgottenView(NamedTuple):
    """A forgotten key: whether a stored one was deleted, and a reference removed from profile.toml."""

    profile: str
    name: str
    deleted: bool
    removed: bool

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        what = [*(["deleted"] if self.deleted else []), *(["removed from profile.toml"] if self.removed else [])]
        print_sentence(f"{self.name} of {self.profile} {' and '.join(what)}.")
