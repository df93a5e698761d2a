"""Decisions while MLflow or the shared records are away: this machine's service follows now, the registry later.

A decision waits in `records/RECIPE/journal.jsonl`. The next command that reaches MLflow applies it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry.versions import RegistryError, number_of
from mobilenet_pipeline.release import bento, promotion, review
from mobilenet_pipeline.release.bento import Bento
from mobilenet_pipeline.release.review import ReviewError
from mobilenet_pipeline.workspace import files, history, paths, records
from mobilenet_pipeline.workspace.history import Event
from mobilenet_pipeline.workspace.paths import HERE
from mobilenet_pipeline.workspace.records import RecordError


@dataclass(frozen=True)
class Decision:
    """A version that a person took out, and for a rollback the version that is served instead."""

    what: Literal["rollback", "reject"]
    version: str
    instead: str | None
    why: str
    who: str
    at: str = field(default_factory=files.now)


def rollback(recipe: Recipe, to: str | None, why: str, who: str, workspace: Path = HERE) -> str:
    """Serve an earlier version from this machine's Bento store, and write the decision to the journal.

    Returns a sentence. Raises ReviewError if the history or the store has no earlier version.
    """
    live, waiting = bento.must_be_live(recipe), pending(recipe, workspace)
    present = live.versions["champion"]
    served_already = f"Version {present} of {recipe.registered_model} is served already."
    if present is None or (waiting and waiting[-1].instead == present and to in (None, present)):
        return served_already
    changes = history.champions(recipe, workspace, copy=True)
    if changes and changes[-1].version != present and to in (None, present):
        # MLflow went away after a rollback had made `present` live, and before it was recorded.
        _note(recipe, Decision("rollback", changes[-1].version, present, why, who), workspace)
        return _outlook(recipe, present, changes[-1].version)
    if to == present:
        return served_already
    target = _target(recipe, present, to, workspace)
    tag = _build(recipe, live, target)
    _note(recipe, Decision("rollback", present, target.version, why, who), workspace)
    bento.put_live(tag)
    return _outlook(recipe, target.version, present)


def reject(recipe: Recipe, number: str, why: str, who: str, workspace: Path = HERE) -> str:
    """Write the rejection of a version to the journal; returns a sentence. Raises ReviewError for the champion."""
    live = bento.live(recipe)
    if live and live.versions["champion"] == number:
        raise ReviewError(
            f"version {number} of {recipe.registered_model} is champion: `mobilenet-pipeline rollback --recipe "
            f"{recipe.name} --reason …` replaces it first"
        )
    if not any((it.what, it.version) == ("reject", number) for it in pending(recipe, workspace)):
        _note(recipe, Decision("reject", number, None, why, who), workspace)
    return f"Version {number} of {recipe.registered_model} is rejected as soon as a command reaches MLflow."


def pending(recipe: Recipe, workspace: Path = HERE) -> list[Decision]:
    """Return the decisions that the registry lacks, the oldest first. Raises RecordError for a damaged line."""
    path, decisions = paths.journal_path(recipe, workspace), []
    for number, line in enumerate(records.own_lines(path), start=1):
        try:
            if line:
                decisions.append(Decision(**json.loads(line)))
        except (ValueError, TypeError):
            raise RecordError(
                f"{path}, line {number} is damaged: {line[:80]!r}; take the line out, and decide again"
            ) from None
    return decisions


def replay(recipe: Recipe, workspace: Path = HERE) -> list[str]:
    """Apply the decisions of the journal to the registry, and return a sentence for each.

    A decision is taken out of the journal once it is applied, or if it cannot be applied any more. Call this with the
    lock of decisions.
    """
    sentences, decisions = [], pending(recipe, workspace)
    for index, decision in enumerate(decisions):
        try:
            sentence = _apply(recipe, decision, workspace)
        except (ReviewError, RegistryError) as error:
            sentence = f"The {decision.what} of version {decision.version} by {decision.who} is dropped: {error}."
        lines = [json.dumps(asdict(it), ensure_ascii=False) + "\n" for it in decisions[index + 1 :]]
        files.write_text(paths.journal_path(recipe, workspace), "".join(lines))
        sentences.append(sentence)
    return sentences


def _note(recipe: Recipe, decision: Decision, workspace: Path) -> None:
    files.append_line(paths.journal_path(recipe, workspace), json.dumps(asdict(decision), ensure_ascii=False))


def _outlook(recipe: Recipe, served: str, withdrawn: str) -> str:
    return (
        f"Version {served} of {recipe.registered_model} is served on this machine. Version {withdrawn} is withdrawn, "
        "and other machines follow, as soon as a command or `serve --follow` reaches MLflow."
    )


def _apply(recipe: Recipe, decision: Decision, workspace: Path) -> str:
    why = f"{decision.why} (decided {decision.at}, while MLflow was away)"
    champion = number_of(promotion.read_state(recipe, workspace).champion)
    if decision.what == "rollback" and champion in (decision.version, decision.instead):
        return review.rollback(recipe, decision.instead, why, decision.who, workspace)
    # Another workspace has promoted since: the version is out, the new champion stays.
    return review.reject(recipe, decision.version, why, decision.who, workspace)


def _target(recipe: Recipe, present: str, to: str | None, workspace: Path) -> Event:
    """Return the latest event of the version to serve: `to`, or the champion before the present one."""
    events = history.read(recipe, workspace, copy=True)
    changes = [event for event in events if event.makes_champion]
    number = to or (changes[-1].before if changes and changes[-1].version == present else None)
    if number is None:
        raise ReviewError(
            f"the history has no champion of {recipe.registered_model} before version {present}; name a version with "
            "--to"
        )
    event = next((event for event in reversed(events) if event.version == number and event.artefact), None)
    if event is None:
        raise ReviewError(f"the history has no version {number} of {recipe.registered_model}; wait for MLflow")
    reason = history.withdrawn(recipe, workspace, copy=True).get(str(event.artefact))
    if reason and not to:
        raise ReviewError(f"the champion before version {present} was version {number}, which was {reason}")
    return event


def _build(recipe: Recipe, live: Bento, target: Event) -> str:
    """Build a Bento with the version alone, try it, and return its tag."""
    folder = bento.stored_model(recipe, str(target.artefact))
    if folder is None:
        raise ReviewError(
            f"{bento.home()} has no copy of version {target.version} of {recipe.registered_model}; wait for MLflow"
        )
    tag = bento.package(recipe, folder, None)
    try:
        bento.check(tag, recipe.gate.milliseconds)
    except BaseException:
        if tag != live.tag:
            bento.discard(tag)
        raise
    return tag
