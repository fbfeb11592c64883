"""The question about files outside the workspace that a typed prompt names: `@~/notes.txt`, `@/tmp/log`.

A yes holds for the directory of the file until the chat ends, and not for the directories in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepctl.cli.chat_session import ProfileChat
from deepctl.cli.confirm import YES, ask_line
from deepctl.cli.repl.state import ReplState
from deepctl.domain import outside_files
from deepctl.domain.mention_syntax import mentions
from deepctl.domain.outside_files import OutsideFile

_DECLINED = "you declined"
_MISSING = "there is no such file"
_MAX_NAMED = 3


def agreed_files(state: ReplState, prompt: str) -> Mapping[str, OutsideFile]:
    """The files outside the workspace that a prompt names, by their paths in it; declined ones have a problem.

    Raises `Interrupted` after Ctrl-C.
    """
    files = _named(state, prompt)
    by_directory: dict[str, list[str]] = {}
    for path, file in files.items():
        if file.problem is None and file.directory not in state.agreed_directories:
            by_directory.setdefault(file.directory, []).append(path)
    for directory, paths in by_directory.items():
        if ask_line(_question(paths)).lower() in YES:
            state.agreed_directories.add(directory)
        else:
            files.update((path, files[path]._replace(problem=_DECLINED)) for path in paths)
    return files


def _question(paths: Sequence[str]) -> str:
    rest = len(paths) - _MAX_NAMED
    names = ", ".join(paths[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
    place = "It is" if len(paths) == 1 else "They are"
    validity = "A yes is valid for this directory until the chat ends."
    return f"Send {names} to the model? {place} outside the workspace. {validity} [y/N]"


def _named(state: ReplState, prompt: str) -> dict[str, OutsideFile]:
    if "@~" not in prompt and '@"~' not in prompt and "@/" not in prompt and '@"/' not in prompt:
        return {}
    found: dict[str, OutsideFile] = {}
    for mention in mentions(prompt):
        for path, _ in mention.readings:
            if _is_inside(state, path):
                break
            file = outside_files.find(path)
            if file is not None:
                found[path] = file
                break
        else:
            path = mention.readings[-1].path
            if mention.looks_like_path and path.startswith(("~/", "/")):
                found[path] = OutsideFile("", "", _MISSING)
    return found


def _is_inside(state: ReplState, path: str) -> bool:
    if not isinstance(state.chat, ProfileChat):
        return False
    from deepctl.agent.mention_files import DirectoryFiles

    files = DirectoryFiles(state.profile().workspace, state.project())
    return files.find(path) is not None or not files.leads_out(path)
