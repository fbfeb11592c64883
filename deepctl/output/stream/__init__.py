"""What a turn shows while it runs: Markdown, tool calls, the live region of the terminal."""
