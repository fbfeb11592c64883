"""Profiles on their way to another machine: one archive file, written (`exporting`) and taken in (`importing`)."""
