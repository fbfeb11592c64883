"""Wiping: everything of a profile, or parts of it, planned, taken out of sight and deleted."""
