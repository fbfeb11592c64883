"""Files for a typed prompt: those of `/file`, as with `--file`, and questions about files that the prompt names.

A path of a picture, as after dragging a file into the terminal, can become an attachment. Terminals paste the absolute
path of a dragged file: bare, in quotes, with backslashes before blanks, or as `file://`. The question comes when the
prompt is sent, so it does not matter how the path came into the line.

A mention of a file outside the workspace (`@~/notes.txt`, `@/tmp/log`) is sent only after a yes. It holds for the
directory of the file until the chat ends, and not for the directories in it.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from deepctl.cli.chat_session import ProfileChat
from deepctl.cli.confirm import YES, ask_line
from deepctl.cli.repl.completer import REMOVE
from deepctl.cli.repl.run_cli_command import split
from deepctl.cli.repl.state import ReplState
from deepctl.domain import attachments, outside_files
from deepctl.domain.mention_syntax import mentions
from deepctl.domain.outside_files import OutsideFile
from deepctl.errors import NotFound, UsageError
from deepctl.output.render import home
from deepctl.quantities import size
from deepctl.store.log_file import split_typed

FILE_HELP = f"Attach files to the next prompt, or {REMOVE} them."

_WORD = re.compile(
    r"""(?:^|(?<=[ \t\n]))\(?(?P<word>'[^'\n]*'(?:\\''[^'\n]*')*|"(?:\\.|[^"\\\n])*"|(?:\\[^\n]|[^ \t\n'"\\])+)"""
)
"""A word as a shell reads it. Only ASCII blanks end it: macOS has others in the names of its screenshots."""
_PATH = re.compile(r"(?:~?/|file://)")
_PICTURE = re.compile(r".+\.(?:png|jpe?g|gif|webp|bmp|tiff?|heic|heif|avif)", re.IGNORECASE | re.DOTALL)
_ENDINGS = ".,;:!?)]}'\">"
_MAX_PROMPT = 20_000
"""Characters of a prompt that are searched."""
_MAX_PICTURES = 20

_DECLINED = "you declined"
_MISSING = "there is no such file"
_MAX_NAMED = 3


def offer_pictures(state: ReplState, prompt: str) -> None:
    """Ask whether to attach the pictures that a prompt names by absolute paths, and attach them after a yes.

    There is no second question about a picture after a no, and none at all after `never`. Raises `Interrupted`.
    """
    if not state.offers_pictures:
        return
    attached_paths = set(map(os.path.abspath, state.files))
    mentioned = {os.path.basename(path) for mention in mentions(prompt) for path, _ in mention.readings}
    pictures = [
        path
        for path in pictures_in(prompt)
        if path not in state.declined_pictures | attached_paths and os.path.basename(path) not in mentioned
    ]
    if not pictures:
        return
    names = ", ".join(f"{os.path.basename(path)} ({size(os.stat(path).st_size)})" for path in pictures)
    answer = ask_line(f"Attach {names} to the prompt? [y/N/never]").lower()
    if answer in YES:
        attach(state, pictures)
        return
    state.declined_pictures.update(pictures)
    state.offers_pictures = answer != "never"


def pictures_in(prompt: str) -> list[str]:
    """The pictures that a prompt names by absolute paths: regular files with the name and the content of a picture."""
    text = split_typed(prompt)[0][:_MAX_PROMPT]
    pictures: dict[str, None] = {}
    for candidate in _candidates(text):
        if _PATH.match(candidate) and (path := _existing(candidate)) is not None:
            pictures[path] = None
            if len(pictures) == _MAX_PICTURES:
                break
    return list(pictures)


def _candidates(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        # Some terminals escape nothing.
        yield line.strip(" \t")
        for match in _WORD.finditer(line):
            try:
                words = shlex.split(match["word"])
            except ValueError:
                continue
            if words:
                yield words[0]


def _existing(word: str) -> str | None:
    while word:
        if _PICTURE.fullmatch(word):
            path = _local(word)
            return path if path is not None and _is_picture(path) else None
        if word[-1] not in _ENDINGS:
            return None
        word = word[:-1]
    return None


def _local(word: str) -> str | None:
    """The path of a word; `None` for an address of another machine."""
    if word.startswith("file://"):
        try:
            address = urlsplit(word)
        except ValueError:
            return None
        # A `#` or a `?` in a name is not escaped by every terminal.
        rest = word.removeprefix("file://").removeprefix(address.netloc)
        word = unquote(rest) if address.netloc in ("", "localhost") else ""
    path = os.path.expanduser(word)
    return os.path.normpath(path) if os.path.isabs(path) else None


def _is_picture(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    from deepctl.agent import pictures  # slow to import

    try:
        return pictures.media_type(os.read(descriptor, pictures.HEAD)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)


def agreed_files(state: ReplState, prompt: str) -> Mapping[str, OutsideFile]:
    """The files outside the workspace that a prompt names, by their paths in it; declined ones have a problem.

    Raises `Interrupted` after Ctrl-C.
    """
    files = _outside_files(state, prompt)
    by_directory: dict[str, list[str]] = {}
    for path, file in files.items():
        if file.problem is None and file.directory not in state.agreed_directories:
            by_directory.setdefault(file.directory, []).append(path)
    kind = "project" if isinstance(state.chat, ProfileChat) and state.project() else "workspace"
    for directory, paths in by_directory.items():
        if ask_line(_question(paths, kind)).lower() in YES:
            state.agreed_directories.add(directory)
        else:
            files.update((path, files[path]._replace(problem=_DECLINED)) for path in paths)
    return files


def _question(paths: Sequence[str], kind: str) -> str:
    rest = len(paths) - _MAX_NAMED
    names = ", ".join(paths[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
    place = "It is" if len(paths) == 1 else "They are"
    validity = "A yes is valid for this directory until the chat ends."
    return f"Send {names} to the model? {place} outside the {kind}. {validity} [y/N]"


def _outside_files(state: ReplState, prompt: str) -> dict[str, OutsideFile]:
    if "@~" not in prompt and '@"~' not in prompt and "@/" not in prompt and '@"/' not in prompt:
        return {}
    files: dict[str, OutsideFile] = {}
    for mention in mentions(prompt):
        for path, _ in mention.readings:
            if _is_inside(state, path):
                break
            file = outside_files.find(path)
            if file is not None:
                files[path] = file
                break
        else:
            path = mention.readings[-1].path
            if mention.looks_like_path and path.startswith(("~/", "/")):
                files[path] = OutsideFile("", "", _MISSING)
    return files


def _is_inside(state: ReplState, path: str) -> bool:
    if not isinstance(state.chat, ProfileChat):
        return False
    from deepctl.agent.mention_files import DirectoryFiles

    files = DirectoryFiles(state.profile().workspace, state.project())
    return files.find(path) is not None or not files.leads_out(path)


def run_file_command(state: ReplState, arguments: str) -> None:
    """`/file`: attach files, all or none; take files back after `--remove`; and list the attached files."""
    # A path with blanks, as it is without a shell's quotes.
    words = [arguments] if os.path.isfile(os.path.expanduser(arguments)) else split(arguments)
    if words[:1] == [REMOVE]:
        _remove(state, words[1:])
        return
    option = next((word for word in words if word.startswith("-")), None)
    if option == "--":
        words.remove("--")
    elif option is not None:
        raise UsageError(
            f"/file has no option {option!r} here.",
            f"/file {REMOVE} PATH takes a file back. A path that begins with a dash is written as ./{option}.",
        )
    if not words and not state.files:
        state.chat.display.notice("No file is attached. /file PATH attaches one to the next prompt.")
        return
    attach(state, words)
    state.chat.display.notice(listing(state.files))


def attach(state: ReplState, paths: Sequence[str]) -> None:
    """Attach files to the next prompt, all or none. Raises `UsageError`."""
    # There is no shell here that expands `~`.
    paths = [os.path.abspath(os.path.expanduser(path)) for path in paths]
    attachments.check(paths)
    state.files = list(dict.fromkeys((*map(os.path.abspath, state.files), *paths)))


def listing(files: Sequence[str]) -> str:
    """What goes with the next prompt."""
    return f"With the next prompt: {', '.join(f'{home(path)} ({_amount(path)})' for path in files)}"


def _amount(path: str) -> str:
    try:
        return size(os.stat(path).st_size)
    except OSError:
        return "missing"


def _remove(state: ReplState, words: Sequence[str]) -> None:
    """Take back these files, or all. Raises `NotFound`; nothing is taken back then."""
    files = [os.path.abspath(path) for path in state.files]
    removed_files = {_attached(files, word) for word in words} if words else set(files)
    state.files = [path for path in files if path not in removed_files]
    if state.files:
        state.chat.display.notice(listing(state.files))
    else:
        state.chat.display.notice("No file is attached.")


def _attached(files: Sequence[str], word: str) -> str:
    """The attached file that a word means: by its path, or by its name if that is unique."""
    path = os.path.abspath(os.path.expanduser(word))
    if path in files:
        return path
    same_name = [file for file in files if os.path.basename(file) == word]
    if len(same_name) != 1:
        raise NotFound(f"{word!r} is not attached.", "/file lists the attached files.", code="file_not_found")
    return same_name[0]
