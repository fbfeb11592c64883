"""How long one Tab takes in bash: a new bash reads the script and completes once, against a bash that does nothing."""

from __future__ import annotations

import random
import shlex
import subprocess
import tempfile
from pathlib import Path

from benchmarks.measure import medians, promise

_SCRIPT = Path(__file__).parent.parent / "completions" / "deepctl.bash"
_CHECKPOINTS = 1000
_LABELLED_EVERY = 25
_PROFILES = 20
_LIMIT = 3.0
_BARE = "bash -c true"
_LINES = {
    "checkpoints, nothing typed yet": ("deepctl", "checkpoints", "show", "--user", "user-0", ""),
    "checkpoints, two digits typed": ("deepctl", "checkpoints", "show", "--user", "user-0", "ab"),
    "checkpoints, four digits typed": ("deepctl", "checkpoints", "show", "--user", "user-0", "abcd"),
    "profile names": ("deepctl", "chat", "--user", ""),
}


def run() -> bool:
    """Measure and print; whether every promise holds."""
    with tempfile.TemporaryDirectory() as place:
        environment = {"DEEPCTL_HOME": place}
        _fill(Path(place))
        commands = {_BARE: ("bash", "-c", "true")} | {
            name: ("bash", "-c", _press_tab(words)) for name, words in _LINES.items()
        }
        for name, words in _LINES.items():
            shown = subprocess.run(
                ("bash", "-c", f'{_press_tab(words)}; printf "%s\\n" "${{COMPREPLY[@]}}"'),
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            assert shown.stdout.strip(), f"{name}: nothing was completed"
        taken = medians(commands, rounds=100, environment=environment)
    print(f"Completion in bash, {_CHECKPOINTS} checkpoints, {_PROFILES} profiles (medians in one run):")
    print(f"  {_BARE} {taken[_BARE] * 1000:.1f} ms")
    held = [promise(f"one Tab, {name} / {_BARE}", taken[name] / taken[_BARE], _LIMIT) for name in _LINES]
    return all(held)


def _fill(root: Path) -> None:
    numbers = random.Random(1)
    for number in range(_PROFILES):
        (root / "profiles" / f"user-{number}" / "cache").mkdir(parents=True)
    lines = ["abcd000000000000\t\tmain\n"]
    for number in range(1, _CHECKPOINTS):
        label = "" if number % _LABELLED_EVERY else f"label-{number}"
        lines.append(f"{numbers.getrandbits(64):016x}\t{label}\tmain\n")
    (root / "profiles" / "user-0" / "cache" / "index").write_text("".join(lines))


def _press_tab(words: tuple[str, ...]) -> str:
    """What bash does for a Tab at the end of the line, from reading the script on."""
    line = " ".join(words)
    return "; ".join(
        (
            f"source {shlex.quote(str(_SCRIPT))}",
            f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_TYPE=9 COMP_CWORD={len(words) - 1}",
            f"COMP_WORDS=({' '.join(shlex.quote(word) for word in words)})",
            f"_deepctl deepctl {shlex.quote(words[-1])} {shlex.quote(words[-2])}",
        )
    )
