"""Files with keys of the user, recognised by where they are and how they are called.

A file of another kind with a key in it is not recognised; `deepctl.redaction` takes known keys out of text.
"""

from __future__ import annotations

import os
import re

from deepctl.files.paths_beneath import is_within_on_disk

DIRECTORIES = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".docker",
    ".kube",
    ".password-store",
    ".config/gcloud",
    ".config/gh",
    ".local/share/keyrings",
    "Library/Keychains",
)
"""Directories in the home directory that programs keep keys in."""
SYSTEM_DIRECTORIES = ("/dev", "/proc", "/run", "/sys")
"""Directories whose files are states of the system, such as the environment of a process."""
_NAME = re.compile(
    r"""(?:\.env(?:rc)?|\.env\..+(?<!\.example)(?<!\.sample)(?<!\.template)(?<!\.dist)
    |\.netrc|_netrc|\.git-credentials|\.npmrc|\.pypirc|\.pgpass|\.my\.cnf|\.vault-token|id_(?:rsa|dsa|ecdsa|ed25519)
    |.*\.(?:pem|key|p12|pfx|jks|keystore|kdbx|ppk))\Z""",
    re.IGNORECASE | re.VERBOSE,
)


def problem(path: str, home: str) -> str | None:
    """Why a file or directory may have keys, without a full stop; `None` if it is not known to have any.

    `path` is a real path: its links are resolved. `home` is the home directory.
    """
    for name in DIRECTORIES:
        if is_within_on_disk(path, os.path.realpath(os.path.join(home, name))):
            return f"~/{name} is a directory for keys"
    for directory in SYSTEM_DIRECTORIES:
        if is_within_on_disk(path, directory):
            return f"{directory} belongs to the system"
    if _NAME.match(os.path.basename(path)):
        return "a file of that name usually has keys"
    return None
