"""What deepctl keeps about a user: profiles, sessions, memory and settings, as plain values.

Nothing here knows Typer, Rich or pydantic; messages are JSON objects.
"""
