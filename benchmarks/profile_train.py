"""Show what the CPU time of a training step goes to, and how fast its matrix products are beside plain ones.

The steps are those of bench_train.py, at the same sizes and in the same number formats. Each setting has a process of
its own, with one thread, so that the duration of an operation is its CPU time. The results are written to
docs/results/profile.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import bench_train
import speed
import tensorflow as tf

from mobilenet_pipeline.config import Candidate
from mobilenet_pipeline.models import anatomy
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.training import distribution
from mobilenet_pipeline.workspace import files, provenance

RESULTS = Path("docs/results/profile.json")
BATCHES = 20
REST = "everything else"
PRODUCTS = "pointwise convolutions and stem"
KINDS = (
    # What part of an operation's type says which kind it is; the first that fits counts.
    ("Depthwise", "depthwise convolutions"),
    ("BatchNorm", "batch normalisation"),
    ("Conv2D", PRODUCTS),
    ("MatMul", PRODUCTS),
    ("Relu6", "ReLU6"),
    ("fusion", "ReLU6"),  # XLA compiles nothing else
    ("Momentum", "optimizer"),
    ("Cast", "number formats"),
)
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def main() -> None:
    """Profile every setting, and write the results; with a size, profile one and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, help="side of the input in pixels (default: all settings)")
    parser.add_argument("--precision", default="auto", help="of the layers (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.size:
        with speed.told():
            print(json.dumps(profile(bench_train.candidate_of(chosen.size, chosen.precision))))
        return
    rows = []
    with speed.told():
        for size, precision, variables in bench_train.SETTINGS:
            if variables or (precision == "auto" and not distribution.bfloat16_helps()):
                continue
            command = [sys.executable, __file__, "--size", str(size), "--precision", precision]
            child = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"size": size, "precision": precision} | json.loads(child.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    origin = {"command": "make profile-train", "commit": provenance.git_commit(Path("."))[0]}
    when = {"machine": machine.describe_machine(), "date": datetime.now(UTC).date().isoformat()}
    files.write_json(RESULTS, {"rows": rows} | origin | when)


def profile(candidate: Candidate) -> dict[str, object]:
    """Return the CPU seconds per 1,000 images of a step, the shares of its kinds, and the speed of its products."""
    images, labels = bench_train.random_images(candidate, BATCHES)
    train = bench_train.ours(candidate, images, labels)
    train()  # traces and warms up
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        began = time.process_time()
        train()
        seconds = time.process_time() - began
        tf.profiler.experimental.stop()
        spent = seconds_by_kind(operations(next(Path(folder).rglob("*.xplane.pb"))))
    shares = {kind: value / seconds for kind, value in spent.most_common()}
    shares[REST] = 1 - sum(shares.values())
    if shares[REST] < 0:
        raise ValueError(
            "operations took longer than the CPU time, so other work kept them waiting; stop that work, and try again"
        )
    # Two operations per multiply-add: forward, for the kernel's gradient, and but for the stem for the input's.
    layers = [layer for layer in anatomy.mobilenet(candidate, bench_train.CLASSES) if "_dw_" not in layer.name]
    flops = sum((4 if layer.name == "conv1" else 6) * layer.multiply_adds for layer in layers)
    return {
        "seconds_per_1000_images": round(seconds * 1000 / len(images), 3),
        "shares": {kind: round(share, 3) for kind, share in shares.items()},
        "gigaflops": {
            "step": round(flops * len(images) / spent[PRODUCTS] / 1e9, 1),
            "plain": round(plain_products(layers, candidate), 1),
        },
    }


def operations(trace: Path) -> Iterable[tuple[str, float]]:
    """Yield type and seconds of every operation in a trace of TensorFlow's profiler."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(trace.read_bytes())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # TensorFlow's operations are called NAME:TYPE, XLA's NAME_fusion.
                name = plane.event_metadata[event.metadata_id].name
                if ":" in name or name.endswith("fusion"):
                    yield name.rpartition(":")[2], event.duration_ps / 1e12


def seconds_by_kind(operations: Iterable[tuple[str, float]]) -> Counter[str]:
    """Return the summed seconds of each kind; operations of no kind are left out."""
    spent: Counter[str] = Counter()
    for operation, seconds in operations:
        if kind := next((kind for part, kind in KINDS if part in operation), None):
            spent[kind] += seconds
    return spent


def plain_products(layers: Iterable[anatomy.Layer], candidate: Candidate) -> float:
    """Return the GFLOP/s of matrix products of the same shapes as the layers' pointwise convolutions of a batch."""
    number = tf.float32 if candidate.precision == "float32" else tf.bfloat16
    flops = seconds = 0.0
    for layer in (layer for layer in layers if "_pw_" in layer.name):
        height, width, outputs = layer.output
        rows, inputs = candidate.batch_size * height * width, layer.parameters // outputs
        left, right = tf.ones((rows, inputs), number), tf.ones((inputs, outputs), number)
        tf.matmul(left, right)
        count = max(3, int(5e9 / (rows * inputs * outputs)))
        began = time.process_time()
        for _ in range(count):
            tf.matmul(left, right)
        seconds += (time.process_time() - began) / count
        flops += 2 * rows * inputs * outputs
    return flops / seconds / 1e9


if __name__ == "__main__":
    main()
