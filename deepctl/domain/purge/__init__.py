"""Purge: removing lines from the notebooks of now and from those in every checkpoint, permanently."""
