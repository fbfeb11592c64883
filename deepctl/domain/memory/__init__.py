"""Memory: the Markdown notebooks of a profile's agent, and the operations on them."""
