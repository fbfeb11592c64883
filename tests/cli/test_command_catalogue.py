"""Which slash command a typed name means, when several sources have one of that name."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from deepctl.cli import options
from deepctl.cli.chat_session import ProfileChat
from deepctl.cli.chat_setup import ChatSetup
from deepctl.cli.repl.command_catalogue import SOURCES, CommandCatalogue, CommandSource, SlashCommand
from deepctl.cli.repl.command_names import CommandNames
from deepctl.cli.repl.completer import ConversationCandidates, matches
from deepctl.cli.repl.state import ReplState
from deepctl.domain.settings import load
from deepctl.errors import StorageError, UsageError
from deepctl.output.stream.display import TextDisplay


def _command(source: CommandSource, name: str) -> SlashCommand:
    return SlashCommand(f"/{name}", "[TEXT]", f"{name} of {source}.", source, lambda state, text: None, source=source)


class _Sources:
    """Readers of every source but the built-in one, with commands that a test changes."""

    def __init__(self) -> None:
        self.commands: list[SlashCommand] = []
        self.failure: StorageError | None = None

    def read(self, state: ReplState) -> Iterable[SlashCommand]:
        if self.failure is not None:
            raise self.failure
        return self.commands


@pytest.fixture
def sources() -> _Sources:
    return _Sources()


@pytest.fixture
def state(sources: _Sources) -> ReplState:
    built_in = [_command("built-in", "rewind"), _command("built-in", "quit")]
    names = CommandNames({}, "alice")
    catalogue = CommandCatalogue(built_in, names, {"/exit": "/quit"}, [sources.read])
    chat = ProfileChat(ChatSetup("alice", load(os.environ)), options.root(), 0.0, TextDisplay())
    return ReplState(chat, catalogue)


def test_the_first_source_has_the_plain_name_and_the_others_are_typed_with_theirs(
    state: ReplState, sources: _Sources
) -> None:
    # In the opposite order, which has no effect.
    sources.commands = [_command(source, name) for source in reversed(SOURCES[1:]) for name in ("review", "rewind")]
    state.catalogue.refresh(state)
    find = state.catalogue.find
    assert find("/rewind").source == "built-in"
    assert find("/review").source == find("/REVIEW").source == "profile"
    for source in SOURCES[1:]:
        assert find(f"/{source}:review").source == find(f"/{source.upper()}:Rewind").source == source
    assert find("/built-in:rewind").source == "built-in"
    listed = [command.name for command in state.catalogue.commands]
    assert listed == ["/rewind", "/quit", "/review", "/profile:rewind", "/root:review", "/root:rewind",
                      "/project:review", "/project:rewind", "/mcp:review", "/mcp:rewind"]  # fmt: skip


def test_a_command_that_goes_makes_room_for_the_hidden_one(state: ReplState, sources: _Sources) -> None:
    sources.commands = [_command("profile", "review"), _command("project", "review")]
    state.catalogue.refresh(state)
    assert state.catalogue.find("/review").source == "profile"
    sources.commands = [_command("project", "review")]
    state.catalogue.refresh(state)
    assert state.catalogue.find("/review").source == "project"
    assert state.catalogue.find("/project:review").source == "project"
    with pytest.raises(UsageError, match="no command /profile:review"):
        state.catalogue.find("/profile:review")


def test_no_command_takes_an_alias_or_the_long_name_of_another_source(state: ReplState, sources: _Sources) -> None:
    sources.commands = [_command("mcp", "exit"), _command("mcp", "project:review"), _command("mcp", "git:log")]
    state.catalogue.refresh(state)
    assert state.catalogue.find("/exit").name == "/quit"
    assert state.catalogue.find("/git:log").source == "mcp"
    with pytest.raises(UsageError):
        state.catalogue.find("/project:review")
    assert state.catalogue.find("/mcp:project:review").source == "mcp"


def test_an_unknown_name_gets_the_nearest_of_all_sources(state: ReplState, sources: _Sources) -> None:
    sources.commands = [_command("project", "changelog")]
    state.catalogue.refresh(state)
    with pytest.raises(UsageError) as raised:
        state.catalogue.find("/changelgo")
    assert (raised.value.message, raised.value.hint) == ("There is no command /changelgo.", "Did you mean /changelog?")
    with pytest.raises(UsageError) as raised:
        state.catalogue.find("/zzz")
    assert raised.value.hint == "/help lists the commands."


def test_completion_shows_name_source_and_description(state: ReplState, sources: _Sources) -> None:
    sources.commands = [_command("project", "review"), _command("root", "Review")]
    state.catalogue.refresh(state)
    offered = {match.text: match.description for match in matches("/re", ConversationCandidates(state))}
    assert offered == {"/rewind ": "rewind of built-in.", "/Review ": "root: Review of root."}
    offered = {match.text: match.description for match in matches("/PRO", ConversationCandidates(state))}
    assert offered == {"/project:review ": "project: review of project."}


def test_a_source_that_cannot_be_read_is_told_once_and_the_others_work(
    state: ReplState, sources: _Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    sources.failure = StorageError("The commands cannot be read.")
    for _ in range(3):
        state.catalogue.refresh(state)
    assert capsys.readouterr().err.count("The commands cannot be read.") == 1
    assert state.catalogue.find("/rewind").source == "built-in"
