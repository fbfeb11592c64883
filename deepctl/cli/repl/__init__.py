"""The conversation at a terminal: a line is read, a turn is run and shown, and so on until somebody leaves."""
