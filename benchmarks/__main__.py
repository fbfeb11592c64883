"""`make bench`: every promise about speed, measured. Ends with exit code 1 if one is broken."""

from __future__ import annotations

import sys

from benchmarks import completion, rewind, sandbox, snapshot, start, store, wipe

if __name__ == "__main__":
    sys.exit(
        0
        if all([start.run(), completion.run(), snapshot.run(), rewind.run(), store.run(), sandbox.run(), wipe.run()])
        else 1
    )
