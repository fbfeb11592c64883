"""`make completions`."""

from __future__ import annotations

import sys
from pathlib import Path

from deepctl.cli.completion_scripts import write

if __name__ == "__main__":
    write(Path(sys.argv[1]))
