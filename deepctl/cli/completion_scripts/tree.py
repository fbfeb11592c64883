"""The command tree as completion needs it, and the one table of the values that parameters take.

Commands, options and choices come from the commands themselves. The meaning of a text parameter (a checkpoint, a
profile, a file) does not follow from its type, so `TAKES` defines it by command and parameter name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, get_args

from typer.main import get_command

from deepctl.cli.completion import SHELLS
from deepctl.cli.main import app
from deepctl.domain.provider_keys import VARIABLES, all_names
from deepctl.domain.roles import catalogue
from deepctl.domain.settings import SETTINGS
from deepctl.domain.transfer import profile_copy
from deepctl.domain.wipe.wipe_plan import PARTS


class ValueKind(Enum):
    """Kinds of values that are completed from the disk or a table. `NOTHING` is free text, a number or a new name."""

    NOTHING = "nothing"
    PROFILE = "profile"
    SESSION = "session"
    CHECKPOINT = "checkpoint"
    MEMORY = "memory"
    AGENT = "agent"
    SETTING = "setting"
    SETTING_VALUE = "value"
    FILE = "file"
    DIRECTORY = "directory"
    ROLE = "role"
    MODEL = "model"
    WORD = "word"
    WORDS = "words"


class Values(NamedTuple):
    """The values of a parameter. `words` are the choices: a `WORD` parameter takes one, a `WORDS` parameter several,
    separated by commas.
    """

    kind: ValueKind
    words: tuple[str, ...] = ()


class Option(NamedTuple):
    """An option. `values` is `None` for a flag. `optional` means that the value can be omitted, `is_repeatable` that
    the option can be repeated.
    """

    names: tuple[str, ...]
    help: str
    values: Values | None
    metavar: str
    optional: bool
    is_repeatable: bool


class Argument(NamedTuple):
    """A positional parameter; `rest` means that it takes all following words."""

    name: str
    metavar: str
    values: Values
    rest: bool


class CommandNode(NamedTuple):
    """A command or a group. A group has `children` (names and their help) instead of arguments."""

    path: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    children: tuple[tuple[str, str], ...]


NOTHING = Values(ValueKind.NOTHING)
_CHECKPOINT = Values(ValueKind.CHECKPOINT)
_PROFILE = Values(ValueKind.PROFILE)
_SESSION = Values(ValueKind.SESSION)
_FILE = Values(ValueKind.FILE)
_ROLE = Values(ValueKind.ROLE)
_MODEL = Values(ValueKind.MODEL)

TAKES: dict[tuple[str, str], Values] = {
    # The first existing key of (command, parameter), (group, parameter) and ("", parameter) counts.
    ("", "user"): _PROFILE,
    ("", "profile"): _PROFILE,
    ("", "session"): _SESSION,
    ("", "agent"): Values(ValueKind.AGENT),
    ("", "at"): _CHECKPOINT,
    ("", "ref"): _CHECKPOINT,
    ("", "refs"): _CHECKPOINT,
    ("", "before"): _CHECKPOINT,
    ("", "after"): _CHECKPOINT,
    ("", "directory"): Values(ValueKind.DIRECTORY),
    ("", "project"): Values(ValueKind.DIRECTORY),
    ("", "output"): _FILE,
    ("", "path"): _FILE,
    ("", "query"): NOTHING,
    ("", "text"): NOTHING,
    ("", "label"): NOTHING,
    ("", "model"): _MODEL,
    ("", "older_than"): NOTHING,
    ("", "since"): NOTHING,
    ("", "max_size"): NOTHING,
    ("", "as_"): NOTHING,
    ("chat", "prompt"): NOTHING,
    ("chat", "files"): _FILE,
    ("chat", "new"): NOTHING,
    ("help", "words"): NOTHING,
    ("checkpoints fork", "name"): NOTHING,
    ("checkpoints import", "session"): NOTHING,
    ("sessions", "name"): _SESSION,
    ("sessions", "old"): _SESSION,
    ("sessions", "new"): NOTHING,
    ("sessions compact", "focus"): NOTHING,
    ("sessions export", "file"): _FILE,
    ("sessions import", "file"): _FILE,
    ("sessions import", "name"): NOTHING,
    ("sessions import", "session"): NOTHING,
    ("memory", "file"): Values(ValueKind.MEMORY),
    ("profiles", "name"): _PROFILE,
    ("profiles", "old"): _PROFILE,
    ("profiles", "new"): NOTHING,
    ("profiles copy", "source"): _PROFILE,
    ("profiles copy", "name"): NOTHING,
    ("profiles copy", "only"): Values(ValueKind.WORDS, profile_copy.PARTS),
    ("profiles create", "name"): NOTHING,
    ("profiles create", "like"): _ROLE,
    ("profiles export", "file"): _FILE,
    ("profiles import", "file"): _FILE,
    ("profiles import", "name"): NOTHING,
    ("profiles import", "user"): NOTHING,
    ("roles", "name"): _ROLE,
    ("roles create", "name"): NOTHING,
    ("roles create", "source"): _PROFILE,
    ("roles create", "description"): NOTHING,
    ("roles import", "name"): NOTHING,
    ("projects", "old"): Values(ValueKind.DIRECTORY),
    ("projects", "new"): Values(ValueKind.DIRECTORY),
    ("keys", "name"): Values(ValueKind.WORD, tuple(all_names())),
    ("mcp", "name"): NOTHING,
    ("mcp add", "command"): NOTHING,
    ("mcp add", "url"): NOTHING,
    ("mcp add", "env_var"): NOTHING,
    ("mcp add", "header"): NOTHING,
    ("mcp add", "token_var"): NOTHING,
    ("config", "key"): Values(ValueKind.SETTING),
    ("config set", "value"): Values(ValueKind.SETTING_VALUE),
    ("wipe", "only"): Values(ValueKind.WORDS, tuple(PARTS)),
    ("deepctl", "install_completion"): Values(ValueKind.WORD, SHELLS),
    ("deepctl", "show_completion"): Values(ValueKind.WORD, SHELLS),
}


def roles() -> tuple[str, ...]:
    """The names of the roles that ship with deepctl."""
    return tuple(sorted(os.listdir(catalogue.SHIPPED)))


class ModelNames(NamedTuple):
    """The models of a provider that are offered if one of `variables` is set and `unless` is not: the names that
    pydantic-ai knows, or the provider alone.
    """

    variables: tuple[str, ...]
    unless: str | None
    names: tuple[str, ...]


_HOSTS = ("bedrock", "crusoe", "google-cloud", "heroku", "snowflake")
"""Providers of models that others make. Their names are long and many, so that only the provider is offered."""
_DATED = re.compile(r"[-:]v?\d{4}-?\d{2}-?\d{2}")


def model_names() -> list[ModelNames]:
    """The models of each provider. Names with a date are left out, because a name without one means the same model."""
    from pydantic_ai.models import KnownModelName

    known_names = sorted(name for name in get_args(KnownModelName.__value__) if not _DATED.search(name))
    models = [ModelNames(("OPENAI_BASE_URL",), None, ("openai-chat:",))]
    for provider, variables in sorted(VARIABLES.items()):
        names = tuple(name for name in known_names if name.partition(":")[0] == provider)
        if not names or provider in _HOSTS:
            names = (f"{provider}:",)
        models.append(ModelNames(variables, "OPENAI_BASE_URL" if provider == "openai" else None, names))
    return models


_NUMBERS = ("int", "int range", "float", "float range")


def settings() -> dict[str, tuple[str, Values]]:
    """Every setting with its help and its possible values."""
    return {
        key: (
            setting.help,
            _PROFILE
            if key == "default_user" or setting.kind == "profiles"
            else _MODEL
            if key in ("model", "title_model")
            else Values(ValueKind.WORD, setting.choices)
            if setting.choices
            else NOTHING,
        )
        for key, setting in SETTINGS.items()
    }


def commands() -> list[CommandNode]:
    """Every command and group, the root first, in the order of `--help`; hidden ones are left out.

    `help` has the commands as its subcommands, so that a shell completes its arguments like commands.
    """
    nodes = list(_below(get_command(app), ()))
    topics = [
        CommandNode(
            ("help", *node.path), node.help, (), (), tuple(child for child in node.children if child[0] != "help")
        )
        for node in nodes
        if node.path[:1] != ("help",)
    ]
    topics[0] = topics[0]._replace(options=next(node.options for node in nodes if node.path == ("help",)))
    return [node for node in nodes if node.path != ("help",)] + topics


def unknown() -> list[str]:
    """Parameters of text, as `command: name`, without an entry in `TAKES`."""
    return sorted(
        f"{' '.join(path) or 'deepctl'}: {parameter.name}"
        for path, command in _raw(get_command(app), ())
        for parameter in command.params
        if _is_text(parameter) and _taken(path, parameter.name) is None
    )


def _raw(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if command.hidden:
        return
    yield path, command
    for name, child in (getattr(command, "commands", None) or {}).items():
        yield from _raw(child, (*path, name))


def _below(command: Any, path: tuple[str, ...]) -> Iterator[CommandNode]:
    for command_path, raw in _raw(command, path):
        children = getattr(raw, "commands", None) or {}
        yield CommandNode(
            command_path,
            _sentence(raw.help),
            (
                *(
                    _option(command_path, item)
                    for item in raw.params
                    if item.param_type_name == "option" and not item.hidden
                ),
                Option(("--help", "-h"), "Show this help", None, "", False, False),
            ),
            tuple(_argument(command_path, item) for item in raw.params if item.param_type_name == "argument"),
            tuple((name, _sentence(child.help)) for name, child in children.items() if not child.hidden),
        )


def _option(path: tuple[str, ...], option: Any) -> Option:
    names = (*option.opts, *option.secondary_opts)
    metavar = option.metavar or ""
    return Option(
        tuple(sorted(names, key=lambda name: not name.startswith("--"))),
        _sentence(option.help),
        None if option.is_flag else _values(path, option),
        metavar.strip("[]"),
        metavar.startswith("["),
        bool(option.multiple),
    )


def _argument(path: tuple[str, ...], argument: Any) -> Argument:
    metavar = (argument.metavar or argument.name).strip("[].").upper()
    return Argument(argument.name, metavar, _values(path, argument), argument.nargs == -1)


def _values(path: tuple[str, ...], parameter: Any) -> Values:
    choices = getattr(parameter.type, "choices", None)
    if choices is not None:
        return Values(ValueKind.WORD, tuple(str(getattr(choice, "value", choice)) for choice in choices))
    return (_taken(path, parameter.name) if _is_text(parameter) else None) or NOTHING


def _taken(path: tuple[str, ...], parameter: str) -> Values | None:
    places = (" ".join(path) or "deepctl", path[0] if path else "", "")
    return next((TAKES[place, parameter] for place in places if (place, parameter) in TAKES), None)


def _is_text(parameter: Any) -> bool:
    """Whether the type of a parameter says nothing about its values."""
    kind = parameter.type
    return not getattr(parameter, "is_flag", False) and not hasattr(kind, "choices") and kind.name not in _NUMBERS


def _sentence(text: str | None) -> str:
    """The first sentence of a help text, without its full stop."""
    first = " ".join((text or "").split("\n\n")[0].split())
    end = min((at for mark in (". ", "; ", ": ") if (at := first.find(mark)) > 0), default=len(first))
    return first[:end].rstrip(".")
