"""What README and docs/ say of codes, commands, settings, files and modules is what the code has."""

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
from tests.support import pages
from tests.support.command import InProcess

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()


def _page(name: str) -> str:
    return (PROJECT / "docs" / f"{name}.md").read_text()


def test_readme_is_a_page() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    first = lines[:20]
    assert "make demo" in "".join(first)
    assert "make test" in "".join(first)
    assert any(line.startswith("![") and "docs/pictures/" in line for line in first)


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert heading in [_anchor(text) for text in headings], target


def _anchor(heading: str) -> str:
    """The name of a heading in a link, as the usual renderers make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_and_picture_can_be_reached_from_readme() -> None:
    seen, todo = set[Path](), [PROJECT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.exists():
            seen.add(page)
            if page.suffix == ".md":
                links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
                todo += [(page.parent / link).resolve() for link in links if not link.startswith("https:")]
    assert {path for path in pages.PAGES if path not in seen} == set()
    assert {path for path in (PROJECT / "docs/pictures").glob("*.svg") if path not in seen} == set()


_PACKAGES = "agent|cli|domain|files|output|sandbox|store"
_PATH = re.compile(r"[\w./-]+/[\w.-]*\.(?:py|sh|md|svg|json)|(?:tests|benchmarks|examples|deepctl)/[\w/]*")
_MODULE = re.compile(rf"(?:deepctl\.)?((?:{_PACKAGES})(?:\.[a-z_]+)+?)(?:\.(\w+))?(?:\(\))?")


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_path_and_module_that_a_page_names_exists(page: Path) -> None:
    """`store/rewind.py` is a file of the package, `store.rewind.run` a module with a name in it, `tests/…` a file."""
    code = re.findall(r"(?<!`)`([^`\s]+)`(?!`)", page.read_text())
    paths = [text for text in code if _PATH.fullmatch(text)]
    modules = [text for text in code if _MODULE.fullmatch(text)]
    bases = (PROJECT, PROJECT / "deepctl", page.parent)
    assert [text for text in paths if not any((base / text).exists() for base in bases)] == []
    assert [text for text in modules if not _is_there(text)] == []


def _is_there(text: str) -> bool:
    match = _MODULE.fullmatch(text)
    assert match is not None
    module, attribute = match[1], match[2]
    if attribute is None or _source(f"{module}.{attribute}") is not None:
        return _source(f"{module}.{attribute}" if attribute else module) is not None
    return re.search(rf"^(?:(?:async )?def |class )?{attribute}\b", _source(module) or "", re.MULTILINE) is not None


def _source(module: str) -> str | None:
    path = PROJECT / "deepctl" / module.replace(".", "/")
    return next((file.read_text() for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def test_the_table_of_exit_codes_is_the_one_in_the_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", _page("exit-codes"), re.MULTILINE))
    assert {int(code): meaning for code, meaning in rows.items()} == errors.EXIT_CODES


def test_every_error_class_has_a_code_of_the_table() -> None:
    def below(kind: type[errors.DeepctlError]) -> list[type[errors.DeepctlError]]:
        return [kind, *(sub for child in kind.__subclasses__() for sub in below(child))]

    classes = below(errors.DeepctlError)
    assert len(classes) > 10
    for kind in classes:
        assert kind.exit_code in errors.EXIT_CODES, kind


def test_every_setting_is_explained() -> None:
    page = _page("settings")
    for key in SETTINGS:
        assert f"`{key}`" in page, key


def _commands() -> list[tuple[str, ...]]:
    root = get_command(app)
    found: list[tuple[str, ...]] = []
    for name in root.list_commands(None):  # type: ignore[attr-defined]
        command = root.get_command(None, name)  # type: ignore[attr-defined]
        children = getattr(command, "commands", None)
        found += [(name, child) for child in children] if children else [(name,)]
    return found


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_is_in_the_reference_and_has_help_with_an_example(
    deepctl: InProcess, command: tuple[str, ...]
) -> None:
    assert f"deepctl {' '.join(command)}" in _page("commands")
    shown = deepctl(*command, "--help").ok().stdout
    assert "Example" in shown
    assert ("--json" in shown) == (command != ("help",))


def test_the_first_commands_of_readme_do_what_it_says(deepctl: InProcess, home: Path) -> None:
    block = README.partition("## First session, offline")[2].partition("```sh\n")[2].partition("```")[0]
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert len(commands) == 4
    *_, recalled, of_bob = [deepctl(*command).ok().stdout for command in commands]
    assert "window seats" in recalled
    assert of_bob == "Memory is empty.\n"
    rewound = deepctl("checkpoints", "rewind", "~2", "--user", "alice").ok().stdout
    assert "deleted   trip.md" in rewound
    undone = deepctl("checkpoints", "undo", "--user", "alice").ok().stdout
    assert "restored  trip.md" in undone
    assert (home / "profiles/alice/workspace/trip.md").read_text() == "Rome in May"


@pytest.mark.parametrize(
    ("text", "header"), [(README, "| model | requirements |"), (_page("models"), "| model | what it needs |")]
)
def test_the_variables_that_a_page_names_are_those_of_the_providers(text: str, header: str) -> None:
    rows = text.partition(f"{header}\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    named = {name: re.findall(r"`([A-Z]\w+)`", row) for row in rows for name in re.findall(r"`([\w-]+):…`", row)}
    assert {"anthropic", "openai", "google", "ollama", "openai-chat"} <= set(named)
    for model, variables in named.items():
        assert model == "ollama" or set(provider_keys.VARIABLES[provider_keys.provider(model)]) & set(variables), model


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
        ("--no-net", "--no-network"),
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
