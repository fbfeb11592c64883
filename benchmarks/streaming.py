"""What showing an answer while it is written costs: a turn drawn at a terminal against the same turn piped.

A server of its own process sends 10,000 deltas of Markdown, 2,000 a second, to `deepctl chat` in a pseudo-terminal and
in a pipe. Counted is the processor time (user and system) that the whole process takes from its request to the next
prompt, or to its end.
"""

from __future__ import annotations

import fcntl
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path
from typing import IO

from benchmarks.measure import environment_of, promise
from benchmarks.terminal import read_available, read_until

_ROUNDS = 3
_DELTAS = 10_000
_A_SECOND = 2_000
_LAST = "There is no more."
_LOADED = b"bubblewrap"
"""What the toolbar says once the agent is loaded, in the place of `loading…`."""

_SERVER = """
import json, socket, sys, time
deltas, rate, last = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
text = '''Here is **what** I found in `main.py`, and why it matters for [us](https://example.org/a):

1. The first point, which takes some words to explain
2. The second, which is shorter
   - with *something* below it

```python
def answer(question: str) -> int:
    # Think for a while.
    return 42 if question else len("nothing")
```

| name | value |
|------|------:|
| one  | 1     |

'''
pieces = [text[start : start + 5] for start in range(0, len(text), 5)]

def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    data = b"data: " + json.dumps(event).encode() + b"\\n\\n"
    return b"%x\\r\\n%s\\r\\n" % (len(data), data)

server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    request = client.makefile("rb")
    is_chat = request.readline().startswith(b"POST /v1/chat/")
    length = 0
    while (line := request.readline()) not in (b"\\r\\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    request.read(length)
    if not is_chat:  # what the server can do
        client.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
        request.close()
        client.close()
        continue
    print("asked", flush=True)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n"
                   b"Connection: close\\r\\n\\r\\n")
    began = time.monotonic()
    for number in range(deltas):
        client.sendall(chunk({"role": "assistant", "content": pieces[number % len(pieces)]}))
        ahead = number / rate - (time.monotonic() - began)
        if ahead > 0.002:
            time.sleep(ahead)
    client.sendall(chunk({"content": "\\n\\n" + last}))
    client.sendall(chunk({}, "stop") + b"e\\r\\ndata: [DONE]\\n\\n\\r\\n0\\r\\n\\r\\n")
    client.close()
"""


def run() -> bool:
    """Measure and print; whether every promise holds."""
    with (
        tempfile.TemporaryDirectory() as place,
        subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(_DELTAS), str(_A_SECOND), _LAST], stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            environment = environment_of(
                {
                    "DEEPCTL_HOME": f"{place}/state",
                    "DEEPCTL_CONFIG": f"{place}/config.toml",
                    "OPENAI_BASE_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}/v1",
                    "OPENAI_API_KEY": "none",
                    "TERM": "xterm-256color",
                }
            )
            times: dict[str, list[float]] = {"piped": [], "drawn": []}
            for number in range(_ROUNDS):
                times["piped"].append(_piped(f"piped{number}", environment, server.stdout))
                times["drawn"].append(_drawn(f"drawn{number}", environment, server.stdout))
        finally:
            server.kill()
    piped, drawn = statistics.median(times["piped"]), statistics.median(times["drawn"])
    print("Streaming (medians in one run):")
    print(f"  {_DELTAS:,} deltas, {_A_SECOND:,} a second: piped {piped:.2f} s of processor time, drawn {drawn:.2f} s")
    return promise("a turn drawn at a terminal / the same piped", drawn / piped, 1.5)


def _command(user: str) -> list[str]:
    return [
        str(Path(sys.executable).parent / "deepctl"),
        "chat",
        "--user",
        user,
        "--model",
        "openai-chat:m",
        "--sandbox",
        "bubblewrap",
    ]


def _piped(user: str, environment: dict[str, str], server: IO[str]) -> float:
    """The processor time in seconds from the request to the end of the turn, which is that of the process."""
    with subprocess.Popen(
        [*_command(user), "go"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as chat:
        _asked(server)
        before = _processor_time(chat.pid)
        assert chat.stdout is not None
        said = chat.stdout.read()
        _, status, usage = os.wait4(chat.pid, 0)
        chat.returncode = os.waitstatus_to_exitcode(status)
    assert chat.returncode == 0
    assert _LAST.encode() in said
    return usage.ru_utime + usage.ru_stime - before


def _drawn(user: str, environment: dict[str, str], server: IO[str]) -> float:
    """The processor time in seconds from the request to the prompt after the answer."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    chat = subprocess.Popen(
        _command(user), stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    try:
        prompt = f"{user}>".encode()
        # What is loaded in a thread before the first turn is not the turn's.
        read_until(master, _LOADED)
        os.write(master, b"go\r")
        asked = threading.Thread(target=_asked, args=(server,))
        asked.start()
        while asked.is_alive():
            read_available(master, 0.01)
        before = _processor_time(chat.pid)
        read_until(master, _LAST.encode(), prompt)
        return _processor_time(chat.pid) - before
    finally:
        chat.kill()
        chat.wait()
        os.close(master)


def _asked(server: IO[str]) -> None:
    """Wait until the server has got a request."""
    assert server.readline() == "asked\n"


def _processor_time(pid: int) -> float:
    """What all threads of a process have used so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
