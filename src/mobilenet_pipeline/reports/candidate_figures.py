"""The figures of one candidate in the registry, as {file name: PNG bytes}, alone and compared with the champion."""

from collections.abc import Mapping, Sequence

import numpy as np

from mobilenet_pipeline.evaluation.predictions import Predictions
from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.reports import figures, verdict_figures
from mobilenet_pipeline.workspace.candidate import CandidateFiles


def draw_candidate(
    files: CandidateFiles, arrays: Mapping[str, np.ndarray], images: np.ndarray | None, class_names: Sequence[str]
) -> dict[str, bytes]:
    """Draw the figures of one candidate: confusion matrix, mistakes and others.

    `arrays` are those of predictions.npz; `images` (n, h, w, 3) is the whole dataset, memory-mapped, or None.
    """
    matrix = {files.name: files.metrics["confusion_matrix"]}
    probabilities, labels = arrays["probabilities"], arrays["labels"]
    drawn = {
        "confusion_matrix.png": figures.confusion_matrices(matrix, class_names),
        "accuracy_per_class.png": figures.accuracy_per_class(matrix, class_names),
        "reliability.png": verdict_figures.reliability({files.name: (probabilities, labels)}),
        "corruptions.png": verdict_figures.corruptions({files.name: files.metrics["corruptions"]}),
    }
    if images is not None:
        drawn["worst_mistakes.png"] = draw_mistakes(images, arrays, class_names)
    return drawn


def draw_mistakes(images: np.ndarray, arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> bytes:
    """Draw the most confident wrong answers.

    Only their images are read from the memory-mapped `images`.
    """
    labels, probabilities = arrays["labels"], arrays["probabilities"]
    worst = figures.most_confident_mistakes(labels, probabilities)
    return figures.worst_mistakes(images[arrays["rows"][worst]], labels[worst], probabilities[worst], class_names)


def draw_beside_champion(
    candidate: str,
    predictions: Predictions,
    champion: Predictions,
    class_names: Sequence[str],
    champions: Sequence[tuple[str, str, float]],
) -> dict[str, bytes]:
    """Draw both confusion matrices, their difference, and all champions' accuracies.

    `champions` are (version, date, accuracy), the oldest first.
    """
    title = f"champion, version {champion.version}"
    before, after = (
        scores.evaluate(model.probabilities, model.labels, class_names)["confusion_matrix"]
        for model in (champion, predictions)
    )
    drawn = {
        "confusion_beside_champion.png": figures.confusion_matrices({title: before, candidate: after}, class_names),
        "confusion_less_champion.png": verdict_figures.confusion_difference(
            before, after, f"{candidate} minus {title}", class_names
        ),
    }
    return drawn | ({"champions.png": verdict_figures.champions(champions)} if champions else {})
