"""Measure how often the gate promotes, and how long a verdict on 10,000 images takes.

Two candidates and a champion answer simulated test images with 93 % accuracy, and are wrong on mostly the same images,
as good models are. The candidates equal the champion, or one of them is one percentage point better. The models differ
only in accuracy and classes. The results are written to docs/results/gate.json.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation import corruptions, evaluate
from mobilenet_pipeline.evaluation.predictions import Facts, Predictions
from mobilenet_pipeline.gate import verdict as gate
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import files, provenance

RESULTS = Path("docs/results/gate.json")
ROWS, CLASSES = 10_000, 10
LABELS = (np.arange(ROWS) % CLASSES).astype(np.uint8)
ACCURACY, SHARED = 0.93, 0.8
LIMITS = {"accuracy_floor": 0.5, "calibration_error": 1.0, "loss_margin": 1.0}
# As many corrupted images as in an evaluation, because their comparison is part of a verdict.
FACTS = Facts({name: np.ones(evaluate.CORRUPTED, bool) for name in corruptions.names()}, 1_000_000, 1.0, 2.0, "same", 0)


def main() -> None:
    """Simulate the verdicts, print the results, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="simulations of each kind (default: %(default)s)")
    draws = parser.parse_args().draws
    limits = config.load_recipe("cifar10", Path("params.yaml")).gate.model_copy(update=LIMITS)
    rng, seconds = np.random.default_rng(0), []
    promoted = {}
    for name, best in (("as_good", ACCURACY), ("one_point_better", ACCURACY + 0.01)):
        promoted[name] = 0
        for _ in range(draws):
            champion, first, second = answers(rng, ACCURACY, ACCURACY, best)
            started = time.perf_counter()
            verdict = gate.decide({"scratch": first, "pretrained": second}, champion, limits, "same", 0)
            seconds.append(time.perf_counter() - started)
            promoted[name] += verdict.promote
        print(f"{name}: promoted in {promoted[name]} of {draws} draws", flush=True)
    document = {
        "promoted": {name: count / draws for name, count in promoted.items()},
        "draws": draws,
        "rows": ROWS,
        "seconds_a_verdict": round(float(np.median(seconds)), 4),
        "command": "make bench-gate",
        "commit": provenance.git_commit(Path("."))[0],
        "machine": machine.describe_machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    files.write_json(RESULTS, document)
    print(json.dumps({key: document[key] for key in ("promoted", "seconds_a_verdict")}))


def answers(rng: np.random.Generator, *rates: float) -> list[Predictions]:
    """Return the predictions of simulated models with these accuracies.

    On a share `SHARED` of the images, the models are right or wrong together.
    """
    common, together = rng.random(ROWS), rng.random(ROWS) < SHARED
    models = []
    for rate in rates:
        right = np.where(together, common, rng.random(ROWS)) < rate
        answer = np.where(right, LABELS, (LABELS + rng.integers(1, CLASSES, ROWS)) % CLASSES)
        confidence = rng.uniform(0.5, 1, (ROWS, 1)).astype(np.float32)
        probabilities = np.repeat((1 - confidence) / (CLASSES - 1), CLASSES, axis=1)
        probabilities[np.arange(ROWS), answer] = confidence[:, 0]
        models.append(Predictions(probabilities, LABELS, "simulated", FACTS))
    return models


if __name__ == "__main__":
    main()
