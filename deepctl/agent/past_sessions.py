"""The tool `search_sessions`: the agent searches the earlier conversations of its own profile.

The search is that of `deepctl sessions search`. The harness' `conversation_search` ranks runs whose messages it has all
in memory, as objects of pydantic-ai; deepctl's search reads one log after the other as JSON, and names the session, the
turn and the line, which `sessions show` and `/resume` take.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import FunctionToolset, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ToolFailed

from deepctl.agent.tasks import in_worker
from deepctl.errors import DeepctlError
from deepctl.layout import ProfilePaths
from deepctl.redaction import redact
from deepctl.store import session_catalogue, session_search
from deepctl.store.session_search import SessionMatch
from deepctl.unicode import one_line

TOOL = "search_sessions"
_DESCRIPTION = (
    "Search your earlier conversations with this user for words, in any order and case. Use it when the user refers to "
    "something that you do not see. `session` is the name of one session; by default all are searched, newest first."
)
MOST_MATCHES = 20
MOST_LINE = 300
"""Characters of a shown line."""
MOST_RESULT = 8_000
"""Characters of a result."""


@dataclass
class SearchSessions(AbstractCapability[Any]):
    """The capability with the tool `search_sessions`, for the sessions of the profile at `paths`, in all directories.

    The turn that runs is left out. The search takes no lock and changes nothing. Keys of `environment` are removed from
    its lines before these are cut, because a part of a key is not recognised.
    """

    paths: ProfilePaths
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    id: str | None = field(default="search_sessions", kw_only=True)

    def get_toolset(self) -> FunctionToolset[Any]:
        toolset: FunctionToolset[Any] = FunctionToolset(id="sessions")

        async def search_sessions(ctx: RunContext[Any], query: str, session: str | None = None) -> str:
            running_session = getattr(ctx.deps, "session", None)
            try:
                return await in_worker(lambda: self._search(query, session or None, running_session))
            except DeepctlError as error:
                raise ToolFailed(error.message) from error

        toolset.add_function(search_sessions, name=TOOL, description=_DESCRIPTION)
        return toolset

    def _search(self, query: str, session: str | None, running_session: str | None) -> str:
        names = session_catalogue.by_id(self.paths)
        matches, has_more, damaged = session_search.search(
            self.paths,
            session_search.words(query),
            session=session,
            limit=MOST_MATCHES,
            running_session=names.get(running_session) if running_session is not None else None,
        )
        if not matches:
            return f"No earlier conversation has {query!r} in one message."
        lines: list[str] = []
        heading = ""
        for match in matches:
            if (place := self._place(match)) != heading:
                heading = place
                lines.append(heading)
            lines.append(f"  turn {match.turn}, {_role(match)}: {self._line(match)}")
        text = "\n".join(lines)
        if has_more or len(text) > MOST_RESULT:
            text = f"{text[:MOST_RESULT]}\n[There are more matches. Search for more words, or in one session.]"
        if damaged:
            text += f"\n[{len(damaged)} damaged session(s) were not searched, or only in part.]"
        return text

    def _place(self, match: SessionMatch) -> str:
        record = session_catalogue.find(self.paths, match.session)
        directory = f", in {one_line(record.project.path)}" if record.project is not None else ""
        return f"Session {match.session}{directory}, {match.at[:10]}:"

    def _line(self, match: SessionMatch) -> str:
        """The line on one line, with the first match in it."""
        text = redact(match.text, self.environment)
        before = len(redact(match.text[: match.spans[0][0]], self.environment)) if match.spans else 0
        start = max(0, before - MOST_LINE // 3) if len(text) > MOST_LINE else 0
        beginning = "…" if start else ""
        end = "…" if start + MOST_LINE < len(text) else ""
        return f"{beginning}{one_line(text[start : start + MOST_LINE])}{end}"


def _role(match: SessionMatch) -> str:
    return f"{match.tool} ({match.part})" if match.tool else match.role
