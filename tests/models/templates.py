"""The chat templates of open models, from the source distribution of llama-cpp-python.

They belong to others, so they are read where `make models` puts them, and are never part of this repository. A server
turns the messages of a request into the prompt of its model with such a template.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

DIRECTORY = Path(sys.prefix) / "chat-templates"
_MEMBERS = "vendor/llama.cpp/models/templates"


def names() -> list[str]:
    """The names of all templates, without `.jinja`; none if `make models` did not run."""
    return sorted(path.stem for path in DIRECTORY.glob("*.jinja"))


def read(name: str) -> str:
    return (DIRECTORY / f"{name}.jinja").read_text("utf-8")


class Refused(Exception):
    """The template raised: its message."""


def render(template: str, request: Mapping[str, Any]) -> str:
    """The prompt that a server makes of the body of a chat-completions request.

    The environment is the one of the library transformers (`chat_template_utils`), which vLLM uses too: sandboxed, with
    `raise_exception` and `strftime_now`, and a `tojson` without HTML escapes. As in these servers, the arguments of
    tool calls are objects; a template that takes text gets text. Raises `Refused`.
    """
    from jinja2 import TemplateError
    from jinja2.exceptions import UndefinedError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the answers of the model for training; a prompt has only what is inside."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    extensions: list[type[Extension]] = [loopcontrols, Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    compiled = environment.from_string(template)
    problems = []
    for as_objects in (True, False):
        messages = [_message(message, as_objects) for message in request["messages"]]
        try:
            return compiled.render(
                messages=messages,
                tools=request.get("tools"),
                add_generation_prompt=True,
                bos_token="<bos>",
                eos_token="<eos>",
            )
        except (TemplateError, UndefinedError, TypeError, ValueError) as problem:
            problems.append(str(problem))
    raise Refused(problems[0])


def _message(message: Mapping[str, Any], as_objects: bool) -> dict[str, Any]:
    """A message with one text as its content, and with the arguments of its calls as objects or as text."""
    content = message.get("content") or ""
    flat = {**message, "content": content if isinstance(content, str) else "\n".join(part["text"] for part in content)}
    if as_objects and flat.get("tool_calls"):
        flat["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in flat["tool_calls"]
        ]
    return flat


def _extract(archive: Path) -> None:
    """Put the templates of the source distribution `archive` into `DIRECTORY`."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.suffix == ".jinja" and str(path.parent).endswith(_MEMBERS):
                source = tar.extractfile(member)
                assert source is not None
                (DIRECTORY / path.name).write_bytes(source.read())
    if not names():
        sys.exit(f"{archive.name} has no templates in {_MEMBERS}")


if __name__ == "__main__":
    _extract(Path(sys.argv[1]))
