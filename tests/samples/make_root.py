"""How `root-0.1.0.tar.gz` was made: a whole root as 0.1.0 left it, with several profiles and what happens to them.

    python tests/samples/make_root.py FILE

makes another one, with the code of 0.1.0. The file beside this script is never made anew: what it is for is that 0.1.0
wrote it. Everything but caches and locks is in it; `tests/cli/test_root_0_1.py` unpacks it
and runs every command over it.

alice: rewinds, an undo, a fork, a turn that was killed, labels, memory, a purge, plans, a to-do list, a prune.
bob: a compacted conversation, an evicted result, an imported session, settings.
carol: an import of alice's archive, and turns after it.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

COMMIT = "7be1396"
HERE = Path(__file__).parent
ROOT = Path("/tmp/deepctl-sample")
"""Always the same, because it is not to be this machine's; nothing in the sample names it."""

TODO = (
    '{"version": 1, "items": [{"id": "a1", "content": "book a train", "status": "in_progress"}, '
    '{"id": "a2", "content": "pack", "status": "pending"}]}'
)


class Maker:
    """Runs commands of 0.1.0 in a root of their own."""

    def __init__(self, place: Path) -> None:
        self._place = place
        code = place / "code"
        packed = subprocess.run(
            ["git", "archive", COMMIT, "deepctl"], cwd=HERE.parent.parent, capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(code, filter="data")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "DEEPCTL_HOME": str(ROOT),
            "DEEPCTL_CONFIG": str(place / "config.toml"),
            "PYTHONPATH": str(code),
        }
        self._argv = [sys.executable, "-P", "-m", "deepctl"]

    def run(self, *words: str) -> None:
        """Run one command, which succeeds."""
        subprocess.run(
            [*self._argv, *words], env=self._environment, cwd=self._place, stdin=subprocess.DEVNULL, check=True
        )

    def chat(self, profile: str, session: str, *lines: str) -> None:
        """One turn."""
        self.run("chat", "--user", profile, "--session", session, "\n".join(lines), *_UNSANDBOXED)

    def kill_in_turn(self, profile: str, session: str, *lines: str, once: Path) -> None:
        """One turn that is killed as soon as `once` is there."""
        words = ["chat", "--user", profile, "--session", session, "\n".join(lines), *_UNSANDBOXED]
        turn = subprocess.Popen([*self._argv, *words], env=self._environment, cwd=self._place, stdin=subprocess.DEVNULL)
        while not once.exists():
            time.sleep(0.01)
        turn.send_signal(signal.SIGKILL)
        turn.wait()


_UNSANDBOXED = ("--sandbox", "none", "--approve", "auto")


def make(target: Path) -> None:
    """Write the sample to `target`."""
    shutil.rmtree(ROOT, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="deepctl-sample-") as place:
        try:
            _story(Maker(Path(place)), Path(place))
            _pack(target)
        finally:
            shutil.rmtree(ROOT, ignore_errors=True)


def _story(maker: Maker, place: Path) -> None:
    alice = ROOT / "profiles/alice"
    maker.chat("alice", "main", "remember tea in the morning", "write notes.txt: one")
    maker.chat("alice", "main", "plan Journey: book; pack; leave", "write data/list.txt: a", "write notes.txt: two")
    maker.chat("alice", "main", f"write .deep/todo.json: {TODO}")
    maker.run("checkpoints", "save", "good", "--user", "alice")
    maker.run("memory", "add", "a note by hand", "--user", "alice")
    maker.chat("alice", "main", "write notes.txt: three", "remember coffee at noon", "remember a secret word")
    maker.run("checkpoints", "rewind", "~1", "--user", "alice")
    maker.run("checkpoints", "undo", "--user", "alice")
    maker.run("checkpoints", "rewind", "~1", "--only", "files", "--user", "alice")
    maker.run("checkpoints", "undo", "--user", "alice", "--force")
    maker.run("checkpoints", "rewind", "good", "--user", "alice", "--session", "main", "--force")
    maker.chat("alice", "main", "write after.txt: y", "remember a secret word", "run ln -s notes.txt link; mkdir empty")
    maker.run("checkpoints", "fork", "good", "forked", "--user", "alice", "--session", "main")
    maker.chat("alice", "forked", "write forked.txt: f", "what did I say?")
    maker.chat("alice", "other", "write other.txt: x")
    maker.chat("alice", "other", "write other.txt: xx")
    maker.run("memory", "forget", "secret", "--purge", "--yes", "--user", "alice")
    maker.chat("alice", "gone", "write gone.txt: g")
    maker.run("sessions", "delete", "gone", "--yes", "--user", "alice")
    maker.run("checkpoints", "prune", "--keep", "12", "--user", "alice")
    maker.run("checkpoints", "label", "~1", "before-other", "--session", "other", "--user", "alice")
    maker.run("sessions", "export", "main", "--user", "alice", "-o", str(place / "main.json"))
    maker.run("profiles", "export", str(place / "alice.deepctl"), "--user", "alice")
    maker.chat("alice", "killed", "write k.txt: one")
    maker.kill_in_turn(
        "alice", "killed", "write k.txt: two", "run echo x > b.txt; sleep 5", once=alice / "workspace/b.txt"
    )
    maker.run("profiles", "create", "bob")
    maker.run("config", "set", "compact_at", "10", "--user", "bob")
    maker.run("config", "set", "context_window", "8000", "--user", "bob")
    maker.run("config", "set", "snapshot.exclude", '["*.log"]', "--user", "bob")
    maker.chat("bob", "main", "write a.log: not kept", "write b.txt: kept")
    for number in range(5):
        maker.chat("bob", "main", f"{number}: {'a long story, ' * 60}")
    maker.chat("bob", "main", "run seq 1 5000")
    maker.run("sessions", "import", str(place / "main.json"), "--user", "bob", "--as", "imported")
    maker.chat("bob", "imported", "write c.txt: c")
    maker.run("profiles", "import", str(place / "alice.deepctl"), "--as", "carol")
    maker.chat("carol", "forked", "write carol.txt: c")
    maker.chat("carol", "main", "write carol2.txt: c")
    shutil.copy(place / "alice.deepctl", ROOT / "alice.deepctl")


def _pack(target: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(ROOT.rglob("*")):
            relative = path.relative_to(ROOT)
            if relative.parts[0] == "locks" or relative.parts[2:3] == ("cache",):
                continue
            member = archive.gettarinfo(str(path), str(relative))
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            with open(path, "rb") if member.isreg() else io.BytesIO() as content:
                archive.addfile(member, content if member.isreg() else None)
    target.write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))


def unpack(target: Path) -> None:
    """The sample as the root `target`, whose logs are shared by hard links as they were."""
    target.mkdir(mode=0o700)
    with tarfile.open(HERE / "root-0.1.0.tar.gz") as archive:
        archive.extractall(target, filter="tar")
    (target / "alice.deepctl").rename(target.parent / "alice.deepctl")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
