"""The command line. A command resolves its options, takes the lock, calls the domain and shows the result."""
