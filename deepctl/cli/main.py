"""The one entry and the one exit: arguments in, exit code out, every error reported here and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from deepctl import __version__
from deepctl.errors import DeepctlError, Interrupted, StorageError, Terminated, UsageError
from deepctl.output import render

_COMMANDS = ("chat", "sessions", "memory", "profiles", "config")
"""Top-level commands in the order of `--help`; each is the module of that name in this package."""


class _OnDemand(MutableMapping[str, Any]):
    """Commands that are imported when they are asked for: all of them at once would double the start."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in _COMMANDS:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = get_command(import_module(f"deepctl.cli.{name}").app)
            self._loaded[name].name = name
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Root(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": {}})
        self.commands = _OnDemand()


app = typer.Typer(
    name="deepctl", cls=_Root, help="Local agent sessions, one private directory a user.", rich_markup_mode=None
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deepctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str]) -> int:
    """Run one command. Returns its exit code; raises `Terminated` when a signal ended it."""
    _prepare_streams()
    as_json = "--json" in arguments
    try:
        command = get_command(app)
        result = command.main(_with_optional_name(arguments) or ["--help"], "deepctl", standalone_mode=False)
        render.write("")  # so that what cannot be written is an error now, not at exit
        return result if isinstance(result, int) else 0
    except DeepctlError as error:
        return _report(error, as_json)
    except typer.TyperException as error:
        return _report(_usage(error), as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _report(Interrupted("Interrupted."), as_json)
    except BrokenPipeError:
        # Whoever read stdout has seen enough. What the command was to do is done or recorded.
        render.discard_stdout()
        return 0
    except OSError as error:
        from deepctl.files.durable import storage_error

        return _report(storage_error(error), as_json)
    except Exception as error:
        return _report(_bug(error), as_json)


def _report(error: DeepctlError, as_json: bool) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        render.discard_stdout()
    if os.environ.get("DEEPCTL_DEBUG") == "1":
        import traceback

        from deepctl.redaction import redact

        print(redact(traceback.format_exc(), os.environ), file=sys.stderr)
    if isinstance(error, Terminated):
        raise error
    render.error(error, as_json)
    return error.exit_code


def _usage(error: typer.TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "deepctl"
    return UsageError(error.format_message(), f"`{path} --help` shows how it is used.")


def _bug(error: Exception) -> DeepctlError:
    return DeepctlError(
        f"Unexpected {type(error).__name__}: {error}. This is a bug in deepctl.",
        "Run the same command with DEEPCTL_DEBUG=1 to see where, and report that.",
        code="unexpected",
    )


def _with_optional_name(arguments: list[str]) -> list[str]:
    """`chat --new [NAME]`: Typer has no option whose value may be left out, so what is left out is filled in."""
    if arguments[:1] != ["chat"]:
        return arguments
    filled = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == "--new":
            named = position + 1 < len(arguments) and not arguments[position + 1].startswith("-")
            if not named:
                filled[position] = "--new="
            break
    return filled


def _prepare_streams() -> None:
    """Text that the locale cannot say is escaped rather than fatal; a closed standard stream is an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open as long as the process)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def run() -> NoReturn:
    """The console script: `main` with this process's arguments, then leave."""
    try:
        code = main(sys.argv[1:])
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
    # Taking the agent stack apart object by object costs a sixth of a second that nobody gets anything for: all that
    # is to last is on disk by now, and nothing of ours waits for the interpreter's end.
    os._exit(code)
