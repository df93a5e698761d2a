"""Verdict to Bento and aliases. Every step can be repeated, so a run that died is completed."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet_pipeline import history, layout, provenance
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.judging import Judgement, number_of, recall

if TYPE_CHECKING:
    from mobilenet_pipeline.packaging import Bento
    from mobilenet_pipeline.registry import Version


class PromotionError(ValueError):
    """The verdict and what is served do not fit together."""


class ChampionChanged(PromotionError):
    """Someone else has moved the champion's alias since the verdict, or while a Bento was tried."""


def waiting(recipe: Recipe, judgement: Judgement) -> "Version | None":
    """The version that the verdict would make champion, if a person has yet to say so."""
    champion = judgement.champion
    if recipe.promotion == "automatic" or champion is None or not judgement.document["promote"]:
        return None
    there = aliases(recipe)["champion"] == champion.version
    return None if there or champion.approval == "approved" else champion


def promote(recipe: Recipe, judgement: Judgement, workspace: Path = Path(".")) -> str | None:
    """Carry the verdict out: install its champion and challenger, and put it on record where the champion is new.

    Gives the Bento's tag; None where there is nothing to serve: no champion, and no eligible candidate. Nothing is
    built where it is done already. Raises ChampionChanged where another run has changed the champion since the verdict,
    HistoryError where the record is damaged, and what `install` raises: what is served stays.
    """
    from mobilenet_pipeline import registry

    champion = judgement.champion
    if champion is None:
        return None
    _check_champion(recipe, judgement)
    history.read(recipe, workspace)  # what cannot be put on record is not done
    if champion.approval == "approved":
        record_opinion(recipe, "approved", champion, "", "someone in the registry", workspace)
    tag = install(recipe, champion, judgement.challenger)
    if judgement.document["promote"]:
        verdict = registry.verdict_sha256(judgement.document)
        settle(recipe, "promoted", champion, str(judgement.document["reason"]), "the gate", workspace, verdict)
    else:
        settle(recipe, "found", champion, "the alias was moved by other means", "the pipeline", workspace)
    return tag


def install(recipe: Recipe, champion: "Version", challenger: "Version | None") -> str:
    """Serve these versions: build a Bento and try it, then move the aliases, the champion's last, and go live.

    Gives the Bento's tag. Nothing is built where they are served already. Raises what `packaging.check` raises where
    the Bento does not answer, and ChampionChanged where the alias was moved meanwhile: what is served stays.
    """
    from mobilenet_pipeline import packaging, registry

    name, live = recipe.registered_model, packaging.live(recipe)
    former = registry.with_alias(name, "champion")
    if live and _settled(recipe, champion, challenger):
        return live.tag
    with tempfile.TemporaryDirectory() as scratch:
        best = registry.fetch(champion, Path(scratch) / champion.version)
        second = registry.fetch(challenger, Path(scratch) / challenger.version) if challenger else None
        tag = packaging.package(recipe, best, second)
    try:
        packaging.check(tag, recipe.gate.milliseconds)
        # That took seconds, in which another workspace may have promoted, or a person moved the alias in the registry.
        found = registry.with_alias(name, "champion")
        if number_of(found) not in (number_of(former), champion.version):
            raise ChampionChanged(
                f"the alias champion of {name} was moved to {_called(number_of(found))} while version "
                f"{champion.version} was tried out; see `mobilenet-pipeline status --recipe {recipe.name}`"
            )
    except BaseException:  # an interrupt too
        live = packaging.live(recipe)
        if live is None or live.tag != tag:
            packaging.discard(tag)
        raise
    registry.set_alias(name, "challenger", number_of(challenger))
    if former and former.version != champion.version:
        registry.set_alias(name, "previous", former.version)
    registry.set_alias(name, "champion", champion.version)
    packaging.put_live(tag)
    return tag


def keep_serving(recipe: Recipe) -> None:
    """Build the Bento of the present champion anew where it is lost or outdated, while another waits for a person."""
    from mobilenet_pipeline import registry

    champion, challenger = (registry.with_alias(recipe.registered_model, role) for role in ("champion", "challenger"))
    # A champion that was trained when images were decoded otherwise stays in the Bento that it has.
    if champion and champion.preprocessing in (None, provenance.preprocessing()):
        install(recipe, champion, challenger)


def settle(
    recipe: Recipe,
    what: history.What,
    champion: "Version",
    why: str,
    who: str,
    workspace: Path = Path("."),
    verdict: str | None = None,
) -> None:
    """Put the change of champion on record, unless it is there: whoever comes after one that was killed does it."""
    if not on_record(recipe, champion, workspace):
        changes = history.champions(recipe, workspace)
        before = changes[-1].after if changes and _is_of_this_store(recipe, changes[-1]) else None
        _append(recipe, what, champion, why, who, before, champion.version, workspace, verdict)


def record_opinion(
    recipe: Recipe, what: history.What, version: "Version", why: str, who: str, workspace: Path = Path(".")
) -> None:
    """Put on record, once, what a person said of the version; the champion stays."""
    told = [(event.what, event.version, event.run) for event in history.read(recipe, workspace)]
    if (what, version.version, version.run_id) not in told:
        champion = aliases(recipe)["champion"]
        _append(recipe, what, version, why, who, champion, champion, workspace)


def on_record(recipe: Recipe, champion: "Version", workspace: Path = Path(".")) -> bool:
    """Whether the last change on record made this version champion. Of this store: in another, numbers start again."""
    changes = history.champions(recipe, workspace)
    return bool(changes) and (changes[-1].version, changes[-1].run) == (champion.version, champion.run_id)


def _is_of_this_store(recipe: Recipe, event: history.Event) -> bool:
    """Whether the version that the event tells of is there: the record outlives a store, whose numbers start again."""
    from mobilenet_pipeline import registry

    known = [(version.version, version.run_id) for version in registry.versions(recipe.registered_model)]
    return (event.version, event.run) in known


def _append(
    recipe: Recipe,
    what: history.What,
    version: "Version",
    why: str,
    who: str,
    before: str | None,
    after: str | None,
    workspace: Path,
    verdict: str | None = None,
) -> None:
    number, run, accuracy = version.version, version.run_id, version.accuracy
    history.append(recipe, what, number, why, before, after, run, accuracy, who, workspace, verdict)


def carried_out(recipe: Recipe, judgement: Judgement, workspace: Path = Path(".")) -> bool:
    """Whether the judgement's champion and challenger are served, and on record."""
    champion = judgement.champion
    if champion is None:
        return True
    return _settled(recipe, champion, judgement.challenger) and on_record(recipe, champion, workspace)


def _settled(recipe: Recipe, champion: "Version", challenger: "Version | None") -> bool:
    """Whether the aliases are on these versions, and the live Bento holds them."""
    from mobilenet_pipeline import packaging

    live = packaging.live(recipe)
    there = aliases(recipe) == {"champion": champion.version, "challenger": number_of(challenger)}
    return there and live is not None and _serves(live, champion, challenger)


def consistent(recipe: Recipe) -> str | None:
    """None where the live Bento holds champion and challenger, else a sentence that says how they differ."""
    from mobilenet_pipeline import packaging, registry

    name = recipe.registered_model
    champion, challenger = (registry.with_alias(name, alias) for alias in ("champion", "challenger"))
    live = packaging.live(recipe)
    remedy = f"`mobilenet-pipeline run --recipe {recipe.name}` puts this right"
    if live is None:
        lacking = f"Version {number_of(champion)} of {name} is champion, but no Bento with it is served; {remedy}."
        return lacking if champion else None
    if champion and _serves(live, champion, challenger):
        return None
    for role, version in {"champion": champion, "challenger": challenger}.items():
        if live.versions[role] != number_of(version):
            served = f"Bento {live.tag} serves {_called(live.versions[role])} as {role}"
            return f"{served}, but in the registry {_called(number_of(version))} of {name} is {role}; {remedy}."
    return f"Bento {live.tag} was built of other artefacts or an earlier version of the service's code; {remedy}."


def status(recipe: Recipe, workspace: Path = Path(".")) -> dict[str, Any]:
    """What is served and why: champion, challenger (versions), bento (tag), verdict (document), waiting (the version
    that a person has yet to approve), drift (sentence)."""
    from mobilenet_pipeline import packaging, registry

    bento = packaging.live(recipe)
    path = layout.verdict_path(recipe, workspace)
    return {
        "champion": registry.with_alias(recipe.registered_model, "champion"),
        "challenger": registry.with_alias(recipe.registered_model, "challenger"),
        "bento": bento and bento.tag,
        "verdict": provenance.read_json(path) if path.exists() else None,
        "waiting": (judgement := recall(recipe, workspace)) and waiting(recipe, judgement),
        "drift": consistent(recipe),
    }


def _check_champion(recipe: Recipe, judgement: Judgement) -> None:
    found = aliases(recipe)["champion"]
    expected = [number_of(judgement.against), number_of(judgement.champion)]
    if found not in expected:
        measured = f"against version {expected[0]}" if expected[0] else "without a champion"
        raise ChampionChanged(
            f"version {found} of {recipe.registered_model} has become champion in the meantime, the verdict was "
            f"reached {measured}; run the flow again"
        )


def aliases(recipe: Recipe) -> dict[str, str | None]:
    """The numbers of the versions that carry the aliases `champion` and `challenger`."""
    from mobilenet_pipeline import registry

    return {role: number_of(registry.with_alias(recipe.registered_model, role)) for role in ("champion", "challenger")}


def _called(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _serves(bento: "Bento", champion: "Version", challenger: "Version | None") -> bool:
    """Whether the Bento has today's code and these artefacts: numbers alone start again in another store."""
    roles = {"champion": champion, "challenger": challenger}
    versions = {role: number_of(version) for role, version in roles.items()}
    hashes = {role: version.sha256 if version else None for role, version in roles.items()}
    return bento.is_current and (bento.versions, bento.hashes) == (versions, hashes)
