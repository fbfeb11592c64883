"""Wipe: deleting all or parts of a profile's data, completely and in one step."""
