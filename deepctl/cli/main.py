"""The one entry and the one exit: arguments in, exit code out, every error reported here and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_command_from_info, get_command_name, get_group

from deepctl import distribution
from deepctl.cli import options, usage_errors
from deepctl.cli.options import HELP_OPTIONS, UNNAMED
from deepctl.errors import DeepctlError, Interrupted, StorageError, Terminated
from deepctl.output import render

_COMMANDS = ("chat", "checkpoints", "sessions", "memory", "profiles", "wipe", "sandbox", "models", "config", "doctor")
"""Top-level commands in the order of `--help`; each is the module of that name in this package."""


_USER = ("--user", "-u", "--profile")
_GROUPS = frozenset(_COMMANDS) - {"chat", "doctor", "models", "wipe"}
_SHELL_LEFT_OUT = ("--install-completion", "--show-completion")


class _OnDemand(MutableMapping[str, Any]):
    """Commands that are made when they are asked for: all of them at once would double the start."""

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


def _imported(name: str) -> Any:
    """The command or group `name` of `--help`; of a group, the commands are made on demand as well."""
    found: typer.Typer = import_module(f"deepctl.cli.{name}").app
    infos = {
        info.name or get_command_name(info.callback.__name__): info
        for info in found.registered_commands
        if info.callback is not None
    }
    if len(infos) == 1:
        command: Any = get_command(found)
    else:
        found.registered_commands = []
        command = get_group(found)
        command.commands = _OnDemand(
            infos,
            lambda wanted: get_command_from_info(infos[wanted], pretty_exceptions_short=True, rich_markup_mode=None),
        )
        found.registered_commands = list(infos.values())
    command.name = name
    return command


class _Root(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": {}})
        self.commands = _OnDemand(_COMMANDS, _imported)

    def _main_shell_completion(self, *_: Any, **__: Any) -> None:
        """Nothing: completion is static scripts, and no variable of the environment turns Typer's on."""


app = typer.Typer(
    name="deepctl",
    cls=_Root,
    help="Local agent sessions, one private directory a user.",
    epilog="State is kept below $DEEPCTL_HOME or the platform's user data directory; `deepctl profiles path` shows it.",
    rich_markup_mode=None,
    add_completion=False,  # Typer's starts Python for every Tab
    context_settings=HELP_OPTIONS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
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


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            callback=_install_completion,
            is_eager=True,
            help="Install completion for bash, zsh or fish; without SHELL for the one in $SHELL.",
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            callback=_show_completion,
            is_eager=True,
            help="Print that completion, to put it where you like.",
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
    options.advise(problem, _user(arguments))
    try:
        _report(problem, arguments)
    except StorageError:
        return StorageError.exit_code
    return problem.exit_code


def call(arguments: list[str]) -> int:
    """Run one command in this process. Returns its exit code, and raises what `main` would report."""
    try:
        return _run(arguments)
    except typer.TyperException as error:
        raise usage_errors.error(error, get_command(app), arguments) from error
    except typer.Abort:
        raise KeyboardInterrupt from None


def _run(arguments: list[str]) -> int:
    try:
        code = get_command(app).main(_completed(arguments), "deepctl", standalone_mode=False)
        render.write("")  # so that what cannot be written is an error now, not at exit
    except SystemExit as error:
        # Typer leaves like this, with 1, when whoever read stdout has gone. They have seen enough, and what the
        # command was to do is done or recorded. (stderr never ends anything: `render.say`.)
        if isinstance(error.__context__, BrokenPipeError):
            render.discard_stdout()
            return 0
        return error.code if isinstance(error.code, int) else 1
    if code == Interrupted.exit_code:
        # Typer turns Ctrl-C into this.
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _report(problem: DeepctlError, arguments: list[str]) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        render.discard_stdout()
    if os.environ.get("DEEPCTL_DEBUG") == "1":
        import traceback

        from deepctl.output.text import printable_lines
        from deepctl.redaction import redact

        # What a provider or a server has said is in there.
        render.say(printable_lines(redact("".join(traceback.format_exception(problem)), os.environ)))
    as_json = "--json" in arguments
    if not isinstance(problem, Terminated) or as_json:
        render.error(problem, as_json, as_event=as_json and arguments[0] == "chat")
    if isinstance(problem, Terminated):
        raise problem


def _user(arguments: list[str]) -> str | None:
    """The value of `--user` on a command line, which may be wrong in other places."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, _, value = argument.partition("=")
        if name in _USER:
            return value or following
    return None


def _bug(error: Exception) -> DeepctlError:
    return DeepctlError(
        f"Unexpected {type(error).__name__}: {error}. This is a bug in deepctl.",
        "Run the same command with DEEPCTL_DEBUG=1 to see where, and report that.",
        code="unexpected",
    )


def _completed(arguments: list[str]) -> list[str]:
    """The arguments with what they leave out: `--help` of a group alone, NAME after `--new`, SHELL after what takes it.

    Typer has no option whose value may be left out.
    """
    if not arguments or (len(arguments) == 1 and arguments[0] in _GROUPS):
        return [*arguments, "--help"]
    if arguments[0] in _SHELL_LEFT_OUT and (len(arguments) == 1 or arguments[1].startswith("-")):
        return [f"{arguments[0]}={UNNAMED}", *arguments[1:]]
    if arguments[0] != "chat":
        return arguments
    filled = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == "--new":
            named = position + 1 < len(arguments) and not arguments[position + 1].startswith("-")
            if not named:
                filled[position] = f"--new={UNNAMED}"
            break
    return filled


def _prepare_streams() -> None:
    """Text that the locale cannot say is escaped rather than fatal; a stream that is closed gets a stand-in."""
    # In this order, so that a closed standard stream's own number is taken before a file of ours gets it.
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 (open as long as the process)
    if sys.stdout is None:
        # Writing to it fails, as it would have: an answer that nobody can get is an error.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def run() -> NoReturn:
    """The console script: `main` with this process's arguments, then leave."""
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:  # before `main` had come to its first line
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
    # Taking the agent stack apart object by object takes time that nobody gets anything for: all that is to last is on
    # disk by now, and nothing of ours waits for the interpreter's end.
    os._exit(code)
