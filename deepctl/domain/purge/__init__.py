"""Purge: rewriting memory, logs, records and packs so that no stored byte holds a text any more."""
