"""Verdict to Bento, aliases and history. Every step can be repeated, so the next run completes one that was killed."""

import hashlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Aliases, Verdict
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.artefact import ArtefactError
from mobilenet_pipeline.inference.trust import answer_alike
from mobilenet_pipeline.registry import aliases, identity, runs
from mobilenet_pipeline.registry import versions as registry
from mobilenet_pipeline.registry.aliases import ChampionChanged, State
from mobilenet_pipeline.registry.versions import ArtefactsLost, Version, number_of
from mobilenet_pipeline.release import bento, restore
from mobilenet_pipeline.release.bento import Bento
from mobilenet_pipeline.release.evidence import check_champion
from mobilenet_pipeline.release.judging import Judgement, read_verdict, recall
from mobilenet_pipeline.stages import runner, team
from mobilenet_pipeline.workspace import history, ledger, paths, records
from mobilenet_pipeline.workspace.history import Event
from mobilenet_pipeline.workspace.paths import HERE

_log = logging.getLogger(__name__)


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


def champion_sentence(recipe: Recipe, judgement: Judgement) -> str:
    """Return a sentence on the champion after the judgement was applied."""
    champion = judgement.state.champion if waiting(recipe, judgement) else judgement.champion
    if champion is None:
        return f"{recipe.registered_model} has no champion."
    return f"Version {champion.version} of {recipe.registered_model} ({champion.candidate}) is champion."


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
    state = read_state(recipe, workspace)
    _check_champion(state, judgement)
    if champion.approval == "approved":
        record_opinion(recipe, state, "approved", champion, "", "someone in the registry", workspace)
    tag = install(recipe, state, champion, judgement.challenger, workspace)
    if judgement.verdict.promote:
        digest = hashlib.sha256(judgement.verdict.to_json().encode()).hexdigest()
        settle(recipe, state, "promoted", champion, judgement.verdict.reason, "the gate", workspace, digest)
    else:
        _adopt(recipe, state, champion, workspace)
    return tag


def _adopt(recipe: Recipe, state: State, champion: Version, workspace: Path) -> None:
    """Record a champion whose alias was moved by other means, and let the registry say so."""
    if is_recorded(history.champions(recipe, workspace), champion):
        return
    registry.set_tag(champion, "withdrawn", "")  # whoever moves the alias to a withdrawn version wants it back
    registry.set_tag(champion, "verdict", "adopted")
    registry.announce(champion, "Champion: its alias was moved in the registry, not by the gate")
    settle(recipe, state, "found", champion, "the alias was moved by other means", "the pipeline", workspace)


def read_state(recipe: Recipe, workspace: Path = HERE) -> State:
    """Return the registered model now; what is withdrawn on record counts as withdrawn.

    Raises OtherRegistry if MLflow's store is not the recipe's.
    """
    identity.check(recipe, workspace)
    return aliases.read_state(recipe.registered_model, history.withdrawn(recipe, workspace))


def install(recipe: Recipe, state: State, champion: Version, challenger: Version | None, workspace: Path = HERE) -> str:
    """Serve these versions: build a Bento and try it, then move the aliases, the champion's last, and go live.

    Returns the Bento's tag. Nothing is built if they are served already. Raises what `build` raises, and
    ChampionChanged if the alias was moved meanwhile; the service keeps its models then.
    """
    live = bento.live(recipe)
    if live and _settled(state, live, champion, challenger):
        return live.tag
    tag = build(recipe, state, champion, challenger, workspace)
    try:
        # The check took seconds, in which another workspace may have promoted, or a person moved the alias.
        aliases.move_aliases(state, champion, challenger)
    except BaseException:  # an interrupt too
        discard(recipe, tag)
        raise
    bento.put_live(tag)
    return tag


def build(recipe: Recipe, state: State, champion: Version, challenger: Version | None, workspace: Path = HERE) -> str:
    """Build a Bento of these versions and try it; return its tag. It is not live yet.

    A challenger whose artefact is lost is left out. Raises ArtefactsLost if the champion's is lost, and PackagingError
    if the Bento does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        best = restore.fetch(recipe, champion, Path(scratch) / champion.version, workspace)
        try:
            second = (
                restore.fetch(recipe, challenger, Path(scratch) / challenger.version, workspace) if challenger else None
            )
        except (ArtefactsLost, ArtefactError) as lost:
            _log.warning("%s\nThe Bento has no challenger.", lost)
            second = None
        tag = bento.package(recipe, best, second)
    try:
        bento.check(tag, recipe.gate.milliseconds)
    except BaseException:  # an interrupt too
        discard(recipe, tag)
        raise
    return tag


def discard(recipe: Recipe, tag: str) -> None:
    """Delete a Bento that does not go live, unless it is live already."""
    live = bento.live(recipe)
    if live is None or live.tag != tag:
        bento.discard(tag)


def keep_serving(recipe: Recipe, state: State, workspace: Path = HERE) -> None:
    """Build the present champion's Bento again if it is lost or outdated, while another version waits for approval."""
    # A champion whose training decoded images differently stays in the Bento that it has.
    if state.champion and state.champion.decodes_like(preprocess.fingerprint()):
        install(recipe, state, state.champion, state.challenger, workspace)


def check_ready(recipe: Recipe, workspace: Path = HERE) -> None:
    """Check at the start of a run what it needs at its end: build tools, registry, records, a comparable champion.

    Raises ValueError or OSError with what is missing or damaged, and the remedy.
    """
    bento.check_build_tools()
    runs.check_store(recipe)
    check_history(recipe, workspace)
    ledger.count_reads(recipe.data.digest, workspace)
    ledger.last_comparison(recipe.data.digest, workspace)
    check_champion(recipe)


def reconcile(recipe: Recipe, workspace: Path = HERE) -> list[str]:
    """Make record and registry agree before a verdict; return a sentence for everything that was lost.

    Withdrawals that somebody made in the registry are recorded, and artefacts that the registry lost are restored.
    """
    state, recorded = read_state(recipe, workspace), history.withdrawn(recipe, workspace)
    for version in reversed(state.versions):
        if version.withdrawn and version.sha256 not in recorded:
            record_opinion(recipe, state, "rejected", version, version.withdrawn, "someone in the registry", workspace)
    return restore.put_back(recipe, (state.champion, state.challenger), workspace)


def check_history(recipe: Recipe, workspace: Path = HERE) -> None:
    """Raise HistoryError if the history is damaged, OSError if it cannot grow: what cannot be recorded is not done."""
    history.read(recipe, workspace)
    records.check_room(paths.history_path(recipe, workspace))


def settle(
    recipe: Recipe,
    state: State,
    what: history.What,
    champion: Version,
    why: str,
    who: str,
    workspace: Path = HERE,
    verdict: str | None = None,
    withdraws: Version | None = None,
) -> None:
    """Record the change of champion, unless it is recorded: whoever follows a killed run records it.

    `withdraws` is the champion that a person took out.
    """
    changes = history.champions(recipe, workspace)
    if is_recorded(changes, champion):
        return
    # The history outlives a registry, in which version numbers start again.
    last = changes[-1] if changes else None
    known = last and any((version.version, version.run_id) == (last.version, last.run) for version in state.versions)
    before = last.after if last and known else None
    event = _event(what, champion, who, why, before, champion.version, verdict, withdraws)
    history.append(recipe, event, workspace)


def record_opinion(
    recipe: Recipe, state: State, what: history.What, version: Version, why: str, who: str, workspace: Path = HERE
) -> None:
    """Record, once, what a person decided about the version; the champion stays.

    A rejection is recorded again if a later decision has lifted it.
    """
    recorded = [(event.what, event.version, event.run) for event in history.read(recipe, workspace)]
    lifted = what == "rejected" and version.sha256 not in history.withdrawn(recipe, workspace)
    if lifted or (what, version.version, version.run_id) not in recorded:
        champion = number_of(state.champion)
        withdraws = version if what == "rejected" else None
        history.append(recipe, _event(what, version, who, why, champion, champion, withdraws=withdraws), workspace)


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


def share(recipe: Recipe, judgement: Judgement, workspace: Path = HERE) -> list[str]:
    """Give the team the outputs of a candidate that is champion, if the settings name where; return what was done."""
    champion = judgement.state.champion if waiting(recipe, judgement) else judgement.champion
    if champion is None or champion.sha256 not in judgement.verdict.artefacts.values():
        return []  # a champion of an earlier training; its outputs are not in this workspace any more
    addresses = [runner.address(name) for name in runner.stage_names(recipe)]
    return team.share(recipe, addresses, champion.version, champion.run_id, workspace)


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
    state, live = read_state(recipe, workspace), bento.live(recipe)
    judgement = recall(recipe, workspace, state)
    verdict = read_verdict(recipe, workspace) if paths.verdict_path(recipe, workspace).exists() else None
    return Status(
        state.champion,
        state.challenger,
        live.tag if live else None,
        verdict,
        waiting(recipe, judgement) if judgement else None,
        drift(recipe, state, live) or restore.lost(state),
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
    """Return whether the Bento has today's code, these artefacts and their limits.

    Numbers alone start again in another registry.
    """
    roles = {"champion": champion, "challenger": challenger}
    versions = {role: number_of(version) for role, version in roles.items()}
    hashes = {role: version.sha256 if version else None for role, version in roles.items()}
    known = {role: version.answering for role, version in roles.items() if version and version.answering}
    alike = all(answer_alike(live.answering.get(role) or {}, each) for role, each in known.items())
    return live.is_current and alike and (live.versions, live.hashes) == (versions, hashes)


def _event(
    what: history.What,
    version: Version,
    who: str,
    why: str,
    before: str | None,
    after: str | None,
    verdict: str | None = None,
    withdraws: Version | None = None,
) -> Event:
    return Event(
        what,
        version.version,
        who,
        why,
        before,
        after,
        version.run_id,
        version.accuracy,
        verdict=verdict,
        artefact=version.sha256,
        withdraws=withdraws.sha256 if withdraws else None,
    )


def _called(version: str | None) -> str:
    return f"version {version}" if version else "no version"
