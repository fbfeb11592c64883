"""Files that a prompt names with `@` and that are not there: most often a slip, which is told before the answer."""

from __future__ import annotations

from deepctl.domain import attachments
from deepctl.files.paths_beneath import Outside, Tree
from deepctl.sandbox.policy import MOUNT

_MOST, _LONG = 5, 60


def missing(prompt: str, workspace: str) -> str | None:
    """A line about what a prompt names and the workspace does not have; `None` if it has all of it."""
    tree = Tree(workspace, follow=False, mount=MOUNT)
    words = [
        readings[-1] for readings in attachments.mentions(prompt) if not any(_is_there(tree, one) for one in readings)
    ]
    if not words:
        return None
    named = [attachments.mention(word if len(word) <= _LONG else f"{word[:_LONG]}…") for word in dict.fromkeys(words)]
    more = ", …" if len(named) > _MOST else ""
    return f"Not in the workspace, so sent as written: {', '.join(named[:_MOST])}{more}"


def _is_there(tree: Tree, path: str) -> bool:
    try:
        tree.entry(path)
    except Outside as error:
        # What a link leads to is told about by whoever attaches files.
        return "link" in (error.strerror or "")
    except (OSError, ValueError):
        return False
    return True
