"""The structure of the source in figures: modules, lines, importers, and names that say too little.

    python -m benchmarks.structure          the figures of the table "Before and after" in docs/design.md
    python -m benchmarks.structure --list   and the modules, classes and variables behind them

Only the files below `deepctl/` in the current directory are read; nothing is imported from them.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

_ROOT = Path("deepctl")
_PRONOUNS = """
one ones what this that it its other others another both each all none nothing something anything everything
which who whom whose those these them they he she us we ours theirs mine any some such same more here there
"""
_PARTICIPLES = """
found wanted told said given kept left seen done known shown made taken meant held begun gone come came added
affected allowed answered applied asked assigned attached blocked bounded brought built cached called caught
changed checked chosen cleared closed collected compared copied counted damaged dealt declared decoded deleted
divided doomed drawn driven dropped encoded ended escaped expected extended failed felt filled filtered fitted
folded followed foretold forgotten got grouped guarded heard hidden hurt ignored joined laid led lent let limited
listed loaded lost mapped marked matched measured merged missed moved named needed noted opened paid passed
picked placed planned printed quit raised reached refused removed replaced reported required resolved returned
saved searched selected sent shaken shared shut slept sorted sought spent spoken standing started stolen stopped
stored stripped struck taught thought torn touched tried turned understood updated used viewed waited walked
watched won worn wrapped written accepted asking carried changing coming doing giving going having helping
keeping leaving making opening reading running saying taking telling waiting working writing
"""
_BARE = frozenset((_PRONOUNS + _PARTICIPLES).split())


def main() -> None:
    """Print the figures."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(_ROOT.rglob("*.py"))}
    lines = {path: len(path.read_text().splitlines()) for path in trees}
    single = _with_one_importer(trees)
    twice = {name: paths for name, paths in _classes(trees).items() if len(paths) > 1}
    variables = [(name, f"{path}:{line}") for path, tree in trees.items() for name, line in _variables(tree)]
    bare = [place for place in variables if place[0].strip("_") in _BARE]
    print(f"modules                                {len(trees)}")
    print(f"lines                                  {sum(lines.values()):,}")
    print(f"modules with one importer              {len(single)} ({sum(lines[path] for path in single):,} lines)")
    print(f"class names with two or more meanings  {len(twice)}")
    print(f"bare participles or pronouns           {len(bare)} of {len(variables):,} variables, ", end="")
    print(f"{len(bare) / len(variables):.1%}")
    for package in sorted({path.parts[1] for path in trees if len(path.parts) > 2}):
        files = [path for path in trees if len(path.parts) > 2 and path.parts[1] == package]
        print(f"  {package:<10} {len(files):>4} modules {sum(lines[path] for path in files):>7,} lines")
    if "--list" in sys.argv[1:]:
        print(*(f"one importer: {path}" for path in single), sep="\n")
        print(*(f"class {name}: {', '.join(map(str, paths))}" for name, paths in twice.items()), sep="\n")
        print(*(f"{name}: {place}" for name, place in bare), sep="\n")


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _with_one_importer(trees: Mapping[Path, ast.Module]) -> list[Path]:
    """The modules, packages apart, that exactly one other module imports, anywhere in its code.

    A module that only the package itself imports is not one of them: it has names of the library, for applications.
    """
    modules = {_module(path): path for path in trees}
    importers: dict[str, set[Path]] = defaultdict(set)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    importers[name if name in modules else node.module].add(path)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importers[alias.name].add(path)
    library = {_ROOT / "__init__.py"}
    return [
        path
        for name, path in modules.items()
        if path.stem != "__init__" and len(importers[name] - {path}) == 1 and importers[name] - {path} != library
    ]


def _classes(trees: Mapping[Path, ast.Module]) -> dict[str, list[Path]]:
    places: dict[str, list[Path]] = defaultdict(list)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.strip("_")].append(path)
    return places


def _variables(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each binding of a name, with its line: assignments, loops, parameters and captures."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name, line = node.id, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name is not None:
            name, line = node.name, node.lineno
        else:
            continue
        if name not in ("self", "cls", "_"):
            yield name, line


if __name__ == "__main__":
    main()
