"""The views of keys. They contain no values."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain.addresses import without_passwords
from deepctl.domain.keys import KeyReference, KeyState
from deepctl.output.render import Cell, home, is_terminal, notice, print_sentence, table, visible

_SOURCES = {"profile": "profile.toml", "config": "config.toml", "stored": "stored"}


class ListedKey(NamedTuple):
    """A reference, and whether its key is there."""

    reference: KeyReference
    state: KeyState


class KeyListView(NamedTuple):
    """The keys of a profile."""

    profile: str
    keys: list[ListedKey]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "keys": [
                {
                    "name": reference.name,
                    "source": reference.source,
                    "reference": {reference.kind: without_passwords(reference.place)},
                    "ok": state.ok,
                    "problem": state.problem,
                }
                for reference, state in self.keys
            ],
        }

    def print(self) -> None:
        if not self.keys and is_terminal(sys.stdout):
            notice(
                f"Profile {self.profile} has no keys of its own, so they come from the environment. "
                f"`deepctl keys set NAME --user {self.profile}` stores one."
            )
            return
        rows = [
            (
                reference.name,
                _SOURCES[reference.source],
                f"{reference.kind}: {visible(home(without_passwords(reference.place)))}",
                _state(state),
            )
            for reference, state in self.keys
        ]
        table(("NAME", "SOURCE", "REFERENCE", "STATE"), rows)
        for reference, state in self.keys:
            if state.ok is False:
                notice(f"{reference.name} {state.problem}. {state.hint or ''}".rstrip())


def _state(state: KeyState) -> Cell:
    if state.ok is None:
        return Cell("not tried", "faint")
    return Cell("ok", "good") if state.ok else Cell("not usable", "bad")


class KeyStoredView(NamedTuple):
    """A stored key. `store` is `keyring` or `file`; `place` is the service or the path.

    `replaced` means that the profile had a stored key of that name.
    """

    profile: str
    name: str
    store: str
    place: str
    replaced: bool

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        where = f"in the keyring, as {self.place}" if self.store == "keyring" else f"in {home(self.place)}"
        instead = ", instead of the former key" if self.replaced else ""
        print_sentence(f"{self.name} of {self.profile} stored {visible(where)}{instead}.")


class KeyForgottenView(NamedTuple):
    """A forgotten key: whether a stored one was deleted, and a reference removed from profile.toml."""

    profile: str
    name: str
    deleted: bool
    removed: bool

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        what = [*(["deleted"] if self.deleted else []), *(["removed from profile.toml"] if self.removed else [])]
        print_sentence(f"{self.name} of {self.profile} {' and '.join(what)}.")
