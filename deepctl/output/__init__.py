"""How results look: as text for people, as JSON for scripts. Commands return values; only this package prints them."""
