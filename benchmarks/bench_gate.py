"""Measure how often the gate promotes over a year of nights, how often chance blocks a better model, and its time.

Every night, two candidates are compared with the champion on the same simulated test images. All models answer with
93 % accuracy, and are wrong on mostly the same images, as good models are; a better candidate has half a percentage
point or one more. The champion is the better of the first night's candidates on the test images, as in the pipeline.
The results are written to docs/results/gate.json.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import trange

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation import corruptions, evaluate
from mobilenet_pipeline.evaluation.predictions import Facts, Predictions
from mobilenet_pipeline.gate import verdict as gate
from mobilenet_pipeline.metrics import paired, spending
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import files, provenance

RESULTS = Path("docs/results/gate.json")
ROWS, CLASSES, NIGHTS = 10_000, 10, 365
LABELS = (np.arange(ROWS) % CLASSES).astype(np.uint8)
ACCURACY, SHARED = 0.93, 0.8
LIMITS = {"accuracy_floor": 0.5, "calibration_error": 1.0, "loss_margin": 1.0}
BLOCKS = ("no class much worse", "corrupted images")


def main() -> None:
    """Simulate the nights, print the results, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=400, help="simulated years (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=2500, help="nights with a better model (default: %(default)s)")
    options = parser.parse_args()
    limits = config.load_recipe("cifar10", Path("params.yaml")).gate.model_copy(update=LIMITS)
    rng = np.random.default_rng(0)
    years = [promotes_in_a_year(rng, limits) for _ in trange(options.years, desc="years without a better model")]
    seconds: list[float] = []
    nights = {
        "first_night_power_one_point": (1, 0.01),
        "night_365_power_one_point": (NIGHTS, 0.01),
        "first_night_power_half_point": (1, 0.005),
        "night_365_power_half_point": (NIGHTS, 0.005),
    }
    power, blocked = {}, []
    for name, (night, gain) in nights.items():
        decisions = [better_night(rng, limits, night, gain, seconds) for _ in trange(options.draws, desc=name)]
        power[name] = float(np.mean([decision.promote for decision in decisions]))
        if gain == 0.01:
            blocked += [blocks(decision) for decision in decisions]
    document = {
        "year_false_promotion": float(np.mean(years)),
        **{name: power[name] for name in ("first_night_power_one_point", "night_365_power_one_point")},
        "power_half_point": power["first_night_power_half_point"],
        "night_365_power_half_point": power["night_365_power_half_point"],
        "better_model_blocked_by_classes_or_corruptions": float(np.mean(blocked)),
        "years": options.years,
        "draws": options.draws,
        "nights": NIGHTS,
        "candidates_a_night": 2,
        "rows": ROWS,
        "accuracy": ACCURACY,
        "shared_difficulty": SHARED,
        "error_budget": limits.significance,
        "seconds_a_verdict": round(float(np.median(seconds)), 4),
        "seed": 0,
        "command": "make bench-gate",
        "commit": provenance.git_commit(Path("."))[0],
        "machine": machine.describe_machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    files.write_json(RESULTS, document)
    print(json.dumps(document, indent=2))


def promotes_in_a_year(rng: np.random.Generator, limits: config.Gate) -> bool:
    """Return whether the gate promotes a model in a year of nights in which none is better."""
    images = Images(rng)
    first, second = images.right(ACCURACY), images.right(ACCURACY)
    champion = max(first, second, key=np.sum)
    for night in range(2, NIGHTS + 1):
        pair, numbers = [images.right(ACCURACY) for _ in range(2)], numbers_of(night)
        p_values = [paired.p_better(paired.pair(right, champion)) for right in pair]
        levels = [spending.level(limits.significance, number) for number in numbers.values()]
        # Only below its level can a candidate be promoted; the whole gate decides those nights.
        if any(p < level for p, level in zip(p_values, levels, strict=True)):
            answers = [images.answers(right) for right in (*pair, champion)]
            if decide(answers, limits, night).promote:
                return True
    return False


def better_night(
    rng: np.random.Generator, limits: config.Gate, night: int, gain: float, seconds: list[float]
) -> gate.Decision:
    """Return the decision of a night on which one of the candidates is better; `seconds` gets its duration."""
    images = Images(rng)
    champion = max(images.right(ACCURACY), images.right(ACCURACY), key=np.sum)
    rights = [images.right(ACCURACY), images.right(ACCURACY + gain), champion]
    answers = [images.answers(right) for right in rights]
    started = time.perf_counter()
    decision = decide(answers, limits, night)
    seconds.append(time.perf_counter() - started)
    return decision


def decide(answers: list[Predictions], limits: config.Gate, night: int) -> gate.Decision:
    """Return the gate's decision on two candidates and a champion, in this night of the year."""
    numbers = numbers_of(night)
    usage = gate.Usage(2 * night, numbers, max(numbers.values()))
    scratch, pretrained, champion = answers
    return gate.decide({"scratch": scratch, "pretrained": pretrained}, champion, limits, "same", usage)


def numbers_of(night: int) -> dict[str, int]:
    """Return the numbers of the comparisons of a night with two candidates, counted from 1."""
    return {"scratch": 2 * night - 1, "pretrained": 2 * night}


def blocks(decision: gate.Decision) -> bool:
    """Return whether a check on classes or corruptions fails for the better candidate, `pretrained`."""
    return any(
        check.name in BLOCKS and not check.passed for check in decision.checks if check.candidate == "pretrained"
    )


class Images:
    """Simulated test images: on a share `SHARED` of them, all models are right or wrong together."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.common, self.together = rng.random(ROWS, np.float32), rng.random(ROWS, np.float32) < SHARED
        self.corrupted = rng.random((len(corruptions.names()), evaluate.CORRUPTED))

    def right(self, rate: float) -> np.ndarray:
        """Return for which images a model of this accuracy is right, bool (n,)."""
        return np.where(self.together, self.common, self.rng.random(ROWS, np.float32)) < rate

    def answers(self, right: np.ndarray) -> Predictions:
        """Return predictions that are right there, and on seven in ten corrupted images, as every model's are."""
        answer = np.where(right, LABELS, (LABELS + self.rng.integers(1, CLASSES, ROWS)) % CLASSES)
        confidence = self.rng.uniform(0.5, 1, (ROWS, 1)).astype(np.float32)
        probabilities = np.repeat((1 - confidence) / (CLASSES - 1), CLASSES, axis=1)
        probabilities[np.arange(ROWS), answer] = confidence[:, 0]
        own = self.rng.random(self.corrupted.shape)
        survives = np.where(self.rng.random(self.corrupted.shape) < SHARED, self.corrupted, own) < 0.7
        corrupted = dict(zip(corruptions.names(), survives, strict=True))
        facts = Facts(corrupted, 1_000_000, 1.0, 2.0, "same", 0, set_threshold=0.0)  # every class is in every set
        return Predictions(probabilities, LABELS, "simulated", facts)


if __name__ == "__main__":
    main()
