"""Measure the pipeline at scale beside an earlier commit: many versions, many classes, many images.

Each task runs in child processes, with the earlier commit's code and today's in turn. The tasks are `status` in a
registry of 500 versions, with the bytecode that `make install` compiles and without any, the gate and the confusion
matrix for 1,000 classes, and the validation of a manifest of 1,000,000 images. The earlier code is exported from Git
into a temporary folder. The results are written to docs/results/operations.json. CPU seconds depend less on what else
the machine does than seconds.
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path("docs/results/operations.json")
BASE = "cc9ec60d1f81a4037d23d2e2378e49834eae6021"
"""The commit to compare with."""
LIMIT = 200
"""CPU seconds after which a task counts as one that does not finish."""
VERSIONS, EVENTS, CLASSES, PER_CLASS, IMAGES = 500, 250, 1000, 50, 1_000_000
ROWS = {"train_rows": 5 * IMAGES // 6 // 10 * 10, "test_rows": IMAGES - 5 * IMAGES // 6 // 10 * 10}
ROUNDS = {"status": 3}
"""How often a task is measured; the median counts. The other tasks are measured once."""
UNCOMPILED = "status_without_bytecode"
"""`status` after an install that compiles nothing, where no bytecode can be written either."""
INSTALLED = "status_as_installed"
"""Where no bytecode can be written, after the `make install` of each commit: the earlier one compiles nothing."""


@dataclass(frozen=True)
class Measured:
    """What a child process took; seconds and CPU seconds are without its imports if it printed its own."""

    seconds: float
    cpu_seconds: float
    gibibytes: float
    finished: bool

    @property
    def row(self) -> dict[str, float]:
        """The values of the results, rounded."""
        return {key: round(value, 2) for key, value in vars(self).items() if key != "finished"}


def main() -> None:
    """Run a task, or measure all tasks, print the results, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=BASE, help="the commit to compare with (default: %(default)s)")
    parser.add_argument(
        "--only", choices=list(TASKS), action="append", help="measure this task only, and write nothing"
    )
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        TASKS[options.task]()
        return
    if options.prepare:
        PREPARATIONS[options.prepare[0]](Path(options.prepare[1]))
        return
    with tempfile.TemporaryDirectory(prefix="operations-") as name:
        scratch = Path(name)
        trees = {"base": export(options.base, scratch / "base"), "now": Path.cwd()}
        measured = {task: measure(task, trees, scratch) for task in options.only or TASKS}
    if not options.only:
        measured[INSTALLED] = {"base": measured[UNCOMPILED]["base"], "now": measured["status"]["now"]}
    document: dict[str, Any] = {
        **{task: compare(**pair) for task, pair in measured.items()},
        "cpu_seconds_limit": LIMIT,
        "versions": VERSIONS,
        "events": EVENTS,
        "classes": CLASSES,
        "test_images_per_class": PER_CLASS,
        "manifest_rows": IMAGES,
        "base": options.base,
        "command": "make bench-operations",
        **origin(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(document, indent=2))
    if not options.only:
        RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def origin() -> dict[str, Any]:
    """Return the commit and the machine of the measurement."""
    from mobilenet_pipeline.system import machine
    from mobilenet_pipeline.workspace import provenance

    commit, dirty = provenance.git_commit(Path("."))
    return {"commit": commit, "uncommitted_changes": dirty, "machine": machine.describe_machine()}


def export(commit: str, folder: Path) -> Path:
    """Write the files of a commit into `folder`, and return it."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def measure(task: str, trees: dict[str, Path], scratch: Path) -> dict[str, Measured]:
    """Measure the task with the code of both trees in turn; the median counts."""
    workspace = scratch / (PREPARATIONS[task].__name__ if task in PREPARATIONS else task)
    if not workspace.exists():
        workspace.mkdir()
        if task in PREPARATIONS:
            # In a child process: the peak memory of later ones counts that of their parent.
            command = [sys.executable, str(Path(__file__).resolve()), "--prepare", task, str(workspace)]
            subprocess.run(command, check=True, stdout=sys.stderr)
    measured: dict[str, list[Measured]] = {name: [] for name in trees}
    for turn in range(ROUNDS.get(task, 1)):
        for name, tree in trees.items():
            measured[name].append(run(task, tree, workspace, scratch / "bytecode"))
            print(f"{task} {name} {turn}: {measured[name][-1]}", file=sys.stderr, flush=True)
    return {name: sorted(rows, key=lambda row: row.seconds)[len(rows) // 2] for name, rows in measured.items()}


def compare(base: Measured, now: Measured) -> dict[str, Any]:
    """Return what both took and the ratios; a task that was ended at the limit took at least that."""
    ratios = {key: round(value / getattr(now, key), 2) for key, value in vars(base).items() if key != "finished"}
    return {"base": base.row, "now": now.row, "base_divided_by_now": ratios, "base_finished": base.finished}


def run(task: str, tree: Path, workspace: Path, bytecode: Path) -> Measured:
    """Run the task with the code of a tree in a child process.

    A first run of the same imports fills the cache of bytecode, as every second command of a user finds it.
    """
    write_settings(tree, workspace)
    paths = [str(tree / "src"), str(tree), str(Path(__file__).resolve().parent)]
    if task == UNCOMPILED:
        bytecode = bytecode.with_name("no-bytecode")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONPYCACHEPREFIX": str(bytecode)}
    env["PYTHONDONTWRITEBYTECODE"] = "1" if task == UNCOMPILED else ""
    marker = bytecode / f"{task}-{hashlib.sha256(str(tree).encode()).hexdigest()[:8]}"
    if not marker.exists():
        bytecode.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", IMPORTS[task]], cwd=workspace, env=env, check=True)
        marker.touch()
    command = COMMANDS.get(task, [str(Path(__file__).resolve()), "--task", task])
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        child = subprocess.Popen([sys.executable, *command], cwd=workspace, env=env, stdout=output, stderr=output)
        resource.prlimit(child.pid, resource.RLIMIT_CPU, (LIMIT, LIMIT))
        _, status, usage = os.wait4(child.pid, 0)
        seconds, cpu_seconds = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    finished = child.returncode not in (-signal.SIGXCPU, -signal.SIGKILL)
    if finished and child.returncode not in ENDS.get(task, (0,)):
        raise RuntimeError(f"{task} with the code of {tree} ended with {child.returncode}:\n{text}")
    if finished and task not in COMMANDS:
        seconds, cpu_seconds = map(float, text.split()[-2:])
    return Measured(seconds, cpu_seconds, usage.ru_maxrss / 1024**2, finished)


@contextmanager
def timed() -> Iterator[None]:
    """Print the seconds and CPU seconds of the `with` body."""
    started, cpu = time.perf_counter(), time.process_time()
    yield
    print(time.perf_counter() - started, time.process_time() - cpu)


def write_settings(tree: Path, workspace: Path) -> None:
    """Write the tree's params.yaml into the workspace; `cifar10` has as many images as the manifest."""
    from ruamel.yaml import YAML

    settings = YAML().load(tree / "params.yaml")
    settings["recipes"]["cifar10"]["data"].update(ROWS)
    YAML().dump(settings, workspace / "params.yaml")


def fill_registry(workspace: Path) -> None:
    """Make a workspace of `digits`: a registry of `VERSIONS` versions, `EVENTS` promotions and a verdict."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{workspace}/mlflow.db"
    client, name = MlflowClient(uri), "digits-mobilenet"
    experiment = client.create_experiment("digits", (workspace / "mlruns" / "digits").as_uri())
    client.create_registered_model(name)
    artefacts, runs = {}, {}
    for number in range(1, VERSIONS + 1):
        made = client.create_run(experiment, run_name=f"run {number}").info
        runs[number] = made.run_id
        artefacts[number] = hashlib.sha256(str(number).encode()).hexdigest()
        tags = {
            "recipe": "digits",
            "candidate": ("pretrained", "scratch")[number % 2],
            "data_digest": "d" * 64,
            "artefact_sha256": artefacts[number],
            "test_accuracy": "0.97",
            "git_commit": "c" * 40,
            "complete": "true",
            "verdict": "rejected",
        }
        description = "A model card. " * 200
        client.create_model_version(name, f"runs:/{made.run_id}/served", made.run_id, tags, description=description)
        if number >= VERSIONS - 1:
            (workspace / "model.tflite").write_bytes(str(number).encode())
            client.log_artifact(made.run_id, str(workspace / "model.tflite"), "served")
    client.set_registered_model_alias(name, "champion", str(VERSIONS))
    client.set_registered_model_alias(name, "challenger", str(VERSIONS - 1))
    write_verdict(workspace, artefacts)
    write_records(workspace, runs, artefacts)


def write_records(workspace: Path, runs: dict[int, str], artefacts: dict[int, str]) -> None:
    """Record promotions up to the newest version, and the registry as the workspace's."""
    from mobilenet_pipeline import config
    from mobilenet_pipeline.registry import identity
    from mobilenet_pipeline.workspace import history

    recipe, before = config.load_recipe("digits", Path("params.yaml")), None
    for number in range(VERSIONS - EVENTS + 1, VERSIONS + 1):
        event = history.Event(
            "promoted",
            str(number),
            "the gate",
            "better",
            before,
            str(number),
            runs[number],
            0.97,
            artefact=artefacts[number],
        )
        history.append(recipe, event, workspace)
        before = str(number)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{workspace}/mlflow.db"
    identity.join(recipe, workspace)
    del os.environ["MLFLOW_TRACKING_URI"]


def write_verdict(workspace: Path, artefacts: dict[int, str]) -> None:
    """Write the files that a verdict on the newest two versions rests on."""
    from mobilenet_pipeline import config
    from mobilenet_pipeline.gate import verdict as gate
    from mobilenet_pipeline.inference import preprocess

    recipe = config.load_recipe("digits", Path("params.yaml"))
    labels = np.arange(500) % 10
    models = {name: answers(labels, 10, 0.97, seed) for seed, name in enumerate(("scratch", "pretrained"))}
    usage = gate.Usage(2, {"scratch": 1, "pretrained": 2}, 2)
    newest = {"scratch": VERSIONS - 1, "pretrained": VERSIONS}
    verdict = gate.Verdict(
        **dict(gate.decide(models, None, recipe.gate, preprocess.fingerprint(), usage)),
        recipe="digits",
        registered_model=recipe.registered_model,
        limits=recipe.gate,
        versions={name: str(number) for name, number in newest.items()},
        artefacts={name: artefacts[number] for name, number in newest.items()},
        preprocessing=preprocess.fingerprint(),
        against=None,
        champion_measured_again=False,
        waits_for_approval=False,
        leaves=gate.Aliases(str(VERSIONS), str(VERSIONS - 1)),
        judged_at="2026-01-01T00:00:00+00:00",
    )
    documents = {
        "reports/digits/verdict.json": verdict.model_dump(mode="json"),
        "data/digits/dataset.json": {"digest": "d"},
        **{f"models/digits/{name}/export.json": {"sha256": artefacts[number]} for name, number in newest.items()},
    }
    for path, document in documents.items():
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace / path).write_text(json.dumps(document))


def answers(labels: np.ndarray, classes: int, accuracy: float, seed: int) -> Any:
    """Return made-up predictions for the labels: right with this probability, and 80 % sure."""
    from mobilenet_pipeline.evaluation.predictions import Facts, Predictions

    rng, rows = np.random.default_rng(seed), np.arange(len(labels))
    answer = np.where(rng.random(len(labels)) < accuracy, labels, rng.integers(0, classes, len(labels)))
    probabilities = rng.random((len(labels), classes), dtype=np.float32)
    probabilities *= 0.2 / probabilities.sum(axis=1, keepdims=True)
    probabilities[rows, answer] += 0.8
    corrupted = {f"corruption {number}": rng.random(10_000) < accuracy * 0.8 for number in range(15)}
    return Predictions(probabilities, labels, "d", Facts(corrupted, 4_000_000, 1.0, 2.0, "p", 0), str(seed))


def judge() -> None:
    """Print the seconds that the gate needs for two candidates and a champion of `CLASSES` classes."""
    from mobilenet_pipeline import config
    from mobilenet_pipeline.gate import verdict as gate

    labels = np.arange(CLASSES * PER_CLASS) % CLASSES
    scratch, pretrained, champion = (
        answers(labels, CLASSES, accuracy, seed) for seed, accuracy in enumerate((0.70, 0.72, 0.705))
    )
    limits = {"accuracy_floor": 0.5, "calibration_error": 1.0}
    recipe = config.load_recipe("cifar10", Path("params.yaml"))
    usage = gate.Usage(5, {"scratch": 4, "pretrained": 5}, 5)
    candidates = {"scratch": scratch, "pretrained": pretrained}
    with timed():
        gate.decide(candidates, champion, recipe.gate.model_copy(update=limits), "p", usage)


def draw() -> None:
    """Print the seconds that the figure of a confusion matrix of `CLASSES` classes needs."""
    from mobilenet_pipeline.metrics import scores
    from mobilenet_pipeline.reports import figures

    rng, labels = np.random.default_rng(0), np.arange(CLASSES * PER_CLASS) % CLASSES
    wrong = (labels + rng.integers(1, 40, len(labels))) % CLASSES
    matrix = scores.confusion_matrix(labels, np.where(rng.random(len(labels)) < 0.7, labels, wrong), CLASSES)
    with timed():
        figures.confusion_matrices({"scratch": matrix.tolist()}, [f"class {index}" for index in range(CLASSES)])


def write_manifest(workspace: Path) -> None:
    """Make a workspace of `cifar10` whose manifest has `IMAGES` images that meet all expectations."""
    import pandas as pd

    from mobilenet_pipeline import config

    data, test = config.load_recipe("cifar10", Path("params.yaml")).data, ROWS["test_rows"]
    folder = workspace / "data" / "cifar10"
    folder.mkdir(parents=True)
    rows = np.arange(IMAGES)
    rng, labels = np.random.default_rng(0), rows % 10
    manifest = pd.DataFrame(
        {
            "split": np.where(rows < test, "test", "train"),
            "label": labels,
            "class_name": np.asarray(data.class_names)[labels],
            "hash": [hashlib.sha256(row.tobytes()).hexdigest() for row in rows],
            **dict.fromkeys(("height", "width"), 32),
            "channels": 3,
            "dtype": "uint8",
            "pixel_min": rng.integers(0, 20, IMAGES),
            "pixel_max": rng.integers(200, 256, IMAGES),
        }
    )
    for kind in ("mean", "std"):
        for channel, value in zip("rgb", getattr(data, f"channel_{kind}"), strict=True):
            manifest[f"{kind}_{channel}"] = float(value)
    manifest.to_parquet(folder / "manifest.parquet", index=False)
    (folder / "dataset.json").write_text(json.dumps({"digest": "d" * 64}))


STATUS = ["-m", "mobilenet_pipeline", "status", "--recipe", "digits"]
TASKS: dict[str, Callable[[], None]] = {
    "status": print,
    UNCOMPILED: print,
    "gate": judge,
    "confusion_figure": draw,
    "validation": print,
}
COMMANDS = {
    "status": STATUS,
    UNCOMPILED: STATUS,
    "validation": ["-m", "mobilenet_pipeline.stages", "validate", "cifar10"],
}
"""Tasks that are commands of the pipeline; the others run in this program."""
ENDS = {"status": (0, 3), UNCOMPILED: (0, 3)}
"""The exit codes of a success. 3 says that nothing is served, and it is so: nobody built a Bento."""
PREPARATIONS = {"status": fill_registry, UNCOMPILED: fill_registry, "validation": write_manifest}
IMPORTS = {
    "status": "import mobilenet_pipeline.release.promotion, mobilenet_pipeline.release.review",
    UNCOMPILED: "pass",
    "gate": "import scipy.stats, mobilenet_pipeline.gate.verdict",
    "confusion_figure": "import mobilenet_pipeline.reports.figures, matplotlib.backends.backend_agg",
    "validation": "import mobilenet_pipeline.data.validation, great_expectations",
}

if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
