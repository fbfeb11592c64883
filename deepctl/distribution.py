"""The distribution of this deepctl: its name, the packages of its extras, and how they are installed.

The command and the package are called `deepctl`, the distribution `deepctl-agents`, because `deepctl` on the package
index is another product. So no hint installs this distribution by name from there. A hint names the missing packages,
as the metadata of the installed distribution lists them, and the command that installs them for this interpreter.
"""

from __future__ import annotations

import os
import re
import shlex
import sys

TYPE_CHECKING = False  # not that of `typing`, which takes long to import
if TYPE_CHECKING:
    from importlib.metadata import Distribution

__version__ = "0.2.0"
NAME = "deepctl-agents"
COMMAND = "deepctl"
SCRIPT = "deepctl.__main__:run"
"""The entry points of the console script: of this distribution, and of distributions called `deepctl` before 0.2."""

_OF_EXTRA = re.compile(r"(.+?)\s*;\s*extra\s*==\s*['\"]([a-z-]+)['\"]")
_SCRIPT_BYTES = 4096


def requirements(extra: str) -> list[str]:
    """The packages of an extra, as `pip install` takes them; none for an unknown extra or without metadata."""
    matches = (_OF_EXTRA.fullmatch(requirement) for requirement in _required())
    return [match[1] for match in matches if match is not None and match[2] == extra]


def _required() -> list[str]:
    from importlib import metadata

    try:
        return metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []


def to_install(extra: str) -> str:
    """The command that installs an extra for this interpreter.

    An extra that deepctl does not define is one of pydantic-ai: its client is installed in the version of pydantic-ai
    that deepctl needs.
    """
    packages = requirements(extra)
    if not packages:
        pins = [item for item in _required() if item.startswith("pydantic-ai-slim[") and "extra ==" not in item]
        if not pins:
            return f"pip install '.[{extra}]', in a checkout of deepctl"
        packages = [re.sub(r"\[.*?\]", f"[{extra}]", pins[0])]
    return to_install_packages(*packages)


def to_install_packages(*packages: str) -> str:
    """The command that installs packages for this interpreter."""
    return shlex.join([*_installer(), *packages])


def _installer() -> list[str]:
    """The command that installs packages into this interpreter's environment."""
    from importlib.util import find_spec

    if os.path.exists(os.path.join(sys.prefix, "pipx_metadata.json")):
        return ["pipx", "inject", os.path.basename(sys.prefix)]
    if find_spec("pip") is None:  # as in an environment that uv made, for a tool too
        return ["uv", "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]


def to_uninstall(name: str) -> str:
    """The command that uninstalls a distribution from this interpreter's environment."""
    installer = _installer()
    if installer[0] == "pipx":
        return shlex.join(["pipx", "uninject", installer[2], name])
    return shlex.join([*("uninstall" if word == "install" else word for word in installer), name])


def namesakes() -> list[Distribution]:
    """Other distributions in this interpreter's environment that have a command called `deepctl`."""
    from importlib import metadata

    scripts = metadata.entry_points(group="console_scripts", name=COMMAND)
    owners = [script.dist for script in scripts if script.dist is not None]
    return [owner for owner in owners if normalized(owner.name) != NAME]


def normalized(name: str) -> str:
    """The name of a distribution in the form in which package indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_predecessor(distribution: Distribution) -> bool:
    """Whether a distribution of the same name is deepctl before 0.2, which has the same files as this one."""
    return any(script.value == SCRIPT for script in distribution.entry_points if script.group == "console_scripts")


def foreign_commands(search_path: str) -> list[str]:
    """Programs called `deepctl` in the directories of a search path that do not start this package."""
    places = [os.path.join(directory, COMMAND) for directory in search_path.split(os.pathsep) if directory]
    return [place for place in dict.fromkeys(places) if os.access(place, os.X_OK) and _is_foreign(place)]


def _is_foreign(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return SCRIPT.partition(":")[0].encode() not in file.read(_SCRIPT_BYTES)
    except OSError:
        return False  # an unreadable program cannot be run either
