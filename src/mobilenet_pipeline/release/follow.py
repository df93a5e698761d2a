"""The service of a machine that follows the registry: fetch, build and try the champion's Bento, and make it live."""

from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.registry import away, identity
from mobilenet_pipeline.release import bento, offline, promotion
from mobilenet_pipeline.workspace import locks
from mobilenet_pipeline.workspace.paths import HERE


def look(recipe: Recipe, workspace: Path = HERE) -> list[str]:
    """Make what this machine serves equal to the registry's champion and challenger; return a sentence per change.

    The aliases stay as they are. Raises PackagingError if the Bento does not answer, StoreAwayError if MLflow or one of
    its stores does not, and what reading the registry raises; the machine serves what it has served then.
    """
    with away.answering():
        return _follow(recipe, workspace)


def _follow(recipe: Recipe, workspace: Path) -> list[str]:
    sentences = []
    if offline.pending(recipe, workspace):
        with locks.deciding(recipe, workspace):
            sentences += offline.replay(recipe, workspace)
    state = promotion.read_state(recipe, workspace)
    if state.champion is None:
        return sentences
    if not identity.remembered(recipe, workspace):
        identity.join(recipe, workspace)  # a machine that only serves must notice a forgotten setting, too
    if promotion.drift(recipe, state, bento.live(recipe)) is None:
        return sentences
    if not state.champion.decodes_like(preprocess.fingerprint()):
        raise bento.PackagingError(
            f"version {state.champion.version} of {state.name} was trained with another image decoder than this "
            "code's; check out the commit of its training"
        )
    with locks.deciding(recipe, workspace, everywhere=False):
        tag = promotion.build(recipe, state, state.champion, state.challenger, workspace)
        if promotion.read_state(recipe, workspace).aliases != state.aliases:
            promotion.discard(recipe, tag)
            return sentences  # moved while the Bento was tried; the next look follows
        bento.put_live(tag)
    return [*sentences, f"Version {state.champion.version} of {state.name} is served now: Bento {tag}."]
