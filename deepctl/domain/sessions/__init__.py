"""Sessions: one conversation each, as an append-only log of messages."""
