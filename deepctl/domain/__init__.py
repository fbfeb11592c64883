"""The operations on a profile beyond its store: settings, memory, attachments, transfer, purge, wipe, diagnosis.

This package does not depend on Typer, Rich or pydantic; messages are JSON objects.
"""
