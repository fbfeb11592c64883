"""A profile with a story: turns with files, memory and conversation, without a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepctl.domain import profiles
from deepctl.layout import ProfilePaths, Root
from deepctl.store import (
    log_file,
    lookup,
    not_covered,
    projects,
    rewind,
    session_catalogue,
    session_log,
    session_reader,
)
from deepctl.store.coverage import CoverageSettings
from deepctl.store.records import Position, Record, SessionProject, SessionRecord
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindRequest, RewindResult
from deepctl.store.tool_calls import ToolCall
from deepctl.store.trees import ScratchWriter


class Scene:
    """Alice's profile below `place`, and what one does with it."""

    def __init__(self, place: Path) -> None:
        root = Root(str(place))
        self.paths = profiles.find(root, "alice") if profiles.exists(root, "alice") else profiles.create(root, "alice")
        self.workspace = Path(self.paths.workspace)
        self.directories: dict[str, Path] = {}
        """The project of each session that has one."""

    def session(self, name: str = "main") -> SessionRecord:
        found = session_catalogue.stored_name(self.paths, name)
        if found:
            return session_catalogue.find(self.paths, found)
        return session_catalogue.start(self.paths, name, self.project(name))

    def project(self, session: str) -> SessionProject | None:
        """The project in which a session starts."""
        if session not in self.directories:
            return None
        project = projects.ensure(self.paths, str(self.directories[session]))
        return SessionProject(project.id, project.path)

    @contextmanager
    def work(self, *, exclude: Sequence[str] = (), **options: Any) -> Iterator[Repository]:
        with Repository.open(self.paths, **{"coverage": CoverageSettings(exclude=exclude), **options}) as work:
            yield work

    @contextmanager
    def turn(
        self,
        prompt: str,
        session: str = "main",
        tool: str = "execute",
        *,
        meanwhile: Callable[[], object] = lambda: None,
        announces: bool = False,
        **options: Any,
    ) -> Iterator[Callable[[Path], None]]:
        """One turn, whose body is what its only tool does. `meanwhile` is what others do while the model thinks before.

        A tool that `announces` its changes calls the function that it gets before it changes a file.
        """
        with self.work(**options) as work:
            found = self.session(session)
            reader = session_reader.SessionReader(self.paths, found)
            before = session_reader.position(found, reader.whole())
            reader.remember()
            work.before_turn(found, before)
            at_start = work.look(found)
            writer = session_log.LogWriter(found.directory, found.log, before.turn + 1)
            writer.message(_request({"part_kind": "user-prompt", "content": prompt}))
            call = {"part_kind": "tool-call", "tool_name": tool, "tool_call_id": prompt}
            meanwhile()
            writer.message({"kind": "response", "parts": [call]})
            position = before._replace(turn=writer.turn, log=found.log, prompt=prompt)
            count = before.message_count

            def here() -> Position:
                return position._replace(offset=writer.end, message_count=count + writer.count)

            def announce(path: Path) -> None:
                places = [Path(place).resolve() for place in (self.directories.get(session), self.workspace) if place]
                root = next(place for place in places if path.is_relative_to(place))
                work.before_change(found, at_work, here(), str(root), str(path.relative_to(root)))

            at_work = ToolCall(tool, here(), set() if announces else None)
            work.before_tool(found, at_work)
            yield announce
            result = {"part_kind": "tool-return", "tool_name": tool, "tool_call_id": prompt, "content": "done"}
            writer.result(result)
            work.after_tool(found, at_work, here())
            writer.message(_request(result))
            writer.message({"kind": "response", "parts": [{"part_kind": "text", "content": f"did {prompt}"}]})
            at_end = work.look(found)
            changed = not_covered.changes(at_start, at_end).paths if at_start and at_end else []
            work.after_turn(
                found,
                here(),
                not_covered=[os.fsdecode(path) for path in changed],
            )
            writer.close()

    def killed_turn(self, prompt: str, *calls: Callable[[], object], session: str = "main", **options: Any) -> None:
        """A turn whose one answer makes these tool calls, killed in the last of them."""
        with self.work(**options) as work:
            found = self.session(session)
            conversation = session_catalogue.read(found)
            before = session_reader.position(found, conversation)
            work.before_turn(found, before)
            writer = session_log.LogWriter(found.directory, found.log, before.turn + 1)
            writer.message(_request({"part_kind": "user-prompt", "content": prompt}))
            names = [{"tool_name": "execute", "tool_call_id": f"{prompt} {number}"} for number in range(len(calls))]
            writer.message({"kind": "response", "parts": [{"part_kind": "tool-call", **name} for name in names]})
            position = before._replace(turn=writer.turn, log=found.log, prompt=prompt)
            for number, (call, name) in enumerate(zip(calls, names, strict=True), 1):
                here = position._replace(offset=writer.end, message_count=before.message_count + writer.count)
                tool = ToolCall("execute", here)
                work.before_tool(found, tool)
                call()
                if number < len(calls):
                    writer.result({"part_kind": "tool-return", **name, "content": "done"})
                    work.after_tool(found, tool, here._replace(offset=writer.end))
            writer.close()

    def write(self, name: str, text: str | None) -> None:
        path = self.workspace / name
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def agent(self, name: str, text: str | None, session: str = "main") -> None:
        """A turn that writes one file, or deletes it."""
        with self.turn(f"write {name} {text}", session):
            self.write(name, text)

    def rewind(self, reference: str, session: str = "main", **wish: Any) -> RewindResult:
        with self.work() as work:
            found = self.session(session)
            target = lookup.find_checkpoint(self.paths, work.ledger, reference, session)
            return rewind.run(work, found, RewindRequest(target, **wish))

    def undo(self, session: str = "main", *, force: bool = False) -> RewindResult:
        with self.work() as work:
            return rewind.run(work, *rewind.request_undo(work, session, force=force))

    def records(self) -> list[Record]:
        return list(session_catalogue.read_ledger(self.paths).records.values())

    def prompts(self, session: str = "main") -> list[str]:
        messages = session_catalogue.read(self.session(session)).messages
        return [text for entry in messages if (text := log_file.prompt(entry.message)) is not None]

    def files(self) -> dict[str, str]:
        """The files of the workspace as text, links and directories left out."""
        return {
            str(path.relative_to(self.workspace)): path.read_text()
            for path in sorted(self.workspace.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    def tree(self, session: str = "main") -> str:
        """The hash of the workspace as it is."""
        with self.work() as work:
            return work.store.snapshot(
                work.workspace_of(self.session(session)), ScratchWriter(work.store.objects)
            ).tree.hex()

    def last(self, kind: str = "turn") -> Record:
        found = [record for record in self.records() if record.kind == kind]
        return found[-1]


def _request(part: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "request", "parts": [part]}


def leftovers(paths: ProfilePaths) -> list[str]:
    """Temporary files anywhere in a profile."""
    return [
        os.path.join(directory, name)
        for directory, _, names in os.walk(paths.directory)
        for name in names
        if name.endswith(".tmp")
    ]
