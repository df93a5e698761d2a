"""The model card of a version, in Markdown: what a reviewer needs to decide. Pure."""

from collections.abc import Mapping
from typing import Any

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.gate.verdict import Verdict
from mobilenet_pipeline.metrics.scores import ENDS, SHOWN, shown_classes, wilson_interval
from mobilenet_pipeline.workspace.candidate import CandidateFiles

SEEN = {"crop": "the central square", "pad": "all, with black borders,"}
"""What a model sees of a photo."""


def write_card(
    recipe: Recipe, files: CandidateFiles, version: str, verdict: Verdict, origin: Mapping[str, str | None]
) -> str:
    """Return the card of the version that was registered from `files`.

    `origin` says where the version's past can be found: run, commit, data version and so on.
    """
    passed = verdict.promotes(files.name)
    decision = "Promoted" if passed else "Not promoted"
    if passed and verdict.waits_for_approval:
        decision = "Passed the gate"  # true before and after a person has approved it
    parts = [
        f"# {decision}: {files.name}, version {version} of {recipe.registered_model}",
        verdict.reason,
        "## Verdict\n\n" + _checks(files.name, verdict),
        "## Test figures\n\n" + _figures(files.metrics, max(1, verdict.test_reads)),
        "## Limits of use\n\n" + _limits(recipe, files),
        "## Where it comes from\n\n" + _list({key: f"`{value}`" for key, value in origin.items() if value}),
        "## Data\n\n" + _data(recipe, files),
        "## Accuracy per class\n\n" + _classes(files.metrics),
        # Last: if the registry cuts the card, this part is also in the run's parameters.
        "## Model\n\n" + _model(recipe, files),
    ]
    return "\n\n".join(parts) + "\n"


def _checks(candidate: str, verdict: Verdict) -> str:
    lines = [
        f"- {'✓' if check.passed else '✗'} **{check.name}**: {check.sentence}"
        for check in verdict.checks
        if check.candidate == candidate
    ]
    use = f"Models had been scored {verdict.test_reads} times on these test images in this workspace."
    if verdict.budget_left is not None:
        use += (
            f" After this verdict, {verdict.budget_left:.0%} of the error budget of "
            f"{verdict.limits.significance:g} is left: the chance of ever promoting a model that is no better."
        )
    return "\n".join([*lines, "", " ".join(filter(None, (use, verdict.warning)))])


def _figures(metrics: Mapping[str, Any], scored: int) -> str:
    test, corrupted, artefact = metrics["test"], metrics["corruptions"], metrics["artefact"]
    right = round(test["accuracy"] * test["rows"])
    low, high = wilson_interval(right, test["rows"])
    lowest, highest = wilson_interval(right, test["rows"], 0.05 / scored)
    worst = min(corrupted, key=lambda name: corrupted[name])
    mean = sum(corrupted.values()) / len(corrupted)
    sets, unfamiliar = metrics.get("prediction_sets"), metrics.get("unfamiliar")
    return _list(
        {
            "accuracy": f"{test['accuracy']:.2%} of {test['rows']:,} images (95 % interval: {low:.2%} to {high:.2%})",
            "accuracy, corrected for choice": f"{lowest:.2%} to {highest:.2%} (95 % interval for the best of {scored} "
            "models scored on these images)",
            **_without_twins(metrics),
            "loss": f"{test['loss']:.4f}",
            "macro accuracy": f"{test['macro_accuracy']:.2%}, the mean over the classes",
            "top-3 accuracy": f"{test['top3_accuracy']:.2%}",
            "expected calibration error": f"{test['calibration_error']:.2%}",
            **({"prediction sets": _sets(sets, test["rows"])} if sets else {}),
            **({"flagged as unfamiliar": _unfamiliar(unfamiliar)} if unfamiliar else {}),
            "accuracy on corrupted images": f"{mean:.2%}; lowest on {worst}: {corrupted[worst]:.2%}",
            "latency (single image)": f"median {artefact['p50_ms']:.2f} ms, p99 {artefact['p99_ms']:.2f} ms",
            "size": f"{artefact['bytes'] / 1e6:.2f} MB",
        }
    )


def _without_twins(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the line about near duplicates; none for an evaluation that did not look for them."""
    twins = metrics.get("near_duplicates")
    if not twins or twins["accuracy_without"] is None:
        return {}
    rest, count = metrics["test"]["rows"] - twins["rows"], twins["rows"]
    sentence = f"{twins['accuracy_without']:.2%} of the {rest:,} test images without a near twin in the training images"
    more = f"; {twins['accuracy_with']:.2%} of the {count:,} with one" if count else ""
    return {"accuracy without near duplicates": sentence + more}


def _sets(sets: Mapping[str, Any], rows: int) -> str:
    low, high = wilson_interval(round(sets["coverage"] * rows), rows)
    return (
        f"they contain the class of {sets['coverage']:.2%} of the images (95 % interval: {low:.2%} to {high:.2%}; "
        f"{sets['stated_coverage'] * 100:g} % stated), with {sets['mean_size']:.2f} classes on average"
    )


def _unfamiliar(flagged: Mapping[str, Any]) -> str:
    others = ", ".join(f"{share:.0%} of {kind}" for kind, share in flagged["other_images"].items())
    if flagged["threshold"] is None:
        return "nothing: there are too few validation images for a threshold"
    corrupted = sum(flagged["corruptions"].values()) / len(flagged["corruptions"])
    return (
        f"{flagged['test']:.1%} of the test images ({flagged['stated_share'] * 100:g} % stated), {corrupted:.1%} of "
        f"the corrupted ones; {others}"
    )


def _classes(metrics: Mapping[str, Any]) -> str:
    lines, names, matrix = [], metrics["class_names"], metrics["confusion_matrix"]
    shown = shown_classes([matrix])
    for index in shown:
        name, row = names[index], matrix[index]
        total, correct = sum(row), row[index]
        if not total:
            lines.append(f"- {name}: no test images")
            continue
        low, high = wilson_interval(correct, total)
        wrong, other = max((count, other) for other, count in enumerate(row) if other != index)
        confused = f"; most often confused with {names[other]} ({wrong})" if wrong else ""
        lines.append(f"- {name}: **{correct / total:.1%}** of {total:,} ({low:.1%} to {high:.1%}){confused}")
    selection = (
        f"The {ENDS} classes with the lowest and the {ENDS} with the highest accuracy of {len(names):,}; per_class.csv "
        "of the run has all. "
        if len(names) > SHOWN
        else ""
    )
    return f"{selection}Ranges are 95 % intervals.\n\n" + "\n".join(lines)


def _model(recipe: Recipe, files: CandidateFiles) -> str:
    settings, training = recipe.candidate(files.name), files.training
    machine, replicas = training.get("machine") or {}, training.get("replicas", 1)
    planned = training.get("planned_replicas", replicas)
    fewer = f" instead of {planned}, with their global batch of {training.get('global_batch')}"
    share = f", {replicas} replica{'s' if replicas > 1 else ''}{fewer if planned > replicas else ''}"
    return _list(
        {
            "recipe": f"`{recipe.name}`",
            "architecture": f"{settings.title}, {settings.input_size} px",
            "starting weights": str(training.get("weights")),
            "parameters": f"{training.get('parameters', 0):,}",
            "multiply-adds": f"{training.get('multiply_adds', 0):,} per image",
            "trained": f"{training.get('trained_at', 'unknown')}, {training.get('epochs', 0):g} epochs, "
            f"{training.get('cpu_minutes', 0):.1f} CPU-minutes, seed {settings.seed}",
            "processor": machine.get("cpu", "unknown") + (share if planned > 1 else ""),
            "temperature": f"{training.get('temperature', 1):g}, fitted on validation",
            "serving precision": recipe.artefacts[files.name].precision,
            "validation accuracy": f"{files.metrics['validation']['accuracy']:.2%}",
        }
    )


def _data(recipe: Recipe, files: CandidateFiles) -> str:
    rows = files.dataset["rows"]
    # Groups stay together, so that the share is another one than the recipe's.
    share = files.metrics["validation"]["rows"] / rows["train"]
    return _list(
        {
            "source": recipe.data.path or recipe.data.source,
            "images": f"{rows['train']:,} for training, {share:.0%} of them held out for validation; "
            f"{rows['test']:,} for testing, {files.metrics['overlap'] or 'none'} of them in the training images",
            "digest": f"`{files.data_digest}`",
        }
    )


def _limits(recipe: Recipe, files: CandidateFiles) -> str:
    names, size = files.metrics["class_names"], recipe.data.image_size
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (
        f"- The model has {len(names):,} classes and gives every image one of them: {', '.join(names[:SHOWN])}{more}. "
        "Its answer for an image of anything else means nothing. The flag for unfamiliar images notices some of them, "
        "not all.\n"
        f"- It sees {SEEN[recipe.data.resize]} of a photo at {size} by {size} pixels.\n"
        "- `model.keras` and the artefact take uint8 pixels, 0 to 255. An image scaled to 0 to 1 is black to them: the "
        "answer is wrong, without an error.\n"
        f"- All figures are for images like those of {recipe.data.path or recipe.data.source}. Expect less on other "
        "images, as the figure for corrupted images shows.\n"
        "- Its probabilities and its prediction sets are calibrated on validation images, not on other kinds of "
        "images. The coverage of the sets is an average over images, not a promise for each class."
    )


def _list(rows: Mapping[str, str]) -> str:
    # Not a table: MLflow shows tables without space between the columns.
    return "\n".join(f"- **{key}**: {value}" for key, value in rows.items())
