"""deepctl: local multi-profile agent sessions, as a command and as a small library.

`from deepctl import create_deep_agent, DeepAgentDeps, LocalBackend, StateBackend`: each name is imported on first use,
because the agent libraries take a second to load and most commands do not need them.
"""

from __future__ import annotations

TYPE_CHECKING = (
    False  # not that of `typing`, which takes long to import; until __main__ runs, Ctrl-C would print a traceback
)
if TYPE_CHECKING:
    from pydantic_ai_backends import StateBackend

    from deepctl.agent.backend import LocalBackend, ProjectOptions
    from deepctl.agent.checkpoint_stores import (
        Checkpoint,
        CheckpointStore,
        InMemoryCheckpointStore,
        fork_from_checkpoint,
    )
    from deepctl.agent.checkpoints import RewindRequested
    from deepctl.agent.docker_sandbox import DockerSandbox, SessionManager
    from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
    from deepctl.agent.file_checkpoint_store import FileCheckpointStore
    from deepctl.agent.offline import offline_model
    from deepctl.agent.open_profile import OpenProfile, open_profile
    from deepctl.agent.past_sessions import SearchSessions
    from deepctl.agent.profile_results import ProfileCheckpoint, ProfileResult, ProfileRewind, ProfileSession
    from deepctl.agent.questions import AskUser
    from deepctl.agent.runs import run, stream
    from deepctl.agent.sandboxes import Bubblewrap, Docker, NoSandbox
    from deepctl.agent.subagents import SubAgent, SubAgents
    from deepctl.agent.tasks import end_runs
    from deepctl.agent.web import WebAccess
    from deepctl.distribution import __version__
    from deepctl.layout import user_directory
    from deepctl.sandbox.policy import Limits

_MODULES = {
    "AskUser": "deepctl.agent.questions",
    "Bubblewrap": "deepctl.agent.sandboxes",
    "Checkpoint": "deepctl.agent.checkpoint_stores",
    "CheckpointStore": "deepctl.agent.checkpoint_stores",
    "DeepAgentDeps": "deepctl.agent.factory",
    "Docker": "deepctl.agent.sandboxes",
    "DockerSandbox": "deepctl.agent.docker_sandbox",
    "FileCheckpointStore": "deepctl.agent.file_checkpoint_store",
    "InMemoryCheckpointStore": "deepctl.agent.checkpoint_stores",
    "Limits": "deepctl.sandbox.policy",
    "LocalBackend": "deepctl.agent.backend",
    "NoSandbox": "deepctl.agent.sandboxes",
    "OpenProfile": "deepctl.agent.open_profile",
    "ProfileCheckpoint": "deepctl.agent.profile_results",
    "ProfileResult": "deepctl.agent.profile_results",
    "ProfileRewind": "deepctl.agent.profile_results",
    "ProfileSession": "deepctl.agent.profile_results",
    "ProjectOptions": "deepctl.agent.backend",
    "RewindRequested": "deepctl.agent.checkpoints",
    "SearchSessions": "deepctl.agent.past_sessions",
    "SessionManager": "deepctl.agent.docker_sandbox",
    "StateBackend": "pydantic_ai_backends",
    "SubAgent": "deepctl.agent.subagents",
    "SubAgents": "deepctl.agent.subagents",
    "WebAccess": "deepctl.agent.web",
    "__version__": "deepctl.distribution",
    "create_deep_agent": "deepctl.agent.factory",
    "end_runs": "deepctl.agent.tasks",
    "fork_from_checkpoint": "deepctl.agent.checkpoint_stores",
    "offline_model": "deepctl.agent.offline",
    "open_profile": "deepctl.agent.open_profile",
    "run": "deepctl.agent.runs",
    "stream": "deepctl.agent.runs",
    "user_directory": "deepctl.layout",
}

__all__ = [
    "AskUser",
    "Bubblewrap",
    "Checkpoint",
    "CheckpointStore",
    "DeepAgentDeps",
    "Docker",
    "DockerSandbox",
    "FileCheckpointStore",
    "InMemoryCheckpointStore",
    "Limits",
    "LocalBackend",
    "NoSandbox",
    "OpenProfile",
    "ProfileCheckpoint",
    "ProfileResult",
    "ProfileRewind",
    "ProfileSession",
    "ProjectOptions",
    "RewindRequested",
    "SearchSessions",
    "SessionManager",
    "StateBackend",
    "SubAgent",
    "SubAgents",
    "WebAccess",
    "__version__",
    "create_deep_agent",
    "end_runs",
    "fork_from_checkpoint",
    "offline_model",
    "open_profile",
    "run",
    "stream",
    "user_directory",
]


def _explain(name: str) -> None:
    """Raise an error that says what to use instead, if `name` is one of pydantic-deep.

    `hasattr` must get an AttributeError, and `from deepctl import NAME` would replace it by a text of its own. So an
    import gets an ImportError: its first request for a name comes from a function of importlib.
    """
    if name.startswith("_") or (name.islower() and "_" not in name):
        return  # perhaps a submodule, for which every import asks here first
    from deepctl.migration import about_name

    if (message := about_name(name)) is not None:
        import sys

        if sys._getframe(2).f_code.co_name == "_handle_fromlist":
            raise ImportError(message, name=__name__, path=__file__)
        raise AttributeError(message)


if not TYPE_CHECKING:  # type checkers would take every name for one of this module

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            _explain(name)
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_MODULES[name]), name)
