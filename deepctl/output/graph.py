"""Drawing what came from what, newest first, as `git log --graph` does: a star for each, a rail for each line."""

from __future__ import annotations

from collections.abc import Iterable


def rails(nodes: Iterable[tuple[str, str | None]]) -> list[tuple[list[str], str]]:
    """For each node (its id and what came before it), the lines before it and the beginning of its own.

    A rail waits for the node that comes next on it; where several wait for the same, they join before it.
    """
    waiting: list[str] = []
    drawn = []
    for identity, parent in nodes:
        here = [number for number, wanted in enumerate(waiting) if wanted == identity]
        if not here:
            here = [len(waiting)]
            waiting.append(identity)
        joins = []
        for joined in reversed(here[1:]):
            joins.append(_line(len(waiting), joined, "/"))
            del waiting[joined]
        drawn.append((joins, _line(len(waiting), here[0], "*")))
        if parent is None:
            del waiting[here[0]]
        else:
            waiting[here[0]] = parent
    return drawn


def _line(count: int, special: int, sign: str) -> str:
    return " ".join(sign if number == special else "|" for number in range(count))
