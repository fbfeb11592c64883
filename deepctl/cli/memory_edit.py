"""An edit of a notebook: a draft, the editor, and what comes of it. Whatever goes wrong, the person's text stays."""

from __future__ import annotations

import codecs
import time

from deepctl import notebook_text
from deepctl.cli import editor, options
from deepctl.domain.memory import changes, drafts
from deepctl.domain.memory.directory import Memory, Notebook
from deepctl.domain.memory.drafts import Draft
from deepctl.errors import DeepctlError, Interrupted, Refused, UsageError
from deepctl.files.atomic import storage_error
from deepctl.output.memory_changes import Edited
from deepctl.output.render import notice

_AT_ONCE = 1.0
"""Seconds within which nobody has edited anything."""


def edited(memory: Memory, name: str, found: Notebook | None, command: list[str], wait: float, as_json: bool) -> Edited:
    """Let the user edit a notebook that is `found` now, or is to be made. The lock is not held meanwhile."""
    profile = memory.profile
    if not as_json:
        for path in drafts.left(profile):
            notice(f"There is another edit, going on or broken off: {path}.")
    base = found.content if found is not None else None
    draft = drafts.begin(profile, name, base or b"")
    began = time.monotonic()
    try:
        failed = editor.edit(command, draft.path)
    except Refused:
        drafts.discard(draft)
        raise
    text = drafts.read(draft)
    if not (base or b"").startswith(codecs.BOM_UTF8):
        text = text.removeprefix(codecs.BOM_UTF8)
    changed = text != (base or b"")
    if not changed:
        drafts.discard(draft)
    if failed is not None:
        kept = f" Your text is kept in {draft.path}." if changed else ""
        raise Refused(f"The editor failed ({failed}), so nothing was changed.{kept}", code="editor_failed")
    if not changed:
        hasty = time.monotonic() - began < _AT_ONCE
        return Edited(profile.name, memory.agent, name, found, None, [_HASTY.format(command[0])] if hasty else [])
    if odd := notebook_text.odd_lines(text, base or b""):
        raise UsageError(
            f"Line {odd[0]} of your text is not UTF-8, so nothing was changed. Your text is kept in {draft.path}.",
            "Have the editor save it as UTF-8.",
            code="not_utf8",
        )
    return _taken_over(memory, name, base, text, draft, wait, as_json)


_HASTY = "{} ended at once. If it edits in a window of its own, it needs an option to wait, as in `code --wait`."


def _taken_over(
    memory: Memory, name: str, base: bytes | None, text: bytes, draft: Draft, wait: float, as_json: bool
) -> Edited:
    try:
        with options.working(memory.profile.name, "memory edit", wait, as_json) as work:
            change = changes.replace(work, Memory(work.paths, memory.agent), name, base, text)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. Your text is kept in {draft.path}.") from None
    except (DeepctlError, OSError) as error:
        problem = error if isinstance(error, DeepctlError) else storage_error(error)
        problem.message += f" Your text is kept in {draft.path}."
        raise problem from error
    drafts.discard(draft)
    return Edited(memory.profile.name, memory.agent, name, change.notebook, change, change.notes)
