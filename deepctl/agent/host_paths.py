"""What a model is told of failures: names as they are in its workspace, and not where on this machine that is.

Every error that leaves a `LocalBackend`, and every failure that becomes the result of a tool, goes through here.
"""

from __future__ import annotations

import os
import re

from deepctl.sandbox.policy import MOUNT


def hide(text: str, root: str) -> str:
    """`text` with the workspace at `root` called `/workspace`. Names beside the workspace lose their directory."""
    text = re.sub(rf"(?<![\w./-]){re.escape(root)}(?!\.?[\w-])", lambda _: MOUNT, text)
    beside = os.path.dirname(root).rstrip("/")
    return re.sub(rf"(?<![\w./-]){re.escape(beside)}/", "", text) if beside else text


def hidden(error: Exception, root: str) -> Exception:
    """The same error as a model may be told of it. A name outside the directory of the workspace is left out.

    The name may come as a `Path`, which `OSError` shows as Python would write it.
    """
    if not isinstance(error, OSError) or error.errno is None:
        error.args = tuple(hide(one, root) if isinstance(one, str) else one for one in error.args)
        return error
    reason = error.strerror or os.strerror(error.errno)
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return OSError(error.errno, reason)
    name = hide(os.fsdecode(error.filename), root)
    is_here = not os.path.isabs(name) or name == MOUNT or name.startswith(f"{MOUNT}/")
    return OSError(error.errno, reason, name) if is_here else OSError(error.errno, reason)
