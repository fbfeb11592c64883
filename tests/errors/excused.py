"""Errors without a row: those that nobody can cause at the command line, and why."""

from __future__ import annotations

_LIBRARY = "raised to applications that use deepctl as a library"
_AGENT = "told to the agent as the result of its tool"
_LISTED = "listed by `checkpoints verify`, or `list`; no command ends with it"
_RACE = "takes somebody, or Ctrl-C, at one moment among milliseconds; tests that choose the moment bring it about"
_SAID = "said in a conversation at a terminal, which goes on; `tests/cli/test_slash_commands.py`"
_DEFENCE = "a second look at what has been checked before"

EXCUSED: dict[tuple[str, str], str] = {
    ("agent/approvals.py", "Pattern … of [permissions] cannot be understood."): _DEFENCE,
    (
        "agent/compaction.py",
        "There is nothing to compact: the model sees no more than a summary and the last answer.",
    ): ("said in a conversation at a terminal, which goes on"),
    ("agent/message_codec.py", "The conversation of … is damaged: …."): _LIBRARY,
    ("agent/message_codec.py", "The message log … has messages that cannot be understood: …."): _LIBRARY,
    ("agent/message_codec.py", "The conversation of … cannot be understood: …."): _LIBRARY,
    ("agent/message_codec.py", "The messages in … cannot be understood: …."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "… cannot be the id of a checkpoint."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "Checkpoint … is damaged."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "Another thread is working on …."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "A rewind of this profile was interrupted."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "The message log … is damaged, or cut short."): _LIBRARY,
    ("agent/checkpoints.py", "You have rewound to … once for this request already. Go on from here."): _AGENT,
    ("agent/checkpoints.py", "There is a checkpoint called … already."): _AGENT,
    ("agent/provider_errors.py", "The turn was stopped at a limit (…)."): (
        "takes an answer that its provider makes in several parts, each a request"
    ),
    ("agent/models.py", "Model … cannot be used: the address of its server is no URL."): _DEFENCE,
    ("agent/chat.py", "The workspace cannot be used: …."): _DEFENCE,
    ("cli/checkpoints.py", "… problem… could not be repaired in profile …; the first: …: …."): (
        "takes a fault of the repair itself, or of the disk meanwhile"
    ),
    ("cli/completion.py", "The completion script for … is not in this installation."): (
        "takes an installation without some of its files"
    ),
    ("cli/main.py", "Unexpected …: …. This is a bug in deepctl."): "a bug, which no row is to be of",
    ("files/atomic.py", "…, but storage cannot be used: …"): (
        "takes a disk that fails at one moment; tests/cli/test_done_but.py brings it about at every one"
    ),
    ("store/checkpoint_store.py", "Interrupted twice, in the middle of a rewind."): _RACE,
    ("store/pydantic_deep.py", "… is no checkpoint of pydantic-deep."): _LISTED,
    ("store/pydantic_deep.py", "… is no checkpoint of pydantic-deep: …."): _LISTED,
    ("store/pydantic_deep.py", "… holds checkpoint …."): _LISTED,
    ("store/pydantic_deep.py", "… cannot be read: …."): _LISTED,
    ("store/pack_store.py", "The table of pack … is damaged."): _LISTED,
    ("store/pack_store.py", "Pack … is cut short."): _LISTED,
    ("store/pack_store.py", "Pack … is damaged at its end."): _LISTED,
    ("store/prune.py", "The ledger is damaged."): _LISTED,
    ("store/rewind.py", "The messages of checkpoint … are not part of session …."): _DEFENCE,
    ("store/rewind.py", "Checkpoint … has lost its place in time."): _DEFENCE,
    ("store/trees.py", "A tree is damaged: …."): (
        "takes an object whose hash is right and which is no list of a directory"
    ),
    ("store/verify.py", "Object … in … is not as it was written."): _LISTED,
    ("store/session_log.py", "The first line of … is damaged."): _LISTED,
    ("store/pack_store.py", "The header of pack … is damaged."): _LISTED,
    ("domain/memory/changes.py", "Memory file … was changed by somebody else meanwhile, so nothing was done."): _RACE,
    ("domain/memory/directory.py", "Memory file … was changed by somebody else meanwhile, so nothing was done."): _RACE,
    ("domain/purge/notebooks.py", "A notebook (…, object …) cannot be read."): _DEFENCE,
    ("store/session_delete.py", "Interrupted while deleting."): _RACE,
    ("domain/transfer/profile_export.py", "The profile changed while it was read: …."): _RACE,
    ("domain/transfer/profile_import.py", "This file system cannot have the name …."): (
        "takes a file system that has other names than the one of the export"
    ),
    ("domain/transfer/profile_export.py", "The profile changed while it was read: … is gone."): _RACE,
    ("domain/wipe/trash.py", "Interrupted while deleting; what is wiped is out of sight already."): _RACE,
    ("cli/wipe.py", "Interrupted during a wipe."): _RACE,
    ("agent/user_commands.py", "The command has a NUL character in it."): _SAID,
    ("agent/user_commands.py", "The command is longer than … bytes."): _SAID,
    ("agent/user_commands.py", "The command is not UTF-8 text."): _SAID,
    ("agent/user_commands.py", "The workspace cannot be used: …."): _DEFENCE,
    (
        "cli/repl/settings_commands.py",
        "An --ephemeral conversation has no directory that commands could run in.",
    ): _SAID,
    ("cli/repl/settings_commands.py", "… knows no …."): _SAID,
    ("cli/repl/settings_commands.py", "… takes one word; this is too much: …."): _SAID,
    ("cli/repl/slash_commands.py", "/help takes one command; this is too much: …."): _SAID,
    ("cli/repl/slash_commands.py", "There is no command …."): _SAID,
    ("cli/repl/slash_commands.py", "There is nothing to remember."): _SAID,
    ("cli/repl/slash_commands.py", "… is not the number of a tool call."): _SAID,
    ("cli/repl/slash_commands.py", "… means nothing in an --ephemeral conversation: nothing of it is kept."): _SAID,
    ("cli/repl/slash_commands.py", "… takes nothing; this is too much: …."): _SAID,
    ("cli/repl/slash_commands.py", "/rewind needs a REF at this terminal."): _SAID,
    ("cli/repl/slash_commands.py", "Session … has no checkpoint to fork from."): _SAID,
    ("cli/repl/slash_commands.py", "There is no turn to take back."): _SAID,
    (
        "cli/repl/slash_commands.py",
        "Your last prompt is not the last of the session any more: something else was said in it since.",
    ): _SAID,
    ("cli/repl/run_cli_command.py", "A quote is not closed, or nothing follows the last backslash."): _SAID,
    ("cli/repl/state.py", "The new session has not begun yet."): _SAID,
    ("cli/repl/run_cli_command.py", "This conversation is of profile …, and so are its commands."): _SAID,
    ("cli/repl/slash_commands.py", "/export needs a FILE."): _SAID,
    ("cli/repl/slash_commands.py", "/export takes one FILE; this is too much: …."): _SAID,
    ("cli/repl/slash_commands.py", "/new takes one name; this is too much: …."): _SAID,
    ("cli/repl/slash_commands.py", "/switch takes one name; this is too much: …."): _SAID,
    ("cli/repl/slash_commands.py", "There is no session …."): _SAID,
    ("cli/chat_session.py", "Commands cannot be run here: there is no sandbox for them."): _SAID,
    ("cli/chat_session.py", "This conversation has no directory for commands."): _SAID,
    ("agent/user_commands.py", "The command was stopped."): _SAID,
    ("cli/repl/slash_commands.py", "… is no command."): _SAID,
    ("cli/repl/repl.py", "The command was stopped."): _SAID,
}
