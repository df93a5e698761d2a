"""Candidates in a real registry, for the tests of registry and release."""

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import versions
from mobilenet_pipeline.registry.register import record_verdict as write_verdict
from mobilenet_pipeline.registry.register import register as register_files
from mobilenet_pipeline.workspace.candidate import read_candidate


def register(recipe: Recipe, candidate: str) -> versions.Version:
    """Register the candidate as its files are now."""
    return register_files(recipe, read_candidate(recipe, candidate))


def record_verdict(version: versions.Version, reason: str, promoted: bool) -> None:
    """Write a verdict with this reason to the version."""
    write_verdict(version, f'{{"reason": "{reason}"}}', "# Card", promoted, {}, {})
