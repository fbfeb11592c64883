"""How settings look that came with an archive and wait for a yes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.layout import UNTRUSTED
from deepctl.output.text import visible

if TYPE_CHECKING:
    from deepctl.domain.trust import Item


def documents(items: Iterable[Item]) -> list[dict[str, Any]]:
    """The settings as JSON has them; passwords of addresses are left out."""
    from deepctl.domain import trust

    return [
        {"key": item.key, "value": trust.plain(item.value, item.place[-1]), "reason": item.reason} for item in items
    ]


def lines(items: Iterable[Item]) -> Iterator[str]:
    """Every setting whole, each value with what cannot be told by looking as an escape, and what may come of it."""
    from deepctl.domain import trust

    for item in items:
        value = trust.plain(item.value, item.place[-1])
        yield f"  {visible(item.key)}: {visible(item.reason)}"
        for place, one in _leaves(value):
            yield f"    {visible(place or item.key)} = {visible(json.dumps(one, ensure_ascii=False))}"


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield place, value
        return
    for key, one in value.items():
        yield from _leaves(one, f"{place}.{key}" if place else key)


class Trusted(NamedTuple):
    """What waits for a yes in a profile, and whether it was put into force just now. `seen`: it was shown before.

    `left` stays in untrusted.toml, as no profile could be used with it.
    """

    profile: str
    items: list[Item]
    trusted: bool
    seen: bool = False
    left: list[Item] = []

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "settings": documents(self.items),
            "trusted": self.trusted,
            "left": documents(self.left),
        }

    def check(self) -> None:
        """Raises what is wrong with the first setting that is left, if one is."""
        for item in self.left:
            if item.problem is not None:
                raise item.problem

    def print(self) -> None:
        if not self.items:
            print(f"No settings of {self.profile} wait to be trusted.")
            return
        print(f"In force in {self.profile}: {', '.join(visible(item.key) for item in self.items)}.")
        for line in [] if self.seen else lines(self.items):
            print(line)
        if self.left:
            print(f"Not put into force, and left in {UNTRUSTED}: {', '.join(visible(item.key) for item in self.left)}.")
        for line in [] if self.seen else lines(self.left):
            print(line)
