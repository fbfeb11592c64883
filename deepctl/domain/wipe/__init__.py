"""Wipe: deleting all or parts of what is kept about a profile, completely and as one step."""
