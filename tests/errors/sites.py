"""Every place in deepctl that makes an error, found in its source."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

import deepctl
from deepctl import errors

SOURCE = Path(deepctl.__file__).parent


class Site(NamedTuple):
    """One call of an error's class: what is known of the message, and of the code, as regular expressions."""

    file: str
    line: int
    message: str
    code: str
    text: str
    """The message as it stands there, with `…` for what varies."""

    def makes(self, message: str, code: str) -> bool:
        """Whether an error with this message and code can be of this place; a sentence may have been added."""
        return bool(re.fullmatch(self.code, code) and re.fullmatch(f"{self.message}(?: .*)?", message, re.DOTALL))


class _Class(NamedTuple):
    """An error's class: the names of what it inherits, its code, and what it makes of its arguments."""

    bases: tuple[str, ...]
    code: str | None
    said: ast.expr | None


@functools.cache
def all_sites() -> list[Site]:
    """The places, by file and line."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    classes = _classes(trees.values())
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in classes:
                    found.append(_site(str(path.relative_to(SOURCE)), node, name, classes))
    return found


def _classes(trees: object) -> dict[str, _Class]:
    defined: dict[str, _Class] = {}
    for tree in trees:  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
                defined[node.name] = _Class(bases, _code(node), _said(node))

    def is_error(name: str) -> bool:
        # A class may have the name of its base in another package.
        bases = [base for base in defined[name].bases if base != name] if name in defined else []
        return name == errors.DeepctlError.__name__ or any(map(is_error, bases))

    return {name: one for name, one in defined.items() if is_error(name)}


def _code(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                return code
    return None


def _said(node: ast.ClassDef) -> ast.expr | None:
    """What a class that makes its message itself passes on as the message."""
    for inner in ast.walk(node):
        match inner:
            case ast.Call(func=ast.Attribute(attr="__init__"), args=[said, *_]) if node.name != "DeepctlError":
                return said
    return None


def _site(file: str, node: ast.Call, name: str, classes: dict[str, _Class]) -> Site:
    said = classes[name].said or (node.args[0] if node.args else None)
    codes = {keyword.arg: keyword.value for keyword in node.keywords}
    code = _pattern(codes["code"])[0] if "code" in codes else re.escape(_inherited(name, classes))
    message, text = _pattern(said)
    return Site(file, node.lineno, message, code, text)


def _inherited(name: str, classes: dict[str, _Class]) -> str:
    while classes[name].code is None:
        name = next(base for base in classes[name].bases if base in classes)
    return classes[name].code or ""


def _pattern(node: ast.expr | None) -> tuple[str, str]:
    """What an expression can be: as a regular expression, and for people."""
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text), text
        case ast.JoinedStr(values=values):
            parts = [_pattern(value) for value in values]
            return "".join(part[0] for part in parts), "".join(part[1] for part in parts)
        case ast.IfExp(body=body, orelse=other):
            (one, shown), (two, _) = _pattern(body), _pattern(other)
            return f"(?:{one}|{two})", shown
        case _:
            return ".*", "…"
