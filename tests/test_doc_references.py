"""Names of modules and files in docs and docstrings are those of the source."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FILE = re.compile(r"`([\w/.-]+\.py)`")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_DOTTED = re.compile(r"`(deepctl(?:\.\w+)+)`")


def test_every_file_that_a_document_names_exists() -> None:
    files = {path.relative_to(ROOT).as_posix() for place in ("deepctl", "tests", "docs", "benchmarks", "examples")
             for path in (ROOT / place).rglob("*.py")}  # fmt: skip
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for name in _FILE.findall(document.read_text())
        if not any(f"/{path}".endswith(f"/{name}") for path in files)
    ]
    assert missing == []


def test_every_test_that_a_document_names_exists() -> None:
    named = [
        (document.name, path, test)
        for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for path, test in _TEST.findall(document.read_text())
    ]
    assert named
    assert [entry for entry in named if f"def {entry[2]}(" not in (ROOT / entry[1]).read_text()] == []


def test_every_module_and_name_that_a_docstring_refers_to_exists() -> None:
    sources = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path.read_text()
        for path in (ROOT / "deepctl").rglob("*.py")
    }

    def exists(reference: str) -> bool:
        module, names = reference, list[str]()
        while module not in sources:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
        return not names or re.search(rf"\b{names[0]}\b", sources[module]) is not None

    missing = [
        f"{module}: {reference}"
        for module, text in sources.items()
        for reference in _DOTTED.findall(text)
        if not exists(reference)
    ]
    assert missing == []
