"""Grapheme clusters in the line editor: characters as a person counts them, such as a flag, which has two code points.

prompt_toolkit moves, measures and draws by code point. So the buffer here moves and deletes by cluster. For drawing,
each cluster of several code points is replaced by one code point of the private plane 16 (its stand-in) with the width
of the cluster. Before the text is written to the terminal, the stand-in becomes the cluster again. Terminals differ in
the width of a cluster, so the cursor is positioned after it by column number; the following text is then where
prompt_toolkit expects it.

Source of the rules: Unicode Standard Annex 29, as implemented by `wcwidth`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from deepctl.output.render import cells

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.layout.processors import Processor

_SIMPLE = 0x300
"""From this code point on, some code points belong to the cluster before them."""
_FIRST, _LAST = 0x100000, 0x10FFFD
_STAND_IN = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_SAVE, _BACK = "\x1b7", "\x1b8"
_NEAR = 256
"""Code points on each side of a position that are searched: more than any cluster that people write."""

_clusters: dict[str, str] = {}
_stand_ins: dict[str, str] = {}
"""Shared by the whole process, like prompt_toolkit's cache of widths."""


def is_simple(text: str) -> bool:
    """Whether every code point of `text` is a cluster."""
    return text.isascii() or max(map(ord, text)) < _SIMPLE


def cluster_at(text: str, position: int) -> tuple[int, int]:
    """The start and the end of the cluster that contains `position`; `position` twice if it is between two clusters."""
    if not 0 < position < len(text) or (text[position - 1].isascii() and text[position].isascii()):
        return position, position
    from wcwidth import grapheme_boundary_before, iter_graphemes

    first = max(text.rfind("\n", 0, position) + 1, position - _NEAR)
    near = text[first : position + _NEAR]
    start = grapheme_boundary_before(near, position - first)
    end = start + len(next(iter_graphemes(near[start:])))
    return (first + start, first + end) if end > position - first else (position, position)


def with_stand_ins(text: str) -> str:
    """`text` with stand-ins, for prompt_toolkit to draw."""
    if is_simple(text):
        return text
    from wcwidth import iter_graphemes

    return "".join(_stand_in(cluster) if len(cluster) > 1 else cluster for cluster in iter_graphemes(text))


def _stand_in(cluster: str) -> str:
    from prompt_toolkit.utils import _CHAR_SIZES_CACHE

    if cluster not in _stand_ins:
        if len(_stand_ins) > _LAST - _FIRST:
            return cluster
        stand_in = chr(_FIRST + len(_stand_ins))
        _CHAR_SIZES_CACHE[stand_in] = cells(cluster)
        _stand_ins[cluster], _clusters[stand_in] = stand_in, cluster
    return _stand_ins[cluster]


def without_stand_ins(text: str) -> str:
    """Drawn text with its clusters, as it is written to a terminal. It contains no other escape sequences."""
    return _STAND_IN.sub(lambda match: _cluster(match[0]), text.replace("\x1b", "?"))


def has_stand_ins(text: str) -> bool:
    """Whether `text` must be written by `without_stand_ins`."""
    return not text.isascii() and _STAND_IN.search(text) is not None


def _cluster(stand_in: str) -> str:
    cluster = _clusters.get(stand_in)
    if cluster is None:
        return stand_in
    width = cells(cluster)
    # Blanks first, for a terminal that draws the cluster narrower.
    return f"{_SAVE}{' ' * width}{_BACK}{_SAVE}{cluster}{_BACK}\x1b[{width}C" if width else cluster


@cache
def processor() -> Processor:
    """The processor that makes a control of prompt_toolkit draw clusters."""
    from bisect import bisect_right

    from prompt_toolkit.formatted_text.utils import fragment_list_to_text
    from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
    from prompt_toolkit.layout.utils import explode_text_fragments
    from wcwidth import iter_graphemes

    class Clusters(Processor):
        def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
            text = fragment_list_to_text(transformation_input.fragments)
            if is_simple(text):
                return Transformation(transformation_input.fragments)
            fragments = explode_text_fragments(transformation_input.fragments)
            starts: list[int] = []
            clusters: StyleAndTextTuples = []
            position = 0
            for cluster in iter_graphemes(text):
                starts.append(position)
                style = fragments[position][0]
                clusters.append((style, _stand_in(cluster) if len(cluster) > 1 else cluster))
                position += len(cluster)

            def to_display(place: int) -> int:
                return len(clusters) + place - position if place >= position else bisect_right(starts, place) - 1

            def to_source(place: int) -> int:
                return position + place - len(clusters) if place >= len(clusters) else starts[place]

            return Transformation(clusters, to_display, to_source)

    return Clusters()


@cache
def buffer() -> type[Buffer]:
    """A buffer in which the cursor is never moved into a cluster, and no part of one is deleted."""
    from prompt_toolkit.buffer import Buffer

    move = vars(Buffer)["cursor_position"].fset

    class ClusterBuffer(Buffer):
        @property
        def cursor_position(self) -> int:
            return super().cursor_position

        @cursor_position.setter
        def cursor_position(self, value: int) -> None:
            # Inserting sets the whole document, so a cluster that is typed code point by code point stays complete.
            start, end = cluster_at(self.text, value)
            move(self, end if value > self.cursor_position else start)

        def delete_before_cursor(self, count: int = 1) -> str:
            start, _ = cluster_at(self.text, max(self.cursor_position - count, 0))
            return super().delete_before_cursor(self.cursor_position - start)

        def delete(self, count: int = 1) -> str:
            _, end = cluster_at(self.text, min(self.cursor_position + count, len(self.text)))
            return super().delete(end - self.cursor_position)

        def swap_characters_before_cursor(self) -> None:
            text, end = self.text, self.cursor_position
            middle, _ = cluster_at(text, end - 1)
            start, _ = cluster_at(text, middle - 1)
            if start >= 0:
                self.text = text[:start] + text[middle:end] + text[start:middle] + text[end:]

    return ClusterBuffer
