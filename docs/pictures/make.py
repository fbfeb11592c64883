"""The pictures of the terminal in this directory, made from real runs: `make pictures`.

Each scene runs `deepctl` from a shell on a pseudo-terminal, in a root that is thrown away, and types what a person
would. Where a model is needed that writes Markdown or edits files, a server on 127.0.0.1 gives its answers, in the
format of the provider that is named there; the rest is the offline model. A picture in which nothing but ids and ages
would change is left as it is.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pyte

from docs.pictures import screen as drawing
from tests.support.loopback import Answer, Text, ToolCalls, provider

HERE = Path(__file__).parent
PATIENCE = 60
"""Seconds until what a scene waits for must be on the screen."""
_MODEL = "anthropic:claude-sonnet-4-6"
_RULES = '[permissions]\nedit = "ask"\n'


class Shell:
    """A shell on a pseudo-terminal, and who types there. `root` is its home, with all state of `deepctl` in it."""

    def __init__(self, root: Path, columns: int, lines: int, environment: dict[str, str]) -> None:
        self.root = root
        self._child: Any = pexpect.spawn(
            "/bin/sh",
            ["-i"],
            cwd=str(root),
            env={
                "PATH": f"{root}/bin:/usr/bin:/bin",
                "HOME": str(root),
                "DEEPCTL_HOME": f"{root}/deepctl",
                "DEEPCTL_CONFIG": f"{root}/config.toml",
                "TERM": "xterm-256color",
                "LANG": "C.UTF-8",
                "PS1": "$ ",
                "ENV": "",
                **environment,
            },
            dimensions=(lines, columns),
            timeout=PATIENCE,
        )
        self.screen = drawing.Screen(columns, lines, lambda answer: self._child.send(answer.encode()))
        self._stream = pyte.ByteStream(self.screen)
        self._at("$")

    def __call__(self, command: str) -> None:
        """Run a command to its end."""
        self.enter(command)
        self._at("$")

    def say(self, text: str) -> None:
        """Enter something in a conversation of alice's, and wait until she can enter more."""
        self.enter(text)
        self._at("alice>")

    def begin(self, command: str) -> None:
        """Start a conversation of alice's, and wait until it can be typed into."""
        self.enter(command)
        self._at("alice>")
        self.until("bubblewrap")

    def enter(self, text: str) -> None:
        """Type a line, and Enter once it is there: until then, the prompt of before looks like the next one."""
        self.type(text)
        self._wait(lambda: self._line().endswith(text[-8:]), repr(text))
        self.type("\r")

    def type(self, keys: str) -> None:
        self._child.send(keys.encode())

    def until(self, text: str) -> None:
        """Wait until `text` is on the screen, and the screen is still."""
        self._wait(lambda: any(text in line for line in self.screen.display), repr(text), still=True)

    def see(self, text: str) -> None:
        """Wait until `text` is on the screen, which goes on changing."""
        self._wait(lambda: any(text in line for line in self.screen.display), repr(text))

    def clear(self) -> None:
        """Wipe the screen, as a person does before something new."""
        self("clear")

    def _at(self, prompt: str) -> None:
        self._wait(lambda: self._line() == prompt, f"the prompt {prompt}", still=True)

    def _line(self) -> str:
        return str(self.screen.display[self.screen.cursor.y].rstrip())

    def _wait(self, seen: Callable[[], bool], what: str, *, still: bool = False) -> None:
        end = time.monotonic() + PATIENCE
        while (self._read() and still) or not seen():
            if time.monotonic() > end:
                shown = "\n".join(line.rstrip() for line in self.screen.display)
                raise TimeoutError(f"{what} is not on the screen:\n{shown}")

    def _read(self) -> bool:
        try:
            self._stream.feed(self._child.read_nonblocking(65536, 0.3))
        except pexpect.TIMEOUT:
            return False
        return True

    def close(self) -> None:
        self._child.close(force=True)


@contextmanager
def shell(columns: int, lines: int, answers: list[Answer]) -> Iterator[Shell]:
    """A shell in a root of its own; with `answers`, its conversations are with a model that gives them."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as name, provider(*answers) as server:
        root = Path(name)
        (root / "bin").mkdir()
        (root / "bin/deepctl").symlink_to(Path(sys.executable).parent / "deepctl")
        environment = {}
        if answers:
            environment = {
                "ANTHROPIC_BASE_URL": server.address,
                "ANTHROPIC_API_KEY": "none-is-needed",
                "DEEPCTL_MODEL": _MODEL,
            }
        opened = Shell(root, columns, lines, environment)
        try:
            yield opened
        finally:
            opened.close()


class Scene(NamedTuple):
    """What is done for a picture: `title` says what it shows, `answers` are the model's."""

    title: str
    play: Callable[[Shell], None]
    columns: int
    lines: int
    answers: list[Answer]


def _conversation(person: Shell) -> None:
    person.begin("deepctl chat --user alice")
    person.say("remember: I fly to Lisbon on Friday, and I prefer window seats")
    person.say("/new trip")
    person.say("what should I book, and in what order?")


def _session(person: Shell) -> None:
    person.begin("deepctl chat --user alice")
    person.say("I fly to Lisbon on Friday: plan the days in trip.md")
    person.say("clean up this directory")
    person.enter("/rewind")
    person.until("Enter selects")
    person.type("\r")
    person.until("> clean up")


def _resume(person: Shell) -> None:
    person("deepctl chat --user alice 'plan three days in Lisbon in trip.md'")
    person.begin("deepctl chat --user alice")
    person.enter("add the opening hours")
    person.see("sleep 60  ")
    person.type("\x03")
    person.until("Stopped; completed steps are kept.")
    person.type("\x04")
    person.until("$")
    person.clear()
    person.begin("deepctl chat --user alice --continue")


def _work(person: Shell) -> None:
    _stored(person, {"prices.py": _PRICES, "test_prices.sh": _TESTS})
    person.begin("deepctl chat --user alice")
    person.enter("round the total, and add a discount")
    person.see("│ ok     total of three")
    person.see("sh test_prices.sh  ")


def _approval(person: Shell) -> None:
    (_workspace(person) / "trip.md").write_text(_TRIP)
    person.begin("deepctl chat --user alice")
    person.enter("the flight is at 9 now, and I have got 12A")
    person.until("[t]ell why not:")


def _rewind(person: Shell) -> None:
    _trip(person)
    person.clear()
    person.enter("deepctl checkpoints rewind --user alice")
    person.until("Enter selects")
    person.type("\x1b[B")
    person.until("2 turns")


def _graph(person: Shell) -> None:
    _trip(person)
    person("deepctl checkpoints rewind before-hotel --user alice")
    person("deepctl chat --user alice 'write trip.md: flight, one night in a hostel'")
    person("deepctl checkpoints fork before-hotel by-train --user alice")
    person("deepctl chat --user alice --session by-train 'write train.md: night train to Lisbon'")
    person.clear()
    person("deepctl checkpoints list --graph --user alice")


def _slash(person: Shell) -> None:
    person.begin("deepctl chat --user alice")
    person.type("/")
    person.until("/checkpoints")


def _trip(person: Shell) -> None:
    for prompt in (
        "remember I fly to Lisbon on Friday",
        "run echo flight on Friday > trip.md",
        "write trip.md: flight, two nights in a hotel",
        "remember I prefer window seats",
    ):
        person(f"deepctl chat --user alice '{prompt}'")
    person("deepctl checkpoints label ~2 before-hotel --user alice")


_TRIP = "# Lisbon\nflight: Friday, 7:00\nseat:   to be chosen\nroom:   two nights in Alfama\n"

_PLAN = "# Lisbon\n\nFri  Alfama, on foot\nSat  Belém by tram 15\nSun  Sintra\n"

_PRICES = "TAX = 0.19\n\n\ndef total(prices):\n    return sum(prices)\n"

_TESTS = 'for name in nothing one two three; do echo "ok     total of $name"; done\nsleep 20\n'

_STEPS = ("Round the total", "Add the discount", "Run the tests")


def _plan(*statuses: str) -> tuple[str, dict[str, Any]]:
    steps = [{"content": content, "status": status} for content, status in zip(_STEPS, statuses, strict=True)]
    return "write_plan", {"items": steps}


SCENES = {
    "session": Scene(
        "deepctl chat: a turn goes wrong, and is rewound",
        _session,
        90,
        37,
        [
            ToolCalls(
                [
                    ("write_memory", {"content": "- Flies to Lisbon on Friday\n"}),
                    ("write_file", {"path": "trip.md", "content": _PLAN}),
                    ("execute", {"command": "tail -n 3 trip.md | cut -c1-3 | xargs"}),
                ],
                (2380, 61),
            ),
            Text(["Three days are in `trip.md`: **Alfama**, **Belém** and **Sintra**."], None, (2466, 21)),
            ToolCalls([("execute", {"command": "rm -rf *; ls | wc -l"})], (2561, 40)),
            Text(["The directory is clean now."], None, (2602, 12)),
        ],
    ),
    "conversation": Scene(
        "deepctl chat",
        _conversation,
        96,
        40,
        [
            ToolCalls(
                [("write_memory", {"content": "- Flies to Lisbon on Friday\n- Prefers window seats\n"})], (2380, 61)
            ),
            Text(["I will remember that you fly to Lisbon on Friday and prefer a window seat."], None, (2466, 21)),
            Text(
                [
                    "You leave on **Friday**, so in this order:\n\n"
                    "1. The *flight*, with a window seat: those in front of the wing go first.\n"
                    "2. A room near the river.\n"
                    "3. Tram 28 needs no booking, only patience.\n\n"
                    "| what | until | book |\n|---|---|---|\n"
                    "| flight | today | window, left side |\n| room | Thursday | two nights |\n\n"
                    "I can keep this as `trip.md`, with the number of days left:\n\n"
                    "```python\nleft = (friday - date.today()).days  # until the flight\n```\n"
                ],
                None,
                (2561, 148),
            ),
        ],
    ),
    "resume": Scene(
        "deepctl chat: back in a session",
        _resume,
        90,
        16,
        [
            ToolCalls([("write_file", {"path": "trip.md", "content": _PLAN})], (2380, 61)),
            Text(["Three days are in `trip.md`: Alfama, Belém and Sintra."], None, (2466, 21)),
            ToolCalls(
                [
                    ("write_file", {"path": "hours.md", "content": "Sintra: 9:30 to 18:30\n"}),
                    ("execute", {"command": "sleep 60"}),
                ],
                (2561, 40),
            ),
        ],
    ),
    "work": Scene(
        "deepctl chat: the work of a turn",
        _work,
        90,
        34,
        [
            ToolCalls([_plan("in_progress", "pending", "pending"), ("read_file", {"path": "prices.py"})], (2380, 61)),
            ToolCalls(
                [
                    (
                        "edit_file",
                        {
                            "path": "prices.py",
                            "old_string": "def total(prices):\n    return sum(prices)\n",
                            "new_string": "def total(prices, discount=0):\n"
                            "    return round(sum(prices) * (1 - discount), 2)\n",
                        },
                    ),
                    _plan("completed", "completed", "in_progress"),
                    ("execute", {"command": "sh test_prices.sh"}),
                ],
                (2466, 120),
            ),
            Text(["Done."]),
        ],
    ),
    "approval": Scene(
        "a question before a file is changed",
        _approval,
        96,
        34,
        [
            ToolCalls([("read_file", {"path": "trip.md"})], (2380, 40)),
            ToolCalls(
                [
                    (
                        "edit_file",
                        {
                            "path": "trip.md",
                            "old_string": "flight: Friday, 7:00\nseat:   to be chosen\n",
                            "new_string": "flight: Friday, 9:00\nseat:   12A, at the window\n",
                        },
                    )
                ],
                (2466, 88),
            ),
            Text(["Done."]),
        ],
    ),
    "rewind": Scene("deepctl checkpoints rewind", _rewind, 96, 30, []),
    "graph": Scene("deepctl checkpoints list --graph", _graph, 96, 30, []),
    "commands": Scene("commands of a conversation", _slash, 96, 22, []),
}


def _stored(person: Shell, files: dict[str, str]) -> None:
    """Files in the workspace of alice, before her first conversation."""
    person("deepctl profiles create alice")
    for name, content in files.items():
        (person.root / "deepctl/profiles/alice/workspace" / name).write_text(content)
    person.clear()


def _workspace(person: Shell) -> Path:
    person("deepctl profiles create alice")
    profile = person.root / "deepctl/profiles/alice"
    with (profile / "profile.toml").open("a") as settings:
        settings.write(_RULES)
    person.clear()
    return profile / "workspace"


def picture(name: str) -> str:
    """Play a scene, and give its picture."""
    scene = SCENES[name]
    with shell(scene.columns, scene.lines, list(scene.answers)) as person:
        scene.play(person)
        return drawing.svg(person.screen, scene.title)


def main(names: list[str]) -> int:
    """Make these pictures, or all of them; returns the exit code."""
    unknown = [name for name in names if name not in SCENES]
    if unknown:
        print(f"No such picture: {', '.join(unknown)}. There are: {', '.join(SCENES)}.", file=sys.stderr)
        return 2
    for name in names or SCENES:
        made, path = picture(name), HERE / f"{name}.svg"
        if path.exists() and drawing.settled(path.read_text("utf-8")) == drawing.settled(made):
            print(f"{path.name} is as it was")
        else:
            path.write_text(made, "utf-8")
            print(f"{path.name} is new")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
