"""What README says of codes, commands and settings is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from deepctl import errors
from deepctl.cli.main import app
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


def test_the_versions_agree(deepctl: InProcess) -> None:
    from deepctl import __version__

    assert f'version = "{__version__}"' in (PROJECT / "pyproject.toml").read_text()
    assert f"## [{__version__}]" in (PROJECT / "CHANGELOG.md").read_text()
    assert deepctl("--version").ok().stdout == f"deepctl {__version__}\n"


def test_the_top_level_help_lists_every_group(deepctl: InProcess) -> None:
    shown = deepctl().ok().stdout
    for command in _commands():
        assert command[0] in shown


def test_a_mistyped_command_or_option_is_exit_2_with_a_hint(deepctl: InProcess) -> None:
    mistyped = deepctl("profile", "list", "--json")
    assert (mistyped.code, mistyped.error["code"]) == (2, "usage")
    assert "Did you mean 'profiles'?" in mistyped.error["hint"]
    option = deepctl("profiles", "list", "--jsn")
    assert option.code == 2
    assert option.stderr.splitlines()[-1] == (
        "Hint: Did you mean --json? `deepctl profiles list --help` shows how it is used."
    )
