"""The command line. A command resolves what its options mean, takes the lock, calls the domain and shows the result."""
