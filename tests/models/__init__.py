"""deepctl with real servers and the chat templates of open models."""
