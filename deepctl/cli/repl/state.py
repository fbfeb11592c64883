"""The state of a conversation at a terminal: its chat, where the next turn goes, and what goes with it.

The loop in `repl` and the slash commands read and change it. This module imports neither of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepctl.cli.chat_session import ProfileChat
from deepctl.errors import NotFound, ProfileGone, ProfileNotFound
from deepctl.layout import ProfilePaths
from deepctl.store.records import SessionRecord

if TYPE_CHECKING:
    from deepctl.cli.chat_session import ChatSession
    from deepctl.cli.repl.command_catalogue import CommandCatalogue


class ReplState:
    """What the loop and the commands of one conversation share."""

    def __init__(
        self,
        chat: ChatSession,
        catalogue: CommandCatalogue,
        session: str | None = None,
        new: str | None = None,
        files: Sequence[str] = (),
    ) -> None:
        self.chat = chat
        self.catalogue = catalogue
        self.command_names = catalogue.names
        self.session = session
        """The session of the next turn; `None` for the latest of the profile."""
        self.new = new
        """The name of the session that the next turn begins; `None` if it begins none."""
        self.files = files
        """Files that are copied into the workspace with the next prompt."""
        self.agreed_directories: set[str] = set()
        """Directories outside the workspace whose files the user agreed to send."""
        self.declined_pictures: set[str] = set()
        """Pictures that the user did not want to attach although a prompt had their paths."""
        self.offers_pictures = True
        """Whether deepctl asks about such pictures."""
        self.draft = ""
        """The text that the input line begins with."""
        self.last_prompt: str | None = None
        """The last prompt; `None` once the conversation has moved to another point since."""
        self.last_prompt_at = ""
        """When it was sent, in RFC 3339."""
        self.undone_prompt = ""
        """The last prompt that a rewind took back."""
        self.next_prompt: str | None = None
        """A prompt that a command wants to be sent: the loop sends it when the command has returned."""
        self.shared_output: list[str] = []
        """Commands of the user with their output, for the agent to see with the next prompt."""
        self.last_output: str | None = None
        """The last command of the user with its output, whether or not the agent sees it."""
        self.unsandboxed_told = False
        """Whether the user was told that these commands run unsandboxed."""
        self.has_vi_keys: bool | None = None
        """Whether the line editor has the keys of vi; `None` until the setting was read."""
        self.has_quit = False
        """Whether `/quit` was typed."""

    def profile_chat(self) -> ProfileChat:
        """The chat of a profile. Commands that need one are not offered in an ephemeral conversation."""
        assert isinstance(self.chat, ProfileChat)
        return self.chat

    def profile(self) -> ProfilePaths:
        """The profile. Raises `ProfileGone`, which ends the conversation, if it was renamed or wiped meanwhile."""
        try:
            return self.profile_chat().paths()
        except ProfileNotFound:
            raise ProfileGone(self.chat.name) from None

    def current_session(self) -> SessionRecord:
        """The session that the next turn would continue. Raises `NotFound` if there is none yet."""
        if self.new is not None:
            raise NotFound(
                "The new session has not started yet.",
                "Your next prompt starts it; /switch NAME continues another session.",
                code="session_not_found",
            )
        paths = self.profile()
        chat = self.profile_chat()
        return chat.directory.current(paths, chat.renamed(paths, self.session))

    def project(self) -> str | None:
        """The directory of the project in which the next turn works; `None` for the workspace of the profile."""
        chat, paths = self.profile_chat(), self.profile()
        return chat.directory.next_path(paths, chat.renamed(paths, self.session), self.new) or None

    def follow_directory(self) -> None:
        """Move the chat to the directory of the next turn: `/switch` and `/fork` can lead to another one."""
        chat, paths = self.profile_chat(), self.profile()
        chat.directory.follow(paths, chat.renamed(paths, self.session), self.new)

    def current_session_if_any(self) -> SessionRecord | None:
        """The same, or `None`."""
        try:
            return self.current_session()
        except NotFound:
            return None
