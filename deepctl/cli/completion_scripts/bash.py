"""The bash script's table: one `case` a command, words of it ready to be compared."""

from __future__ import annotations

from collections.abc import Iterator

from deepctl.cli.completion_scripts.tree import (
    CommandNode,
    Option,
    ValueKind,
    Values,
    commands,
    model_names,
    roles,
    settings,
)

_USER = "--user=profile --profile=profile -u=profile"
"""What most commands have."""


def parts() -> dict[str, str]:
    """What the template's `@NAME@` lines become."""
    return {
        "USER": _USER,
        "ROLES": f",{','.join(roles())}",
        "MODELS": "\n".join(_models()),
        "TABLE": "\n".join(_row(command) for command in commands()),
        "SETTINGS": "\n".join(
            f"\t{key}) kind={_kind(values)} ;;"
            for key, values in {"''": Values(ValueKind.WORD, tuple(settings())), **_limited()}.items()
        ),
    }


def _models() -> Iterator[str]:
    for models in model_names():
        is_set = "".join(f"${{{variable}-}}" for variable in models.variables)
        unless = f" && ! ${{{models.unless}-}}" if models.unless else ""
        yield f"\t[[ {is_set}{unless} ]] && known+=' {' '.join(models.names)}'"


def _limited() -> dict[str, Values]:
    return {key: values for key, (_, values) in settings().items() if values.kind is not ValueKind.NOTHING}


def _row(command: CommandNode) -> str:
    path = "".join(f" {word}" for word in command.path)
    fields = {
        "commands": " ".join(name for name, _ in command.children),
        "arguments": " ".join(_kind(item.values) + ("*" if item.rest else "") for item in command.arguments),
        # `--help` every command has.
        "options": " ".join(word for option in command.options[:-1] for word in _words(option)),
    }
    sets = " ".join(f"{name}={_short(text)}" for name, text in fields.items() if text)
    return f"\t'{path}') {sets or ':'} ;;"


def _short(text: str) -> str:
    """A word of shell; bash reads the script anew in every terminal, and its length is what that costs."""
    return f'"{text.replace(_USER, "$user")}"' if _USER in text else f"'{text}'"


def _words(option: Option) -> list[str]:
    if option.values is None:
        return list(option.names)
    return [f"{name}={'?' if option.optional else ''}{_kind(option.values)}" for name in option.names]


def _kind(values: Values) -> str:
    if values.kind is ValueKind.WORD:
        return f",{','.join(values.words)}"
    if values.kind is ValueKind.WORDS:
        return f"+,{','.join(values.words)}"
    return "-" if values.kind is ValueKind.NOTHING else values.kind.value
