"""The only entry and exit of the program: arguments in, exit code out, and every error is reported here.

`deepctl --help` and `--version` load little more than this module, so other modules are imported where a command or an
error needs them.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_command_from_info, get_command_name, get_group

from deepctl.errors import DeepctlError, Interrupted, StorageError, Terminated

COMMANDS = {
    "chat": "Talk to the agent of a profile.",
    "checkpoints": "Points in time of a conversation, its files and its memory, and how to return to them.",
    "sessions": "The conversations of a profile.",
    "memory": "The notebooks of the agent of a profile.",
    "profiles": "The users of deepctl on this machine, each with a private directory.",
    "roles": "What a new profile can start with: instructions, settings, rules and memory.",
    "skills": "Instructions with files that the agent loads when it needs them.",
    "projects": "The directories of yours in which an agent works.",
    "wipe": "Delete a profile, or parts of it, permanently.",
    "sandbox": "The place where the agent's commands run.",
    "usage": "The requests to models, their tokens and their cost.",
    "models": "List the model in force, the usable providers, and the models of your own servers.",
    "keys": "The keys of a profile for providers and MCP servers.",
    "mcp": "The MCP servers of a profile.",
    "config": "The settings of all profiles, or of one profile (--user).",
    "doctor": "Check whether deepctl works here: versions, paths, model, key, sandbox, locks, damage, temporary files "
    "of killed commands, and space.",
    "help": "Show the help of a command.",
}
"""Top-level commands in the order of `--help`, with their short help. Each key is the name of a module in this package,
which `--help` does not import. A test compares the texts.
"""


_USER = ("--user", "-u", "--profile")
_GROUPS = frozenset(COMMANDS) - {"chat", "doctor", "help", "models", "usage", "wipe"}
_UNLIMITED = 1000
_SHELL_LEFT_OUT = ("--install-completion", "--show-completion")


class _LazyCommands(MutableMapping[str, Any]):
    """Commands that are created on demand, because creating all of them would double the start time."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Any]) -> None:
        self._names = tuple(names)
        self._make = make
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _CommandGroup(TyperGroup):
    """A group whose help shows the whole first sentence of every command, wrapped at the width of the terminal."""

    def sentence_of(self, name: str) -> str:
        """The help sentence of a command; empty for a hidden one."""
        command = self.commands[name]
        return "" if command.hidden else command.get_short_help_str(_UNLIMITED)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, text) for name in self.commands if (text := self.sentence_of(name))]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _imported(name: str) -> Any:
    """The command or group `name` of `--help`. The commands of a group are created on demand too."""
    group: typer.Typer = import_module(f"deepctl.cli.{name}").app
    group.info.cls = _CommandGroup
    infos = {
        info.name or get_command_name(info.callback.__name__): info
        for info in group.registered_commands
        if info.callback is not None
    }
    if len(infos) == 1:
        command: Any = get_command(group)
    else:
        group.registered_commands = []
        command = get_group(group)
        command.commands = _LazyCommands(
            infos,
            lambda key: get_command_from_info(infos[key], pretty_exceptions_short=True, rich_markup_mode=None),
        )
        group.registered_commands = list(infos.values())
    command.name = name
    return command


class _RootGroup(_CommandGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": {}})
        self.commands = _LazyCommands(COMMANDS, _imported)

    def sentence_of(self, name: str) -> str:
        return COMMANDS[name]

    def _main_shell_completion(self, *_: Any, **__: Any) -> None:
        """Does nothing: completion uses static scripts, so no environment variable may start Typer's completion."""


app = typer.Typer(
    name="deepctl",
    cls=_RootGroup,
    help="Local agent sessions, with a private directory for each user.",
    epilog="State is stored in $DEEPCTL_HOME, or in the user data directory of the platform. `deepctl profiles path` "
    "prints the path.",
    rich_markup_mode=None,
    add_completion=False,  # Typer's completion starts Python for every Tab
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(is_given: bool) -> None:
    if is_given:
        from deepctl import distribution

        print(f"deepctl {distribution.__version__} ({distribution.NAME})")
        raise typer.Exit


def _install_completion(shell: str | None) -> None:
    if shell is not None:
        from deepctl.cli import completion

        completion.install(shell)
        raise typer.Exit


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        from deepctl.cli import completion

        completion.show(shell)
        raise typer.Exit


@functools.cache
def command_tree() -> Any:
    """The root of all commands, created once per process, because Typer reads the signature of every command."""
    return get_command(app)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            callback=_install_completion,
            is_eager=True,
            help="Install completion for bash, zsh or fish. Default: the shell in $SHELL.",
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            callback=_show_completion,
            is_eager=True,
            help="Print the completion script, so that you can install it yourself.",
        ),
    ] = None,
) -> None:
    pass


def main(arguments: list[str]) -> int:
    """Run one command. Returns its exit code; raises `Terminated` when a signal ended it."""
    _prepare_streams()
    try:
        return call(arguments)
    except DeepctlError as error:
        problem = error
    except KeyboardInterrupt:
        problem = Interrupted("Interrupted.")
    except OSError as error:
        from deepctl.files.atomic import storage_error

        problem = storage_error(error)
        problem.__cause__ = error
    except Exception as error:
        problem = _bug(error)
        problem.__cause__ = error
    from deepctl.cli import options

    options.advise(problem, _user(arguments))
    try:
        _report(problem, arguments)
    except StorageError:
        return StorageError.exit_code
    return problem.exit_code


def call(arguments: list[str]) -> int:
    """Run one command in this process. Returns its exit code. Raises the errors that `main` reports."""
    try:
        return _run(arguments)
    except typer.TyperException as error:
        from deepctl.cli import usage_errors

        raise usage_errors.error(error, command_tree(), arguments) from error
    except typer.Abort:
        raise KeyboardInterrupt from None


def _run(arguments: list[str]) -> int:
    try:
        code = command_tree().main(_completed(arguments), "deepctl", standalone_mode=False)
        _flush_stdout()  # so that a write error is reported now, and not at exit
    except SystemExit as error:
        # Typer exits like this, with 1, when the reader of stdout has ended. That is not an error: the work of the
        # command is done or recorded. (An error on stderr never ends a command: `render.say`.)
        if isinstance(error.__context__, BrokenPipeError):
            from deepctl.output import render

            render.discard_stdout()
            return 0
        return error.code if isinstance(error.code, int) else 1
    if code == Interrupted.exit_code:
        # Typer turns Ctrl-C into this.
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _flush_stdout() -> None:
    """Raises `StorageError` if stdout cannot be written. A reader that has ended is not an error."""
    try:
        sys.stdout.flush()
    except OSError:
        from deepctl.output import render

        render.write("")


def _report(problem: DeepctlError, arguments: list[str]) -> None:
    from deepctl.output import render

    try:
        sys.stdout.flush()
    except OSError:
        render.discard_stdout()
    if os.environ.get("DEEPCTL_DEBUG") == "1":
        import traceback

        from deepctl.output.render import printable_lines
        from deepctl.redaction import redact

        # The traceback can contain text of a provider or server.
        render.say(printable_lines(redact("".join(traceback.format_exception(problem)), os.environ)))
    as_json = "--json" in arguments
    if not isinstance(problem, Terminated) or as_json:
        render.error(problem, as_json, as_event=as_json and arguments[0] == "chat")
    if isinstance(problem, Terminated):
        raise problem


def _user(arguments: list[str]) -> str | None:
    """The value of `--user` on a command line that may be wrong in other places."""
    for argument, next_argument in zip(arguments, [*arguments[1:], None], strict=True):
        name, _, value = argument.partition("=")
        if name in _USER:
            return value or next_argument
    return None


def _bug(error: Exception) -> DeepctlError:
    return DeepctlError(
        f"Unexpected {type(error).__name__}: {error}. This is a bug in deepctl.",
        "Run the same command with DEEPCTL_DEBUG=1 to get a traceback, and report it.",
        code="unexpected",
    )


def _completed(arguments: list[str]) -> list[str]:
    """The arguments with omitted values filled in: `--help` for a group alone, NAME after `--new`, SHELL after options
    that take it.

    Typer has no option with an optional value.
    """
    if not arguments or (len(arguments) == 1 and arguments[0] in _GROUPS):
        return [*arguments, "--help"]
    if arguments[0] not in (*_SHELL_LEFT_OUT, "chat"):
        return arguments
    from deepctl.layout import UNNAMED

    if arguments[0] in _SHELL_LEFT_OUT and (len(arguments) == 1 or arguments[1].startswith("-")):
        return [f"{arguments[0]}={UNNAMED}", *arguments[1:]]
    result = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == "--new":
            has_name = position + 1 < len(arguments) and not arguments[position + 1].startswith("-")
            if not has_name:
                result[position] = f"--new={UNNAMED}"
            break
    return result


def _prepare_streams() -> None:
    """Escape text that the locale cannot encode, instead of failing. A closed stream gets a substitute."""
    # In this order, so that the number of a closed standard stream is taken before a file of deepctl gets it.
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 (open as long as the process)
    if sys.stdout is None:
        # Writing to it fails, as it would have without a substitute: an answer that cannot be written is an error.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def run() -> NoReturn:
    """The console script: run `main` with this process's arguments, then exit."""
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:  # before the first line of `main`
        code = Interrupted.exit_code
    except Terminated as error:
        import signal

        signal.signal(error.signal, signal.SIG_DFL)
        os.kill(os.getpid(), error.signal)
        code = error.exit_code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or StorageError.exit_code
    # Freeing the agent libraries object by object takes time without any benefit. All results are on disk by now, and
    # no code of deepctl runs at interpreter exit.
    os._exit(code)
