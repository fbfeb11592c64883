"""Roots of state that many tests begin with: made by commands once a test process, and copied from then on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def prepare(home: Path, name: str, build: Callable[[], object]) -> None:
    """Fill `home`, the root of state that is not made yet, with what `build` makes there.

    What `build` makes may depend on nothing but `name`.
    """
    kept = home.parent.parent / f"prepared-{name}"
    if kept.exists():
        shutil.copytree(kept, home, symlinks=True)
        return
    build()
    # Under another name until it is whole: a test that is interrupted here must leave nothing to others.
    unfinished = kept.with_name(f"{kept.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(home, unfinished, symlinks=True)
    unfinished.rename(kept)
