"""Errors without a row, because a user cannot cause them at the command line; each with its reason."""

from __future__ import annotations

_LIBRARY = "raised to applications that use deepctl as a library"
_AGENT = "a tool result for the agent"
_LISTED = "listed by `checkpoints verify` or `list`; no command fails with it"
_RACE = "needs another process, or Ctrl-C, at one moment within milliseconds; other tests choose the moment"
_SAID = "printed in a chat at a terminal, which continues; `tests/cli/test_slash_commands.py`"
_DEFENCE = "a second check of a value that was checked before"

_PROMPTS = "an argument of a prompt of an MCP server; `tests/cli/test_mcp_prompts.py`"

EXCUSED: dict[tuple[str, str], str] = {
    ("agent/approvals.py", "Pattern … of [permissions] cannot be understood."): _DEFENCE,
    ("domain/permissions.py", "There is no tool …."): _LIBRARY,
    ("domain/permissions.py", "tools cannot be …."): _LIBRARY,
    ("agent/message_codec.py", "The conversation of … is damaged: …."): _LIBRARY,
    ("agent/message_codec.py", "The message log … has invalid messages: …."): _LIBRARY,
    ("agent/message_codec.py", "The conversation of … is invalid: …."): _LIBRARY,
    ("agent/message_codec.py", "The messages in … are invalid: …."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "… is not a valid checkpoint id."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "Checkpoint … is damaged."): _LIBRARY,
    (
        "agent/file_checkpoint_store.py",
        "Checkpoint … has files, which a save without a workspace would drop.",
    ): _LIBRARY,
    ("agent/file_checkpoint_store.py", "Another thread is working on …."): _LIBRARY,
    ("agent/checkpoint_stores.py", "… checkpoints cannot be kept."): _LIBRARY,
    ("agent/checkpoint_stores.py", "Checkpoint … was not found."): _LIBRARY,
    ("agent/docker_sandbox.py", "Runtimes of pydantic-ai-backend are not supported."): _LIBRARY,
    ("agent/factory.py", "No model is set for this agent."): _LIBRARY,
    ("store/checkpoint_store.py", "… is inside the checkpoint store …."): _LIBRARY,
    ("store/checkpoint_store.py", "… contains the checkpoint store …."): _LIBRARY,
    (
        "agent/factory.py",
        "tools= of create_deep_agent is 'full' or 'lean', not …: it selects built-in tools.",
    ): _LIBRARY,
    ("agent/tasks.py", "The model … is in use in another event loop of this process."): _LIBRARY,
    ("agent/open_profile.py", "An agent of `create_deep_agent` is expected, not …."): _LIBRARY,
    ("agent/open_profile.py", "`session` and `new` cannot be used together."): _LIBRARY,
    ("agent/open_profile.py", "… checkpoints cannot be listed."): _LIBRARY,
    ("agent/open_profile.py", "… checkpoints cannot be kept."): _LIBRARY,
    ("agent/open_profile.py", "… is no part of a checkpoint."): _LIBRARY,
    ("layout.py", "… cannot be a path: half of a surrogate pair is no character."): _LIBRARY,
    ("layout.py", "… cannot be a path: it contains a null character."): _LIBRARY,
    ("layout.py", "… cannot be a directory of an application: a part of the path is empty, '.' or '..'."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "A rewind of this profile was interrupted."): _LIBRARY,
    ("agent/file_checkpoint_store.py", "The message log … is damaged, or cut short."): _LIBRARY,
    ("agent/checkpoints.py", "You have already rewound to … once for this request. Continue from here."): _AGENT,
    ("agent/checkpoints.py", "There is already a checkpoint called …."): _AGENT,
    ("agent/provider_errors.py", "The turn was stopped at a limit (…)."): (
        "needs an answer that its provider makes in several requests"
    ),
    ("agent/models.py", "The client of … cannot be given a key: …."): _DEFENCE,
    ("agent/models.py", "Model … cannot be used: the address of its server is not a URL."): _DEFENCE,
    ("agent/turn_engine.py", "The workspace cannot be used: …."): _DEFENCE,
    ("cli/checkpoints.py", "… problem… could not be repaired in profile …; the first: …: …."): (
        "needs a fault of the repair itself, or of the disk during the repair"
    ),
    ("cli/completion.py", "The completion script for … is not in this installation."): (
        "needs an installation without some of its files"
    ),
    ("cli/projects.py", "The files that need trust in … have changed in the meantime, so nothing is trusted."): _RACE,
    ("cli/projects.py", "The sessions of … have changed in the meantime, so nothing was deleted."): _RACE,
    ("cli/main.py", "Unexpected …: …. This is a bug in deepctl."): "a bug in deepctl, which has no row",
    ("files/atomic.py", "…, but storage cannot be used: …"): (
        "needs a disk that fails at one moment; tests/cli/test_done_but.py tests every moment"
    ),
    ("store/checkpoint_store.py", "Interrupted twice during a rewind."): _RACE,
    ("store/usage_log.py", "Another process has kept the lock of the usage for … s: …."): (
        "needs a stopped process and ten seconds; tests/store/test_usage_log.py"
    ),
    ("store/pydantic_deep.py", "… is not a checkpoint of pydantic-deep."): _LISTED,
    ("store/pydantic_deep.py", "… is not a checkpoint of pydantic-deep: …."): _LISTED,
    ("store/pydantic_deep.py", "… contains checkpoint …."): _LISTED,
    ("store/pydantic_deep.py", "… cannot be read: …."): _LISTED,
    ("store/pack_store.py", "The table of pack … is damaged."): _LISTED,
    ("store/pack_store.py", "Pack … is cut short."): _LISTED,
    ("store/pack_store.py", "Pack … is damaged at its end."): _LISTED,
    ("store/prune.py", "The ledger is damaged."): _LISTED,
    ("store/rewind.py", "The messages of checkpoint … are not part of session …."): _DEFENCE,
    ("store/rewind.py", "Checkpoint … has lost its position in the history."): _DEFENCE,
    ("store/coverage.py", "The coverage rules of a checkpoint are damaged."): (
        "needs an object with a valid hash that does not contain coverage rules"
    ),
    (
        "store/repository.py",
        "The directory of project … is unknown: both … and the record of the session are damaged.",
    ): "needs two damaged files; tests/store/test_projects.py",
    ("store/trees.py", "A tree is damaged: …."): (
        "needs an object with a valid hash that does not describe a directory"
    ),
    ("store/verify.py", "Object … in … has changed since it was written."): _LISTED,
    ("store/session_log.py", "The first line of … is damaged."): _LISTED,
    ("store/pack_store.py", "The header of pack … is damaged."): _LISTED,
    ("domain/memory/changes.py", "Another author changed memory file … in the meantime, so nothing was done."): _RACE,
    ("domain/memory/directory.py", "Another author changed memory file … in the meantime, so nothing was done."): _RACE,
    ("domain/purge/notebooks.py", "A notebook (…, object …) cannot be read."): _DEFENCE,
    ("store/session_delete.py", "Interrupted during the deletion."): _RACE,
    ("domain/transfer/profile_export.py", "The profile changed while it was read: …."): _RACE,
    ("domain/transfer/profile_import.py", "This file system does not support the name …."): (
        "needs a file system that allows other names than the file system of the export"
    ),
    ("domain/transfer/profile_export.py", "The profile changed while it was read: … no longer exists."): _RACE,
    ("domain/wipe/trash.py", "Interrupted during the deletion. The data is already removed from the profile."): _RACE,
    ("cli/wipe.py", "Interrupted during a wipe."): _RACE,
    ("agent/user_commands.py", "The command contains a NUL character."): _SAID,
    ("agent/user_commands.py", "The command is longer than … bytes."): _SAID,
    ("agent/user_commands.py", "The command is not UTF-8 text."): _SAID,
    ("agent/user_commands.py", "The workspace cannot be used: …."): _DEFENCE,
    (
        "cli/repl/settings_commands.py",
        "An --ephemeral chat has no directory for commands.",
    ): _SAID,
    ("cli/repl/named_files.py", "/file has no option … here."): _SAID,
    ("cli/repl/named_files.py", "… is not attached."): _SAID,
    ("cli/repl/settings_commands.py", "… has no value …."): _SAID,
    ("cli/repl/settings_commands.py", "A dumb terminal has no line editor."): _SAID,
    ("cli/repl/settings_commands.py", "… takes one word; these are too many: …."): _SAID,
    ("cli/repl/slash_commands.py", "/help takes one command; these are too many: …."): _SAID,
    ("cli/repl/command_catalogue.py", "There is no command …."): _SAID,
    ("cli/repl/slash_commands.py", "There is no TEXT to remember."): _SAID,
    ("cli/repl/slash_commands.py", "… is not the number of a tool call."): _SAID,
    ("cli/repl/slash_commands.py", "… needs stored state, and an --ephemeral chat stores nothing."): _SAID,
    ("cli/repl/slash_commands.py", "… takes no argument; unexpected: …."): _SAID,
    ("cli/repl/history_commands.py", "/rewind needs a REF at a dumb terminal."): _SAID,
    ("cli/repl/history_commands.py", "Session … has no checkpoint to fork from."): _SAID,
    ("cli/repl/history_commands.py", "There is no turn to undo."): _SAID,
    (
        "cli/repl/history_commands.py",
        "Your last prompt is not the last one of the session: another prompt was sent since.",
    ): _SAID,
    ("cli/repl/run_cli_command.py", "A quote is not closed, or nothing follows the last backslash."): _SAID,
    ("cli/repl/state.py", "The new session has not started yet."): _SAID,
    ("cli/repl/run_cli_command.py", "This is a chat of profile …, so its commands use that profile."): _SAID,
    ("cli/repl/slash_commands.py", "/export needs a FILE."): _SAID,
    ("cli/repl/slash_commands.py", "/export takes one FILE; these are too many: …."): _SAID,
    ("cli/repl/slash_commands.py", "/new takes one name; these are too many: …."): _SAID,
    ("cli/repl/slash_commands.py", "/switch takes one name; these are too many: …."): _SAID,
    ("cli/repl/slash_commands.py", "There is no session …."): _SAID,
    ("cli/chat_session.py", "Commands cannot run here, because there is no sandbox for them."): _SAID,
    ("cli/chat_session.py", "This chat has no directory for commands."): _SAID,
    ("agent/user_commands.py", "The command was stopped."): _SAID,
    ("cli/repl/command_catalogue.py", "… is not a command."): _SAID,
    ("cli/repl/repl.py", "The command was stopped."): _SAID,
    ("domain/mcp_prompts.py", "… takes no more arguments; unexpected: …."): _PROMPTS,
}
