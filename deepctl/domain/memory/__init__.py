"""Memory: the Markdown notebooks that a profile's agent keeps, and what people do with them."""
