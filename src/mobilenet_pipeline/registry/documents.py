"""What the registry shows and keeps of a candidate: descriptions, metrics and metadata. Pure."""

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.trust import Thresholds
from mobilenet_pipeline.metrics.scores import SHOWN, wilson_interval
from mobilenet_pipeline.registry.versions import PREDICTIONS, Version
from mobilenet_pipeline.workspace.candidate import CandidateFiles
from mobilenet_pipeline.workspace.files import sha256_of

KEY = 200
"""The longest class name in a metric's key. MLflow's limit for the whole key is 250."""
EVALUATION = ("data_digest", "overlap", "artefact", "corruptions", "prediction_sets", "unfamiliar")
"""The keys of the evaluation's document that a version keeps beside its predictions, for the gate and for people."""


def model_description(recipe: Recipe) -> str:
    return (
        f"MobileNets on {recipe.data.path or recipe.data.source}, from recipe `{recipe.name}`.\n\n"
        "- The service answers with `champion`; /compare adds the answer of `challenger`; `previous` is the previous "
        "champion.\n"
        "- A version's description is its model card. Its tag `verdict` is the gate's verdict.\n"
        f"- `mobilenet-pipeline history --recipe {recipe.name}` lists all changes of champion, with person, time and "
        "reason.\n"
    )


def version_description(recipe: Recipe, files: CandidateFiles) -> str:
    test, training = files.metrics["test"], files.training
    return (
        f"Not judged yet: candidate `{files.name}` of recipe `{recipe.name}`.\n\n"
        f"- initial weights: {training.get('weights')}\n"
        f"- test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f} on {test['rows']:,} images\n"
        f"{_trust(files)}"
        f"- data `{files.data_digest}`\n"
        f"- {training.get('parameters', 0):,} parameters, {training.get('multiply_adds', 0):,} multiply-adds\n"
    )


def _trust(files: CandidateFiles) -> str:
    sets, unfamiliar = files.metrics.get("prediction_sets"), files.metrics.get("unfamiliar")
    lines = ""
    if sets:
        lines += f"- prediction sets: {sets['coverage']:.2%} coverage, {sets['mean_size']:.2f} classes on average\n"
    if unfamiliar:
        lines += f"- flagged as unfamiliar: {unfamiliar['test']:.1%} of the test images\n"
    return lines


def metrics_of(files: CandidateFiles) -> dict[str, float]:
    """Return the artefact's metrics. A name's part before the slash is its section among MLflow's charts."""
    # The validation metrics of the training are a learning curve, these are of the exported artefact.
    metrics = {
        f"{prefix}{key}": files.metrics[split][key]
        for split, prefix in (("test", "test/"), ("validation", "validation/artefact_"))
        for key in ("accuracy", "loss", "macro_accuracy", "top3_accuracy")
        if key in files.metrics[split]
    }
    sets, unfamiliar = files.metrics.get("prediction_sets"), files.metrics.get("unfamiliar")
    if sets:
        metrics |= {"test/coverage": sets["coverage"], "test/mean_set_size": sets["mean_size"]}
    if unfamiliar:
        metrics |= {"test/unfamiliar_share": unfamiliar["test"]}
        metrics |= {f"unfamiliar_share/{kind}": share for kind, share in unfamiliar["other_images"].items()}
    shares = files.metrics["per_class_accuracy"]
    if len(shares) <= SHOWN:  # of more classes, nobody would find a chart; per_class.csv has all
        keys = _keys(shares)
        metrics |= {f"per_class/{keys[name]}": share for name, share in shares.items() if share is not None}
    return metrics | {
        f"train/{key}": files.training[key] for key in ("cpu_minutes", "wall_minutes") if key in files.training
    }


def per_class_table(files: CandidateFiles) -> str:
    """Return the content of per_class.csv: a row per class with its accuracy and 95 % Wilson interval on test."""
    names, matrix = files.metrics["class_names"], files.metrics["confusion_matrix"]
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "test_images", "right", "accuracy", "low", "high", "most_often_taken_for"])
    for index, (name, row) in enumerate(zip(names, matrix, strict=True)):
        total, right = sum(row), row[index]
        low, high = wilson_interval(right, total)
        wrong, other = max(((count, other) for other, count in enumerate(row) if other != index), default=(0, 0))
        shares = [f"{share:.4f}" for share in (right / total, low, high)] if total else ["", "", ""]
        rows.writerow([name, total, right, *shares, names[other] if wrong else ""])
    return text.getvalue()


def facts_of(files: CandidateFiles) -> dict[str, str]:
    """Return what is constant in a training and no setting, for the run's parameters."""
    facts = ("parameters", "multiply_adds", "replicas", "global_batch", "machine", "tensorflow")
    return {key: str(files.training[key]) for key in facts if key in files.training}


def metadata(version: Version, recipe: Recipe, files: CandidateFiles) -> dict[str, Any]:
    return {
        "registered_model": version.name,
        "version": version.version,
        "run_id": version.run_id,
        "recipe": version.recipe,
        "candidate": version.candidate,
        "class_names": list(files.metrics.get("class_names") or recipe.data.class_names),
        "image_size": recipe.data.image_size,
        "data_digest": version.data_digest,
        "sha256": version.sha256,
        "predictions_sha256": sha256_of(files.folder / PREDICTIONS),
        "git_commit": version.git_commit,
        "test": {key: files.metrics["test"][key] for key in ("accuracy", "loss", "top3_accuracy", "rows")},
        "preprocessing": files.training.get("preprocessing"),
        **limits_of(recipe, files.metrics),
        "evaluation": {key: files.metrics[key] for key in EVALUATION if key in files.metrics},
    }


def limits_of(recipe: Recipe, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the metadata that decides a version's answers, as the evaluation `metrics` found it."""
    sets, unfamiliar = (metrics.get(key) or {} for key in ("prediction_sets", "unfamiliar"))
    limits = Thresholds(sets.get("stated_coverage"), sets.get("threshold"), unfamiliar.get("threshold"))
    return {"thresholds": limits.to_json(), "resize": recipe.data.resize}


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Return a key for each class name that MLflow takes: no two are equal, and none is longer than `KEY`."""
    keys: dict[str, str] = {}
    for name in names:
        plain = _plain(name)[:KEY]
        taken = sum(key.partition(":")[0] == plain for key in keys.values())  # no plain name has a colon
        keys[name] = f"{plain}:{taken + 1}" if taken else plain
    return keys


def _plain(name: str) -> str:
    """Return a class name in the characters that MLflow allows in a part of a metric's name."""
    plain = "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)
    return plain if plain.strip(".") else "_" * max(len(plain), 1)  # MLflow takes names for paths
