"""Every code block of README and of docs/ does what the page says."""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.command import InProcess
from tests.support.loopback import Text, provider
from tests.support.pages import Block, Reader

_BLOCKS = {pages.name(page): pages.blocks(page) for page in pages.PAGES}
_ALL = [block for blocks in _BLOCKS.values() for block in blocks]


def _of(*languages: str) -> list[Block]:
    return [block for block in _ALL if block.language in languages]


def test_every_block_says_what_it_is_and_few_are_not_run() -> None:
    for block in _ALL:
        assert block.language in pages.LANGUAGES, block.place
    marked = [block for block in _of("sh", "console") if block.mark]
    assert {block.mark.removeprefix("not run: ") for block in marked} <= pages.NOT_RUN
    assert len(marked) <= 8, [block.place for block in marked]
    assert len(_of("sh", "console")) > 4 * len(marked)


def test_a_figure_has_no_command_in_it() -> None:
    for block in _of("text"):
        assert not [line for line in block.text.splitlines() if line.startswith(("$ ", "deepctl "))], block.place


@pytest.mark.parametrize(
    "page", [page for page in _BLOCKS if any(b.language in ("sh", "console") for b in _BLOCKS[page])]
)
def test_the_commands_of_a_page_run_in_its_order(
    page: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path / "desk", monkeypatch)
    with provider(Text(["A window seat."]), repeat_last=True) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
        for block in _BLOCKS[page]:
            if block.language in ("sh", "console") and not block.mark:
                reader.types(block)


@pytest.mark.parametrize("block", _of("toml"), ids=lambda block: block.place)
def test_settings_are_settings(
    block: Block, deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.mark == "config.toml":
        settings = tmp_path / "config" / "config.toml"
        settings.parent.mkdir()
        deepctl("profiles", "create", "alice").ok()
        settings.write_text(block.text)
    else:
        settings = Path(deepctl("profiles", "create", "alice", "--json").ok().json["path"]) / "profile.toml"
        with settings.open("a") as file:
            file.write(block.text)
    shown = deepctl("config", "show", "--user", "alice", "--json").ok().json
    assert shown["unknown"] == []
    deepctl("sandbox", "show", "--user", "alice").ok()


@pytest.mark.parametrize("block", _of("python"), ids=lambda block: block.place)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the offline model in the place of a provider's, and the functions called as they stand."""
    monkeypatch.chdir(tmp_path)
    code = compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, object] = {}
    ran = eval(code, names)
    if inspect.iscoroutine(ran):
        asyncio.run(ran)
    for function in list(names.values()):
        if inspect.iscoroutinefunction(function) and function.__code__.co_filename == block.place:
            answered = asyncio.run(function("alice", "remember tea"))
            assert "Remembered" in answered


def test_python_satisfies_a_strict_type_checker(tmp_path: Path) -> None:
    """Code at the top level that awaits is in a function, as in an application. `make lint` checks the examples."""
    pytest.importorskip("mypy")
    files = []
    for number, block in enumerate(_of("python")):
        text = block.text
        try:
            compile(text, block.place, "exec")
        except SyntaxError:
            body = "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())
            text = f"async def main() -> None:\n{body}"
        files.append(tmp_path / f"block_{number}.py")
        files[-1].write_text(f"# {block.place}\n{text}")
    assert len(files) > 5
    # The cache of `make lint`, because a check of all libraries takes a minute.
    settings = ("--config-file", str(pages.PROJECT / "pyproject.toml"))
    words = ["mypy", *settings, "--cache-dir", str(pages.PROJECT / ".mypy_cache"), *map(str, files)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
