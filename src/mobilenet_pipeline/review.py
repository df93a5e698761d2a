"""What a person decides about a version: approve, reject, roll back. Each can be said twice and does its work once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenet_pipeline import history, judging, promotion
from mobilenet_pipeline.config import Recipe

if TYPE_CHECKING:
    from mobilenet_pipeline.registry import Version

HERE = Path(".")


class ReviewError(ValueError):
    """What was asked cannot be done."""


def approve(recipe: Recipe, number: str, who: str, workspace: Path = HERE) -> str:
    """Promote a version that passed the gate and waits for a person; gives a sentence.

    Raises ReviewError where the gate has not passed it, or has judged others since.
    """
    from mobilenet_pipeline import registry

    version = registry.find(recipe.registered_model, number)
    judgement = judging.recall(recipe, workspace)
    winner = judgement and judgement.document["promote"] and judgement.champion
    if not winner or winner.version != number:
        raise ReviewError(
            f"version {number} of {recipe.registered_model} does not wait for approval: "
            + (judgement.document["reason"] if judgement else "the gate has not judged it on what there is now")
            + f" `mobilenet-pipeline run --recipe {recipe.name}` judges anew."
        )
    assert judgement is not None
    champion = registry.with_alias(recipe.registered_model, "champion")
    if version.approval != "approved":
        registry.set_tag(version, "approval", "approved")
    told = [event.version for event in history.read(recipe, workspace) if event.what == "approved"]
    if number not in told:
        before = champion.version if champion else None
        history.append(recipe, "approved", number, "", before, before, version.run_id, version.accuracy, who, workspace)
    promotion.promote(recipe, judgement, workspace)
    return f"Version {number} of {recipe.registered_model} is champion."


def reject(recipe: Recipe, number: str, why: str, who: str, workspace: Path = HERE) -> str:
    """Take a version out, so that no run promotes it; gives a sentence. Raises ReviewError for the champion."""
    from mobilenet_pipeline import registry

    version = registry.find(recipe.registered_model, number)
    champion = registry.with_alias(recipe.registered_model, "champion")
    if champion and champion.version == number:
        raise ReviewError(
            f"version {number} of {recipe.registered_model} is champion: `mobilenet-pipeline rollback --recipe "
            f"{recipe.name} --reason …` puts another in its place first"
        )
    reason = f"rejected by {who}: {why}"
    if version.withdrawn != reason:
        registry.set_tag(version, "approval", "rejected")
        registry.set_tag(version, "withdrawn", reason)
    before = champion.version if champion else None
    if not any(
        (e.what, e.version, e.who, e.why) == ("rejected", number, who, why) for e in history.read(recipe, workspace)
    ):
        history.append(
            recipe, "rejected", number, why, before, before, version.run_id, version.accuracy, who, workspace
        )
    return f"Version {number} of {recipe.registered_model} is rejected; no run will promote it."


def rollback(recipe: Recipe, to: str | None, why: str, who: str, workspace: Path = HERE) -> str:
    """Serve an earlier version again, by default the champion before this one, and take the present one out.

    Gives a sentence. Raises ReviewError where there is nothing to go back to.
    """
    from mobilenet_pipeline import registry

    name = recipe.registered_model
    champion = registry.with_alias(name, "champion")
    if champion is None:
        raise ReviewError(f"{name} has no champion; there is nothing to roll back")
    target = _target(recipe, champion, to)
    if target.version == champion.version:
        if promotion.on_record(recipe, target, workspace) and promotion.consistent(recipe) is None:
            return f"Version {target.version} of {name} is champion already."
        promotion.install(recipe, target, registry.with_alias(name, "challenger"))
        promotion.settle(recipe, "rolled back", target, why, None, who, workspace)
        return f"Version {target.version} of {name} is champion."
    # First: from here on no run promotes what was taken back.
    registry.set_tag(champion, "withdrawn", f"rolled back by {who}: {why}")
    if target.withdrawn:  # whoever names it knows
        registry.set_tag(target, "withdrawn", "")
    challenger = registry.with_alias(name, "challenger")
    keeps = challenger if challenger and challenger.version != target.version and not challenger.withdrawn else None
    promotion.install(recipe, target, keeps)
    promotion.settle(recipe, "rolled back", target, why, champion.version, who, workspace)
    return f"Version {target.version} of {name} is champion again, version {champion.version} is taken out."


def show(recipe: Recipe, number: str | None) -> tuple[str, dict]:
    """The card and the verdict of a version: the number's, or the one that waits, was judged last, or is champion.

    Raises ReviewError where there is none, or the gate has not judged it.
    """
    from mobilenet_pipeline import registry

    version = registry.find(recipe.registered_model, number) if number else _of_interest(recipe)
    card, verdict = (registry.read_text(version, name) for name in ("card.md", "verdict.json"))
    if card is None or verdict is None:
        raise ReviewError(
            f"version {version.version} of {recipe.registered_model} has no card: the gate has not judged it yet; "
            f"`mobilenet-pipeline run --recipe {recipe.name}`"
        )
    return card, json.loads(verdict)


def _of_interest(recipe: Recipe) -> "Version":
    from mobilenet_pipeline import registry

    known = registry.versions(recipe.registered_model)
    if not known:
        raise ReviewError(
            f"{recipe.registered_model} has no versions yet: `mobilenet-pipeline run --recipe {recipe.name}`"
        )
    champion = registry.with_alias(recipe.registered_model, "champion")
    waiting = [
        v
        for v in known
        if v.verdict == "promoted" and not v.withdrawn and not (champion and int(v.version) <= int(champion.version))
    ]
    return next(iter([*waiting, *([champion] if champion else []), *known]))


def _target(recipe: Recipe, champion: "Version", to: str | None) -> "Version":
    from mobilenet_pipeline import registry

    name = recipe.registered_model
    if to:
        return registry.find(name, to)
    previous = registry.with_alias(name, "previous")
    if previous is None:
        raise ReviewError(f"{name} has had no champion before version {champion.version}; name a version with --to")
    if previous.withdrawn:
        raise ReviewError(
            f"the champion before version {champion.version} was version {previous.version}, which was "
            f"{previous.withdrawn}; name a version with --to"
        )
    return previous
