"""Profiles on their way to another machine: one archive file, written by the export and read by the import."""
