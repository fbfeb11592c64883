"""Whatever is typed, wherever the root is and whatever has happened to the files: an error of the table, or none.

The same every time: all that is random has a fixed seed. Everything runs in this process, or in one bubblewrap around
many commands, so that thousands of command lines take seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deepctl.errors import EXIT_CODES
from tests.errors.table import rows
from tests.store.scene import Scene
from tests.support.command import InProcess, Result
from tests.support.tree import commands

CODES = {0} | {row.exit_code for row in rows()}
ALICE = ("--user", "alice")
SLOWEST = 20.0

HOSTILE = (
    "", " ", ".", "..", "../../etc/passwd", "/", "/etc/passwd", "-", "--", "--nonsense", "~", "~0", "~99999999999",
    "~-1", "\x01\x1b[31m\x7f", "a\nb", "\u202ealice", "аlice", "ＡＬＩＣＥ", "ⓐ", "a\u0301", "caf\udce9", "\udcff",
    "a" * 65, "a" * 100_000, "0", "-1", "1e400", "nan", "9" * 30, "1.5", "con", "alice.", "%s%n{0}", "[", "*", "main",
)  # fmt: skip
"""What a program may be given for an argument. The `а` of `аlice` is Cyrillic."""

PLAUSIBLE = {
    "ref": "~1", "refs": "~1", "label": "good", "name": "OTHER", "old": "main", "new": "another", "key": "model",
    "value": "offline", "directory": ".", "text": "tea", "query": "tea", "file": "MEMORY.md", "prompt": "hello",
}  # fmt: skip
"""What a required argument is where another one is the hostile one."""

# An export that only has to come to an end writes nothing; `prune` takes one of two options.
_AS_WELL = {"profiles export": ["/nonexistent/alice.tgz"], "checkpoints prune": ["--keep", "1"]}

# Its one turn costs as much as all the others' work, and most of what it takes is what they take.
_CHAT = "chat"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which alice has files, memory, two sessions, labels and a rewind."""
    root = tmp_path_factory.mktemp("fuzz") / "root"
    scene = Scene(root)
    scene.agent("a.txt", "one\n")
    scene.agent(".deep/memory/main/MEMORY.md", "- tea\n")
    scene.agent("b.txt", "x\n", session="other")
    scene.agent("a.txt", "two\n")
    with scene.work() as work:
        work.save_now(scene.session(), "kept")
    scene.rewind("~1")
    scene.agent("c.txt", "three\n")
    return root


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Paths to what is no file of deepctl's: a directory, a FIFO, nothing, a file of rubbish, a link to nowhere."""
    place = tmp_path / "files"
    place.mkdir()
    os.mkfifo(place / "fifo")
    (place / "rubbish").write_bytes(random.Random(1).randbytes(5000))
    (place / "link").symlink_to("nowhere")
    (place / "full").symlink_to("/dev/full")
    return [str(place), *(str(place / name) for name in ("fifo", "missing", "rubbish", "link", "full"))]


def _required(command: Any, but: str = "") -> list[str]:
    words = []
    for parameter in command.params:
        if parameter.name != but and parameter.required:
            value = PLAUSIBLE.get(parameter.name, "1")
            words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return words


def _given(command: Any) -> list[Any]:
    """What of a command takes a value."""
    return [one for one in command.params if one.name != "help" and not getattr(one, "is_flag", False)]


def _line(words: str, command: Any, parameter: Any, value: str) -> list[str]:
    """A command line in which one parameter has this value; alice is meant, unless that is the parameter."""
    named = parameter.name == "user" or not any(one.name == "user" for one in command.params)
    argv = [*words.split(), *([] if named else ALICE)]
    if parameter.param_type_name == "option":
        return [*argv, *_required(command, parameter.name), f"{parameter.opts[0]}={value}"]
    others = [one for one in command.params if one.param_type_name == "argument" and one.required]
    return [*argv, *(value if one is parameter else PLAUSIBLE.get(one.name, "1") for one in others or [parameter])]


def _checked(argv: Sequence[str], run: Callable[[], Result]) -> Result:
    """Run a command line and hold it to what is promised of every one."""
    began = time.monotonic()
    result = run()
    shown = [word[:80] for word in argv]
    assert time.monotonic() - began < SLOWEST, shown
    _check(shown, result)
    return result


def _check(argv: Sequence[str], result: Result) -> None:
    assert result.code in CODES, (argv, result)
    assert "Traceback" not in result.stderr, (argv, result)
    assert result.code == 0 or "--json" not in argv or result.stderr.count("\n") <= 1, (argv, result)
    said = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    # `doctor` says on stdout what does not work, and by its exit code that something does not.
    assert len(said) == (result.code != 0 and "--json" not in argv) or argv[0] == "doctor", (argv, result)


@pytest.fixture
def outside(tmp_path: Path, home: Path) -> Iterator[None]:
    """Nothing beside the root is made, changed or removed."""
    before = _seen(tmp_path, home)
    yield
    assert _seen(tmp_path, home) == before


def _seen(place: Path, but: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for directory, below, names in os.walk(place):
        if Path(directory) == but.parent:
            below[:] = [name for name in below if name not in (but.name, "scratch")]
            names = [name for name in names if name != but.name]
        for name in [*below, *names]:
            status = os.lstat(os.path.join(directory, name))
            found[os.path.join(directory, name)] = (status.st_mode, status.st_size)
    return found


def test_hostile_arguments(
    deepctl: InProcess, home: Path, tmp_path: Path, template: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    randomness = random.Random(20_261_123)
    (tmp_path / "scratch").mkdir()
    # `profiles use` writes the settings file.
    monkeypatch.setenv("DEEPCTL_CONFIG", str(tmp_path / "scratch" / "config.toml"))
    before = _seen(tmp_path, home)
    shutil.copytree(template, home, symlinks=True)
    count = 0
    for words, command in commands().items():
        # What is written is written there: exports take a path, and many of the words are good ones.
        monkeypatch.chdir(tmp_path / "scratch")
        for parameter in _given(command):
            # What reads a pipe waits for its writer, as `cat` does.
            values = [one for one in (*HOSTILE, *files) if not (words.endswith(" import") and one.endswith("fifo"))]
            if words.endswith(" export"):
                values = [one for one in values if not one.endswith("/missing")]  # a good name for a new file
            chosen = randomness.sample(values, 4 if words == _CHAT else 12)
            for value in chosen:
                argv = _line(words, command, parameter, value)
                if randomness.random() < 0.3 and "--" not in argv:
                    argv.append("--json")
                _checked(argv, lambda argv=argv: deepctl(*argv))  # type: ignore[misc]
                count += 1
        if not (home / "profiles" / "alice").is_dir():
            shutil.rmtree(home)
            shutil.copytree(template, home, symlinks=True)
    assert count > 600
    assert _seen(tmp_path, home) == before
    monkeypatch.chdir(tmp_path / "cwd")


def _a_file(home: Path) -> None:
    home.write_text("")


def _a_dangling_link(home: Path) -> None:
    home.symlink_to(home.parent / "nowhere")


def _a_circle(home: Path) -> None:
    home.symlink_to(home)


def _a_fifo(home: Path) -> None:
    os.mkfifo(home)


def _missing(home: Path) -> None:
    pass


def _with_files_for_directories(home: Path) -> None:
    home.mkdir()
    (home / "profiles").write_text("")
    (home / "locks").write_text("")


def _lines() -> list[list[str]]:
    """Every command once, with what it requires; none that would make a profile or ask a model."""
    found = []
    for words, command in commands().items():
        user = ALICE if any(one.name == "user" for one in command.params) else ()
        required = _AS_WELL.get(words) or _required(command)
        found.append([*words.split(), *required, *user])
    return found


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("made", [_missing, _a_file, _a_dangling_link, _a_circle, _a_fifo, _with_files_for_directories])
def test_a_root_that_is_none(deepctl: InProcess, home: Path, made: Callable[[Path], None]) -> None:
    for argv in _lines():
        if home.is_symlink() or home.exists():
            home.unlink() if not home.is_dir() or home.is_symlink() else shutil.rmtree(home)
        made(home)
        _checked(argv, lambda argv=argv: deepctl(*argv))  # type: ignore[misc]


@pytest.mark.usefixtures("outside")
def test_every_command_that_takes_a_profile_checks_its_name_and_makes_none(deepctl: InProcess, home: Path) -> None:
    for argv in _lines():
        if "--user" not in argv:
            continue
        for name, code in (("../alice", 2), ("a" * 65, 2), ("con", 2), ("nobody", 3)):
            named = [*argv[: argv.index("--user")], "--user", name]
            if argv[0] != _CHAT or code == 2:
                assert deepctl(*named).code == code, named
    assert not home.exists()


ALL = """
import json, sys
from tests.support.command import InProcess
for line in json.load(open(sys.argv[1])):
    result = InProcess()(*line)
    print(json.dumps([line, *result]))
"""
UNPRIVILEGED = ["--unshare-user", "--uid", "4242", "--gid", "4242", "--cap-drop", "ALL"]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("how", ["read-only", "unreadable", "unwritable", "full"])
def test_a_root_that_cannot_be_used(
    home: Path, tmp_path_factory: pytest.TempPathFactory, template: Path, how: str
) -> None:
    shutil.copytree(template, home, symlinks=True)
    lines = tmp_path_factory.mktemp("lines") / "lines.json"
    lines.write_text(json.dumps(_lines()))
    around = {
        "read-only": ["--ro-bind", str(home), str(home)],
        "unreadable": UNPRIVILEGED,
        "unwritable": UNPRIVILEGED,
        "full": ["--size", "4096", "--tmpfs", str(home)],
    }[how]
    if how == "unreadable":
        home.chmod(0)
    if how == "unwritable":
        for place in [home, *(path for path in home.rglob("*") if path.is_dir())]:
            place.chmod(0o500)
    try:
        done = subprocess.run(
            ["bwrap", "--dev-bind", "/", "/", *around, "--", sys.executable, "-c", ALL, str(lines)],
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        home.chmod(0o700)
        for directory, below, _ in os.walk(home):
            for name in below:
                os.chmod(os.path.join(directory, name), 0o700)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(_lines())
    for argv, code, stdout, stderr in found:
        _check(argv, Result(code, stdout, stderr))


def _damage(path: Path, randomness: random.Random) -> str:
    """Let something happen to a file; says what."""
    raw = path.read_bytes()
    how = randomness.choice(
        ("cut", "flip", "empty", "rubbish", "grown", "gone", "directory", "fifo", "link", "nowhere")
    )
    if how == "cut" and raw:
        path.write_bytes(raw[: randomness.randrange(len(raw))])
    elif how == "flip" and raw:
        changed = bytearray(raw)
        for _ in range(randomness.randrange(1, 4)):
            changed[randomness.randrange(len(raw))] ^= 1 << randomness.randrange(8)
        path.write_bytes(changed)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "rubbish":
        path.write_bytes(randomness.randbytes(max(10, len(raw))))
    elif how == "grown":
        path.write_bytes(raw + randomness.randbytes(100))
    else:
        path.unlink()
        if how == "directory":
            path.mkdir()
        elif how == "fifo":
            os.mkfifo(path)
        elif how == "link":
            path.symlink_to("/etc/passwd")
        elif how == "nowhere":
            path.symlink_to("nowhere")
    return f"{path}: {how}"


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("part", range(6))
def test_damaged_files(deepctl: InProcess, home: Path, template: Path, part: int) -> None:
    randomness = random.Random(part)
    lines = [line for line in _lines() if line[0] not in (_CHAT, "doctor")]
    for _ in range(8):
        if home.exists():
            shutil.rmtree(home)
        shutil.copytree(template, home, symlinks=True)
        there = sorted(path for path in home.rglob("*") if path.is_file())
        happened = [_damage(path, randomness) for path in randomness.sample(there, randomness.randrange(1, 4))]
        for argv in randomness.sample(lines, 12):
            result = deepctl(*argv)
            assert result.code in CODES, (happened, argv, result)
            assert "Traceback" not in result.stderr, (happened, argv, result)


def test_the_codes_are_those_of_the_table() -> None:
    assert 1 not in CODES
    assert not CODES - set(EXIT_CODES) - {129, 143}
