"""Everything that a shell would run for a text, as far as the text tells.

    X=1 env git -C . push && sh -c 'rm v'  ->  env git -C . push | git -C . push | sh -c 'rm v' | rm v

What cannot be told is a reason in `unclear`: text that does not parse, a name that is computed, commands that are read
from elsewhere. It gives a reason rather than misses a command that the text shows. What a program or a script file
does by itself is not in the text.
"""

from __future__ import annotations

from typing import NamedTuple

from deepctl.domain.commands import prefixes, syntax
from deepctl.domain.commands.words import Command

_MAX_NESTED = 8
"""How deep texts may be nested in texts: `sh -c "sh -c …"`."""
_MAX_TEXTS = 200
_MAX_COMMANDS = 5000


class Analysis(NamedTuple):
    """What a text runs, and why that may not be all."""

    commands: list[Command]
    unclear: list[str]


def analyse(text: str) -> Analysis:
    """The commands of a text, those of the texts that it gives to other shells, and those that they run."""
    commands: list[Command] = []
    unclear: dict[str, None] = {}
    texts = [(text, 0)]
    count = 0
    while texts:
        written, depth = texts.pop()
        count += 1
        if count > _MAX_TEXTS or depth > _MAX_NESTED:
            unclear[prefixes.TOO_MANY] = None
            break
        for item in syntax.parsed(written):
            if isinstance(item, str):
                unclear[item] = None
                continue
            if len(commands) > _MAX_COMMANDS:
                unclear[prefixes.TOO_MANY] = None
                return Analysis(commands, list(unclear))
            for step in prefixes.unfold(item):
                if isinstance(step, Command):
                    commands.append(step)
                elif isinstance(step, prefixes.Text):
                    texts.append((step.text, depth + 1))
                else:
                    unclear[step.reason] = None
    return Analysis(commands, list(unclear))
