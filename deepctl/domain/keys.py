"""Keys by reference: the table `[keys]` of a settings file, and the keys that `deepctl keys set` has stored.

    [keys]
    OPENAI_API_KEY = { command = "pass show openai/alice" }
    ANTHROPIC_API_KEY = { file = "~/.secrets/anthropic-alice" }

A reference says where a key is, and never contains it. The name is that of the variable in which a client or an MCP
server would look for the key. Sources, the first one counts for each name: profile.toml, the stored keys of the
profile, config.toml.

A value is read just before a request, and goes to the client of the provider as an argument. It is never in a variable
of this process, because commands and other programs could read it there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from deepctl import redaction
from deepctl.domain import env_variables, key_sources, provider_keys, stored_keys
from deepctl.domain.key_sources import KeyProblem
from deepctl.errors import BadSetting, UsageError

TABLE = "keys"
"""The table of settings files with the references."""
KINDS = ("env", "file", "command", "keyring")

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 100
_SIMILAR = 0.88
_EXAMPLE = '{ env = "VARIABLE" }, { file = "PATH" }, { command = "PROGRAM ARGUMENTS" } or { keyring = "SERVICE" }'
_SYNONYMS = {
    "cmd": "command",
    "exec": "command",
    "environment": "env",
    "env_var": "env",
    "variable": "env",
    "var": "env",
    "path": "file",
    "keychain": "keyring",
}
_COMMON = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
"""Variables that every program needs, which are no keys."""

Source = Literal["profile", "config", "stored"]
_FILES = {"profile": "profile.toml", "config": "config.toml"}


class KeyReference(NamedTuple):
    """Where the key `name` is: `kind` is one of `KINDS`, and `place` the variable, path, command or service."""

    name: str
    kind: str
    place: str
    source: Source

    def __str__(self) -> str:
        """The reference for messages, with its source."""
        if self.source == "stored":
            where = "the keyring" if self.kind == "keyring" else self.place
            return f"{self.name}, stored in {where}"
        return f"{self.name} = {self.text} in [{TABLE}] of {_FILES[self.source]}"

    @property
    def text(self) -> str:
        """The reference as in a settings file."""
        import json

        return f"{{ {self.kind} = {json.dumps(self.place, ensure_ascii=False)} }}"


class KeyState(NamedTuple):
    """Whether a key is there; `ok` is `None` if only a command or keyring knows; `problem` ends no sentence."""

    ok: bool | None
    problem: str | None = None
    hint: str | None = None


class ProviderReferences(NamedTuple):
    """The references of one provider: that of its key, and those of further headers, by the names of the variables."""

    key: KeyReference
    headers: Mapping[str, KeyReference]


class KeyRing(NamedTuple):
    """All references in force for a profile. `environment` is that of the user; `profile` is for messages."""

    references: Mapping[str, KeyReference]
    environment: Mapping[str, str]
    profile: str | None = None

    def of_provider(self, provider: str) -> ProviderReferences | None:
        """The references of a provider; `None` if there is none, and its key comes from the environment.

        Raises `UsageError` if there are references, but none of a key that its client can be given.
        """
        own_names = provider_keys.names_of(provider)
        references = [self.references[name] for name in own_names if name in self.references]
        if not references:
            return None
        # The profile's own key comes first, even if config.toml has a key of another name for the same provider.
        references.sort(key=lambda reference: reference.source == "config")
        usable = [reference for reference in references if provider_keys.is_handed_over(reference.name)]
        if not usable:
            names = [name for name in own_names if provider_keys.is_handed_over(name)]
            instead = f"Give a reference for {' or '.join(names)}." if names else "Remove the reference."
            raise UsageError(
                f"The client of {provider} cannot be given this key: {references[0]}.",
                f"{instead} Without one, the client looks in the environment.",
                code="key_not_supported",
            )
        headers = {
            name: self.references[name] for name in provider_keys.header_names(provider) if name in self.references
        }
        return ProviderReferences(usable[0], headers)

    def has_reference(self, provider: str) -> bool:
        """Whether a provider has a reference, so that its variables in the environment do not count."""
        return any(name in self.references for name in provider_keys.names_of(provider))

    def value(self, reference: KeyReference) -> str:
        """The key. Runs a command once in a process, and may open the keyring. Raises `UsageError` naming the
        reference, never a value.
        """
        try:
            text = self._read(reference)
        except KeyProblem as problem:
            raise UsageError(f"{reference} cannot be used: it {problem}.", problem.hint, code="bad_key") from None
        redaction.remember(reference.name, text)
        return text

    def value_without_program(self, reference: KeyReference) -> str | None:
        """The key, if it can be had without a command or the keyring; else `None`. Raises like `value`."""
        return self.value(reference) if reference.kind in ("env", "file") else None

    def remember(self) -> None:
        """Remove the keys that can be had without a command or the keyring from what this process writes."""
        for reference in self.references.values():
            with suppress(UsageError):
                self.value_without_program(reference)

    def state(self, reference: KeyReference) -> KeyState:
        """Whether the key is there. Runs no command and opens no keyring."""
        try:
            if reference.kind == "command":
                key_sources.check_command(reference.place, self.environment)
                return KeyState(None)
            if reference.kind == "keyring":
                key_sources.check_keyring()
                return KeyState(None)
            self._read(reference)
        except KeyProblem as problem:
            return KeyState(False, str(problem), problem.hint)
        return KeyState(True)

    def _read(self, reference: KeyReference) -> str:
        if reference.kind == "env":
            return key_sources.of_variable(reference.place, self.environment)
        if reference.kind == "file":
            return key_sources.of_file(reference.place, self.environment)
        if reference.kind == "command":
            return key_sources.of_command(reference.place, self.environment)
        return key_sources.of_keyring(reference.place, reference.name)


NO_KEYS = KeyRing({}, {})


def stored(directory: str) -> dict[str, KeyReference]:
    """The references to the keys that `deepctl keys set` has stored for a profile, by name."""
    references = {}
    for key in stored_keys.listed(directory):
        place = stored_keys.service(directory, key.name) if key.is_in_keyring else key.path
        kind = "keyring" if key.is_in_keyring else "file"
        references[key.name] = KeyReference(key.name, kind, place, "stored")
    return references


def check_name(name: str) -> str:
    """`name` itself if it can be the name of a key. Raises `BadSetting`."""
    problem = _name_problem(name)
    if problem is not None:
        raise BadSetting(f"{_shown(name)} cannot be the name of a key: it {problem[0]}.", problem[1])
    return name


def _shown(name: str) -> str:
    """A name for a message. Anything else than a name is not shown, because it may be the key itself."""
    is_name = len(name) <= _LONGEST_NAME and _VARIABLE.fullmatch(name) is not None
    return repr(name) if is_name else "This"


def _name_problem(name: str) -> tuple[str, str] | None:
    if not is_name(name):
        hint = "It must be the name of the variable, such as OPENAI_API_KEY: capital letters, digits and underscores."
        return "has other characters than such a name", hint
    if name in _COMMON or name in env_variables.OTHERS:
        return (
            "is not a key",
            "Addresses have settings and variables of their own. `deepctl config show` lists the settings.",
        )
    return None


def check_spelling(name: str, used_names: Iterable[str] = ()) -> None:
    """Raises `BadSetting` for a name that is like one of a provider. `used_names` are those that MCP servers use."""
    names = set(provider_keys.all_names())
    if name in names or name in used_names:
        return
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(names), 1, _SIMILAR)
    if near:
        raise BadSetting(f"No provider has the key {name!r}.", f"Did you mean {near[0]!r}?")


def parse(table: object, where: str, source: Source = "config") -> dict[str, KeyReference]:
    """The references in the table `[keys]` of a settings file, by name. Raises `BadSetting`.

    No message contains a value that may be a key.
    """
    if not isinstance(table, dict):
        raise BadSetting(f"{TABLE!r} in {where} must be a table of references.", f"A reference is {_EXAMPLE}.")
    return {name: _reference(name, value, where, source) for name, value in table.items()}


def _reference(name: str, value: Any, where: str, source: Source) -> KeyReference:
    problem = _name_problem(name)
    if problem is not None:
        raise BadSetting(
            f"{_shown(name)} in [{TABLE}] of {where} cannot be the name of a key: it {problem[0]}.", problem[1]
        )
    place = f"{name} in [{TABLE}] of {where}"
    if not isinstance(value, dict):
        raise BadSetting(
            f"{place} must be a reference, not the key itself.",
            f"Remove the key from the file: `deepctl keys set {name}` stores it. A reference is {_EXAMPLE}.",
            code="key_in_settings",
        )
    for kind in value:
        if kind not in KINDS:
            raise BadSetting(f"{place} has an unknown kind of reference.", _nearest_kind(kind))
    if len(value) != 1:
        raise BadSetting(f"{place} must have exactly one of: {', '.join(KINDS)}.", f"A reference is {_EXAMPLE}.")
    [(kind, text)] = value.items()
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise BadSetting(f"{place} must have a text for {kind}.", f"A reference is {_EXAMPLE}.")
    if kind == "env" and not _VARIABLE.fullmatch(text):
        # It may be the key itself.
        raise BadSetting(f"{place} must have the name of a variable for env.", "Give the name in quotes, without $.")
    if kind == "file" and not text.startswith(("/", "~/")):
        raise BadSetting(f"{place} must have a path for file.", "The path must begin with / or ~/.")
    if kind == "command":
        _check_words(text, place)
    return KeyReference(name, kind, text, source)


def _check_words(text: str, place: str) -> None:
    try:
        words = shlex.split(text)
    except ValueError:
        raise BadSetting(f"{place} has a command with an open quotation mark.", "Close it, or remove it.") from None
    if not words or ("/" in words[0] and not words[0].startswith(("/", "~/"))):
        raise BadSetting(
            f"{place} must begin with a program.",
            "The program is a name in $PATH, or a path that begins with / or ~/. No shell runs the command.",
        )


def _nearest_kind(kind: str) -> str:
    from difflib import get_close_matches

    near = [_SYNONYMS[kind]] if kind in _SYNONYMS else get_close_matches(kind.lower()[:_LONGEST_NAME], KINDS, 1, 0.6)
    return f"Did you mean {near[0]!r}?" if near else f"A reference is {_EXAMPLE}."


def risk(name: str, value: object) -> str:
    """The possible consequence of a reference that another person chose."""
    reference = value if isinstance(value, dict) else {}
    if "command" in reference:
        return f"it runs this command unsandboxed, with your rights, and sends what it prints as {name}"
    if "file" in reference:
        return f"it sends the contents of this file of yours as {name}"
    if "env" in reference:
        return f"it sends the value of this variable as {name}"
    return f"it sends an entry of your keyring as {name}"


def is_name(text: str) -> bool:
    """Whether a text is a name that may be shown, and not a key in the place of one."""
    return len(text) <= _LONGEST_NAME and _NAME.fullmatch(text) is not None
