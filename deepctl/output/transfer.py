"""How exports and imports of profiles look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output import trust
from deepctl.output.render import notice
from deepctl.output.text import printable
from deepctl.quantities import size

if TYPE_CHECKING:
    from deepctl.domain.transfer import profile_export, profile_import
    from deepctl.domain.transfer.archive import Totals

_SHOWN = 20
"""How many paths that were left out are named; --json has all."""


def _amount(totals: Totals) -> str:
    return f"{totals.files:,} {'file' if totals.files == 1 else 'files'}, {size(totals.bytes)}"


class Exported(NamedTuple):
    """An archive that was written to `file`; `path` is where that is, absolute."""

    profile: str
    file: str
    path: str
    done: profile_export.Exported

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "file": self.file,
            "path": self.path,
            **self.done.totals._asdict(),
            "left_out": [one._asdict() for one in self.done.left_out],
        }

    def print(self) -> None:
        print(f"Exported {self.profile} to {printable(self.file)}: {_amount(self.done.totals)}.")
        self.notices()

    def notices(self) -> None:
        """Say on stderr what is not in the archive."""
        left_out = self.done.left_out
        for path, reason in left_out[:_SHOWN]:
            notice(f"Left out: {path} ({reason})")
        if len(left_out) > _SHOWN:
            notice(f"Left out, too: {len(left_out) - _SHOWN:,} more; --json lists them all.")


class Imported(NamedTuple):
    """A profile that came from an archive; `trusted` says that the settings that came with it are in force."""

    done: profile_import.Imported
    trusted: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.done.paths.name,
            "path": self.done.paths.directory,
            "from": self.done.origin,
            **self.done.totals._asdict(),
            "notes": self.done.notes,
            "settings": trust.documents(self.done.untrusted),
            "trusted": self.trusted,
        }

    def print(self) -> None:
        name = self.done.paths.name
        origin = "" if self.done.origin == name else f", which was {self.done.origin}"
        print(f"Imported {name}{printable(origin)}: {_amount(self.done.totals)}.")
        for note in self.done.notes:
            notice(note)

    def notice_waiting(self) -> None:
        """Say on stderr which settings are not in force."""
        if self.done.untrusted:
            name = self.done.paths.name
            notice(
                f"Not in force: {', '.join(item.key for item in self.done.untrusted)}. "
                f"`deepctl profiles trust {name}` shows them, asks, and puts them into force."
            )
