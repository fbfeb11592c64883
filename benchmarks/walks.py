"""How far three commands walk through the code: files entered, functions called, files of state opened.

    python -m benchmarks.walks              the three walks
    python -m benchmarks.walks --files      and the files that each enters, with how many functions of each
    python -m benchmarks.walks rewind chat  only these (`rewind`, `chat`, `purge`)

Run it from the source directory: it measures the `deepctl` that Python imports there. Each command runs in a process
of its own, in a throw-away root, through `deepctl.cli.main.main`. `sys.setprofile` sees every function that is entered
there and in its threads. The body of a module or class is no function, so a file that is only imported is not counted;
neither is the `__getattr__` of the package, which the import system calls for each module that is not loaded yet.
Files of settings and session logs are counted each time they are opened for reading, by an audit hook.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import deepctl

_PACKAGE = str(Path(deepctl.__file__).parent) + os.sep
_SETTINGS = ("config.toml", "profile.toml", "untrusted.toml")
_LOG_SUFFIX = ".jsonl"
_LOG = "session log"
_LEDGER = "ledger.jsonl"


class Walk(NamedTuple):
    """A command that is traced: its arguments, and the most files that it may enter.

    The first layout with these walks promised 29, 50 and 29 files, half of those of 0.1.0. The settings and requests of
    models have added one, ten and one since; the directories of sessions and the projects of a profile have added two
    to a rewind, and the worker threads of files one to a chat. The usage and budgets have added three to a
    chat. Keys, shared memory and the profile of a directory have added one, six and one. Skills and sub-agents have
    added three to a chat.

    `searched` are files of settings that the command opens once more, for a reason other than their settings.
    """

    arguments: Sequence[str]
    most_files: int
    searched: Sequence[str] = ()


WALKS = {
    "rewind": Walk(("checkpoints", "rewind", "~2", "--user", "alice"), 33),
    "chat": Walk(("chat", "write d.txt: four", "--user", "alice"), 73),
    # The report of a purge looks for the text in the settings of the profile, too.
    "purge": Walk(("memory", "forget", "kumquat", "--purge", "--yes", "--user", "alice"), 31, ("profile.toml",)),
}

_PREPARATION = (
    ("chat", "remember I like kumquat", "--user", "alice"),
    ("chat", "write a.txt: one", "--user", "alice"),
    ("chat", "write b.txt: two", "--user", "alice"),
    ("chat", "write c.txt: three", "--user", "alice"),
)


class Trace:
    """Counts what the process does while it is entered."""

    def __init__(self) -> None:
        self.functions: dict[str, set[tuple[int, str]]] = {}
        self.calls = 0
        self.changes = 0
        self.opened: Counter[str] = Counter()
        self._file = ""
        self._is_on = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on or event != "open" or not isinstance(arguments[0], str | bytes):
            return
        name = os.path.basename(os.fsdecode(arguments[0]))
        if (arguments[2] or 0) & os.O_ACCMODE == os.O_WRONLY:
            return
        if name in _SETTINGS:
            self.opened[name] += 1
        elif name.endswith(_LOG_SUFFIX) and name != _LEDGER:
            self.opened[_LOG] += 1

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED or not code.co_filename.startswith(_PACKAGE):
            return
        if code.co_name == "__getattr__" and code.co_filename == deepctl.__file__:
            return
        if code.co_name.startswith("<") and frame.f_back is not None and frame.f_back.f_code.co_name == "<module>":
            return  # a comprehension of the body of a module, which newer Pythons count as part of the body
        path = code.co_filename[len(_PACKAGE) :]
        self.functions.setdefault(path, set()).add((code.co_firstlineno, code.co_name))
        self.calls += 1
        self.changes += path != self._file
        self._file = path

    def __enter__(self) -> Self:
        self._is_on = True
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._is_on = False

    def document(self) -> dict[str, Any]:
        """What was counted, as JSON."""
        return {
            "files": {path: len(functions) for path, functions in self.functions.items()},
            "calls": self.calls,
            "changes": self.changes,
            "opened": self.opened,
        }


def _traced(arguments: list[str], report: str) -> int:
    """Run one command in this process, and write down what it did."""
    from deepctl.cli.main import main

    with Trace() as trace:
        code = main(arguments)
    Path(report).write_text(json.dumps(trace.document()))
    return code


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def measure(name: str) -> dict[str, Any]:
    """What the walk `name` does, as `Trace.document` has it."""
    with tempfile.TemporaryDirectory() as place:
        environment = {
            "DEEPCTL_HOME": f"{place}/state",
            "DEEPCTL_CONFIG": f"{place}/config.toml",
            "DEEPCTL_MODEL": "offline",
            "HOME": place,
        }
        # A setting in each file, so that both are there to be read.
        Path(f"{place}/config.toml").write_text('default_user = "alice"\n')
        for arguments in _PREPARATION:
            _run([sys.executable, "-m", "deepctl", *arguments], environment)
        _run([sys.executable, "-m", "deepctl", "config", "set", "approve", "auto", "--user", "alice"], environment)
        report = f"{place}/report.json"
        _run([sys.executable, "-m", "benchmarks.walks", "--trace", report, *WALKS[name].arguments], environment)
        document: dict[str, Any] = json.loads(Path(report).read_text())
        return document


def run(names: Sequence[str] = (), *, files: bool = False) -> bool:
    """Measure and print; whether every walk is short enough, and opens settings and session log once for reading."""
    is_held = True
    print("Walks: files entered, functions, calls, changes of file; files of state opened for reading:")
    for name in names or WALKS:
        document = measure(name)
        entered: dict[str, int] = document["files"]
        opened: dict[str, int] = document["opened"]
        most = WALKS[name].most_files
        is_held = (
            is_held
            and len(entered) <= most
            and all(opened.get(path, 0) <= 1 + (path in WALKS[name].searched) for path in (*_SETTINGS, _LOG))
        )
        print(
            f"  {name:<7} {len(entered):>4} files (promised: {most})  {sum(entered.values()):>4} functions  "
            f"{document['calls']:>7} calls  {document['changes']:>6} changes"
        )
        for path in sorted(opened):
            print(f"          {opened[path]:>4} x {path}")
        if files:
            for path, functions in sorted(entered.items()):
                print(f"          {functions:>4} functions  {path}")
    return is_held


def main() -> int:
    """Read the command line of the tool itself."""
    if sys.argv[1:2] == ["--trace"]:
        return _traced(sys.argv[3:], sys.argv[2])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walks")
    parser.add_argument("names", nargs="*", metavar="WALK", help=", ".join(WALKS))
    parser.add_argument("--files", action="store_true", help="name the files, too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(WALKS):
        parser.error(f"there is no walk {', '.join(sorted(unknown))}; there are {', '.join(WALKS)}")
    return 0 if run(options.names, files=options.files) else 1


if __name__ == "__main__":
    sys.exit(main())
