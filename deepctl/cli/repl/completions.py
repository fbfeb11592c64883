"""What the line editor of a conversation offers: its commands, and checkpoints, sessions, models and files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from deepctl.cli.profile_chat import ProfileChat
from deepctl.cli.repl import run_cli_command, slash_commands
from deepctl.cli.repl.completer import Command, Offer, workspace_paths
from deepctl.domain import providers, settings
from deepctl.output.text import ago
from deepctl.quantities import counted
from deepctl.store import lookup, session_catalogue
from deepctl.store.records import Record

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation

_MOST = 50


class ProfileCompletions:
    """What there is to choose from in a conversation; looked up when asked, without the lock."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    @property
    def commands(self) -> Sequence[Command]:
        return slash_commands.offered(self._conversation)

    def references(self) -> Iterator[Offer]:
        """`~N` with the prompt that would be taken back, then labels and ids, the newest first."""
        session = run_cli_command.at_hand_if_any(self._conversation) if self._is_kept() else None
        if session is None:
            return
        found = lookup.read_ledger(run_cli_command.profile(self._conversation))
        line = found.line_of(lookup.head(found, session))
        turns = session_catalogue.read(session).last_turn
        prompts = {one.turn: one.prompt for one in reversed(line) if one.kind != "tool"}
        for back, turn in enumerate(range(turns, max(0, turns - _MOST), -1), 1):
            yield Offer(f"~{back}", f"before {prompts[turn]}" if prompts.get(turn) else "")
        newest = [one for one in line if one.kind != "tool"][:_MOST]
        for one in newest:
            if label := found.labels.get(one.id):
                yield Offer(label, _meaning(one))
        for one in newest:
            yield Offer(one.id[:8], _meaning(one))

    def sessions(self) -> Iterator[Offer]:
        """The one written to last first."""
        if self._is_kept():
            paths = run_cli_command.profile(self._conversation)
            for name in session_catalogue.newest_first(paths)[:_MOST]:
                summary = session_catalogue.summary(paths, name)
                yield Offer(name, f"{counted(summary.turns, 'turn')}, {ago(summary.updated_at)}  {summary.title}")

    def models(self) -> Iterable[Offer]:
        """Names worth choosing, without asking anybody."""
        paths = run_cli_command.profile(self._conversation) if self._is_kept() else None
        now = self._conversation.talk.facts(None).model
        return [Offer(*one) for one in providers.known_models(os.environ, settings.load(os.environ, paths), now=now)]

    def paths(self, prefix: str) -> Iterable[Offer]:
        """What in the workspace begins with `prefix`."""
        if not self._is_kept():
            return ()
        return workspace_paths(run_cli_command.profile(self._conversation).workspace, prefix)

    def _is_kept(self) -> bool:
        return isinstance(self._conversation.talk, ProfileChat)


def _meaning(record: Record) -> str:
    kind = "" if record.kind == "turn" else f"{record.kind}, "
    return f"{kind}{ago(record.created_at)}, after {record.prompt}" if record.prompt else f"{kind}the beginning"
