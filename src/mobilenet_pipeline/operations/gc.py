"""Remove what no longer counts from MLflow, BentoML and DVC; champion, challenger and everything in history stay."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mobilenet_pipeline.config import Recipe, load_recipe, recipe_names
from mobilenet_pipeline.gate.verdict import GateError
from mobilenet_pipeline.inference.artefact import sha256_of
from mobilenet_pipeline.operations import cache
from mobilenet_pipeline.registry import identity, removal, versions
from mobilenet_pipeline.registry.removal import Stock, StoredRun, StoredVersion
from mobilenet_pipeline.release import bento, judging, offline
from mobilenet_pipeline.workspace import history, locks, paths
from mobilenet_pipeline.workspace.files import WorkspaceError, read_json, write_text
from mobilenet_pipeline.workspace.paths import HERE


@dataclass(frozen=True)
class Leftover:
    """Something that may go: its store, a description, its bytes (None if unknown), and what removes it."""

    store: str
    name: str
    bytes: int | None
    remove: Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """What may go, in the order of removal, and why the rest stays: {version: reasons} and other sentences."""

    leftovers: list[Leftover]
    kept: dict[str, list[str]]
    notes: list[str]


@contextmanager
def alone(recipe: Recipe, workspace: Path = HERE) -> Iterator[None]:
    """Keep runs and decisions out during the `with` body. Raises BlockingIOError if a run is in progress.

    DVC's cache belongs to all recipes, so no recipe of this workspace may run.
    """
    with ExitStack() as stack:
        for name in recipe_names():
            other = load_recipe(name)
            if name == recipe.name or paths.report_folder(other, workspace).exists():
                busy = stack.enter_context(locks.only_run(other, workspace))
                if busy:
                    raise BlockingIOError(f"nothing is removed: {busy}")
        stack.enter_context(locks.deciding(recipe, workspace))
        yield


def plan(recipe: Recipe, keep: int, workspace: Path = HERE) -> Plan:
    """Return what may go if the `keep` newest versions of the recipe stay.

    All versions with an alias, in the last verdict, or in the history stay, too. Raises HistoryError if the history is
    damaged, and ValueError for a negative `keep` or a decision that MLflow has not got yet.
    """
    if keep < 0:
        raise ValueError(f"--keep {keep} is no number of versions; give 0 or more")
    if offline.pending(recipe, workspace):
        raise ValueError(
            f"{paths.journal_path(recipe, workspace)} has decisions that MLflow has not got yet; `mobilenet-pipeline "
            f"run --recipe {recipe.name}` applies them first"
        )
    identity.check(recipe, workspace)
    stock = removal.stock(recipe)
    _check_registry(recipe, stock, workspace)
    kept = reasons_to_keep(stock, keep, _mentioned(recipe, stock, workspace))
    surplus = [version for version in stock.versions if version.number not in kept]
    runs = surplus_runs(stock, kept, keep, _trained_here(recipe, workspace))
    leftovers = [*_from_registry(recipe, surplus, runs), *_from_bentoml(recipe, stock, kept)]
    notes = (
        []
        if removal.frees_artefacts()
        else [
            "MLflow is a server, which hides its versions and runs; `mlflow gc --older-than 1d` there frees artefacts."
        ]
    )
    objects, note = _from_dvc(recipe, stock, kept, workspace)
    return Plan([*leftovers, *objects], kept, notes + ([note] if note else []))


def describe(leftovers: Sequence[Leftover], plan: Plan) -> list[str]:
    """Return lines for people: what may go with its size, the sum of each store, and why the rest stays."""
    lines = [f"{each.store:<9}{each.name:<60}{_size(each.bytes):>10}" for each in leftovers]
    for store in dict.fromkeys(each.store for each in leftovers):
        sizes = [each.bytes for each in leftovers if each.store == store]
        known = sum(size for size in sizes if size is not None)
        lines.append(f"{store:<9}{f'{len(sizes)} in total':<60}{_size(known if any(sizes) else None):>10}")
    lines += [f"version {number} stays: {', '.join(reasons)}" for number, reasons in plan.kept.items()]
    return [*(lines if leftovers else [*lines, "there is nothing to remove"]), *plan.notes]


def _size(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count / 1e6:,.1f} MB" if count >= 50_000 else f"{count / 1e3:,.1f} kB" if count else "–"


def _check_registry(recipe: Recipe, stock: Stock, workspace: Path) -> None:
    """Raise ValueError if the registry lacks the recorded champion: its other copies must not go."""
    changes = history.champions(recipe, workspace)
    if changes and changes[-1].run not in {version.run_id for version in stock.versions}:
        raise ValueError(
            f"nothing is removed: the history of {recipe.name} ends with version {changes[-1].version} as champion, "
            f"which the registry lacks; `mobilenet-pipeline status --recipe {recipe.name}` says why"
        )


def reasons_to_keep(stock: Stock, keep: int, mentioned: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return {version: reasons} of all versions that stay; `mentioned` has the reasons outside of the registry."""
    newest = {version.number for version in stock.versions[:keep]}
    reasons = {
        version.number: [
            *version.aliases,
            *mentioned.get(version.number, []),
            *([f"one of the {keep} newest"] if version.number in newest else []),
        ]
        for version in stock.versions
    }
    for version in stock.versions:
        if version.passed and not reasons[version.number]:  # another workspace may wait for its approval
            reasons[version.number].append("passed the gate")
    return {number: why for number, why in reasons.items() if why}


def surplus_runs(stock: Stock, kept: Mapping[str, object], keep: int, trained_here: set[str]) -> list[StoredRun]:
    """Return the runs that may go.

    Runs of kept versions and of the workspace's models stay, with their parents; so do active runs, and the `keep`
    newest runs without a parent, all with their children.
    """
    flows = [run.run_id for run in stock.runs if run.parent is None and not run.removing][:keep]
    flows += [run.run_id for run in stock.runs if run.active]
    stays = {version.run_id for version in stock.versions if version.number in kept} | trained_here | {*flows}
    stays |= {run.run_id for run in stock.runs if run.parent in flows}
    stays |= {run.parent for run in stock.runs if run.run_id in stays and run.parent}
    return [run for run in stock.runs if run.removing or run.run_id not in stays]


def _mentioned(recipe: Recipe, stock: Stock, workspace: Path) -> dict[str, list[str]]:
    """Return {version: reasons} of the versions in the history and in the last verdict."""
    events = history.read(recipe, workspace)
    runs = {event.run for event in events}
    artefacts = {digest for event in events for digest in (event.artefact, event.withdraws) if digest}
    numbers = {number for event in events for number in (event.before, event.after) if number}
    judged: set[str | None] = set()
    if paths.verdict_path(recipe, workspace).exists():
        try:
            verdict = judging.read_verdict(recipe, workspace)
            judged = {*verdict.versions.values(), verdict.leaves.champion, verdict.leaves.challenger}
        except GateError:  # the next run judges again
            judged = set()
    reasons: dict[str, list[str]] = {}
    for version in stock.versions:
        if version.run_id in runs or version.sha256 in artefacts or version.number in numbers:
            reasons.setdefault(version.number, []).append("in the history")
        if version.number in judged:
            reasons.setdefault(version.number, []).append("in the last verdict")
    return reasons


def _trained_here(recipe: Recipe, workspace: Path) -> set[str]:
    """Return the runs of the models in the workspace, which the next run may register."""
    found = set()
    for candidate in recipe.candidates:
        try:
            document = read_json(paths.model_folder(recipe, candidate, workspace) / "training.json")
        except WorkspaceError:
            continue
        found.add(str(document.get("run_id")))
    return found


def _from_registry(recipe: Recipe, surplus: list[StoredVersion], runs: list[StoredRun]) -> Iterator[Leftover]:
    for version in surplus:
        yield Leftover("MLflow", f"version {version.number}", 0, partial(removal.remove_version, recipe, version))
    for run in runs:
        models = f" and {len(run.models)} logged model" if run.models else ""
        yield Leftover("MLflow", f"run {run.run_id[:12]}{models}", removal.size(run), partial(removal.remove_run, run))


def _from_bentoml(recipe: Recipe, stock: Stock, kept: Mapping[str, object]) -> Iterator[Leftover]:
    """Yield the Bentos without a kept champion, and the models that no kept Bento or version needs."""
    name = recipe.registered_model
    hashes = {version.sha256 for version in stock.versions if version.number in kept}
    models = {folder.name: _digest(folder) for folder in _items("models", name)}
    needed, running = {model for model, digest in models.items() if digest in hashes}, _running(name)
    pointer = bento.home() / "live" / name
    live = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    for folder in _items("bentos", name):
        roles = _roles(folder)
        tag = f"{name}:{folder.name}"
        if tag == live or tag in running or models.get(roles.get("champion", "")) in hashes:
            needed |= {*roles.values()}
        else:
            yield Leftover("BentoML", f"Bento {tag}", _bytes(folder), partial(_remove_item, folder))
    for folder in _items("models", name):
        if folder.name not in needed:
            yield Leftover("BentoML", f"model {name}:{folder.name}", _bytes(folder), partial(_remove_item, folder))


def _items(kind: str, name: str) -> list[Path]:
    folder = bento.home() / kind / name
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _digest(model: Path) -> str | None:
    try:
        return str(read_json(model / bento.METADATA).get("sha256"))
    except WorkspaceError:
        return None


def _roles(folder: Path) -> dict[str, str]:
    """Return {role: folder name of its model}; nothing for the remains of a killed build."""
    try:
        roles = json.loads((folder / "src" / bento.ROLES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {role: str(tag).partition(":")[2] for role, tag in roles.items() if tag}


def _running(name: str) -> set[str]:
    """Return the Bentos of this model that a process of this machine serves: its workers start again from them."""
    import psutil

    words = {word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()}
    return {word for word in words if word.startswith(f"{name}:")}


def _remove_item(folder: Path) -> None:
    """Delete a Bento or a model, and correct BentoML's `latest`, which its own commands read."""
    shutil.rmtree(folder)
    latest = folder.parent / "latest"
    if latest.is_file() and latest.read_text(encoding="utf-8").strip() == folder.name:
        left = [path for path in folder.parent.iterdir() if path.is_dir()]
        if left:
            write_text(latest, max(left, key=lambda path: path.stat().st_mtime).name)
        else:
            latest.unlink()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _from_dvc(
    recipe: Recipe, stock: Stock, kept: Mapping[str, object], workspace: Path
) -> tuple[list[Leftover], str | None]:
    """Return the objects of DVC's cache that may go as one leftover, or a sentence on why the cache is left alone."""
    if not (workspace / ".dvc").is_dir():
        return [], None
    objects = cache.folder(workspace).resolve()
    if not objects.is_relative_to(paths.home(workspace).resolve()):
        return (
            [],
            f"DVC's cache {objects} is outside of this workspace, where other projects may need it: it stays.",
        )
    keep = cache.locked(workspace)
    for other in map(load_recipe, recipe_names()):
        there = stock if other.name == recipe.name else removal.stock(other)
        staying = {version.run_id for version in there.versions if there is not stock or version.number in kept}
        keep |= {run.data_version for run in there.runs if run.data_version and run.run_id in staying}
    files = {path: path.stat().st_size for path in cache.collect(keep, True, workspace) if path.is_file()}
    # The copies from which an artefact that MLflow has lost is restored; DVC names them by another hash.
    needed = _artefacts(recipe, stock, kept, workspace)
    copies = {path for path in files if sha256_of(path) in needed}
    keep |= {path.parent.name + path.name for path in copies}
    rest = {path: size for path, size in files.items() if path not in copies}
    if not rest:
        return [], None
    name = f"{len(rest)} objects of the cache; the remote keeps its own"
    return [Leftover("DVC", name, sum(rest.values()), partial(cache.collect, keep, False, workspace))], None


def _artefacts(recipe: Recipe, stock: Stock, kept: Mapping[str, object], workspace: Path) -> set[str]:
    """Return the SHA-256 of the artefacts of kept and recorded versions, and of the predictions of kept ones."""
    found = {version.sha256 for version in stock.versions if version.number in kept}
    found |= {event.artefact for event in history.read(recipe, workspace) if event.artefact}
    for version in versions.versions(recipe.registered_model):
        document = versions.read_artefact(version, f"{versions.SERVED}/{versions.METADATA}")
        if version.version in kept and document:
            found.add(str(json.loads(document).get("predictions_sha256")))
    return found
