"""Everything that a shell would run for a text, as far as the text tells.

    X=1 env git -C . push && sh -c 'rm v'  ->  env git -C . push | git -C . push | sh -c 'rm v' | rm v

What cannot be told is a reason in `unclear`: text that does not parse, a name that is computed, commands that are read
from elsewhere. It gives a reason rather than misses a command that the text shows. What a program or a script file
does by itself is not in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from deepctl.domain.commands import arguments, prefixes, syntax
from deepctl.domain.commands.words import VALUE, Command, Text, Word

_MAX_NESTED = 8
"""How deep texts may be nested in texts: `sh -c "sh -c …"`."""
_MAX_TEXTS = 2000
_MAX_READ = 16
"""How many times the length of the text is read at most, with all that is nested in it."""
_MAX_COMMANDS = 5000
_MAX_PIPES = 1000
"""The grammar takes time that grows with the square of a pipeline's length."""


class Analysis(NamedTuple):
    """What a text runs, what else it may run, and why that may not be all."""

    commands: list[Command]
    possible: list[Command]
    unclear: list[str]


def analyse(text: str, is_program: Callable[[Word], bool] = lambda _: False) -> Analysis:
    """The commands of a text, those of the texts that it gives to other shells, and those that they run.

    Arguments that may be commands are looked for where `is_program` holds for the word that names the program.
    """
    if text.count("|") > _MAX_PIPES:
        return Analysis([], [], [prefixes.TOO_MANY])
    commands: list[Command] = []
    possible: list[Command] = []
    unclear: dict[str, None] = {}
    texts = [(Text(text), 0)]
    seen: set[Text] = set()
    searched: set[str] = set()
    is_program = cache(is_program)
    left = _MAX_READ * (len(text) + 1000)
    while texts:
        (written, is_sure, is_code), depth = texts.pop()
        left -= len(written)
        if len(seen) > _MAX_TEXTS or depth > _MAX_NESTED or left < 0:
            unclear[prefixes.TOO_MANY] = None
            break
        for item in syntax.parsed(written):
            if len(commands) + len(possible) > _MAX_COMMANDS:
                unclear[prefixes.TOO_MANY] = None
                return Analysis(commands, possible, list(unclear))
            for step in _steps(item, is_program):
                if isinstance(step, Text):
                    inner = Text(step.text, step.is_sure and is_sure, step.is_code and is_code)
                    if inner not in seen:
                        seen.add(inner)
                        texts.append((inner, depth + 1))
                elif isinstance(step, prefixes.Unclear):
                    if is_code or step.reason == prefixes.TOO_MANY:
                        unclear[step.reason] = None
                else:
                    command, is_certain = step
                    (commands if is_certain and is_sure else possible).append(command)
                    if is_certain and (code := arguments.code(command)) and code not in searched:
                        searched.add(code)
                        for start in arguments.started(code, is_program):
                            if isinstance(start, Command):
                                possible.append(start)
                            else:
                                unclear[prefixes.TOO_MANY] = None
    return Analysis(commands, possible, list(unclear))


def _steps(
    item: Command | Text | str, is_program: Callable[[Word], bool]
) -> Iterator[tuple[Command, bool] | Text | prefixes.Unclear]:
    """What one part of a text runs (`True`) or may run, and texts to be read in their turn."""
    if isinstance(item, str):
        yield prefixes.Unclear(item)
    elif isinstance(item, Text):
        yield item
    elif item.words[:1] == ((VALUE,),):
        yield from _possible(item, is_program)
    else:
        for step in prefixes.unfold(item):
            if isinstance(step, Command):
                yield step, True
                yield from _possible(step, is_program)
            else:
                yield step


def _possible(
    command: Command, is_program: Callable[[Word], bool]
) -> Iterator[tuple[Command, bool] | Text | prefixes.Unclear]:
    for step in arguments.possible(command, is_program):
        yield (step, False) if isinstance(step, Command) else step
