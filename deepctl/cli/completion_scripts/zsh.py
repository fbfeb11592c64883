"""The zsh script's table: what `_arguments` is told of each command."""

from __future__ import annotations

from collections.abc import Iterator

from deepctl.cli.completion_scripts.tree import (
    Argument,
    CommandNode,
    Option,
    ValueKind,
    Values,
    commands,
    model_names,
    roles,
    settings,
)

_ACTIONS = {
    # Not a blank, which shows what is wanted here: beside that, zsh does not insert the one option that fits.
    ValueKind.NOTHING: "()",
    ValueKind.PROFILE: "_deepctl_profiles",
    ValueKind.SESSION: "_deepctl_sessions",
    ValueKind.CHECKPOINT: "_deepctl_checkpoints",
    ValueKind.MEMORY: "_deepctl_memory",
    ValueKind.AGENT: "_deepctl_agents",
    ValueKind.ROLE: "_deepctl_roles",
    ValueKind.MODEL: "_deepctl_models",
    ValueKind.SETTING: "_deepctl_settings",
    ValueKind.SETTING_VALUE: "_deepctl_value",
    ValueKind.FILE: "_files",
    ValueKind.DIRECTORY: "_path_files -/",
}


def parts() -> dict[str, str]:
    """What the template's `@NAME@` lines become."""
    choices = {key: values for key, (_, values) in settings().items() if values.kind is not ValueKind.NOTHING}
    return {
        "ROLES": " ".join(roles()),
        "MODELS": "\n".join(_models()),
        "TABLE": "\n".join(line for command in commands() for line in _rows(command)),
        "SETTINGS": "\n".join(f"        {_quoted(f'{key}:{_plain(text)}')}" for key, (text, _) in settings().items()),
        "VALUES": "\n".join(f"    {key}) {_value(values)} ;;" for key, values in choices.items()),
    }


def _value(values: Values) -> str:
    return f"compadd {' '.join(values.words)}" if values.kind is ValueKind.WORD else _ACTIONS[values.kind]


def _models() -> Iterator[str]:
    for models in model_names():
        is_set = "".join(f"${{{variable}-}}" for variable in models.variables)
        unless = f" && -z ${{{models.unless}-}}" if models.unless else ""
        yield f"    [[ -n {is_set}{unless} ]] && known+=({' '.join(models.names)})"


def _rows(command: CommandNode) -> Iterator[str]:
    yield f"    '{' '.join(command.path)}')"
    yield "        specs=("
    for option in command.options:
        yield from (f"            {_quoted(spec)}" for spec in _option(option))
    yield from (f"            {_quoted(_argument(argument))}" for argument in command.arguments)
    yield "        )"
    if command.children:
        yield "        commands=("
        yield from (f"            {_quoted(f'{name}:{_plain(text)}')}" for name, text in command.children)
        yield "        )"
    yield "        ;;"


def _option(option: Option) -> Iterator[str]:
    exclusions = "*" if option.is_repeatable else f"({' '.join(option.names)})"
    for name in option.names:
        takes = ""
        if option.values is not None:
            takes = f"{'::' if option.optional else ':'}{option.metavar or 'value'}:{_action(option.values)}"
            name += "=" if name.startswith("--") else "+"
        yield f"{exclusions}{name}[{_plain(option.help)}]{takes}"


def _argument(argument: Argument) -> str:
    return f"{'*' if argument.rest else ''}:{argument.metavar}:{_action(argument.values)}"


def _action(values: Values) -> str:
    if values.kind is ValueKind.WORD:
        return f"({' '.join(values.words)})"
    if values.kind is ValueKind.WORDS:
        return f"_values -s , part {' '.join(values.words)}"
    return _ACTIONS[values.kind]


def _plain(text: str) -> str:
    """Without what `_arguments` and `_describe` would take for their own."""
    return "".join(f"\\{character}" if character in "[]:\\" else character for character in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
