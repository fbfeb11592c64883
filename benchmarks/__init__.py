"""Speed, as a ratio of two things measured in the same run on the same machine; and sizes, as a ratio to a limit."""
