"""The way to a chat: the command line, the environment and the settings become an agent, and a sandbox for it."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

from deepctl.cli.talking import Commands, EphemeralTalk, ProfileTalk, Talk
from deepctl.domain import profiles, settings
from deepctl.domain.layout import Root
from deepctl.domain.permissions import without_sandbox
from deepctl.output.chat import Display
from deepctl.sandbox.containers import container_name

if TYPE_CHECKING:
    from deepctl.agent.running import Options, Running
    from deepctl.agent.sandboxes import Choice, Sandbox

Approve = Literal["ask", "auto", "never"]


class Start:
    """What a chat was told on the command line, on the way to a `Talk`."""

    def __init__(self, name: str, given: Mapping[str, str | None], timeout: float | None, *, asking: bool) -> None:
        self._name = name
        self._given = given
        self._timeout = timeout
        self._asking = asking

    def ephemeral(self, display: Display) -> Talk:
        """A conversation in memory. Settings files are not read, the environment is."""

        def value(key: str) -> str | None:
            return settings.without_files(key, environment=os.environ, option=self._given.get(key)).value

        _load()
        from deepctl.agent.ephemeral import EphemeralChat
        from deepctl.agent.running import Options

        approve = cast("Approve", value("approve") or "ask")
        chosen = Options(value("model") or "offline", approve=approve, timeout=self._timeout)
        running = self._running(chosen, kept=None)
        return EphemeralTalk(self._name, running, EphemeralChat(running), self._commands(None, approve), display)

    def profile(self, display: Display, root: Root, wait: float, *, network: bool) -> Talk:
        """A conversation of a profile. Raises `Refused` if its sandbox cannot be used."""
        known = profiles.find(root, self._name) if profiles.exists(root, self._name) else None

        def value(key: str) -> str | None:
            return settings.resolve(key, environment=os.environ, profile=known, option=self._given.get(key)).value

        permissions = settings.permissions(os.environ, known)
        limits = settings.limits(os.environ, known)
        named, model = value("sandbox") or "auto", value("model") or "offline"
        base_url, instructions, image = value("base_url"), value("instructions"), value("docker.image") or ""
        approve = cast("Approve", value("approve") or "ask")
        _load()
        from deepctl.agent import sandboxes
        from deepctl.agent.chat import Chat
        from deepctl.agent.running import Options

        paths = known or root.profile(self._name)
        offered: dict[str, Sandbox] = {
            "none": sandboxes.NoSandbox(limits),
            "bubblewrap": sandboxes.Bubblewrap(network, limits, dict(os.environ), (root.path,)),
            "docker": sandboxes.Docker(container_name(paths.directory), image, network, limits, paths.name),
        }
        chosen = sandboxes.choose(named, offered, can_ask=self._asking)
        if chosen.problem is not None:
            # Nobody has chosen to do without a sandbox, so nobody has allowed commands outside of one.
            approve = "ask" if approve == "auto" else approve
            permissions = without_sandbox(permissions)
        running = self._running(
            Options(model, base_url, instructions, chosen.sandbox, approve, permissions, self._timeout)
        )
        commands = self._commands(chosen, approve, network=network)
        return ProfileTalk(root, self._name, running, Chat(running), commands, wait, display)

    def _running(self, chosen: Options, kept: str | None = "The conversation up to here is kept.") -> Running:
        from deepctl.agent.running import Running

        if not self._asking:
            return Running(chosen, environment=os.environ, kept=kept)
        from deepctl.cli.interactive import ask_at_terminal

        return Running(chosen, environment=os.environ, ask=ask_at_terminal, kept=kept)

    def _commands(self, chosen: Choice | None, approve: Approve, *, network: bool = False) -> Commands:
        questions = "allowed" if approve == "auto" else "asked" if approve == "ask" and self._asking else "denied"
        if chosen is None:
            return Commands(None, False, questions)
        problem = f" ({chosen.problem.reason}). {chosen.problem.fix}" if chosen.problem is not None else ""
        if chosen.sandbox is None:
            return Commands(None, False, questions, f"No shell: there is no sandbox for commands{problem}")
        notice = None
        if problem:
            notice = f"There is no sandbox for commands, so each is asked about{problem}"
        elif not chosen.sandbox.confined and questions == "denied":
            notice = "Commands outside a sandbox need a yes, and " + (
                "--approve never is none." if approve == "never" else "nobody can be asked here: they are refused."
            )
        return Commands(chosen.sandbox.name, network and chosen.sandbox.confined, questions, notice)


def _load() -> None:
    """Import the agent stack: a second, and only now that there is something to say."""
    # pydantic-ai greets new users of the library on stderr; these are not.
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")
    # What the harness logs is in the tools' results too, where it belongs.
    logging.getLogger().addHandler(logging.NullHandler())
    # None of what these imports make is garbage, so looking for some meanwhile is a waste.
    gc.disable()
    import deepctl.agent.chat  # noqa: F401

    gc.freeze()
    gc.enable()
