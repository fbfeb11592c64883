"""What shell commands run, and what rules say about it: words, syntax, prefixes, arguments, analysis, rules."""
