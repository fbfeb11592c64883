"""How soon one can type in a conversation, against a bare process that imports Typer and prompt_toolkit.

Measured at a pseudo-terminal, from the start of `deepctl chat` until its prompt is drawn and a key typed then is shown.
The agent's libraries, which take a second, are imported meanwhile in a thread.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from benchmarks.measure import environment_of, medians, promise
from benchmarks.terminal import read_until

_ROUNDS = 15
_KEY = b"\xc3\xa6"
"""A letter that nothing else on the screen has."""
_BARE = "import typer, prompt_toolkit"


def run() -> bool:
    """Measure and print; whether every promise holds."""
    deepctl = str(Path(sys.executable).parent / "deepctl")
    with tempfile.TemporaryDirectory() as place:
        environment = {
            "DEEPCTL_HOME": f"{place}/state",
            "DEEPCTL_CONFIG": f"{place}/config.toml",
            "TERM": "xterm-256color",
        }
        chat = (deepctl, "chat", "--user", "alice", "--model", "offline")
        medians({"": (*chat, "hello")}, rounds=1, environment=environment)
        bare = (sys.executable, "-c", _BARE)
        times: dict[str, list[float]] = {"bare": [], "prompt": [], "key": []}
        for number in range(_ROUNDS + 1):
            began = time.perf_counter()
            subprocess.run(bare, env=environment_of(environment), stdin=subprocess.DEVNULL, check=True)
            ended = time.perf_counter()
            prompt, key = _until_a_key_is_shown(chat, environment_of(environment))
            if number:
                times["bare"].append(ended - began)
                times["prompt"].append(prompt)
                times["key"].append(key)
    bare_start, prompt, key = (statistics.median(measured) for measured in times.values())
    print("Start of a conversation (medians in one run):")
    print(f"  bare {bare_start * 1000:.0f} ms, prompt {prompt * 1000:.0f} ms, a key shown {key * 1000:.0f} ms")
    return promise("a key shown / a process importing Typer, prompt_toolkit", key / bare_start, 2.0)


def _until_a_key_is_shown(command: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds until the prompt is there, and until a key typed then is shown."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    try:
        read_until(master, b"alice>")
        prompt = time.perf_counter() - began
        os.write(master, _KEY)
        read_until(master, _KEY)
        return prompt, time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(master)
