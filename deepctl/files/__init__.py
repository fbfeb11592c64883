"""The one way deepctl touches files: `durable` for its own state, `beneath` inside a workspace."""
