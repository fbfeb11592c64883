"""The display of a running turn: Markdown, tool calls, and the live region of the terminal."""
