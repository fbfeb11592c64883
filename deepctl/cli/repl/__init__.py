"""The interactive chat at a terminal: read a line, run and show a turn, repeat until the user leaves."""
