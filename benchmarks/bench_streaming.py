"""Compare training from a dataset's file with training from memory: images per second, and peak memory.

For each image size, two processes train MobileNet α 0.25 in turn, so that other load on the machine affects both. One
holds its images in memory. The other reads every batch from a memory-mapped file of random pixels, under a limit of its
memory that is smaller than the larger file. The result is one line of JSON for each size and, with `--results`, a file.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

CLASSES = 10
IMAGES = {32: 50_000, 224: 20_000}
"""Images in the file, by their side in pixels: 146 MiB and 2.8 GiB."""
HELD = {32: 50_000, 224: 4_000}
"""How many of them the other process holds in memory."""
STEPS = {32: 60, 224: 12}
"""Training steps of a turn."""
BATCH = 64
TOGETHER = 500


def main() -> None:
    """Write the files, train in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*IMAGES], choices=IMAGES, help="sides in pixels")
    parser.add_argument("--turns", type=int, default=5, help="turns of each process (default: %(default)s)")
    parser.add_argument(
        "--limit", type=int, default=2048, help="memory of the reading process, MiB (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, help="JSON file to write")
    parser.add_argument("--train", choices=["memory", "file"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.train:
        train(chosen.train, chosen.file, chosen.limit)
        return
    results = []
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "images.npy"
            write(file, size)
            results.append(compare(file, size, chosen.turns, chosen.limit))
            print(json.dumps(results[-1]), flush=True)
    if chosen.results:
        chosen.results.write_text(json.dumps({"command": "make bench-streaming", "sizes": results}, indent=2) + "\n")


def write(file: Path, size: int) -> None:
    """Write random images of this size, a part at a time."""
    rng = np.random.default_rng(0)
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (IMAGES[size], size, size, 3))
    for start in range(0, len(pixels), TOGETHER):
        pixels[start : start + TOGETHER] = rng.integers(0, 256, (TOGETHER, size, size, 3), np.uint8)
    pixels.flush()


def compare(file: Path, size: int, turns: int, limit: int) -> dict[str, Any]:
    """Return images per second and peak memory of both ways, and the ratio of their medians."""
    sides = {side: start(side, file, limit) for side in ("memory", "file")}
    lines: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, process in sides.items():
            answer = ask(process)
            if turn:  # the first turn traces and warms up
                lines[side].append(answer)
    for process in sides.values():
        process.communicate()
    speeds = {side: statistics.median(line["images_per_second"] for line in lines[side]) for side in sides}
    return {
        "size": size,
        "images": IMAGES[size],
        "mib": round(file.stat().st_size / 2**20),
        "limit_mib": limit,
        "turns": turns,
        "images_per_second": {side: round(speed, 1) for side, speed in speeds.items()},
        "peak_mib": {side: lines[side][-1]["peak_mib"] for side in sides},
        "speed_ratio": round(speeds["file"] / speeds["memory"], 3),
    }


def start(side: str, file: Path, limit: int) -> subprocess.Popen[str]:
    """Start the process of one way."""
    words = [sys.executable, __file__, "--train", side, "--file", str(file), "--limit", str(limit)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """Let a process train for a turn and return its figures. Raises SystemExit if it ended."""
    stdin, stdout = _pipes(process)
    stdin.write("go\n")
    stdin.flush()
    line = stdout.readline()
    if not line:
        raise SystemExit(f"a training ended with exit code {process.wait()}; raise --limit")
    return json.loads(line)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin
    assert process.stdout
    return process.stdin, process.stdout


def train(side: str, file: Path, limit: int) -> None:
    """Train for a turn for every line of the standard input, and print a line of JSON."""
    peak = Peak()
    if side == "file":
        # What a process allocates, not what it maps: the kernel drops pages of the file when it needs their memory.
        resource.setrlimit(resource.RLIMIT_DATA, (limit << 20, limit << 20))
    from mobilenet_pipeline.system import environment

    environment.prepare()
    import tensorflow as tf

    from mobilenet_pipeline import config
    from mobilenet_pipeline.models import network
    from mobilenet_pipeline.training import batches, distribution, steps

    batches.IN_MEMORY = (1 << 40) if side == "memory" else 0
    pixels = np.load(file, mmap_mode="r")
    size, count = pixels.shape[1], len(pixels) if side == "file" else HELD[pixels.shape[1]]
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(pixels))[:count]
    images = batches.Images(pixels, rng.integers(0, CLASSES, count), rows)
    changes = {"alpha": 0.25, "strides": "stock", "input_sizes": [size], "batch_size": BATCH, "precision": "auto"}
    candidate = config.load_recipe("digits").candidate("scratch").model_copy(update=changes | {"flip": "random"})
    candidate = candidate.with_precision(bfloat16=distribution.bfloat16_helps())
    strategy = tf.distribute.get_strategy()
    stepper = steps.Stepper(candidate, network.build_trained(candidate, CLASSES), strategy, images)
    stepper.set_length(10_000)
    stream = stepper.batches(0, 1_000)
    for _ in sys.stdin:
        began = time.perf_counter()
        taken, _, _ = stepper.take(stream, STEPS[size], size)
        speed = taken * BATCH / (time.perf_counter() - began)
        print(json.dumps({"images_per_second": speed, "peak_mib": peak.mib}), flush=True)


class Peak(threading.Thread):
    """Watches the anonymous memory of this process: what it allocated, without the pages of files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib = 0
        self.start()

    def run(self) -> None:
        """Look ten times a second."""
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
            self.mib = max(self.mib, int(line.split()[1]) // 1024)
            time.sleep(0.1)


if __name__ == "__main__":
    main()
