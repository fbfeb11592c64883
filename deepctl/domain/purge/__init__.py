"""Purge: rewriting memory, logs, records and packs so that no stored byte contains a text any more."""
