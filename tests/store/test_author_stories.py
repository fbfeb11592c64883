"""Any story in which a user and several agents write the same files: no line of the user's is ever lost unnamed.

Turns are killed, checkpoints removed in any order, sessions forked and deleted, the profile moved. What the story keeps
in mind is which lines the user has written that nobody has taken away since, and which ones each session's agent has
written since when: those are gone after a rewind, or named.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from deepctl.errors import NotFound
from deepctl.layout import Root
from deepctl.store import prune, session_catalogue, session_delete, trees, verify
from deepctl.store.repository import EVERY_TOOL, EVERY_TURN, MANUAL_ONLY
from deepctl.store.rewind import RewindConflicts, RewindResult
from tests.domain.test_transfer import export, take
from tests.store.scene import Scene

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"

_FILES = st.sampled_from(["a.txt", ".deep/memory/main/MEMORY.md"])
_WAYS = st.sampled_from(["append", "append", "append", "append", "put above", "replace", "delete"])
_WHO = st.sampled_from(["user", "agent", "agent", "user", "killed"])
_POLICIES = st.sampled_from([EVERY_TOOL, EVERY_TOOL, EVERY_TURN, MANUAL_ONLY])
_PICK = st.integers(0, 1000)

Lines = dict[str, set[str]]
"""Lines of the user's by file."""


class AuthorStories(RuleBasedStateMachine):
    place: Path

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(self.place / os.urandom(6).hex())
        self.sessions = ["main"]
        self.number = 0
        self.mine: Lines = {}
        self.agents: dict[str, list[tuple[int, str, str]]] = {}
        """The lines of each session's agent, by its id: when each was written, where, and the line."""
        self.made: dict[str, int] = {}
        """When checkpoints were made, as far as that is known: the last of every rule."""
        # That directories are new is beside the point.
        self.scene.write(".deep/memory/main/OTHER.md", "- other\n")
        self.scene.agent("x", "x")
        self.made = {record.id: 0 for record in self.scene.records()}
        self.save(0, True)

    def _change(self, name: str, way: str, author: str) -> None:
        """Change a file in one way, by a line that is in no other."""
        self.number += 1
        line = f"- {author} {self.number}\n"
        path = self.scene.workspace / name
        before = path.read_text() if path.exists() else ""
        if way == "delete":
            if before:
                self.scene.write(name, None)
            return
        self.scene.write(name, {"append": before + line, "put above": line + before}.get(way, line))
        if author == "user":
            self.mine.setdefault(name, set()).add(line)
        else:
            self.agents.setdefault(author, []).append((self.number, name, line))

    def _lost(self) -> Lines:
        """Lines of the user's that are in their files no more."""
        files = self.scene.files()
        found = {name: {one for one in lines if one not in files.get(name, "")} for name, lines in self.mine.items()}
        return {name: lines for name, lines in found.items() if lines}

    def _forget(self) -> None:
        """Lines that are gone by now were taken away by somebody who may."""
        for name, lines in self._lost().items():
            self.mine[name] -= lines

    def _done(self, *, killed: bool = False) -> None:
        """A rule has run its course. The last checkpoint of one that was killed lies before its last change."""
        self._forget()
        new = [record.id for record in self.scene.records() if record.id not in self.made]
        self.made |= dict.fromkeys(new, -1)
        if new and not killed:
            self.made[new[-1]] = self.number

    @rule(name=_FILES, steps=st.lists(st.tuples(_WHO, _WAYS), min_size=1, max_size=4), pick=_PICK, policy=_POLICIES)
    def write(self, name: str, steps: list[tuple[str, str]], pick: int, policy: str) -> None:
        """The user and a session's agent change one file by turns."""
        for who, way in steps:
            if who == "user":
                self._change(name, way, "user")
                self._forget()
            elif who == "agent":
                self._turn(name, way, self._session(pick), policy)
            else:
                self.killed_turn([(name, way)], pick, policy)

    def _turn(self, name: str, way: str, session: str, policy: str) -> None:
        with self.scene.turn(f"turn {self.number}", session, policy=policy):
            self._change(name, way, self.scene.session(session).id)
        self._done()

    @rule(steps=st.lists(st.tuples(_FILES, _WAYS), min_size=1, max_size=3), pick=_PICK, policy=_POLICIES)
    def killed_turn(self, steps: list[tuple[str, str]], pick: int, policy: str) -> None:
        session = self._session(pick)

        def call(name: str, way: str) -> Callable[[], None]:
            return lambda: self._change(name, way, self.scene.session(session).id)

        calls = [call(name, way) for name, way in steps]
        self.number += 1
        self.scene.killed_turn(f"killed {self.number}", *calls, session=session, policy=policy)
        self._done(killed=True)

    @rule(pick=_PICK, labelled=st.booleans())
    def save(self, pick: int, labelled: bool) -> None:
        self.number += 1
        with self.scene.work() as work:
            work.save_now(self.scene.session(self._session(pick)), f"label-{self.number}" if labelled else None)
        self._done()

    @rule(picks=st.lists(_PICK, min_size=1, max_size=4))
    def remove(self, picks: list[int]) -> None:
        with self.scene.work() as work:
            records = list(work.ledger.records.values())
            free = [record for record in records[:-1] if record.id not in work.ledger.labels]
            gone = {free[pick % len(free)].id for pick in picks} if free else set()
            prune.remove(work, [record for record in free if record.id in gone])

    @rule(keep=st.integers(1, 4))
    def prune(self, keep: int) -> None:
        with self.scene.work() as work:
            prune.remove(work, prune.to_prune(work.ledger, keep))

    @precondition(lambda self: len(self.sessions) < 3)
    @rule(pick=_PICK)
    def fork(self, pick: int) -> None:
        with self.scene.work() as work:
            records = [record for record in work.ledger.records.values() if record.log]
            if records:
                self.number += 1
                work.fork(records[pick % len(records)], f"fork-{self.number}")
                self.sessions.append(f"fork-{self.number}")

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(pick=_PICK)
    def delete(self, pick: int) -> None:
        name = self._session(pick)
        with self.scene.work() as work:
            if session_catalogue.stored_name(work.paths, name) is not None:
                session_delete.delete(work, session_delete.plan(work.paths, work.ledger, work.store.packs, name))
                self.sessions.remove(name)

    @rule(way=st.sampled_from(["rename", "copy", "export"]))
    def move(self, way: str) -> None:
        """Move the profile; a copy and an import leave no hard links between the logs of forks."""
        place = self.place / os.urandom(6).hex()
        root = Path(self.scene.paths.directory).parent.parent
        if way == "rename":
            root.rename(place)
        elif way == "copy":
            shutil.copytree(root, place, symlinks=True)
        else:
            place.mkdir()
            take(Root(str(place)), export(self.scene)[0], "alice")
        self.scene = Scene(place)

    @rule(pick=_PICK, at=_PICK, wish=st.sampled_from([{}, {}, {}, {"force": True}, {"exact": True}]))
    def rewind(self, pick: int, at: int, wish: dict[str, bool]) -> None:
        session = self._session(pick)
        with self.scene.work() as work:
            found = self.scene.session(session)
            line = [record for record in work.ledger.line(work.ledger.head(found)) if record.tree]
        if line:
            # Often to the very beginning, which stays whatever is removed.
            target = line[-1 if at % 3 == 0 else at % len(line)].id
            self._check(lambda: self.scene.rewind(target, session, **wish))

    @rule(pick=_PICK, force=st.booleans())
    def undo(self, pick: int, force: bool) -> None:
        self._check(lambda: self.scene.undo(self._session(pick), force=force))

    def _check(self, operation: Callable[[], RewindResult]) -> None:
        """Do a rewind, and see what has become of everybody's lines."""
        before = self.scene.files()
        try:
            done = operation()
        except (RewindConflicts, NotFound):
            assert self.scene.files() == before
            return
        lost = self._lost()
        if done.plan.request.exact:
            named = {*done.restored_paths, *done.deleted_paths}
        else:
            named = set(done.plan.conflicts) if done.plan.request.force else set()
        assert {os.fsencode(name) for name in lost} <= named, (lost, named)
        for name in lost:
            assert done.safety is not None
            assert self._at(done.safety.tree, name) == before[name], "what was overridden is in the checkpoint"
        files = self.scene.files()
        since = self.made.get(done.plan.request.to.id, -1)
        for number, name, line in self.agents.get(done.plan.position.session, []) if since >= 0 else []:
            assert number <= since or line not in files.get(name, ""), f"{line!r} is left in {name}"
        self._done(killed=True)

    def _at(self, tree: str, name: str) -> str:
        with self.scene.work() as work:
            entry = trees.entry_at(work.store.objects, bytes.fromhex(tree), name.encode())
            assert entry is not None
            return work.store.objects.read(entry.digest).decode()

    def _session(self, pick: int) -> str:
        return self.sessions[pick % len(self.sessions)]

    def teardown(self) -> None:
        assert verify.verify(self.scene.paths).problems == []


@pytest.mark.timeout(3600)
def test_no_line_of_the_users_is_ever_lost_without_being_named(tmp_path: Path) -> None:
    AuthorStories.place = tmp_path
    chosen = settings(
        max_examples=2000 if _SOAK else 20,
        stateful_step_count=20 if _SOAK else 12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(AuthorStories, settings=chosen)
