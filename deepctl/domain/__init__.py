"""What deepctl does for a profile beyond its store: settings, memory, attachments, transfer, purge, wipe, diagnosis.

Nothing here knows Typer, Rich or pydantic; messages are JSON objects.
"""
