"""What a run finds that has nothing to do: the last verdict is applied and reported, and nothing waits."""

from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import away, runs
from mobilenet_pipeline.release import judging, offline, promotion, restore
from mobilenet_pipeline.release.judging import Judgement
from mobilenet_pipeline.reports import results
from mobilenet_pipeline.workspace import history, locks
from mobilenet_pipeline.workspace.paths import HERE


def find(recipe: Recipe, workspace: Path = HERE) -> str | None:
    """Return the summary of a run that has nothing to do, None if there may be something.

    The caller knows that all stages are up to date. Nothing is changed, except that outputs which the team lacks are
    shared. Raises ValueError or OSError if the registry or the records cannot be read.
    """
    with away.answering():
        promotion.check_ready(recipe, workspace)
        if runs.active(recipe):
            return None
        with locks.deciding(recipe, workspace):
            judgement = _settled(recipe, workspace)
        if judgement is None:
            return None
        return " ".join([sentence(recipe, judgement), *promotion.share(recipe, judgement, workspace)])


def sentence(recipe: Recipe, judgement: Judgement) -> str:
    """Return the summary of a run that changed nothing."""
    return f"Nothing changed: all stages are up to date. {promotion.champion_sentence(recipe, judgement)}"


def _settled(recipe: Recipe, workspace: Path) -> Judgement | None:
    """Return the last judgement, if nothing is left to do for it or for the registry."""
    state, recorded = promotion.read_state(recipe, workspace), history.withdrawn(recipe, workspace)
    unrecorded = any(version.withdrawn and version.sha256 not in recorded for version in state.versions)
    if (
        unrecorded
        or offline.pending(recipe, workspace)
        or restore.lost(state)
        or not results.reported(recipe, workspace)
    ):
        return None
    judgement = judging.recall(recipe, workspace, state)
    return judgement if judgement and promotion.is_applied(recipe, judgement, workspace) else None
