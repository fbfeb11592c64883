"""File access of deepctl: `atomic` for its own state, `paths_beneath` inside a workspace."""
