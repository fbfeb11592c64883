"""What README says of codes, commands and settings is what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from deepctl import errors
from deepctl.cli.main import app
from deepctl.cli.usage_errors import near_to
from deepctl.domain import provider_keys
from deepctl.domain.settings import SETTINGS
from tests.support.command import InProcess

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()


def test_the_table_of_exit_codes_is_the_one_in_the_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", README, re.MULTILINE))
    assert {int(code): meaning for code, meaning in rows.items()} == errors.EXIT_CODES


def test_every_error_class_has_a_code_of_the_table() -> None:
    def below(kind: type[errors.DeepctlError]) -> list[type[errors.DeepctlError]]:
        return [kind, *(sub for child in kind.__subclasses__() for sub in below(child))]

    classes = below(errors.DeepctlError)
    assert len(classes) > 10
    for kind in classes:
        assert kind.exit_code in errors.EXIT_CODES, kind


def test_every_setting_is_explained() -> None:
    for key in SETTINGS:
        assert f"`{key}`" in README, key


def _commands() -> list[tuple[str, ...]]:
    root = get_command(app)
    found: list[tuple[str, ...]] = []
    for name in root.list_commands(None):  # type: ignore[attr-defined]
        command = root.get_command(None, name)  # type: ignore[attr-defined]
        children = getattr(command, "commands", None)
        found += [(name, child) for child in children] if children else [(name,)]
    return found


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_is_in_readme_and_has_help_with_an_example(deepctl: InProcess, command: tuple[str, ...]) -> None:
    assert f"deepctl {' '.join(command)}" in README
    shown = deepctl(*command, "--help").ok().stdout
    assert "Example" in shown
    assert "--json" in shown


def test_the_first_commands_of_readme_do_what_it_says(deepctl: InProcess, home: Path) -> None:
    block = README.partition("**Without a key**")[2].partition("```sh\n")[2].partition("```")[0]
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert len(commands) == 6
    *_, recalled, of_bob, rewound, undone = [deepctl(*command).ok().stdout for command in commands]
    assert "window seats" in recalled
    assert of_bob == "Memory is empty.\n"
    assert "deleted   trip.md" in rewound
    assert "restored  trip.md" in undone
    assert (home / "profiles/alice/workspace/trip.md").read_text() == "Rome in May"


def test_the_variables_that_readme_names_are_those_of_the_providers() -> None:
    rows = README.partition("| model | what it needs |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    named = {name: re.findall(r"`([A-Z]\w+)`", row) for row in rows for name in re.findall(r"`([\w-]+):…`", row)}
    assert {"anthropic", "openai", "google", "groq", "ollama", "openai-chat"} <= set(named)
    for name, variables in named.items():
        assert name == "ollama" or set(provider_keys.VARIABLES[provider_keys.provider(name)]) & set(variables), name


def test_the_versions_agree(deepctl: InProcess) -> None:
    from deepctl import __version__

    assert f'version = "{__version__}"' in (PROJECT / "pyproject.toml").read_text()
    assert f"## [{__version__}]" in (PROJECT / "CHANGELOG.md").read_text()
    assert deepctl("--version").ok().stdout == f"deepctl {__version__} (deepctl-agents)\n"


def test_the_top_level_help_lists_every_group(deepctl: InProcess) -> None:
    shown = deepctl().ok().stdout
    for command in _commands():
        assert command[0] in shown


def test_a_mistyped_command_or_option_is_exit_2_with_a_hint(deepctl: InProcess) -> None:
    mistyped = deepctl("profile", "list", "--json")
    assert (mistyped.code, mistyped.error["code"]) == (2, "usage")
    assert "Did you mean 'profiles'?" in mistyped.error["hint"]
    assert "Did you mean" not in deepctl("checkpoints", "restore").stderr, "remove is not what that is a slip of"
    option = deepctl("profiles", "list", "--jsn")
    assert option.code == 2
    assert option.stderr.splitlines()[-1] == (
        "Hint: Did you mean --json? `deepctl profiles list --help` shows how it is used."
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--usr", "--user"),
        ("--usre", "--user"),
        ("--us", "--user"),
        ("--user-name", "--user"),
        ("--sesion", "--session"),
        ("--sess", "--session"),
        ("--models", "--model"),
        ("--no-network", "--network"),
    ],
)
def test_a_slip_in_an_option_is_told_by_its_letters(deepctl: InProcess, typed: str, meant: str) -> None:
    assert f"Did you mean {meant}? `deepctl chat --help`" in deepctl("chat", typed, "hello").stderr


@pytest.mark.parametrize(
    "typed", ["--url", "--quiet", "--purge", "--super", "--key", "--yes", "--list", "--stat", "--u"]
)
def test_an_option_that_is_like_no_other_is_taken_for_no_slip(deepctl: InProcess, typed: str) -> None:
    refused = deepctl("chat", typed, "hello")
    assert refused.code == 2
    assert "Did you mean" not in refused.stderr


def test_the_likeliest_comes_first_and_what_stands_before_a_name_makes_it_no_likelier() -> None:
    assert near_to("/rewnd", ["/retry", "/rewind", "/undo"]) == ["/rewind"]
    assert near_to("/list", ["/quit", "/edit"]) == []
    assert near_to("--sess", ["--session-file", "--session", "--json"]) == ["--session", "--session-file"]
