"""Any story in which a user and the agents of two sessions work in one project, with git and changing ignore rules.

Every line of a story has a number and occurs once. The model knows who put a line into a file, and when. After a
rewind, a line of another author than the session is still in a file, or its file is named as a conflict and the safety
checkpoint has it. A line of the session since the target is gone, or the rewind or a turn names its file.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from deepctl.errors import NotFound
from deepctl.store import trees, verify, workspaces
from deepctl.store.records import OTHER, Record
from deepctl.store.rewind import RewindConflicts, RewindResult
from tests.store.scene import Scene

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"

_PATHS = ["a.txt", "b.txt", "sub/c.txt", "x.log", "build/out.txt"]
_RULES = ["", "*.log\n", "build/\n", "*.log\nbuild/\n!x.log\n", "a.txt\n", ".gitignore\n*.log\n"]
_LINE = re.compile(r"# ?[A-Za-z0-9]+ \d+")

_SESSIONS = st.sampled_from(["main", "other"])
_WAYS = st.sampled_from(["append", "append", "append", "put above", "replace", "delete", "rename"])
_EDIT = st.tuples(st.sampled_from(_PATHS), _WAYS, st.sampled_from(_PATHS))
_COMMITS = "commits"
_MEANWHILE = st.lists(st.one_of(_EDIT, _EDIT, _EDIT, st.sampled_from([*_RULES, _COMMITS])), max_size=3)
_PICK = st.integers(0, 1000)
_WISH = st.sampled_from([{}, {}, {}, {"force": True}, {"merge": False}, {"merge": False, "force": True}])

Edit = tuple[str, str, str]
Lines = dict[str, set[str]]
USER = "user"


class Attribution(RuleBasedStateMachine):
    place: Path

    def __init__(self) -> None:
        super().__init__()
        place = self.place / os.urandom(6).hex()
        self.directory = place / "project"
        self.directory.mkdir(parents=True)
        self.scene = Scene(place / "root")
        self.scene.directories |= dict.fromkeys(("main", "other"), self.directory)
        self.number = 0
        self.placed: dict[tuple[str, str], tuple[str, int]] = {}
        """The author who put a line into a file last, and when."""
        self.returned: dict[tuple[str, str], str] = {}
        """The session whose rewind has put a line into a file since: its undo takes the line out again."""
        self.made: dict[str, int] = {}
        """The number of the last line before each checkpoint."""
        self._git("init", "--quiet")
        for name in _PATHS[:3]:
            self._edit((name, "append", name), USER)
            self._edit((name, "append", name), USER)
        self._commit()
        self.committed = True
        for session in ("main", "other"):
            self._turn(session, "edit_file", lambda: None)

    def _git(self, *arguments: str) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        identity = ("-c", "user.name=Alice", "-c", "user.email=alice@localhost", "-c", "core.hooksPath=/dev/null")
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=self.directory, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    def _commit(self) -> None:
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "--message", f"commit {self.number}")

    def _lines(self) -> Lines:
        """The lines with a number in each file."""
        return {
            str(path.relative_to(self.directory)): set(_LINE.findall(path.read_text()))
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and ".git" not in path.relative_to(self.directory).parts
        }

    def _does(self, author: str, action: Callable[[], None]) -> None:
        """An author does something; every line that is new in its file is the author's from now on."""
        before = self._lines()
        action()
        for key in self._new(before):
            self.placed[key] = (author, self.number)
            self.returned.pop(key, None)

    def _new(self, before: Lines) -> list[tuple[str, str]]:
        """The files and lines that were not there before."""
        return [(name, line) for name, lines in self._lines().items() for line in lines - before.get(name, set())]

    def _edit(self, edit: Edit, author: str) -> None:
        self._does(author, lambda: self._write(edit, author))

    def _write(self, edit: Edit, author: str) -> None:
        name, way, other = edit
        self.number += 1
        path, line = self.directory / name, f"# {author} {self.number}\n"
        before = path.read_text() if path.exists() else ""
        if way == "rename":
            if path.exists() and not (self.directory / other).exists():
                (self.directory / other).parent.mkdir(exist_ok=True)
                path.rename(self.directory / other)
        elif way == "delete":
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text({"append": before + line, "put above": line + before}.get(way, line))

    def _rule(self, rules: str, author: str) -> None:
        def write() -> None:
            self.number += 1
            (self.directory / ".gitignore").write_text(f"# {author} {self.number}\n{rules}")

        self._does(author, write)

    def _turn(
        self,
        session: str,
        tool: str,
        action: Callable[[], None],
        *,
        meanwhile: Callable[[], None] = lambda: None,
        changes: str | None = None,
    ) -> None:
        """A turn with one tool call, which announces what it `changes` if it is a file tool."""

        def others() -> None:
            self._note_records()
            meanwhile()

        prompt = f"turn {self.number}"
        with self.scene.turn(prompt, session, tool, meanwhile=others, announces=changes is not None) as announce:
            before = self.number
            if changes is not None:
                announce(self.directory / changes)
            action()
        # The checkpoint with the changes of others is made before the call, or after it without the agent's changes.
        for record in self.scene.records():
            is_before = record.kind == "tool" and record.author == OTHER
            self.made.setdefault(record.id, before if is_before else self.number)

    def _note_records(self) -> None:
        """The new checkpoints have the state after the last line so far."""
        for record in self.scene.records():
            self.made.setdefault(record.id, self.number)

    def _records(self, session: str) -> list[Record]:
        return [record for record in self.scene.records() if record.session == self.scene.session(session).id]

    @rule(edit=_EDIT)
    def user_edits(self, edit: Edit) -> None:
        self._edit(edit, USER)

    @rule(session=_SESSIONS, edit=_EDIT, meanwhile=_MEANWHILE)
    def agent_edits(self, session: str, edit: Edit, meanwhile: list[Edit | str]) -> None:
        """A file tool changes a file. A rename is no change of one file, so it is a command."""
        name, way, _ = edit
        self._turn(
            session,
            "execute" if way == "rename" else "edit_file",
            lambda: self._edit(edit, session),
            meanwhile=lambda: self._meanwhile(meanwhile),
            changes=None if way == "rename" else name,
        )

    @rule(session=_SESSIONS, rules=st.sampled_from(_RULES), meanwhile=_MEANWHILE)
    def agent_edits_rules(self, session: str, rules: str, meanwhile: list[Edit | str]) -> None:
        self._turn(
            session,
            "write_file",
            lambda: self._rule(rules, session),
            meanwhile=lambda: self._meanwhile(meanwhile),
            changes=".gitignore",
        )

    def _meanwhile(self, steps: list[Edit | str]) -> None:
        """The user edits files, changes the rules and commits, while the model thinks."""
        for step in steps:
            if step == _COMMITS:
                self._commit()
            elif isinstance(step, str):
                self._rule(step, USER)
            else:
                self._edit(step, USER)

    @rule(
        session=_SESSIONS,
        edit=_EDIT,
        between=st.lists(_EDIT, max_size=2),
        commits=st.booleans(),
        meanwhile=_MEANWHILE,
    )
    def command(
        self, session: str, edit: Edit, between: list[Edit], commits: bool, meanwhile: list[Edit | str]
    ) -> None:
        """A command makes several changes, and commits sometimes."""

        def run() -> None:
            for one in (edit, *between):
                self._edit(one, session)
            if commits:
                self._commit()

        self._turn(session, "execute", run, meanwhile=lambda: self._meanwhile(meanwhile))

    @rule(rules=st.sampled_from(_RULES), author=st.sampled_from([USER, "main", "other"]), edit=st.none() | _EDIT)
    def ignore(self, rules: str, author: str, edit: Edit | None) -> None:
        """Somebody changes the rules, and a file at the same time."""

        def change() -> None:
            self._rule(rules, author)
            if edit is not None:
                self._edit(edit, author)

        if author == USER:
            change()
        else:
            self._turn(author, "execute", change)

    @rule()
    def user_commits(self) -> None:
        self._commit()

    @rule(pick=_PICK, name=st.sampled_from([".", *_PATHS[:3]]))
    def user_checks_out(self, pick: int, name: str) -> None:
        """The user takes files from an earlier commit; what is there afterwards is the user's."""
        commits = self._git("rev-list", "HEAD").splitlines()
        commit = commits[pick % len(commits)]

        def check_out() -> None:
            self.number += 1
            if self._git("ls-tree", "-r", "--name-only", commit, name):
                self._git("checkout", "--quiet", commit, "--", name)

        self._does(USER, check_out)

    @rule(session=_SESSIONS, pick=_PICK, wish=_WISH)
    def rewind(self, session: str, pick: int, wish: dict[str, bool]) -> None:
        records = [record for record in self._records(session) if record.tree and record.kind != "rewind"]
        with self.scene.work() as work:
            line = {record.id for record in work.ledger.line(work.ledger.head(self.scene.session(session)))}
        targets = [record.id for record in records if record.id in line and record.id in self.made]
        target = targets[pick % len(targets)]
        self._check(session, lambda: self.scene.rewind(target, session, **wish), self.made[target])

    @rule(session=_SESSIONS, force=st.booleans())
    def undo(self, session: str, force: bool) -> None:
        self._check(session, lambda: self.scene.undo(session, force=force), self.number)

    def _check(self, session: str, operation: Callable[[], RewindResult], since: int) -> None:
        """Do a rewind, and see what has become of everybody's lines."""
        before = self._lines()
        head = self._git("rev-parse", "HEAD"), self._git("ls-files", "--stage")
        try:
            result = operation()
        except (RewindConflicts, NotFound) as error:
            event(type(error).__name__)
            assert self._lines() == before
            return
        self._note_records()
        event("merged" if result.plan.merged_paths else "forced" if result.plan.conflicts else "done")
        after = self._lines()
        assert (self._git("rev-parse", "HEAD"), self._git("ls-files", "--stage")) == head
        self._check_others(session, before, after, result)
        self._check_own(session, after, result, since)
        self.number += 1
        for key in self._new(before):
            self.placed.setdefault(key, (session, self.number))
            self.returned[key] = session

    # A line that the session wrote counts as its own, also if the user has taken it from a commit again: if no snapshot
    # lies between, nothing has changed.
    def _check_others(self, session: str, before: Lines, after: Lines, result: RewindResult) -> None:
        there = set().union(*after.values())
        conflicts = self._shown(result.plan.conflicts)
        for name, lines in before.items():
            for line in lines - there:
                if line.startswith(f"# {session} ") or session in (
                    self.placed[name, line][0],
                    self.returned.get((name, line)),
                ):
                    continue
                assert result.plan.request.force, f"{line!r} of {name} is lost"
                assert name in conflicts, f"{line!r} of {name} is lost unnamed"
                assert line in self._saved(result, name), f"{line!r} of {name} is not in the safety checkpoint"

    def _check_own(self, session: str, after: Lines, result: RewindResult, since: int) -> None:
        plan = result.plan
        named = self._shown([*plan.ignored_paths, *plan.kept_paths, *(path for path, _ in result.in_the_way)])
        named |= {path for record in self._records(session) for path in record.not_covered}
        for name, lines in after.items():
            for line in lines:
                author, number = self.placed.get((name, line), (USER, 0))
                if author == session and number > since and not line.startswith(f"# {USER}"):
                    # A new directory that git ignores is named as a whole.
                    assert any(f"{name}/".startswith(f"{path.rstrip('/')}/") for path in named), f"{line!r} in {name}"

    def _shown(self, paths: list[bytes]) -> set[str]:
        places = [workspaces.mounted(path) for path in paths]
        return {os.fsdecode(place.path) for place in places if place is not None and place.path}

    def _saved(self, result: RewindResult, name: str) -> set[str]:
        """The lines of a file in the safety checkpoint."""
        assert result.safety is not None
        project = self.scene.session().project
        assert project is not None
        with self.scene.work() as work:
            objects = work.store.objects
            path = workspaces.mount_prefix(project.id) + b"/" + name.encode()
            entry = trees.entry_at(objects, bytes.fromhex(result.safety.tree), path)
            return set(_LINE.findall(objects.read(entry.digest).decode())) if entry is not None else set()

    def teardown(self) -> None:
        assert verify.verify(self.scene.paths).problems == []


@pytest.mark.timeout(7200)
def test_no_edit_of_a_user_is_lost_and_no_edit_of_an_agent_stays_unnamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    Attribution.place = tmp_path
    chosen = settings(
        max_examples=2000 if _SOAK else 50,
        stateful_step_count=20 if _SOAK else 12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Attribution, settings=chosen)
