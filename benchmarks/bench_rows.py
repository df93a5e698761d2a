"""Measure the pipeline's stages for up to 1,000,000 images: time, processor time and peak memory of each.

No such dataset ships with this repository, so the pictures are a stand-in: smooth random pictures of 32 pixels from a
seed, of 1,000 classes, a fifth of them for testing, as Parquet files such as Hugging Face's. `init`, `ingest` and
`validate` are the pipeline's own commands. There is no training and no LiteRT model: in the stage `evaluate`, a planted
model answers. It reads the class from the first pixel, and is right with a probability. The gate registers the
candidates in MLflow; its second turn compares others with the champion of the first.

The log `.bench/rows/log.jsonl` has a line for each finished stage and size. A second start of the program goes on after
the last one. The result is docs/results/rows.json.
"""

import argparse
import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from bench_own_images import watched

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.inference.artefact import Answers
from mobilenet_pipeline.system import environment, machine
from mobilenet_pipeline.workspace import files, paths, provenance

RESULTS = Path("docs/results/rows.json")
WORK = Path(".bench/rows")
NAME, COMMAND = "rows", "make bench-rows"
SIZES = (250_000, 500_000, 1_000_000)
CLASSES, SIDE, COARSE = 1000, 32, 8
PER_FILE, TOGETHER = 50_000, 1000
"""Pictures of a Parquet file, and pictures that are made at a time. `COARSE` random colours a side make one."""
ACCURACY = {"scratch": 0.70, "pretrained": 0.72}
"""How often the planted models are right; those of the gate's second turn are right by `GAIN` more often."""
GAIN = 0.01
PICTURES = "-pictures"
"""The stage that generates the pictures. Stages with a dash prepare others."""
LAST = "report"
THIS = [sys.executable, str(Path(__file__).resolve())]


def main() -> None:
    """Measure what the log lacks, and write the results; or do a part of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*SIZES], help="numbers of pictures")
    parser.add_argument("--log", type=Path, default=WORK / "log.jsonl", help="the log to go on from")
    parser.add_argument("--do", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    environment.prepare()
    if chosen.do:
        PARTS[chosen.do[0]](*chosen.do[1:])
        return
    for size in sorted(chosen.sizes):
        measure(size, chosen.log)
    document = results(read_log(chosen.log))
    files.write_json(RESULTS, document)
    print(json.dumps(document, indent=2))


def measure(size: int, log: Path) -> None:
    """Run the stages that the log lacks in a workspace of so many pictures, which is removed at the end."""
    folder = WORK / f"{size}"
    done = {row["stage"] for row in read_log(log) if row["images"] == size}
    for stage, words in stages(size):
        if stage in done:
            continue
        if not folder.exists():
            folder.mkdir(parents=True)
            shutil.copy("params.yaml", folder)
        began, cpu = time.monotonic(), children_seconds()
        _, peak = watched(words, folder)
        row = {
            "images": size,
            "stage": stage,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(children_seconds() - cpu, 1),
            "peak_mib": peak,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": provenance.git_commit(Path("."))[0],
        }
        files.append_line(log, json.dumps(row))
        print(row, flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def stages(size: int) -> Iterator[tuple[str, list[str]]]:
    """Yield each stage's name and command, in their order."""
    program = [sys.executable, "-m", "mobilenet_pipeline"]
    yield PICTURES, [*THIS, "--do", "pictures", str(size)]
    yield "init", [*program, "init", NAME, "--images", "pictures"]
    for stage in ("ingest", "validate"):
        yield stage, [sys.executable, "-m", "mobilenet_pipeline.stages", stage, NAME]
    yield "evaluate", [*THIS, "--do", "evaluate", "scratch", "0"]
    yield "-second model", [*THIS, "--do", "evaluate", "pretrained", "0"]
    yield "gate without a champion", [*THIS, "--do", "gate"]
    yield "-champion", [*THIS, "--do", "promote"]
    for name in ACCURACY:
        yield f"-another {name}", [*THIS, "--do", "evaluate", name, "1"]
    yield "gate", [*THIS, "--do", "gate"]
    yield LAST, [*THIS, "--do", "report"]


def children_seconds() -> float:
    """Return the processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the log's lines."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def results(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the document of the sizes of which all stages are measured.

    Of the stages that prepare others, it has the generation only.
    """
    finished = {row["images"] for row in rows if row["stage"] == LAST}
    rows = [row for row in rows if row["images"] in finished]
    measured = sorted((row for row in rows if not row["stage"].startswith("-")), key=lambda row: row["images"])
    names = list(dict.fromkeys(row["stage"] for row in measured))
    by_stage = {name: {row["images"]: row for row in measured if row["stage"] == name} for name in names}
    largest, last = measured[-1]["images"], max(measured, key=lambda row: row["date"])

    def figures(key: str) -> dict[str, dict[str, Any]]:
        return {name: {str(size): row[key] for size, row in sizes.items()} for name, sizes in by_stage.items()}

    pictures = {row["images"]: row for row in sorted(rows, key=lambda row: row["images"]) if row["stage"] == PICTURES}
    return {
        "sizes": list(dict.fromkeys(row["images"] for row in measured)),
        "classes": CLASSES,
        "million_rows_peak_mib": {
            name: sizes[largest]["peak_mib"] for name, sizes in by_stage.items() if largest in sizes
        },
        "growth": {name: growth(sizes) for name, sizes in by_stage.items()},
        "seconds": figures("seconds"),
        "cpu_seconds": figures("cpu_seconds"),
        "peak_mib": figures("peak_mib"),
        "generation": {
            "cpu_seconds": {str(size): row["cpu_seconds"] for size, row in pictures.items()},
            "growth": growth(pictures),
        },
        "command": COMMAND,
        "commit": last["commit"],
        "machine": machine.describe_machine(),
        "date": last["date"],
    }


def growth(sizes: Mapping[int, Mapping[str, Any]]) -> float | None:
    """Return the exponent of the processor time over the number of images, by least squares; None for one size."""
    if len(sizes) < 2:
        return None
    points = np.log([[size, row["cpu_seconds"]] for size, row in sizes.items()])
    return round(float(np.polyfit(*points.T, 1)[0]), 3)


def write_pictures(size: str) -> None:
    """Write the pictures as Parquet files, in the folder `pictures` of this workspace."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path("pictures")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [f"class {number:03}" for number in range(CLASSES)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for split, count in (("test", int(size) // 5), ("train", int(size) - int(size) // 5)):
        for number, start in enumerate(range(0, count, PER_FILE)):
            with pq.ParquetWriter(folder / f"{split}-{number:05}.parquet", schema, compression="none") as file:
                for first in range(start, min(start + PER_FILE, count), TOGETHER):
                    labels = np.arange(first, min(first + TOGETHER, count)) % CLASSES
                    # The first test pictures of a file are darker training pictures: near duplicates.
                    rng = np.random.default_rng([first, int(split == "test" and first > start)])
                    drawn = pictures(labels, rng, 0.8 if split == "test" else 1.0)
                    contents = [{"bytes": data, "path": None} for data in drawn]
                    file.write_table(pa.table({"image": contents, "label": labels}, schema))


def pictures(labels: np.ndarray, rng: np.random.Generator, brightness: float) -> Iterator[bytes]:
    """Yield a smooth random picture for each label, as PNG; its first pixel has the label."""
    import io

    from PIL import Image

    coarse = rng.integers(0, 256, (len(labels), COARSE, COARSE, 3)).astype(np.float32)
    steps = np.linspace(0, COARSE - 1, SIDE)[:, None]
    between = (1 - np.abs(steps - np.arange(COARSE))).clip(0).astype(np.float32)
    images = (brightness * np.einsum("yi,xj,nijc->nyxc", between, between, coarse, optimize=True)).astype(np.uint8)
    images[:, 0, 0] = np.stack([labels // 256, labels % 256, np.zeros_like(labels)], axis=1)
    for picture in images:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG", compress_level=1)
        yield stream.getvalue()


class Planted:
    """A planted model in place of an artefact: it reads the class from the first pixel, and is sometimes wrong."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        self.image_shape = (SIDE, SIDE, 3)
        seed, self.accuracy = int.from_bytes(path.read_bytes()[:8]), float(path.read_bytes()[8:])
        self.rng = np.random.default_rng(seed)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities float32 (n, classes)."""
        return self.answer(images).probabilities

    def answer(self, images: np.ndarray) -> Answers:
        """Return probabilities and energies; an answer is right as often as it is sure."""
        first = images[:, 0, 0].astype(np.int64)
        labels = (first[:, 0] * 256 + first[:, 1]) % CLASSES
        count, rng = len(images), self.rng
        sure = rng.uniform(2 * self.accuracy - 1, 1, count).astype(np.float32)
        chosen = np.where(rng.random(count) < sure, labels, rng.integers(0, CLASSES, count))
        probabilities = rng.random((count, CLASSES), dtype=np.float32)
        probabilities *= ((1 - sure) / probabilities.sum(axis=1))[:, None]
        probabilities[np.arange(count), chosen] += sure
        return Answers(probabilities, rng.normal(10, 2, count).astype(np.float32))


def evaluate(name: str, turn: str) -> None:
    """Write the files of a candidate that was never trained, and run its stage `evaluate` with the planted model."""
    from mobilenet_pipeline.evaluation import evaluate as evaluation
    from mobilenet_pipeline.stages import evaluate as stage

    recipe = load_recipe(NAME)
    plant(recipe, name, int(turn))
    evaluation.Artefact = Planted  # type: ignore[assignment, misc]
    stage.main(recipe, name)


def plant(recipe: Recipe, name: str, turn: int) -> None:
    """Write a made-up artefact, and the documents that training and export would have written."""
    from mobilenet_pipeline.inference import preprocess

    folder, accuracy = paths.model_folder(recipe, name), ACCURACY[name] + GAIN * turn
    folder.mkdir(parents=True, exist_ok=True)
    seed = turn * len(ACCURACY) + list(ACCURACY).index(name)
    artefact = seed.to_bytes(8) + f"{accuracy:.2f}".encode()
    (folder / "model.tflite").write_bytes(artefact)
    digest = files.read_json(paths.data_folder(recipe) / "dataset.json")["digest"]
    sha256 = hashlib.sha256(artefact).hexdigest()
    parity = {"rows": 0, "argmax_differences": 0, "max_probability_difference": 0.0}
    export = {"sha256": sha256, "bytes": len(artefact), "precision": "float32", "parity": parity}
    files.write_json(folder / "export.json", export)
    costs = {"cpu_minutes": 0.0, "wall_minutes": 0.0, "parameters": 0, "multiply_adds": 0, "weights": "none"}
    facts = {"run_id": "0" * 32, "data_digest": digest, "preprocessing": preprocess.fingerprint()}
    files.write_json(folder / "training.json", facts | costs)
    columns = [f"{split}_{quantity}" for split in ("train", "validation") for quantity in ("loss", "accuracy")]
    files.write_text(folder / "history.csv", f"epoch,{','.join(columns)}\n1{',0.5' * len(columns)}\n")


def gate() -> None:
    """Judge the candidates and register them."""
    from mobilenet_pipeline.release import judging

    print(judging.judge(load_recipe(NAME)).verdict.reason)


def promote() -> None:
    """Give the alias `champion` to the verdict's winner; no Bento is built."""
    from mobilenet_pipeline.registry import aliases
    from mobilenet_pipeline.release import judging

    recipe = load_recipe(NAME)
    verdict = judging.read_verdict(recipe)
    aliases.set_alias(recipe.registered_model, "champion", verdict.versions[str(verdict.winner)])


def report() -> None:
    """Write the report page."""
    from mobilenet_pipeline.reports import page

    page.write_report(load_recipe(NAME), Path("."))


PARTS: dict[str, Any] = {
    "pictures": write_pictures,
    "evaluate": evaluate,
    "gate": gate,
    "promote": promote,
    "report": report,
}

if __name__ == "__main__":
    main()
