"""The agent: the only package that imports pydantic-ai, its backends and its harness."""
