"""What becomes of an agent's commands: one statement of it for `doctor`, the start of a chat and its conversation."""

from __future__ import annotations

from typing import Literal, NamedTuple

from deepctl.domain.permissions import Permissions
from deepctl.sandbox.policy import Unavailable

Questions = Literal["asked", "allowed", "denied"]


class CommandPolicy(NamedTuple):
    """Where commands run (`None`: nowhere, `none`: unsandboxed), and who is asked about them.

    `terminal` says whether a person can be asked, `None` where that is not known yet. `problem` is why they do not run
    in bubblewrap although the settings leave the choice to deepctl.
    """

    sandbox: str | None
    approve: str
    terminal: bool | None = None
    network: bool = False
    permissions: Permissions = {}
    problem: Unavailable | None = None
    image: str | None = None

    @property
    def questions(self) -> Questions:
        """What happens to what needs a yes."""
        if self.approve == "auto":
            return "allowed"
        return "asked" if self.approve == "ask" and self.terminal is not False else "denied"

    @property
    def unsandboxed(self) -> bool:
        return self.sandbox == "none"

    def statement(self) -> str:
        """All of it, without a capital letter and a full stop."""
        if self.sandbox is None:
            return "no shell: there is no sandbox for commands, and no terminal at which to ask about them"
        if not self.unsandboxed:
            where = f"a container of {self.image}" if self.sandbox == "docker" and self.image else self.sandbox
            return f"commands run in {where}, {'with' if self.network else 'without'} the network{self._rules()}"
        rights = "commands run unsandboxed, with your own rights and the network"
        if self.questions == "allowed":
            return f"{rights}, without asking{self._rules()}"
        if self.questions == "asked":
            elsewhere = "; without a terminal they are refused" if self.terminal is None else ""
            return f"{rights}, and each is asked about{elsewhere}{self._rules()}"
        why = "`approve` is `never`" if self.approve == "never" else "there is no terminal to ask at"
        return f"commands are refused: unsandboxed, each needs a yes, and {why}{self._rules()}"

    def _rules(self) -> str:
        rules = self.permissions.get("execute")
        if rules is None or (not rules.rules and rules.default in (None, "ask")):
            return ""
        return "; rules of [permissions] come first"

    def notice(self) -> str | None:
        """What a person should know before the first prompt; `None` where commands are confined."""
        if self.sandbox is not None and not self.unsandboxed:
            return None
        said = self.statement()
        why = f" Bubblewrap cannot be used: {self.problem.reason}. {self.problem.fix}" if self.problem else ""
        return f"{said[:1].upper()}{said[1:]}.{why}"
