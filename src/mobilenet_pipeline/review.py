"""What a person decides about a version: approve, reject, roll back. Each can be said twice and does its work once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenet_pipeline import history, judging, layout, promotion
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

    history.read(recipe, workspace)  # what cannot be put on record is not done
    version = registry.find(recipe.registered_model, number)
    judgement = judging.recall(recipe, workspace)
    winner = judgement and judgement.document["promote"] and judgement.champion
    if not winner or winner.version != number:
        raise ReviewError(
            f"version {number} of {recipe.registered_model} does not wait for approval: "
            + (judgement.document["reason"] if judgement else "the gate has not judged it on what there is now.")
            + f" `mobilenet-pipeline run --recipe {recipe.name}` judges anew."
        )
    assert judgement is not None
    if version.approval != "approved":
        registry.set_tag(version, "approval", "approved")
    promotion.record_opinion(recipe, "approved", version, "", who, workspace)
    promotion.promote(recipe, judgement, workspace)
    registry.announce(version, f"Approved by {who}")
    return f"Version {number} of {recipe.registered_model} is champion."


def reject(recipe: Recipe, number: str, why: str, who: str, workspace: Path = HERE) -> str:
    """Take a version out, so that no run promotes it; gives a sentence. Raises ReviewError for the champion."""
    from mobilenet_pipeline import registry

    history.read(recipe, workspace)  # what cannot be put on record is not done
    version = registry.find(recipe.registered_model, number)
    champion = registry.with_alias(recipe.registered_model, "champion")
    if champion and champion.version == number:
        raise ReviewError(
            f"version {number} of {recipe.registered_model} is champion: `mobilenet-pipeline rollback --recipe "
            f"{recipe.name} --reason …` puts another in its place first"
        )
    if not version.withdrawn:
        registry.set_tag(version, "approval", "rejected")
        registry.set_tag(version, "withdrawn", f"rejected by {who}: {why}")
    promotion.record_opinion(recipe, "rejected", version, why, who, workspace)
    registry.announce(version, f"Taken out: rejected by {who}: {why}")
    challenger = registry.with_alias(recipe.registered_model, "challenger")
    if champion and challenger and challenger.version == number:
        promotion.install(recipe, champion, None)
    return f"Version {number} of {recipe.registered_model} is rejected; no run will promote it."


def rollback(recipe: Recipe, to: str | None, why: str, who: str, workspace: Path = HERE) -> str:
    """Serve an earlier version again, by default the champion before this one, and take the present one out.

    Gives a sentence. Raises ReviewError where there is nothing to go back to.
    """
    from mobilenet_pipeline import registry

    history.read(recipe, workspace)  # what cannot be put on record is not done
    name = recipe.registered_model
    champion = registry.with_alias(name, "champion")
    if champion is None:
        raise ReviewError(f"{name} has no champion; there is nothing to roll back")
    target = _target(recipe, champion, to, workspace)
    challenger = registry.with_alias(name, "challenger")
    keeps = challenger if challenger and challenger.version != target.version and not challenger.withdrawn else None
    if target.version == champion.version:
        done = promotion.on_record(recipe, target, workspace) and promotion.consistent(recipe) is None
        promotion.install(recipe, target, keeps)
        registry.set_tag(target, "withdrawn", "")
        if not done:
            registry.announce(target, f"Champion again: rolled back by {who}: {why}")
        promotion.settle(recipe, "rolled back", target, why, who, workspace)
        return f"Version {target.version} of {name} is champion{' already' if done else ''}."
    # First: from here on no run promotes what was taken back.
    registry.set_tag(champion, "withdrawn", f"rolled back by {who}: {why}")
    try:
        promotion.install(recipe, target, keeps)
    except promotion.ChampionChanged as moved:
        raise ReviewError(f"{moved}. It stays there; version {champion.version} is taken out all the same") from None
    except Exception:  # it cannot be served; killed in between, the next rollback goes on
        if promotion.aliases(recipe)["champion"] == champion.version:
            registry.set_tag(champion, "withdrawn", "")
        raise
    registry.set_tag(target, "withdrawn", "")  # who named a version that was taken out knows
    registry.announce(champion, f"Taken out: rolled back by {who}: {why}")
    registry.announce(target, f"Champion again: rolled back by {who}: {why}")
    promotion.settle(recipe, "rolled back", target, why, who, workspace)
    return f"Version {target.version} of {name} is champion again, version {champion.version} is taken out."


def publish(recipe: Recipe, workspace: Path = HERE) -> str | None:
    """Write results.json and the report anew, so that they show what was decided.

    Gives a sentence where they cannot be written: the decision stands all the same.
    """
    from mobilenet_pipeline import report, results

    try:
        missing = report.gather(recipe, workspace).missing
        if missing:
            raise FileNotFoundError(f"not in this workspace: {', '.join(missing)}")
        results.put_champion(recipe, promotion.aliases(recipe)["champion"], workspace)
        report.write_report(recipe, workspace)
    except Exception as error:  # whatever it is must not look as if the decision had failed
        page = layout.report_folder(recipe) / "index.html"
        return f"{page} does not show this yet ({error}); `mobilenet-pipeline run --recipe {recipe.name}` writes it."
    return None


def show(recipe: Recipe, number: str | None, workspace: Path = HERE) -> tuple[str, dict]:
    """The card and the verdict of a version: the number's, or the one that waits for approval, else the champion.

    Raises ReviewError where there is none, or the gate has not judged it.
    """
    from mobilenet_pipeline import registry

    version = registry.find(recipe.registered_model, number) if number else _of_interest(recipe, workspace)
    card, verdict = (registry.read_text(version, name) for name in ("card.md", "verdict.json"))
    if card is None or verdict is None:
        raise ReviewError(
            f"version {version.version} of {recipe.registered_model} has no card: the gate has not judged it yet; "
            f"`mobilenet-pipeline run --recipe {recipe.name}`"
        )
    return card, json.loads(verdict)


def _of_interest(recipe: Recipe, workspace: Path) -> "Version":
    from mobilenet_pipeline import registry

    judgement = judging.recall(recipe, workspace)
    waiting = promotion.waiting(recipe, judgement) if judgement else None
    champion = registry.with_alias(recipe.registered_model, "champion")
    known = [waiting, champion, *registry.versions(recipe.registered_model)]
    found = next((version for version in known if version), None)
    if found is None:
        raise ReviewError(
            f"{recipe.registered_model} has no versions yet: `mobilenet-pipeline run --recipe {recipe.name}`"
        )
    return found


def _target(recipe: Recipe, champion: "Version", to: str | None, workspace: Path) -> "Version":
    """The version to go back to: the champion before the last that is on record.

    Where the last on record is not the present one, either a rollback was killed after it had taken that one out and
    moved the alias: it is completed. Or the alias was moved otherwise: the one on record it is.
    """
    from mobilenet_pipeline import registry

    name = recipe.registered_model
    if to:
        return registry.find(name, to)
    changes = history.champions(recipe, workspace)
    if changes and not promotion.on_record(recipe, champion, workspace):
        last = registry.find(name, changes[-1].version)
        if last.run_id != changes[-1].run:
            raise ReviewError(f"version {last.version} is not the champion on record; name a version with --to")
        return champion if last.withdrawn else last
    if not changes or changes[-1].before is None:
        raise ReviewError(f"{name} has had no champion before version {champion.version}; name a version with --to")
    previous = registry.find(name, changes[-1].before)
    if previous.withdrawn:
        raise ReviewError(
            f"the champion before version {champion.version} was version {previous.version}, which was "
            f"{previous.withdrawn}; name a version with --to"
        )
    return previous
