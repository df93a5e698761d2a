"""Stages that make up their outputs: `python toy.py STAGE RECIPE [CANDIDATE]`, behaving as toy.json says.

toy.json maps `right` to the number of correctly classified test images. By stage, as `train` or `train@digits-scratch`,
`exit` has a list of exit codes, one for each attempt, `burn` seconds of CPU time, `sleep` seconds, and `wait` a list of
lines such as `begun train@digits-scratch`, for which the stage waits until stages have stamped them.

ran.txt names the stages that ran, in order. stamps.txt has a line with the process when a stage begins, ends, fails or
gets SIGTERM: the order of the lines shows what ran at the same time.
"""

import csv
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_pipeline.inference import preprocess

ROWS, DIGEST = 200, "d" * 64
NAMES = [str(digit) for digit in range(10)]


def put(path: str, document: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(document))


def ingest(recipe: str) -> None:
    dataset = {"digest": DIGEST, "rows": {"train": 1437, "test": ROWS}, "class_names": NAMES}
    put(f"data/{recipe}/dataset.json", dataset | {"image_shape": [32, 32, 3], "source": "digits"})
    np.save(f"data/{recipe}/images.npy", np.random.default_rng(0).integers(0, 255, (ROWS, 32, 32, 3), np.uint8))
    np.save(f"data/{recipe}/labels.npy", (np.arange(ROWS) % 10).astype(np.uint8))


def validate(recipe: str) -> None:
    document = {"success": True, "recipe": recipe, "data_digest": DIGEST, "expectations": [], "rows": ROWS}
    put(f"reports/{recipe}/validation.json", document)


def train(recipe: str, candidate: str) -> None:
    folder = f"models/{recipe}/{candidate}"
    for epoch in (1, 2):
        print(f"█░ epoch {epoch}/2 loss 0.5 accuracy 0.5 validation 0.5 0.5 0.1 s, 0:00 left", flush=True)
    facts = {"run_id": "0" * 32, "weights": "none", "data_digest": DIGEST, "git_commit": None}
    costs = {"cpu_minutes": 1.5, "wall_minutes": 1.0, "parameters": 220_000, "multiply_adds": 1_900_000}
    put(f"{folder}/training.json", facts | costs | {"preprocessing": preprocess.fingerprint()})
    curve = [["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"], [1, 1, 0.5, 1, 0.5]]
    with Path(f"{folder}/history.csv").open("w", newline="") as file:
        csv.writer(file).writerows(curve)


def export(recipe: str, candidate: str) -> None:
    folder = f"models/{recipe}/{candidate}"
    parity = {"rows": ROWS, "argmax_differences": 0, "max_probability_difference": 0.0}
    artefact = f"{candidate} {json.loads(Path('toy.json').read_text())['right']}".encode()
    Path(f"{folder}/model.tflite").write_bytes(artefact)
    put(
        f"{folder}/export.json",
        {
            "sha256": hashlib.sha256(artefact).hexdigest(),
            "bytes": len(artefact),
            "precision": "float32",
            "parity": parity,
        },
    )


def evaluate(recipe: str, candidate: str) -> None:
    right = json.loads(Path("toy.json").read_text())["right"]
    labels = (np.arange(ROWS) % 10).astype(np.uint8)
    answers = np.where(np.arange(ROWS) < right, labels, (labels + 1) % 10)
    probabilities = np.full((ROWS, 10), 0.01, np.float32)
    probabilities[np.arange(ROWS), answers] = 0.91
    test = {"probabilities": probabilities, "labels": labels, "rows": np.arange(ROWS)}
    validation = {f"validation_{key}": value for key, value in test.items()}
    # Under one corruption: the first half of the images are right.
    robust = np.packbits([np.arange(ROWS) < ROWS // 2], axis=0)
    corrupted = {"corrupted_right": robust, "corrupted_rows": np.arange(ROWS)}
    arrays = test | validation | corrupted | {"data_digest": np.array(DIGEST)}
    np.savez(f"models/{recipe}/{candidate}/predictions.npz", **arrays)
    scores = {"rows": ROWS, "loss": 0.3, "accuracy": right / ROWS, "macro_accuracy": right / ROWS}
    scores |= {"top3_accuracy": 0.99, "calibration_error": 0.02}
    confusion = np.diag(np.full(10, ROWS // 10)).tolist()
    shares = dict.fromkeys(NAMES, right / ROWS)
    document = {"data_digest": DIGEST, "test": scores, "validation": scores, "per_class_accuracy": shares}
    document |= {"confusion_matrix": confusion, "class_names": NAMES, "overlap": 0, "corruptions": {"noise 1": 0.5}}
    artefact = {"bytes": 1_000_000, "p50_ms": 0.1, "p99_ms": 0.2}
    # Every class is in every set.
    sets = {"stated_coverage": 0.95, "threshold": 0.0, "calibration_rows": 100}
    sets |= {"coverage": 1.0, "mean_size": 10.0, "sizes": {"10": ROWS}}
    document |= {"artefact": artefact, "prediction_sets": sets, "unfamiliar": None}
    put(f"metrics/{recipe}/{candidate}.json", document)


def add_line(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def main() -> None:
    """Add a line to ran.txt, behave as toy.json says, and do the stage."""
    name, words = sys.argv[1], sys.argv[2:]
    stage = f"{name}@{'-'.join(words)}"

    def stamp(event: str) -> None:
        add_line("stamps.txt", f"{event} {stage} {os.getpid()}")

    def stop(*_: object) -> None:
        stamp("terminated")
        sys.exit(1)

    signal.signal(signal.SIGTERM, stop)
    add_line("ran.txt", stage)
    stamp("begun")
    orders = json.loads(Path("toy.json").read_text())

    def ordered(order: str, otherwise: Any) -> Any:
        of_stages = orders.get(order, {})
        return of_stages.get(stage, of_stages.get(name, otherwise))

    while not all(f"{line} " in Path("stamps.txt").read_text() for line in ordered("wait", [])):
        time.sleep(0.02)
    attempt = Path("ran.txt").read_text().count(stage if stage in orders.get("exit", {}) else f"{name}@")
    for code in ordered("exit", [])[attempt - 1 : attempt]:
        print("error: made up to fail\nimages 3 and 4", file=sys.stderr)
        stamp("failed")
        sys.exit(code)
    started = time.process_time()
    while time.process_time() - started < ordered("burn", 0):
        pass
    Path("process.txt").write_text(str(os.getpid()))
    print("process", os.getpid(), flush=True)
    time.sleep(ordered("sleep", 0))
    {"ingest": ingest, "validate": validate, "train": train, "export": export, "evaluate": evaluate}[name](*words)
    stamp("ended")


if __name__ == "__main__":
    main()
