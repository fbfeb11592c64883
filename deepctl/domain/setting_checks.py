"""Whether what a settings file says can be used: every value, every rule and every MCP server in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deepctl.domain import mcp_config, permissions, settings
from deepctl.errors import DeepctlError


def problems(found: Mapping[str, object], path: str, *, in_profile: bool) -> Iterator[DeepctlError]:
    """What is wrong in the settings `found` of the file at `path`, each as the error that its use would be."""
    for key, value in found.items():
        try:
            if key == "permissions":
                permissions.parse(value, path)
            elif key == mcp_config.TABLE:
                mcp_config.parse(value, path)
            elif key in settings.SETTINGS and (not in_profile or settings.SETTINGS[key].in_profile):
                settings.validate(key, value, path)
        except DeepctlError as error:
            yield error


def check(found: Mapping[str, object], path: str) -> None:
    """Raises the first error that commands of a profile with these settings would meet."""
    settings.check_spelling(found, path)
    mcp_config.check_spelling(found, path)
    for problem in problems(found, path, in_profile=True):
        raise problem
