"""deepctl in real projects: source distributions of other packages, which are never part of this repository."""
