"""What becomes of an agent's commands: one statement of it for `doctor`, the start of a chat and its conversation."""

from __future__ import annotations

from typing import Literal, NamedTuple

from deepctl.domain.permissions import Permissions, Rules
from deepctl.sandbox.policy import Unavailable

Questions = Literal["asked", "allowed", "denied"]
Outcome = Literal["run", "asked", "refused"]

_QUESTIONED: dict[Questions, Outcome] = {"asked": "asked", "allowed": "run", "denied": "refused"}
_RULES = {"allow": "allows", "ask": "asks about", "deny": "denies"}
_UNCLEAR = "cannot tell"
"""With rules that ask or deny, a command that cannot be read is asked about."""


class CommandPolicy(NamedTuple):
    """Where commands run (`None`: nowhere, `none`: unsandboxed), and who is asked about them.

    `terminal` says whether a person can be asked, `None` where that is not known yet. `problem` is why they do not run
    in bubblewrap although the settings leave the choice to deepctl. Neither `approve` nor a rule allows a command then.
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
        if self.approve == "auto" and self.problem is None:
            return "allowed"
        return "asked" if self.approve != "never" and self.terminal is not False else "denied"

    @property
    def unsandboxed(self) -> bool:
        return self.sandbox == "none"

    def statement(self) -> str:
        """All of it, without a capital letter and a full stop."""
        if self.sandbox is None:
            return "no shell: there is no sandbox for commands, and no terminal at which to ask about them"
        exceptions = self._exceptions()
        statement = self._usually()
        if exceptions:
            clauses = "; ".join(
                f"what one {' or '.join(verbs)} {self._told(outcome)}" for outcome, verbs in exceptions.items()
            )
            statement = f"where no rule of [permissions] decides, {statement}; {clauses}"
        outcomes = {self._outcome(self._default), *exceptions}
        if self.terminal is None and self.problem is not None and outcomes != {"refused"}:
            return f"{statement}; without a terminal there is no shell"
        if self.terminal is None and "asked" in outcomes:
            return f"{statement}; without a terminal, what is asked about is refused"
        return statement

    @property
    def _rules(self) -> Rules:
        return self.permissions.get("execute", Rules())

    @property
    def _default(self) -> str:
        """What is done about a command that no rule matches."""
        return self._rules.default or ("ask" if self.unsandboxed else "allow")

    def _outcome(self, action: str) -> Outcome:
        if action == "deny":
            return "refused"
        return "run" if action == "allow" and self.problem is None else _QUESTIONED[self.questions]

    def _exceptions(self) -> dict[Outcome, list[str]]:
        """What rules do that is not what happens without one, by what becomes of the command."""
        actions = {rule.action for rule in self._rules.rules}
        verbs = [(action, verb) for action, verb in _RULES.items() if action in actions]
        if actions - {"allow"} and self._default == "allow":
            verbs.append(("ask", _UNCLEAR))
        exceptions: dict[Outcome, list[str]] = {}
        for action, verb in verbs:
            outcome = self._outcome(action)
            if outcome != self._outcome(self._default):
                exceptions.setdefault(outcome, []).append(verb)
        return exceptions

    @property
    def _where(self) -> str:
        if self.unsandboxed:
            return "unsandboxed, with your own rights and the network"
        where = f"a container of {self.image}" if self.sandbox == "docker" and self.image else self.sandbox
        return f"in {where}, {'with' if self.network else 'without'} the network"

    def _usually(self) -> str:
        outcome = self._outcome(self._default)
        if outcome == "run":
            return f"commands run {self._where}{', without asking' if self.unsandboxed else ''}"
        if outcome == "asked":
            return f"commands run {self._where}, and each is asked about"
        if self._default == "deny":
            return "commands are refused: [permissions] denies them"
        by = "unsandboxed" if self.unsandboxed else "by [permissions]"
        why = "`approve` is `never`" if self.approve == "never" else "there is no terminal to ask at"
        return f"commands are refused: {by}, each needs a yes, and {why}"

    def _told(self, outcome: Outcome) -> str:
        if outcome == "refused":
            return "is refused"
        if self._outcome(self._default) != "refused":
            return "is asked about" if outcome == "asked" else "runs without asking"
        return f"runs {self._where}, {'after a yes' if outcome == 'asked' else 'without asking'}"

    def sentence(self) -> str:
        """The statement as one."""
        statement = self.statement()
        return f"{statement[:1].upper()}{statement[1:]}."

    def notice(self) -> str | None:
        """What a person should know before the first prompt; `None` where commands are confined, and run."""
        if self.sandbox is not None and not self.unsandboxed and self._outcome(self._default) != "refused":
            return None
        why = f" Bubblewrap cannot be used: {self.problem.reason}. {self.problem.fix}" if self.problem else ""
        return f"{self.sentence()}{why}"
