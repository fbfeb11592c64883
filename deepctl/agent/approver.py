"""Approval requests: a question about one action of the agent, the person's answer, and the answers that hold later.

A tool that needs an approval asks from within its call:

    request = ApprovalRequest("fetch", address, wish=f"read a page of {domain}", choices=(always(f"of {domain}"),))
    await approver.check(ctx, request, (f"fetch {domain}",), refusal="to read this page")
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from pydantic_ai import RunContext
from pydantic_ai.exceptions import ToolFailed

from deepctl.agent import delegation
from deepctl.agent.backend import LocalBackend

Approve = Literal["ask", "auto", "never"]

DOMAIN_CHOICE = "domain "
"""The beginning of the name of the choice that allows a domain of the web for good."""
ALWAYS = "always"
"""The name of the choice that also answers later requests with the same first grant."""


class Choice(NamedTuple):
    """An answer besides yes and no, such as `Choice("a", "[a]lways this file", "always")`. It allows the action.

    `key` is one letter other than `y`, `n`, `t` and `s`; `text` contains it in brackets. `name` is for the program. A
    choice with a `rule` is given only after the person has seen this text and has agreed a second time.
    """

    key: str
    text: str
    name: str
    rule: str = ""


def always(what: str) -> Choice:
    """The choice to allow `what`, such as `this file`, in the whole session."""
    return Choice("a", f"[a]lways {what}", ALWAYS)


class ApprovalRequest(NamedTuple):
    """An approval request: the operation, the path or command, and for a change to a file its diff.

    For a tool of an MCP server (`mcp`), the target is its name and the preview are its arguments, as JSON. `wish`
    completes the sentence "The agent wants to". `choices` are the answers besides yes and no. `agent` is the name of
    the sub-agent that makes the call; it is empty for the agent itself.
    """

    operation: str
    target: str
    preview: str = ""
    wish: str = ""
    choices: tuple[Choice, ...] = ()
    agent: str = ""


class ApprovalAnswer(NamedTuple):
    """The answer; `word` is for the agent. `choice` is the name of a choice of the request, `always` short for that
    one.
    """

    allow: bool
    always: bool = False
    word: str = ""
    choice: str = ""


Ask = Callable[[ApprovalRequest], Awaitable[ApprovalAnswer]]
"""Asks the person at the terminal."""


@dataclass
class Approver:
    """Answers approval requests: by `approve`, by an earlier answer in the same session, or by `ask`.

    `approve` is `auto` (yes), `never` (no) or `ask`, which is no without the function `ask`. A grant is a text that
    stands for the actions that an answer allows. It holds for one session in one backend, until this object ends.
    """

    approve: Approve = "ask"
    ask: Ask | None = None
    _grants: dict[Hashable, set[str]] = field(default_factory=dict, init=False, repr=False)
    _grants_of_backends: WeakKeyDictionary[Any, dict[Hashable, set[str]]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    def grants(self, ctx: RunContext[Any], *, of_all_sessions: bool = False) -> set[str]:
        """The grants of the session of this run, or those of all sessions in its backend. They can be added to."""
        backend = ctx.workspace
        session = ("",) if of_all_sessions else getattr(ctx.deps, "session", None)
        if isinstance(backend, LocalBackend):
            return self._grants.setdefault((backend.root_dir, backend.profile_dir, session), set())
        # Not by its id: another user's backend may have it later.
        return self._grants_of_backends.setdefault(backend, {}).setdefault(session, set())

    async def check(
        self,
        ctx: RunContext[Any],
        request: ApprovalRequest,
        grants: Collection[str],
        *,
        refusal: str,
        reason: str = "",
    ) -> str:
        """Return if the answer is yes: the name of the choice, or an empty text. Raises `ToolFailed` if it is no.

        Any of `grants` allows the action without a question; the choice `always` gives the first one. `refusal`
        completes "The user did not allow", for the model. `reason` completes "Approval is needed because".
        """
        if not self.grants(ctx).isdisjoint(grants):
            return ""
        because = f" Approval is needed because {reason}." if reason else ""
        if self.approve == "never":
            raise ToolFailed(f"The settings do not allow {refusal}.{because} Continue without it.")
        if self.approve == "auto":
            return ""
        if self.ask is None:
            raise ToolFailed(f"There is no terminal to allow {refusal}.{because} Continue without it.")
        answer = await self.ask(request._replace(agent=delegation.agent_name()))
        if not answer.allow:
            word = f" The reason: {answer.word}" if answer.word else " Continue without it."
            raise ToolFailed(f"The user did not allow {refusal}.{word}")
        choice = answer.choice or (ALWAYS if answer.always else "")
        if choice == ALWAYS:
            self.grants(ctx).add(next(iter(grants)))
        return choice
