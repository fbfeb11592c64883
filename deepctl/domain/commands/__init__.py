"""Shell commands and the rules for them: words, syntax, prefixes, arguments, analysis, rules."""
