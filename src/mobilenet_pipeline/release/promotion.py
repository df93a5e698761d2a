"""Verdict to Bento, aliases and history. Every step can be repeated, so the next run completes one that was killed."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Aliases, Verdict
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.registry import aliases
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.aliases import ChampionChanged, State
from mobilenet_pipeline.registry.store import use_store
from mobilenet_pipeline.registry.versions import Version, number_of
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.release.bento import Bento
from mobilenet_pipeline.release.judging import Judgement, read_verdict, recall
from mobilenet_pipeline.workspace import history, ledger, paths
from mobilenet_pipeline.workspace.history import Event
from mobilenet_pipeline.workspace.paths import HERE


def waiting(recipe: Recipe, judgement: Judgement) -> Version | None:
    """Return the version that the verdict would promote once a person approves it, None if none waits."""
    champion = judgement.champion
    if recipe.promotion == "automatic" or champion is None or not judgement.verdict.promote:
        return None
    is_champion = number_of(judgement.state.champion) == champion.version
    return None if is_champion or champion.approval == "approved" else champion


def aliases_after(recipe: Recipe, judgement: Judgement) -> Aliases:
    """Return the aliases that the verdict leaves, or the present ones while it waits for approval."""
    if waiting(recipe, judgement):
        return Aliases(**judgement.state.aliases)
    return judgement.verdict.leaves


def promote(recipe: Recipe, judgement: Judgement, workspace: Path = HERE) -> str | None:
    """Apply the verdict: serve its champion and challenger, and record a new champion in the history.

    Returns the Bento's tag; None if there is nothing to serve: no champion and no eligible candidate. Nothing is built
    if that is done already. Raises ChampionChanged if the champion was changed since the verdict, HistoryError if the
    history is damaged, and what `install` raises; the service keeps its models then.
    """
    champion = judgement.champion
    if champion is None:
        return None
    check_history(recipe, workspace)
    state = aliases.read_state(recipe.registered_model)
    _check_champion(state, judgement)
    if champion.approval == "approved":
        record_opinion(recipe, state, "approved", champion, "", "someone in the registry", workspace)
    tag = install(recipe, state, champion, judgement.challenger)
    if judgement.verdict.promote:
        digest = hashlib.sha256(judgement.verdict.to_json().encode()).hexdigest()
        settle(recipe, state, "promoted", champion, judgement.verdict.reason, "the gate", workspace, digest)
    else:
        settle(recipe, state, "found", champion, "the alias was moved by other means", "the pipeline", workspace)
    return tag


def install(recipe: Recipe, state: State, champion: Version, challenger: Version | None) -> str:
    """Serve these versions: build a Bento and try it, then move the aliases, the champion's last, and go live.

    Returns the Bento's tag. Nothing is built if they are served already. Raises PackagingError if the Bento does not
    answer, and ChampionChanged if the alias was moved meanwhile; the service keeps its models then.
    """
    live = bento.live(recipe)
    if live and _settled(state, live, champion, challenger):
        return live.tag
    with tempfile.TemporaryDirectory() as scratch:
        best = registry.fetch(champion, Path(scratch) / champion.version)
        second = registry.fetch(challenger, Path(scratch) / challenger.version) if challenger else None
        tag = bento.package(recipe, best, second)
    try:
        bento.check(tag, recipe.gate.milliseconds)
        # The check took seconds, in which another workspace may have promoted, or a person moved the alias.
        aliases.move_aliases(state, champion, challenger)
    except BaseException:  # an interrupt too
        live = bento.live(recipe)
        if live is None or live.tag != tag:
            bento.discard(tag)
        raise
    bento.put_live(tag)
    return tag


def keep_serving(recipe: Recipe, state: State) -> None:
    """Build the present champion's Bento again if it is lost or outdated, while another version waits for approval."""
    # A champion whose training decoded images differently stays in the Bento that it has.
    if state.champion and state.champion.decodes_like(preprocess.fingerprint()):
        install(recipe, state, state.champion, state.challenger)


def check_ready(recipe: Recipe, workspace: Path = HERE) -> None:
    """Check at the start of a run what it needs at its end: build tools, names, registry, history, read counts.

    Raises ValueError or OSError with what is missing or damaged, and the remedy.
    """
    bento.check_build_tools()
    bento.check_name(recipe)
    use_store()
    check_history(recipe, workspace)
    ledger.count_reads(recipe.data.digest, workspace)


def check_history(recipe: Recipe, workspace: Path = HERE) -> None:
    """Raise HistoryError if the history is damaged: what cannot be recorded is not done."""
    history.read(recipe, workspace)


def settle(
    recipe: Recipe,
    state: State,
    what: history.What,
    champion: Version,
    why: str,
    who: str,
    workspace: Path = HERE,
    verdict: str | None = None,
) -> None:
    """Record the change of champion, unless it is recorded: whoever follows a killed run records it."""
    changes = history.champions(recipe, workspace)
    if is_recorded(changes, champion):
        return
    # The history outlives a registry, in which version numbers start again.
    last = changes[-1] if changes else None
    known = last and any((version.version, version.run_id) == (last.version, last.run) for version in state.versions)
    before = last.after if last and known else None
    history.append(recipe, _event(what, champion, who, why, before, champion.version, verdict), workspace)


def record_opinion(
    recipe: Recipe, state: State, what: history.What, version: Version, why: str, who: str, workspace: Path = HERE
) -> None:
    """Record, once, what a person decided about the version; the champion stays."""
    recorded = [(event.what, event.version, event.run) for event in history.read(recipe, workspace)]
    if (what, version.version, version.run_id) not in recorded:
        champion = number_of(state.champion)
        history.append(recipe, _event(what, version, who, why, champion, champion), workspace)


def is_recorded(changes: list[Event], champion: Version) -> bool:
    """Return whether the last of the `changes` of champion made this version champion, in this registry."""
    return bool(changes) and (changes[-1].version, changes[-1].run) == (champion.version, champion.run_id)


def is_applied(recipe: Recipe, judgement: Judgement, workspace: Path = HERE) -> bool:
    """Return whether the judgement's champion and challenger are served, and recorded."""
    champion = judgement.champion
    if champion is None:
        return True
    live = bento.live(recipe)
    settled = live is not None and _settled(judgement.state, live, champion, judgement.challenger)
    return settled and is_recorded(history.champions(recipe, workspace), champion)


@dataclass(frozen=True)
class Status:
    """What is served and why: champion, challenger, Bento (tag) and last verdict.

    `waiting` is the version that waits for approval; `drift` a sentence if what is served differs from the registry.
    """

    champion: Version | None
    challenger: Version | None
    bento: str | None
    verdict: Verdict | None
    waiting: Version | None
    drift: str | None


def status(recipe: Recipe, workspace: Path = HERE) -> Status:
    """Return what is served and why. Raises GateError if verdict.json is damaged."""
    state, live = aliases.read_state(recipe.registered_model), bento.live(recipe)
    judgement = recall(recipe, workspace)
    verdict = read_verdict(recipe, workspace) if paths.verdict_path(recipe, workspace).exists() else None
    return Status(
        state.champion,
        state.challenger,
        live.tag if live else None,
        verdict,
        waiting(recipe, judgement) if judgement else None,
        drift(recipe, state, live),
    )


def drift(recipe: Recipe, state: State, live: Bento | None) -> str | None:
    """Return a sentence on how the live Bento differs from the aliases, None if it holds champion and challenger."""
    remedy = f"`mobilenet-pipeline run --recipe {recipe.name}` puts this right"
    if live is None:
        lacking = f"Version {number_of(state.champion)} of {state.name} is champion, but no Bento serves it; {remedy}."
        return lacking if state.champion else None
    if state.champion and _serves(live, state.champion, state.challenger):
        return None
    for role, number in state.aliases.items():
        if live.versions[role] != number:
            return (
                f"Bento {live.tag} serves {_called(live.versions[role])} as {role}, but in the registry "
                f"{_called(number)} of {state.name} is {role}; {remedy}."
            )
    return f"Bento {live.tag} was built of other artefacts or an earlier version of the service's code; {remedy}."


def _check_champion(state: State, judgement: Judgement) -> None:
    champion, expected = number_of(state.champion), [number_of(judgement.against), number_of(judgement.champion)]
    if champion not in expected:
        compared = f"against version {expected[0]}" if expected[0] else "without a champion"
        raise ChampionChanged(
            f"version {champion} of {state.name} has become champion in the meantime, the verdict was reached "
            f"{compared}; run the flow again"
        )


def _settled(state: State, live: Bento, champion: Version, challenger: Version | None) -> bool:
    """Return whether the aliases are on these versions, and the live Bento holds them."""
    expected = {"champion": champion.version, "challenger": number_of(challenger)}
    return state.aliases == expected and _serves(live, champion, challenger)


def _serves(live: Bento, champion: Version, challenger: Version | None) -> bool:
    """Return whether the Bento has today's code and these artefacts; numbers alone start again in another registry."""
    roles = {"champion": champion, "challenger": challenger}
    versions = {role: number_of(version) for role, version in roles.items()}
    hashes = {role: version.sha256 if version else None for role, version in roles.items()}
    return live.is_current and (live.versions, live.hashes) == (versions, hashes)


def _event(
    what: history.What,
    version: Version,
    who: str,
    why: str,
    before: str | None,
    after: str | None,
    verdict: str | None = None,
) -> Event:
    return Event(what, version.version, who, why, before, after, version.run_id, version.accuracy, verdict=verdict)


def _called(version: str | None) -> str:
    return f"version {version}" if version else "no version"
