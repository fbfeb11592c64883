"""The settings of the coverage of projects as the store takes them."""

from __future__ import annotations

from deepctl.domain.settings import Settings
from deepctl.store.coverage import CoverageSettings


def coverage_settings(in_force: Settings) -> CoverageSettings:
    """The settings in force that decide which files of a project a checkpoint covers."""
    include, exclude = in_force.patterns("snapshot.include"), in_force.patterns("snapshot.exclude")
    return CoverageSettings(include, in_force.size("snapshot.max_file"), exclude)
