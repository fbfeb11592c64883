"""Checkpoints: points in time of a session, with the whole workspace, kept once by content."""
