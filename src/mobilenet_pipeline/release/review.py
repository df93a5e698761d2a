"""What a person decides about a version: approve, reject, roll back. Each can be repeated and works once."""

from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.registry import aliases, identity
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.aliases import ChampionChanged, State
from mobilenet_pipeline.registry.versions import Version, number_of
from mobilenet_pipeline.release import bento, judging, promotion
from mobilenet_pipeline.reports import gauges, page, results
from mobilenet_pipeline.workspace import history, paths
from mobilenet_pipeline.workspace.history import Event
from mobilenet_pipeline.workspace.paths import HERE


class ReviewError(ValueError):
    """The decision cannot be applied."""


def approve(recipe: Recipe, number: str, who: str, workspace: Path = HERE) -> str:
    """Promote a version that passed the gate and waits for approval; returns a sentence.

    Raises ReviewError if the gate has not passed it, or has judged other candidates since.
    """
    promotion.check_history(recipe, workspace)
    identity.check(recipe, workspace)
    version = registry.find(recipe.registered_model, number)
    judgement = judging.recall(recipe, workspace)
    winner = judgement and judgement.verdict.promote and judgement.champion
    if judgement is None or not winner or winner.version != number:
        raise ReviewError(
            f"version {number} of {recipe.registered_model} does not wait for approval: "
            + (judgement.verdict.reason if judgement else "the gate has not judged the present candidates.")
            + f" `mobilenet-pipeline run --recipe {recipe.name}` judges again."
        )
    if version.approval != "approved":
        registry.set_tag(version, "approval", "approved")
    promotion.record_opinion(recipe, judgement.state, "approved", version, "", who, workspace)
    promotion.promote(recipe, judgement, workspace)
    registry.announce(version, f"Approved by {who}")
    return f"Version {number} of {recipe.registered_model} is champion."


def reject(recipe: Recipe, number: str, why: str, who: str, workspace: Path = HERE) -> str:
    """Withdraw a version, so that no run promotes it; returns a sentence. Raises ReviewError for the champion."""
    promotion.check_history(recipe, workspace)
    state = promotion.read_state(recipe, workspace)
    version = registry.find(recipe.registered_model, number)
    if number_of(state.champion) == number:
        raise ReviewError(
            f"version {number} of {state.name} is champion: `mobilenet-pipeline rollback --recipe {recipe.name} "
            "--reason …` replaces it first"
        )
    if not version.withdrawn:
        registry.set_tag(version, "approval", "rejected")
        registry.set_tag(version, "withdrawn", f"rejected by {who}: {why}")
    promotion.record_opinion(recipe, state, "rejected", version, why, who, workspace)
    registry.announce(version, f"Withdrawn: rejected by {who}: {why}")
    if state.champion and number_of(state.challenger) == number:
        promotion.install(recipe, state, state.champion, None, workspace)
    return f"Version {number} of {state.name} is rejected; no run will promote it."


def rollback(recipe: Recipe, to: str | None, why: str, who: str, workspace: Path = HERE) -> str:
    """Serve an earlier version again, by default the previous champion, and withdraw the present one.

    Returns a sentence. Raises ReviewError if there is nothing to return to.
    """
    promotion.check_history(recipe, workspace)
    state = promotion.read_state(recipe, workspace)
    champion, challenger = state.champion, state.challenger
    if champion is None:
        raise ReviewError(f"{state.name} has no champion; there is nothing to roll back")
    target = _target(recipe, state, champion, to, workspace)
    keeps = challenger if challenger and challenger.version != target.version and not challenger.withdrawn else None
    if target.version == champion.version:
        changes = history.champions(recipe, workspace)
        recorded = promotion.is_recorded(changes, target)
        done = recorded and promotion.drift(recipe, state, bento.live(recipe)) is None
        promotion.install(recipe, state, target, keeps, workspace)
        registry.set_tag(target, "withdrawn", "")
        if not done:
            registry.announce(target, f"Champion: rolled back by {who}: {why}")
        promotion.settle(
            recipe, state, "rolled back", target, why, who, workspace, withdraws=_taken_out(state, changes)
        )
        return f"Version {target.version} of {state.name} is champion{' already' if done else ''}."
    # First: from here on, no run promotes the withdrawn version.
    registry.set_tag(champion, "withdrawn", f"rolled back by {who}: {why}")
    try:
        promotion.install(recipe, state, target, keeps, workspace)
    except ChampionChanged as moved:
        raise ReviewError(f"{moved}. The alias stays there; version {champion.version} is withdrawn") from None
    except Exception:  # the target cannot be served; after a kill in between, the next rollback continues
        if number_of(aliases.with_alias(state.name, "champion")) == champion.version:
            registry.set_tag(champion, "withdrawn", "")
        raise
    registry.set_tag(target, "withdrawn", "")  # whoever names a withdrawn version with --to wants it back
    registry.announce(champion, f"Withdrawn: rolled back by {who}: {why}")
    registry.announce(target, f"Champion: rolled back by {who}: {why}")
    promotion.settle(recipe, state, "rolled back", target, why, who, workspace, withdraws=champion)
    return f"Version {target.version} of {state.name} is champion, version {champion.version} is withdrawn."


def publish(recipe: Recipe, workspace: Path = HERE) -> str | None:
    """Write results.json and the report again, so that they show the decision.

    Returns a sentence if they cannot be written; the decision stands all the same.
    """
    try:
        gauges.write(recipe, workspace)
        missing = page.gather(recipe, workspace).missing
        if missing:
            raise FileNotFoundError(f"not in this workspace: {', '.join(missing)}")
        champion = aliases.with_alias(recipe.registered_model, "champion")
        results.put_champion(recipe, number_of(champion), workspace)
        page.write_report(recipe, workspace)
    except Exception as error:  # it must not look as if the decision had failed
        report = paths.report_folder(recipe) / "index.html"
        return f"{report} does not show this yet ({error}); `mobilenet-pipeline run --recipe {recipe.name}` writes it."
    return None


def show(recipe: Recipe, number: str | None, workspace: Path = HERE) -> tuple[str, Verdict]:
    """Return card and verdict of a version: the number's, or the one that waits for approval, else the champion.

    Raises ReviewError if there is no such version, or the gate has not judged it, and OtherRegistry if MLflow's store
    is not the recipe's.
    """
    identity.check(recipe, workspace)
    version = registry.find(recipe.registered_model, number) if number else _of_interest(recipe, workspace)
    card, verdict = (registry.read_artefact(version, name) for name in ("card.md", "verdict.json"))
    if card is None or verdict is None:
        lost = registry.lost_run(version)
        cause = f"{lost}, and the card with it" if lost else "the gate has not judged it yet"
        raise ReviewError(
            f"version {version.version} of {recipe.registered_model} has no card: {cause}; "
            f"`mobilenet-pipeline run --recipe {recipe.name}` judges the present candidates"
        )
    return card, Verdict.from_json(verdict, f"verdict.json of version {version.version}")


def _of_interest(recipe: Recipe, workspace: Path) -> Version:
    judgement = judging.recall(recipe, workspace)
    state = judgement.state if judgement else promotion.read_state(recipe, workspace)
    waiting = promotion.waiting(recipe, judgement) if judgement else None
    for version in (waiting, state.champion, *state.versions):
        if version:
            return version
    raise ReviewError(f"{state.name} has no versions yet: `mobilenet-pipeline run --recipe {recipe.name}`")


def _taken_out(state: State, changes: list[Event]) -> Version | None:
    """Return the last recorded champion if a rollback withdrew it, and was killed before its record."""
    last = changes[-1].run if changes else None
    return next((version for version in state.versions if version.run_id == last and version.withdrawn), None)


def _target(recipe: Recipe, state: State, champion: Version, to: str | None, workspace: Path) -> Version:
    """Return the version to roll back to: the champion before the last one in the history.

    The last one in the history may not be the present one. Either a rollback was killed after it had withdrawn that
    one and moved the alias; then it is completed. Or the alias was moved by hand; then the last recorded one returns.
    """
    if to:
        return registry.find(state.name, to)
    changes = history.champions(recipe, workspace)
    if changes and not promotion.is_recorded(changes, champion):
        last = registry.find(state.name, changes[-1].version)
        if last.run_id != changes[-1].run:
            raise ReviewError(f"version {last.version} is not the recorded champion; name a version with --to")
        return champion if last.withdrawn else last
    if not changes or changes[-1].before is None:
        raise ReviewError(f"{state.name} had no champion before version {champion.version}; name a version with --to")
    previous = registry.find(state.name, changes[-1].before)
    if previous.withdrawn:
        raise ReviewError(
            f"the champion before version {champion.version} was version {previous.version}, which was "
            f"{previous.withdrawn}; name a version with --to"
        )
    return previous
