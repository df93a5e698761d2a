"""Measure how training scales over workers, hold a model of the step against it, and say what it means for many GPUs.

Each worker is a process on a core of its own. One worker with the global batch, two workers that share it, and two that
train alone at the same time take turns, so that other load on the machine affects all of them.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keeping import keep
from step_model import Step, line
from tqdm import tqdm

from mobilenet_pipeline.workspace.files import write_json

RESULTS = Path("docs/results/cluster.json")
ROWS = Path("docs/results/rows.json")
"""What `make bench-rows` has measured."""
COMMAND = "make bench-cluster"
CASES = {"scratch": 32, "pretrained": 112}
"""Side in pixels at which the candidate of cifar10 computes."""
BATCH = 128
SECONDS = 4.0
"""What a turn of one worker takes, about."""
GPU = {"per_step": 0.002, "images_per_second": 3000.0, "latency": 20e-6, "bandwidth": 12.5e9}
"""An assumed GPU: seconds of a step, images a second, seconds of a message, bytes a second (100 Gbit/s)."""
LARGEST_BATCH = 8192
"""Up to which the learning rate may grow with the batch (Goyal et al. 2017)."""
SIZES = (1 << 12, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of the all-reduces that give latency and bandwidth."""
COUNTS = {1 << 12: 200, 1 << 20: 40, 1 << 22: 20, 1 << 24: 8}


class Worker:
    """A worker process."""

    def __init__(self, settings: dict[str, Any], peers: list[str] | None = None, index: int = 0) -> None:
        task = {"cluster": {"worker": peers}, "task": {"type": "worker", "index": index}}
        env = {**os.environ, **({"TF_CONFIG": json.dumps(task)} if peers else {})}
        command = [sys.executable, str(Path(__file__).with_name("scaling_worker.py")), json.dumps(settings)]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def read(self) -> Any:
        """Return the worker's next line. Raises SystemExit if it ended."""
        assert self.process.stdout
        while text := self.process.stdout.readline():
            if text[0] in "{0123456789":
                return json.loads(text)
        raise SystemExit(f"a worker ended with exit code {self.process.wait()}")

    def tell(self, **order: int) -> None:
        """Give an order."""
        assert self.process.stdin
        print(json.dumps(order), file=self.process.stdin, flush=True)


class Group:
    """Workers that get the same orders; `facts` are those of the first."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        facts = [one.read() for one in workers]  # all of them have started
        self.facts: dict[str, int] = facts[0]

    def seconds(self, **order: int) -> float:
        """Return the seconds of the slowest worker."""
        for worker in self.workers:
            worker.tell(**order)
        return max(float(worker.read()) for worker in self.workers)


def together(settings: dict[str, Any], stack: ExitStack) -> Group:
    """Start two workers, on two cores, that train together."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    peers = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return _group([Worker({**settings, "core": index}, peers, index) for index in (0, 1)], stack)


def alone(settings: dict[str, Any], cores: list[int], stack: ExitStack) -> Group:
    """Start workers that train for themselves."""
    return _group([Worker({**settings, "core": core}) for core in cores], stack)


def _group(workers: list[Worker], stack: ExitStack) -> Group:
    for worker in workers:
        stack.callback(worker.process.kill)
    return Group(workers)


def measure(candidate: str, size: int, turns: int) -> dict[str, Any]:
    """Return the seconds of a step of each kind, medians over the turns, and the facts of the model."""
    plain = {"candidate": candidate, "size": size, "sync_norm": False}
    with ExitStack() as stack:
        groups = {
            "one": alone({**plain, "batch": BATCH}, [0], stack),
            "half": alone({**plain, "batch": BATCH // 2}, [0], stack),
            "quarter": alone({**plain, "batch": BATCH // 4}, [0], stack),
            "both": alone({**plain, "batch": BATCH // 2}, [0, 1], stack),
            "both_quarter": alone({**plain, "batch": BATCH // 4}, [0, 1], stack),
            "two": together({**plain, "batch": BATCH // 2}, stack),
            "two_synchronised": together({**plain, "sync_norm": True, "batch": BATCH // 2}, stack),
        }
        steps = {}
        for name, group in groups.items():
            group.seconds(steps=2)  # traces
            steps[name] = max(2, round(SECONDS / (group.seconds(steps=2) / 2)))
        for size_ in SIZES:
            groups["two"].seconds(reduce=size_, count=2)
        groups["two"].seconds(exchange=2)
        taken: dict[str, list[float]] = {name: [] for name in groups}
        reduced: dict[int, list[float]] = {size_: [] for size_ in SIZES}
        exchanged: list[float] = []
        for _ in tqdm(range(turns), desc=f"{candidate}, {size} px", unit="turn"):
            for name, group in groups.items():
                taken[name].append(group.seconds(steps=steps[name]) / steps[name])
            for size_ in SIZES:
                reduced[size_].append(groups["two"].seconds(reduce=size_, count=COUNTS[size_]) / COUNTS[size_])
            exchanged.append(groups["two"].seconds(exchange=20) / 20)
        facts = groups["two"].facts
    return {
        "step_seconds": {name: statistics.median(values) for name, values in taken.items()},
        "reduce_seconds": {str(size_): statistics.median(values) for size_, values in reduced.items()},
        "exchange_seconds": statistics.median(exchanged),
        "bytes": facts["bytes"],
        "norms": facts["norms"],
    }


def model_of(measured: dict[str, Any]) -> Step:
    """Return the model of the step: compute from batches of ¼ and ½, exchange from all-reduces of four sizes."""
    seconds, reduced = measured["step_seconds"], measured["reduce_seconds"]
    per_step, per_image = line((BATCH // 4, seconds["quarter"]), (BATCH // 2, seconds["half"]))
    # Of two workers, 2 (n - 1) = 2 messages, and 2 (n - 1) / n = 1 times the bytes.
    fixed = reduced[str(SIZES[0])]
    slope = line((SIZES[1], reduced[str(SIZES[1])]), (SIZES[-1], reduced[str(SIZES[-1])]))[1]
    # Gradients, moments, loss and number of right answers.
    return Step(per_step, per_image, measured["bytes"], calls=4, latency=fixed / 2, bandwidth=1 / slope)


def compared(measured: dict[str, Any]) -> dict[str, Any]:
    """Return efficiencies, where the time of two workers goes, and the errors of the model."""
    seconds, step = measured["step_seconds"], model_of(measured)
    contention = seconds["both_quarter"] / seconds["quarter"]
    two = step.slowed(contention)
    predicted = {"one": step.seconds(1, BATCH), "two": two.seconds(2, BATCH // 2)}
    predicted["two_synchronised"] = two_synchronised(two, measured["norms"]).seconds(2, BATCH // 2)
    errors = {name: abs(value / seconds[name] - 1) for name, value in predicted.items()}
    half = seconds["one"] / 2
    return {
        "efficiency": half / seconds["two"],
        "efficiency_sync_norm": half / seconds["two_synchronised"],
        "efficiency_without_exchange": half / seconds["both"],
        "share_of_exchange": two.exchange(2) / predicted["two"],
        "contention": contention,
        "predicted_seconds": predicted,
        "errors": errors,
        "model": asdict(step),
    }


def two_synchronised(step: Step, norms: int) -> Step:
    """Return the step with synchronised batch norms: two small all-reduces for each, forward and backward."""
    return Step(**{**asdict(step), "calls": step.calls - 1 + 2 * norms})


def many_gpus(bytes_: float, calls: float) -> list[dict[str, Any]]:
    """Return what the model says of many GPUs, for batches of each GPU and for the largest global batch."""
    gpu = Step(GPU["per_step"], 1 / GPU["images_per_second"], bytes_, calls, GPU["latency"], GPU["bandwidth"])
    rows = []
    for workers in (8, 64, 1000):
        for images in dict.fromkeys([32, 128, max(1, LARGEST_BATCH // workers)]):
            rows.append(
                {
                    "gpus": workers,
                    "images_per_gpu": images,
                    "global_batch": workers * images,
                    "efficiency": round(gpu.efficiency(workers, images), 3),
                    "images_per_second": round(workers * images / gpu.seconds(workers, images)),
                    "exchange_ms": round(1000 * gpu.exchange(workers), 2),
                    "within_the_rule": workers * images <= LARGEST_BATCH,
                }
            )
    return rows


def scaling(turns: int) -> None:
    """Measure workers on this machine, and write the figures."""
    cases: dict[str, Any] = {}
    for candidate, size in CASES.items():
        measured = measure(candidate, size, turns)
        cases[candidate] = {"size": size, "global_batch": BATCH, **measured, **compared(measured)}
        print(json.dumps({candidate: compared(measured)}, indent=2), flush=True)
    gpus = {"assumed": GPU, "rows": many_gpus(cases["pretrained"]["bytes"], cases["pretrained"]["model"]["calls"])}
    keep(RESULTS, "scaling", {"turns": turns, "cases": cases, "gpus": gpus}, COMMAND, ["tensorflow", "keras"])
    # Synchronised norms compute otherwise, too, which the model does not contain.
    synchronised = max(case["errors"]["two_synchronised"] for case in cases.values())
    plain = max(case["errors"][kind] for case in cases.values() for kind in ("one", "two"))
    summarise(
        {f"workers2_efficiency_{name}": round(case["efficiency"], 3) for name, case in cases.items()}
        | {"model_error": round(plain, 3), "model_error_sync_norm": round(synchronised, 3)}
    )


def failures() -> None:
    """Run the tests of a Ray cluster of two nodes, and write what they saw when a part was lost."""
    with tempfile.NamedTemporaryFile("r") as record:
        command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=1800", "tests/integration/test_cluster.py"]
        code = subprocess.run(command, env={**os.environ, "CLUSTER_RECORD": record.name}, check=False).returncode
        if code:
            raise SystemExit(f"the tests have failed with exit code {code}; no figures were written")
        rows = [json.loads(text) for text in record]
    keep(RESULTS, "failures", {"rows": rows}, COMMAND, ["ray", "tensorflow"])
    differences = [row["largest_difference"] for row in rows if row["largest_difference"] is not None]
    summarise({"restart_equal": max(differences) < 1e-5, "restart_largest_difference": max(differences)})


def summarise(figures: dict[str, Any]) -> None:
    """Write figures beside those of the parts."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_json(RESULTS, {**{key: value for key, value in document.items() if key not in figures}, **figures})


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["scaling", "failures"], choices=["scaling", "failures"])
    parser.add_argument("--turns", type=int, default=7, help="default: %(default)s")
    options = parser.parse_args()
    if "scaling" in options.parts:
        scaling(options.turns)
    if "failures" in options.parts:
        failures()
    if ROWS.exists():
        rows = json.loads(ROWS.read_text(encoding="utf-8"))
        summarise({"million_rows_peak_mib": rows["million_rows_peak_mib"]})


if __name__ == "__main__":
    main()
