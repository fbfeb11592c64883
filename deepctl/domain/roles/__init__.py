"""Roles: what a profile can start with. `role` reads one, `catalogue` finds, makes and deletes them."""
