"""Measure what a team's own images cost, on CIFAR-10: ingestion, near duplicates, streaming, answers, int8 twins.

It needs a finished run of the recipe `cifar10`. The images are written out as 60,000 PNG files in folders of classes,
which must become the same dataset. Each part runs alone, one after the other. The result is the file
docs/results/own-images.json.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.data import near_duplicates
from mobilenet_pipeline.data.dataset import open_dataset
from mobilenet_pipeline.data.sources import cifar10
from mobilenet_pipeline.evaluation.evaluate import time_in_turn
from mobilenet_pipeline.system import environment, machine
from mobilenet_pipeline.workspace import files, paths, provenance

RESULTS = Path("docs/results/own-images.json")
COMMAND = "make bench-own-images"
CANDIDATE = "pretrained"
LARGE, LIMIT = 20_000, 2048
"""Number of generated pictures of 224 pixels, and the memory that a stage may allocate for them, MiB."""


def main() -> None:
    """Run every part and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ingest", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    environment.prepare()
    recipe = load_recipe("cifar10")
    if chosen.ingest:
        ingest(recipe, chosen.ingest)
        return
    figures = {
        **ingestion(recipe),
        **large_pictures(),
        **twins(recipe),
        **streaming(),
        **answers(recipe),
        **int8(recipe),
        "command": COMMAND,
        "commit": provenance.git_commit(Path("."))[0],
        "machine": machine.describe_machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    files.write_json(RESULTS, figures)
    print(json.dumps(figures, indent=2))


def ingestion(recipe: Recipe) -> dict[str, Any]:
    """Ingest CIFAR-10 as 60,000 PNG files on one and on two cores, each twice, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "cifar10"
        write_pictures(recipe, pictures)
        runs: list[dict[str, Any]] = []
        for cores in (1, 2, 1, 2):
            words = ["taskset", "--cpu-list", f"0-{cores - 1}", sys.executable, __file__, "--ingest", str(pictures)]
            printed, peak = watched(words, Path("."))
            runs.append({"cores": cores, "peak_mib": peak, **json.loads(printed.splitlines()[-1])})
            print(runs[-1], flush=True)
    expected = open_dataset(paths.data_folder(recipe)).digest
    if {run["digest"] for run in runs} != {expected}:
        raise SystemExit(f"the pictures have another digest than the archive, {expected}")
    best = max(run["images_per_second"] for run in runs if run["cores"] == 2)
    return {"ingest_images_per_second": best, "ingestion": runs}


def write_pictures(recipe: Recipe, pictures: Path) -> None:
    """Write CIFAR-10 as PNG files, in folders `train/CLASS` and `test/CLASS`."""
    from PIL import Image

    source = cifar10.load_cifar10()
    images, places = np.ascontiguousarray(source.images), zip(source.labels, source.is_test, strict=True)
    for number, (label, is_test) in enumerate(tqdm(places, total=len(images), desc="writing PNG", unit="image")):
        place = pictures / ("test" if is_test else "train") / recipe.data.class_names[label] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(place, compress_level=1)


def ingest(recipe: Recipe, pictures: Path) -> None:
    """Ingest the pictures in this process, and print a line of JSON."""
    from mobilenet_pipeline.data import ingest as ingestion

    own = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": "images", "path": str(pictures)})})
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        dataset = ingestion.ingest(own, Path(folder) / "data")
        seconds = time.monotonic() - began
    count = sum(dataset["rows"].values())
    print(json.dumps({"images_per_second": round(count / seconds), "digest": dataset["digest"]}))


def large_pictures() -> dict[str, Any]:
    """Look at generated JPEG files of 224 pixels, ingest and validate them, with a limit on the memory."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_large_pictures(Path(folder) / "pictures")
        shutil.copy("params.yaml", folder)
        stages = (
            [sys.executable, "-m", "mobilenet_pipeline.stages", stage, "large"] for stage in ("ingest", "validate")
        )
        init = [sys.executable, "-m", "mobilenet_pipeline", "init", "large", "--images", "pictures"]
        rows = {words[3]: limited(words, Path(folder)) for words in (init, *stages)}
        bytes_of = {"pictures": sum(file.stat().st_size for file in pictures.rglob("*.jpg"))}
        bytes_of["dataset"] = (Path(folder) / "data" / "large" / "images.npy").stat().st_size
    speed = round(LARGE / rows["ingest"]["seconds"])
    mib = {name: count >> 20 for name, count in bytes_of.items()}
    return {"large": {"images": LARGE, "mib": mib, "limit_mib": LIMIT, "images_per_second": speed, "stages": rows}}


def write_large_pictures(pictures: Path) -> Path:
    """Write smooth random pictures of 224 pixels in ten folders of classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in tqdm(range(LARGE), desc="writing JPEG", unit="image"):
        place = pictures / str(number % 10) / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
        small.resize((224, 224), Image.Resampling.BICUBIC).save(place, quality=90)
    return pictures


def limited(words: list[str], folder: Path) -> dict[str, Any]:
    """Run a command whose processes may each allocate `LIMIT` MiB; return its seconds and its peak."""
    began = time.monotonic()
    _, peak = watched(["prlimit", f"--data={LIMIT << 20}", *words], folder)
    return {"seconds": round(time.monotonic() - began, 1), "peak_mib": peak}


def watched(words: list[str], folder: Path) -> tuple[str, int]:
    """Run a command; return what it prints and the peak of its anonymous memory, with that of its processes, in MiB."""
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(words, cwd=folder, stdout=output)
        while process.poll() is None:
            with suppress(psutil.Error):  # it may have just ended
                peak = max(peak, sum(map(anonymous_kib, (process, *process.children(recursive=True)))))
            time.sleep(0.5)  # looking costs processor time, too
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} ended with exit code {process.returncode}")
        output.seek(0)
        return output.read(), peak // 1024


def anonymous_kib(process: psutil.Process) -> int:
    """Return what a process allocated, without the pages of files; 0 if it has ended."""
    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        return sum(map(int, re.findall(r"RssAnon:\s+(\d+)", status)))
    return 0


def twins(recipe: Recipe) -> dict[str, Any]:
    """Look for test images that show the same as a training image."""
    data = open_dataset(paths.data_folder(recipe))
    began = time.process_time()
    found = near_duplicates.find(data.images, data.is_test)
    seconds, count = time.process_time() - began, len(found.test)
    return {
        "near_duplicates_cifar10": count,
        "near_duplicates": {"share_of_test": count / int(data.is_test.sum()), "cpu_seconds": round(seconds, 1)},
        "accuracy_with_and_without": {
            name: metrics["near_duplicates"] for name, metrics in metrics_of(recipe) if "near_duplicates" in metrics
        },
    }


def streaming() -> dict[str, Any]:
    """Train from a file and from memory, at 32 and at 224 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "streaming.json"
        subprocess.run([sys.executable, "benchmarks/bench_streaming.py", "--results", str(results)], check=True)
        sizes = json.loads(results.read_text(encoding="utf-8"))["sizes"]
    largest = sizes[-1]
    return {
        "streaming_speed_ratio": min(size["speed_ratio"] for size in sizes),
        "streaming_peak_mib": largest["peak_mib"]["file"],
        "streaming": sizes,
    }


def answers(recipe: Recipe) -> dict[str, Any]:
    """Return coverage and size of the prediction sets, and how often images are flagged as unfamiliar."""
    each = {
        name: {key: metrics[key] for key in ("prediction_sets", "unfamiliar")} for name, metrics in metrics_of(recipe)
    }
    return {"conformal_coverage": each[CANDIDATE]["prediction_sets"]["coverage"], "answers": each}


def int8(recipe: Recipe) -> dict[str, Any]:
    """Compare every candidate with its int8 twin: size, accuracy on test, and latency in turn on one thread."""
    measured, rows = dict(metrics_of(recipe)), {}
    for name in recipe.candidates:
        twin = f"{name}_int8"
        artefacts = [paths.model_folder(recipe, artefact) / "model.tflite" for artefact in (name, twin)]
        times = time_in_turn(artefacts)
        sizes = [os.path.getsize(artefact) for artefact in artefacts]
        accuracies = [measured[artefact]["test"]["accuracy"] for artefact in (name, twin)]
        rows[name] = {
            "milliseconds": times,
            "latency_ratio": round(times[1] / times[0], 3),
            "bytes": sizes,
            "test_accuracy": accuracies,
            "accuracy_delta": round(accuracies[1] - accuracies[0], 5),
        }
    verdict = files.read_json(paths.verdict_path(recipe))
    return {
        "int8_latency_ratio": rows[CANDIDATE]["latency_ratio"],
        "int8_accuracy_delta": rows[CANDIDATE]["accuracy_delta"],
        "int8": rows,
        "verdict": verdict["reason"],
    }


def metrics_of(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the evaluation of every artefact."""
    for name in recipe.artefacts:
        yield name, files.read_json(paths.metrics_path(recipe, name))


if __name__ == "__main__":
    main()
