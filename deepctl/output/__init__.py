"""The form of results: text for people, JSON for scripts. Commands return values; only this package prints them."""
