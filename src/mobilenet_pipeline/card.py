"""A candidate's files and the verdict on it to its model card: what a reviewer needs, in Markdown. Pure."""

from collections.abc import Mapping
from typing import Any

from mobilenet_pipeline import metrics
from mobilenet_pipeline.config import Recipe


def card(
    recipe: Recipe,
    candidate: str,
    version: str,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    dataset: Mapping[str, Any],
    verdict: Mapping[str, Any],
    origin: Mapping[str, str | None],
) -> str:
    """The card of one version.

    `training`, `evaluation`, `dataset` and `verdict` are the documents that the stages and the gate wrote; `origin`
    says under which names the version's past can be found elsewhere.
    """
    passed = verdict["promote"] and verdict["winner"] == candidate
    decision = "Promoted" if passed else "Not promoted"
    if passed and verdict["waits_for_approval"]:
        decision = "Passed the gate"  # true before and after a person has approved it
    parts = [
        f"# {decision}: {candidate}, version {version} of {recipe.registered_model}",
        verdict["reason"],
        "## Verdict\n\n" + _checks(candidate, verdict),
        "## Test figures\n\n" + _figures(evaluation),
        "## Limits of use\n\n" + _limits(recipe, evaluation),
        "## Where it comes from\n\n" + _list({key: f"`{value}`" for key, value in origin.items() if value}),
        "## Data\n\n" + _data(recipe, dataset, evaluation),
        "## Accuracy per class\n\n" + _classes(evaluation),
        # Last: where the registry has no room for all of it, this is what can best be looked up in the run.
        "## Model\n\n" + _model(recipe, candidate, training, evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def _checks(candidate: str, verdict: Mapping[str, Any]) -> str:
    lines = [
        f"- {'✓' if check['passed'] else '✗'} **{check['name']}**: {check['sentence']}"
        for check in verdict["checks"]
        if check["candidate"] == candidate
    ]
    reads = f"The test images had been read {verdict['test_reads']} times on this machine."
    return "\n".join([*lines, "", verdict["warning"] or reads])


def _figures(evaluation: Mapping[str, Any]) -> str:
    test, corrupted = evaluation["test"], evaluation["corruptions"]
    low, high = _interval(test["accuracy"], test["rows"])
    worst = min(corrupted, key=lambda name: corrupted[name])
    mean = sum(corrupted.values()) / len(corrupted)
    return _list(
        {
            "accuracy": f"{test['accuracy']:.2%} of {test['rows']:,} images (95%: {low:.2%} to {high:.2%})",
            "loss": f"{test['loss']:.4f}",
            "top-3 accuracy": f"{test['top3_accuracy']:.2%}",
            "calibration error": f"{test['calibration_error'] * 100:.2f} points",
            "on corrupted images": f"{mean:.2%}, worst on {worst}: {corrupted[worst]:.2%}",
            "one image": f"{evaluation['artefact']['p50_ms']:.2f} ms, 99 of 100 within "
            f"{evaluation['artefact']['p99_ms']:.2f} ms",
            "size": f"{evaluation['artefact']['bytes'] / 1e6:.2f} MB",
        }
    )


def _classes(evaluation: Mapping[str, Any]) -> str:
    lines, names = [], evaluation["class_names"]
    for index, (name, row) in enumerate(zip(names, evaluation["confusion_matrix"], strict=True)):
        total, right = sum(row), row[index]
        if not total:
            lines.append(f"- {name}: no test images")
            continue
        low, high = metrics.wilson_interval(right, total)
        wrong, other = max((count, other) for other, count in enumerate(row) if other != index)
        taken = f", else mostly {names[other]} ({wrong})" if wrong else ""
        lines.append(f"- {name}: **{right / total:.1%}** of {total:,} ({low:.1%} to {high:.1%}){taken}")
    return "Ranges are 95% intervals.\n\n" + "\n".join(lines)


def _model(recipe: Recipe, candidate: str, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    knobs = recipe.candidate(candidate)
    machine, replicas = training.get("machine") or {}, training.get("replicas", 1)
    return _list(
        {
            "recipe": f"`{recipe.name}`",
            "architecture": f"MobileNet v1, α {knobs.alpha:g}, strides {knobs.strides}, {knobs.input_size} px",
            "started from": str(training.get("weights")),
            "parameters": f"{training.get('parameters', 0):,}",
            "multiply-adds": f"{training.get('multiply_adds', 0):,} an image",
            "trained": f"{training.get('trained_at', 'unknown')}, {training.get('epochs', 0):g} epochs, "
            f"{training.get('cpu_minutes', 0):.1f} CPU-minutes, seed {knobs.seed}",
            "on": machine.get("cpu", "unknown") + (f", {replicas} replicas" if replicas > 1 else ""),
            "temperature": f"{training.get('temperature', 1):g}, fitted on validation",
            "served in": recipe.serving.precision,
            "validation accuracy": f"{evaluation['validation']['accuracy']:.2%}",
        }
    )


def _data(recipe: Recipe, dataset: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    share = recipe.split.validation_share
    return _list(
        {
            "source": str(dataset.get("source")),
            "images": f"{dataset['rows']['train']:,} for training, {share:.0%} of them held out for validation; "
            f"{dataset['rows']['test']:,} for testing, {evaluation['overlap'] or 'none'} of them trained on",
            "digest": f"`{evaluation['data_digest']}`",
        }
    )


def _limits(recipe: Recipe, evaluation: Mapping[str, Any]) -> str:
    names = ", ".join(evaluation["class_names"])
    return (
        f"- It knows {len(evaluation['class_names'])} classes and gives every image to one of them: {names}. What an "
        "image of anything else gets means nothing.\n"
        "- It sees the middle square of a photo at 32 by 32 pixels.\n"
        f"- All figures are of images like those of {recipe.data.source}. On others expect less, as the corrupted "
        "images show.\n"
        "- Its probabilities were calibrated on validation images; on other kinds of images they are not."
    )


def _interval(accuracy: float, rows: int) -> tuple[float, float]:
    return metrics.wilson_interval(round(accuracy * rows), rows)


def _list(rows: Mapping[str, str]) -> str:
    # No table: MLflow shows them without space between the columns.
    return "\n".join(f"- **{key}**: {value}" for key, value in rows.items())
