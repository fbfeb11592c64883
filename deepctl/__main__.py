"""`deepctl` and `python -m deepctl`."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """The console script."""
    # During imports there is no state to clean up: Ctrl-C ends the process at once, without a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from deepctl.cli.main import run as run_command

    signal.signal(signal.SIGINT, before)
    run_command()


if __name__ == "__main__":
    run()
