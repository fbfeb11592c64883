"""`make bench`: every promise about speed and size, measured. Ends with exit code 1 if one is broken."""

from __future__ import annotations

import sys

from benchmarks import (
    applications,
    completion,
    conversation,
    first_hello,
    library,
    long_session,
    projects,
    rewind,
    sandbox,
    snapshot,
    start,
    store,
    streaming,
    wipe,
)

if __name__ == "__main__":
    sys.exit(
        0
        if all(
            [
                start.run(),
                conversation.run(),
                completion.run(),
                snapshot.run(),
                projects.run(),
                rewind.run(),
                long_session.run(),
                store.run(),
                sandbox.run(),
                wipe.run(),
                streaming.run(),
                library.run(),
                applications.run(),
                first_hello.run(),
            ]
        )
        else 1
    )
