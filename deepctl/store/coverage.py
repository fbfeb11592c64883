"""The coverage rules of a project: which of its files a checkpoint covers.

A snapshot reads the rules of a directory (`read_rules`) and stores them with the tree. So a rewind knows for every
checkpoint which paths were covered at that time, without the files that the rules came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from deepctl.errors import StoreDamaged
from deepctl.store import trees

FORMAT = 1
LARGEST_FILE = 100 << 20
"""The default of `snapshot.max_file` in projects, in bytes."""


class CoverageSettings(NamedTuple):
    """The settings of the coverage of a project.

    `include` are patterns of ignored files that are covered all the same, `exclude` the patterns of `snapshot.exclude`.
    `max_file` is the size in bytes above which a file is not covered; `None` means no limit.
    """

    include: Sequence[str] = ()
    max_file: int | None = LARGEST_FILE
    exclude: Sequence[str] = ()


class CoverageRules:
    """The rules at one time. Paths are relative to the project."""

    def __init__(self, exclude: Sequence[str], max_file: int | None) -> None:
        self._exclude = list(exclude)
        self._max_file = max_file
        self._leave_out = trees.excluding(self._exclude)

    def covers(self, path: bytes, is_directory: bool, size: int | None = None) -> bool:
        """Whether a checkpoint covers `path`. It does not look at the directories above; `size` is in bytes."""
        if path.rpartition(b"/")[2] == b".git":
            return False
        if size is not None and self._max_file is not None and size > self._max_file:
            return False
        return self._leave_out is None or not self._leave_out(path, is_directory)

    def hides(self, path: bytes, is_directory: bool) -> bool:
        """Whether `path` was not covered because of itself or of a directory above it. Sizes do not count."""
        parts = path.split(b"/")
        above = (b"/".join(parts[:number]) for number in range(1, len(parts)))
        return not self.covers(path, is_directory) or any(not self.covers(parent, True) for parent in above)

    def to_json(self) -> bytes:
        """The rules as they are stored with a checkpoint."""
        document = {"v": FORMAT, "exclude": self._exclude, "max_file": self._max_file}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> CoverageRules:
        """The rules from the result of `to_json`. Raises `StoreDamaged`."""
        try:
            document: dict[str, Any] = json.loads(data)
            return cls(document["exclude"], document["max_file"])
        except (ValueError, KeyError, TypeError):
            raise StoreDamaged("The coverage rules of a checkpoint are damaged.") from None


def read_rules(root: str, settings: CoverageSettings) -> CoverageRules:
    """The rules that hold in the directory `root` now."""
    return CoverageRules(settings.exclude, settings.max_file)
