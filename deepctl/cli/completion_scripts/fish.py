"""The fish script's table: one `case` a command, with descriptions, which fish shows."""

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


def parts() -> dict[str, str]:
    """What the template's `@NAME@` lines become."""
    return {
        "ROLES": " ".join(roles()),
        "MODELS": "\n".join(_models()),
        "TABLE": "\n".join(line for command in commands() for line in _rows(command)),
        "SETTINGS": "\n".join(_settings()),
    }


def _models() -> Iterator[str]:
    for models in model_names():
        is_set = "".join(f"${variable}" for variable in models.variables)
        unless = f'; and test -z "${models.unless}"' if models.unless else ""
        yield f'    test -n "{is_set}"{unless}'
        yield f"    and set -a known {' '.join(models.names)}"


def _settings() -> Iterator[str]:
    yield "        case ''"
    for key, (text, _) in settings().items():
        yield f"            echo $before{_quoted(key)}\\t{_quoted(text)}"
    for key, (_, values) in settings().items():
        if values.kind is not ValueKind.NOTHING:
            yield f"        case {_quoted(key)}"
            yield f"            set kind {_quoted(_kind(values))}"


def _rows(command: CommandNode) -> Iterator[str]:
    yield f"        case {_quoted(' '.join(command.path))}"
    if command.children:
        yield f"            set commands {' '.join(_described(name, text) for name, text in command.children)}"
    if command.arguments:
        kinds = (_kind(argument.values) + ("*" if argument.rest else "") for argument in command.arguments)
        yield f"            set arguments {' '.join(map(_quoted, kinds))}"
    for option in command.options:
        yield f"            set -a options {_described(_option(option), option.help)}"


def _option(option: Option) -> str:
    names = " ".join(option.names)
    return names if option.values is None else f"{names}={'?' if option.optional else ''}{_kind(option.values)}"


def _described(word: str, text: str) -> str:
    return f"{_quoted(word)}\\t{_quoted(text)}"


def _kind(values: Values) -> str:
    if values.kind is ValueKind.WORD:
        return f",{','.join(values.words)}"
    if values.kind is ValueKind.WORDS:
        return f"+,{','.join(values.words)}"
    return "-" if values.kind is ValueKind.NOTHING else values.kind.value


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
