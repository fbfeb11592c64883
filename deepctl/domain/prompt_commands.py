r"""Prompt commands: slash commands that a user or a repository defines, each a Markdown file `commands/NAME.md`.

    ---
    description: Review a change
    argument-hint: "[FILE]"
    ---
    Review $1 for errors. Further wishes: $ARGUMENTS

`/NAME ARGUMENTS` sends the text as a prompt. `$ARGUMENTS` is everything behind the name, `$1` to `$9` are its words, as
a shell splits them; a missing word is empty, and `\$` is a dollar sign. Arguments of a text without any of these follow
the text. Nothing in a file runs, and no file that the text names is attached.

Fields of the front matter with other names have no effect.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Literal, NamedTuple

from deepctl.domain import front_matter, project_trust
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.layout import ProfilePaths, Root
from deepctl.quantities import size
from deepctl.store import log_file
from deepctl.unicode import one_line

DIRECTORY = "commands"
PROJECT_DIRECTORIES = tuple(f"{owner}/{DIRECTORY}" for owner in project_trust.OWNERS)
"""The directories of a project with commands, the one with the highest priority first."""
SUFFIX = ".md"
MAX_BYTES = 64 << 10
"""Bytes of the largest file: a prompt, not a book."""
MAX_FILES = 200
"""Files of one directory that are read."""
MAX_DESCRIPTION = 200
MAX_HINT = 40

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PLACEHOLDER = re.compile(r"\\\$|\$ARGUMENTS\b|\$([1-9])(?![0-9])")

CommandSource = Literal["profile", "root", "project"]


class CommandPlace(NamedTuple):
    """A directory with commands, its source, and its name in notices."""

    source: CommandSource
    directory: str
    name: str


class PromptCommand(NamedTuple):
    """A prompt command. `path` is its file as notices name it; `description` and `hint` are cut and printable."""

    name: str
    source: CommandSource
    path: str
    description: str
    hint: str
    text: str

    def prompt(self, typed: str, arguments: str) -> str:
        """What is sent for the line `typed`: the line itself, and the text of the command in a block."""
        body = log_file.escaped_tags(expanded(self.text, arguments))
        return f'{typed}{log_file.COMMAND}{self.name}" source="{self.source}">\n{body}\n{log_file.COMMAND_END}'


class PromptCommands(NamedTuple):
    """The commands of several places, and a sentence about each file that is not used."""

    commands: list[PromptCommand]
    problems: list[str]


def places(root: Root, paths: ProfilePaths | None, project: str | None, trusted: str) -> list[CommandPlace]:
    """The places of commands for a profile that works in `project`.

    Those of the project are among them only if the user trusts its content, whose digest is `trusted`.
    """
    result = [CommandPlace("profile", paths.commands, DIRECTORY)] if paths is not None else []
    result.append(CommandPlace("root", root.commands, f"<root>/{DIRECTORY}"))
    if project is not None and project_trust.is_trusted(project, trusted):
        result += [CommandPlace("project", f"{project}/{name}", name) for name in PROJECT_DIRECTORIES]
    return result


def read(command_places: Sequence[CommandPlace]) -> PromptCommands:
    """The commands in these places. Of several files of one source with a name, the first one counts."""
    result = PromptCommands([], [])
    for place in command_places:
        # A directory of a repository that is a link is left out, as its trust leaves it out.
        if os.path.islink(place.directory) or os.path.islink(os.path.dirname(place.directory)):
            continue
        tree = DirectoryTree(place.directory, follow=False, kind="commands directory")
        try:
            names = [entry.name for entry in tree.entries() if entry.name.lower().endswith(SUFFIX)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            result.problems.append(f"The commands in {place.name} cannot be read: {_reason(error)}.")
            continue
        if len(names) > MAX_FILES:
            result.problems.append(f"{place.name} has more than {MAX_FILES} commands; the others are not used.")
        for name in names[:MAX_FILES]:
            path = f"{place.name}/{one_line(name)}"
            try:
                result.commands.append(_command(tree, place.source, name, path))
            except ValueError as error:
                result.problems.append(f"{path} is not used as a command: {error}.")
            except OSError as error:
                result.problems.append(f"{path} is not used as a command: {_reason(error)}.")
    return result


def _reason(error: OSError) -> str:
    return (error.strerror or "it cannot be read").lower()


def _command(tree: DirectoryTree, source: CommandSource, file: str, path: str) -> PromptCommand:
    """Raises `ValueError` with a clause for a file that cannot be a command, and `OSError`."""
    name = file[: -len(SUFFIX)]
    if not _NAME.fullmatch(name):
        raise ValueError("its name must have 1 to 64 letters, digits, dashes and underscores")
    length = tree.entry(file).size
    if length is not None and length > MAX_BYTES:
        raise ValueError(f"it has more than {size(MAX_BYTES)}")
    try:
        text = tree.read(file).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    fields, body = front_matter.split(text)
    fields = fields or {}
    if not body:
        raise ValueError("it has no text")
    first_line = next(line for line in body.splitlines() if line.strip()).lstrip("# ")
    description = _cut(fields.get("description") or first_line, MAX_DESCRIPTION)
    return PromptCommand(name, source, path, description, _cut(fields.get("argument-hint", ""), MAX_HINT), body)


def _cut(text: str, most: int) -> str:
    line = one_line(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def expanded(text: str, arguments: str) -> str:
    """The text of a command with its arguments. They are inserted once, so a placeholder in them stays as it is."""
    try:
        words = shlex.split(arguments)
    except ValueError:
        words = arguments.split()  # a quote is not closed, as in `don't`
    has_placeholder = False

    def value(match: re.Match[str]) -> str:
        nonlocal has_placeholder
        if match[0] == "\\$":
            return "$"
        has_placeholder = True
        if match[1] is None:
            return arguments
        return words[int(match[1]) - 1] if int(match[1]) <= len(words) else ""

    result = _PLACEHOLDER.sub(value, text)
    return f"{result}\n\nARGUMENTS: {arguments}" if arguments and not has_placeholder else result
