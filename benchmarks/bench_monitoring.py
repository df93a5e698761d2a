"""Measure how quiet the monitoring is without drift, and how soon it raises planted drift.

The champion is the bundled CIFAR-10 checkpoint with a linear layer that is fitted here on training images. Its
reference are the 10,000 test images, without labels. Requests are drawn from the 10,000 validation images, which it has
not seen, at 2,000 a day and random times. Time is simulated; images, statistics and answers are real. The service's
record is skipped: the same functions get the arrays that are read from it.

`quiet_days` is the share of 100 days without drift in which nothing is raised. The minutes are those in which 95 % of
many planted shifts are raised, from the first changed image to the look that raises it. Each shift begins at a random
time of a day; a look happens every 15 minutes, as in prefect.yaml. The results are written to
docs/results/monitoring.json.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mobilenet_pipeline.system import environment

environment.prepare()

import numpy as np
from PIL import Image
from tqdm import tqdm, trange

from mobilenet_pipeline import config
from mobilenet_pipeline.data import dataset, ingest, split
from mobilenet_pipeline.evaluation import corruptions, reference
from mobilenet_pipeline.inference import statistics
from mobilenet_pipeline.monitoring import alarms, comparisons
from mobilenet_pipeline.monitoring.answers import Answers, Record
from mobilenet_pipeline.monitoring.look import see
from mobilenet_pipeline.reports import monitoring_figures
from mobilenet_pipeline.system import machine
from mobilenet_pipeline.workspace import files, paths, provenance
from serving.record import Answer, describe

RESULTS, PICTURE = Path("docs/results/monitoring.json"), Path("docs/images/monitoring.png")
CACHE = Path(".bench/monitoring.npz")
REQUESTS_A_DAY, DAY, QUARTER = 2000, 86400.0, 900.0
VERSION = "1"
QUALITY = 75
BLUR = 2
"""Severity, a Gaussian kernel of 0.8 pixels."""
BATCH = 64
"""Images that the service measures together at most."""
BRIGHTER = 50
"""On the scale 0 to 255."""
MIX = (3, 5)
"""The classes that requests are of after a shift of the class mix: cats and dogs, which the champion confuses most."""
HALVED = 3
"""The class whose share is halved, the one with the lowest accuracy."""
DAYS_BEFORE = 0.25
LARGEST_WAIT = 5 * DAY
REFERENCES, WINDOWS = (360, 1_000, 2_000, 10_000), (2_000, 10_000, 100_000)
SMALL_SHIFT = 0.02
"""A shift of every statistic in standard deviations, which must never be drift."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Images that requests are drawn from: statistics, predicted classes and confidence, one row an image."""

    statistics: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


def main() -> None:
    """Simulate, print the results, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=100, help="days without drift (default: %(default)s)")
    parser.add_argument("--shifts", type=int, default=50, help="planted shifts of each kind (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="windows of each size (default: %(default)s)")
    options = parser.parse_args()
    recipe = config.load_recipe("cifar10")
    limits = recipe.monitoring
    known, pools, labels, known_images = champion(recipe)
    rng = np.random.default_rng(0)
    everything = np.arange(len(labels))
    halved = np.concatenate([np.flatnonzero(labels != HALVED)] * 2 + [np.flatnonzero(labels == HALVED)])
    plain = pools["plain"]
    shifts: dict[str, tuple[Pool, np.ndarray]] = {
        "blur": (pools["blur"], everything),
        "brightness": (pools["brightness"], everything),
        "class_mix": (plain, np.flatnonzero(np.isin(labels, MIX))),
        "jpeg_75": (pools["jpeg"], everything),
    }
    quiet = quiet_days(rng, plain, known, limits, options.days)
    waits = {
        name: [wait(rng, plain, pool, rows, known, limits, QUARTER) for _ in trange(options.shifts, desc=name)]
        for name, (pool, rows) in shifts.items()
    }
    hourly = {
        name: [
            wait(rng, plain, pool, rows, known, limits, 3600.0)
            for _ in trange(options.shifts // 2, desc=f"{name} hourly")
        ]
        for name, (pool, rows) in shifts.items()
    }
    half = [
        wait(rng, plain, plain, halved, known, limits, QUARTER)
        for _ in trange(max(1, options.shifts // 5), desc="half")
    ]
    document = {
        "quiet_days": quiet,
        **{f"{name}_detected_minutes": in_minutes(minutes)["95 %"] for name, minutes in waits.items()},
        "minutes": {name: in_minutes(minutes) for name, minutes in waits.items()},
        "minutes_with_hourly_looks": {name: in_minutes(minutes) for name, minutes in hourly.items()},
        "half_class_detected_hours": round(in_minutes(half)["95 %"] / 60, 1),
        "half_class_found": half_class_found(rng, plain, plain.predicted, known, limits, options.draws),
        "half_true_class_found": half_class_found(rng, plain, labels, known, limits, options.draws),
        "small_shift_found": small_shift_found(rng, known, limits, options.draws),
        "distances": distances(pools, known),
        "record": cost(np.asarray(known_images[:BATCH]), recipe),
        "days": options.days,
        "requests_a_day": REQUESTS_A_DAY,
        "shifts_of_each_kind": options.shifts,
        "shifts_of_each_kind_with_hourly_looks": options.shifts // 2,
        "champion": {
            "weights": "bundled CIFAR-10 checkpoint, linear layer fitted on the training images",
            "validation_accuracy": round(float((plain.predicted == labels).mean()), 4),
        },
        "reference_images": known.rows,
        "limits": limits.model_dump(),
        "seed": 0,
        "command": "make bench-monitoring",
        "commit": provenance.git_commit(Path("."))[0],
        "machine": machine.describe_machine(),
        "packages": {name: metadata.version(name) for name in ("numpy", "scipy")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    files.write_json(RESULTS, document)
    with files.whole(PICTURE) as partial:
        partial.write_bytes(picture(rng, plain, pools["jpeg"], known, limits))
    print(json.dumps(document, indent=2))


def quiet_days(
    rng: np.random.Generator, pool: Pool, known: reference.Reference, limits: config.Monitoring, days: int
) -> float:
    """Return the share of days without drift in which nothing is raised."""
    state, loud, kept = alarms.State(VERSION), set[int](), drawn(rng, pool, np.arange(len(pool.predicted)), 0, 0)
    for day in trange(days, desc="days without drift"):
        kept = joined(kept, drawn(rng, pool, np.arange(len(pool.predicted)), day * DAY, (day + 1) * DAY))
        for now in np.arange(day * DAY, (day + 1) * DAY, QUARTER) + QUARTER:
            seen = see(record(kept), known, state, float(now), limits)
            state = seen.state
            loud |= {day for change in seen.changes if change.what == "raised"}
        kept = kept.between(min(state.since.values()), np.inf)
    return 1 - len(loud) / days


def wait(
    rng: np.random.Generator,
    plain: Pool,
    shifted: Pool,
    rows: np.ndarray,
    known: reference.Reference,
    limits: config.Monitoring,
    between: float,
) -> float:
    """Return the minutes from a shift at a random time to the look that raises it; looks happen every `between` s.

    A draw with a false alarm before the shift is drawn again: people have an alert then.
    """
    onset = DAYS_BEFORE * DAY + rng.uniform(0, DAY)
    before = drawn(rng, plain, np.arange(len(plain.predicted)), onset - DAYS_BEFORE * DAY, onset)
    after = drawn(rng, shifted, rows, onset, onset + LARGEST_WAIT)
    everything, state = joined(before, after), alarms.State(VERSION)
    first = float(after.at[0])
    for now in np.arange(np.ceil((onset - DAYS_BEFORE * DAY) / between), (onset + LARGEST_WAIT) / between) * between:
        told = everything.between(-np.inf, float(now))
        seen = see(record(told), known, state, float(now), limits)
        state = seen.state
        if any(change.what == "raised" for change in seen.changes):
            if now <= first:
                return wait(rng, plain, shifted, rows, known, limits, between)
            return (float(now) - first) / 60
    return LARGEST_WAIT / 60


def in_minutes(values: list[float]) -> dict[str, float]:
    """Return the minutes in which half, 95 % and all of the shifts are raised."""
    shares = {"50 %": 0.5, "95 %": 0.95, "100 %": 1.0}
    return {name: round(float(np.quantile(values, share, method="higher")), 1) for name, share in shares.items()}


def drawn(rng: np.random.Generator, pool: Pool, rows: np.ndarray, start: float, end: float) -> Answers:
    """Return answers for images drawn from `rows` of the pool, at random times from `start` to `end`."""
    count = int(rng.poisson(REQUESTS_A_DAY * (end - start) / DAY))
    chosen = rng.choice(rows, count)
    return Answers(
        at=np.sort(rng.uniform(start, end, count)),
        ids=np.full(count, "", object),
        versions=np.full(count, VERSION, object),
        predicted=pool.predicted[chosen],
        confidence=pool.confidence[chosen],
        milliseconds=rng.lognormal(np.log(3), 0.5, count),
        first=np.ones(count, bool),
        statistics=pool.statistics[chosen],
    )


def joined(one: Answers, other: Answers) -> Answers:
    """Return the answers of both, the second ones later."""
    return Answers(**{name: np.concatenate([values, vars(other)[name]]) for name, values in vars(one).items()})


def record(answers: Answers) -> Record:
    """Return a record without failed requests."""
    return Record(answers, np.zeros(0), np.zeros(0, int), damaged=0)


def half_class_found(
    rng: np.random.Generator,
    pool: Pool,
    classes: np.ndarray,
    known: reference.Reference,
    limits: config.Monitoring,
    draws: int,
) -> dict[str, dict[str, float]]:
    """Return how often a class at half its share is found in one window, by images of reference and window.

    `classes` (n,) are the predicted or the true classes of the pool.
    """
    weights = np.where(classes == HALVED, 0.5, 1.0)
    weights /= weights.sum()

    def found(expected: np.ndarray, images: int) -> bool:
        seen = np.bincount(pool.predicted[rng.choice(len(classes), images, p=weights)], minlength=len(expected))
        ratios, p_values = comparisons.ratios_of(expected, seen)
        # As strict as `compare`: Holm's first step with all tests of a window.
        tests = len(expected) + len(known.names) + 5
        return bool(ratios[HALVED] <= limits.class_ratio and p_values[HALVED] * tests < limits.significance)

    return _by_size(rng, known, draws, found)


def small_shift_found(
    rng: np.random.Generator, known: reference.Reference, limits: config.Monitoring, draws: int
) -> dict[str, float]:
    """Return how often a shift of SMALL_SHIFT standard deviations is drift, by images of the window."""
    values = known.statistics[:, 0]
    shares = {}
    for images in tqdm(WINDOWS, desc="small shift"):
        hits = 0
        for _ in range(draws):
            distance, p = comparisons.distance_of(values, rng.choice(values, images) + SMALL_SHIFT * values.std())
            hits += distance >= limits.distance and p < limits.significance
        shares[f"{images}"] = hits / draws
    return shares


def _by_size(
    rng: np.random.Generator, known: reference.Reference, draws: int, found: Callable[[np.ndarray, int], bool]
) -> dict[str, dict[str, float]]:
    classes = len(known.class_names)
    table: dict[str, dict[str, float]] = {}
    for rows in tqdm(REFERENCES, desc="half a class"):
        references = [np.bincount(rng.choice(known.predicted, rows), minlength=classes) for _ in range(draws)]
        table[f"{rows}"] = {
            f"{images}": float(np.mean([found(expected, images) for expected in references])) for images in WINDOWS
        }
    return table


def picture(
    rng: np.random.Generator, plain: Pool, shifted: Pool, known: reference.Reference, limits: config.Monitoring
) -> bytes:
    """Return the picture of half a day whose images are recompressed from its last two hours on."""
    everything = np.arange(len(plain.predicted))
    end = 20_424 * DAY + 12 * 3600
    answers = joined(
        drawn(rng, plain, everything, end - DAY / 2, end - 7200), drawn(rng, shifted, everything, end - 7200, end)
    )
    seen = see(record(answers), known, alarms.State(VERSION), end, limits)
    columns = zip(known.names, known.statistics.T, seen.compared.statistics.T, strict=True)
    return monitoring_figures.draw(
        monitoring_figures.Shown(
            class_names=known.class_names,
            statistics={name: (expected, found) for name, expected, found in columns},
            confidence=(known.confidence, seen.compared.confidence),
            predicted=(known.predicted, seen.compared.predicted),
            title=f"JPEG at quality {QUALITY} since 10:00: {len(seen.compared)} answers, {known.rows:,} test images",
            drifted={test for alert in seen.state.open for test in alert.sentences},
            windows=[(one.scale, one.start, one.end, {*one.drifted.values()}) for one in seen.state.windows],
            causes=comparisons.CAUSES,
            days=[],
            promised=0.0,
        )
    )


def champion(recipe: config.Recipe) -> tuple[reference.Reference, Mapping[str, Pool], np.ndarray, np.ndarray]:
    """Return the champion's reference, its answers for plain and changed validation images, labels and pixels."""
    data = open_images(recipe)
    training, validation = split.split_rows(data, recipe.split)
    test = np.flatnonzero(data.is_test)
    images, rng = np.asarray(data.images[validation]), np.random.default_rng(0)
    changed = {
        "plain": images,
        "blur": corruptions.blur(images, BLUR, rng),
        "brightness": np.clip(images.astype(int) + BRIGHTER, 0, 255).astype(np.uint8),
        "jpeg": recompressed(images),
    }
    answers = cached_answers(recipe, data, training, {"test": np.asarray(data.images[test]), **changed})
    known = reference.describe(data.images, test, answers["test"], recipe.data.class_names)
    pools = {
        name: Pool(
            statistics.table(statistics.measure(pixels)), answers[name].argmax(axis=1), answers[name].max(axis=1)
        )
        for name, pixels in changed.items()
    }
    return known, pools, np.asarray(data.labels[validation]), images


def distances(pools: Mapping[str, Pool], known: reference.Reference) -> dict[str, dict[str, float]]:
    """Return the Kolmogorov-Smirnov distance of each statistic of plain and changed images from the reference."""
    return {
        name: {
            column: round(comparisons.distance_of(known.statistics[:, place], pool.statistics[:, place])[0], 2)
            for place, column in enumerate(known.names)
        }
        for name, pool in pools.items()
    }


def cost(images: np.ndarray, recipe: config.Recipe) -> dict[str, float]:
    """Return the bytes of a line of the record, and the CPU time per image of its statistics.

    The service measures what has come in a tenth of a second together, so the cost is between that of one image alone
    and that of a whole group.
    """
    shares = np.random.default_rng(0).dirichlet(np.full(len(recipe.data.class_names), 0.1)).astype(np.float32)
    probabilities = dict(zip(recipe.data.class_names, shares.tolist(), strict=True))
    prediction = {"answer_id": "0" * 16, "class": recipe.data.class_names[0], "confidence": float(shares.max())}
    names = {"model_name": recipe.registered_model, "model_version": VERSION}
    predictions = [prediction | {"probabilities": probabilities}]
    answers = [Answer("/predict", names, predictions, image[None], milliseconds=1.25) for image in images]
    lines = [json.dumps(line, separators=(",", ":")) for line in describe(answers, keep_images=False)]
    return {
        "bytes_an_answer": round(float(np.mean([len(line) + 1 for line in lines])), 1),
        "statistics_us_an_image_alone": microseconds(lambda: statistics.measure(images[:1])),
        f"statistics_us_an_image_of_{BATCH}": round(microseconds(lambda: statistics.measure(images)) / BATCH, 1),
    }


def microseconds(function: Callable[[], object]) -> float:
    """Return the median CPU time of a call."""
    times = []
    for _ in range(200):
        started = time.process_time_ns()
        function()
        times.append((time.process_time_ns() - started) / 1000)
    return round(float(np.median(times)), 1)


def open_images(recipe: config.Recipe) -> dataset.Dataset:
    """Return the dataset of the workspace, or one that is ingested for the benchmark."""
    folder = paths.data_folder(recipe)
    if not folder.exists():
        folder = CACHE.parent / recipe.name
        if not folder.exists():
            ingest.ingest(recipe, folder)
    return dataset.open_dataset(folder)


def recompressed(images: np.ndarray) -> np.ndarray:
    """Return the images after JPEG at quality QUALITY."""
    copies = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=QUALITY)
        copies.append(np.asarray(Image.open(stream)))
    return np.stack(copies)


def cached_answers(
    recipe: config.Recipe, data: dataset.Dataset, training: np.ndarray, images: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the champion's probabilities of each group of images; the first call takes minutes."""
    if CACHE.exists():
        with np.load(CACHE) as stored:
            if {*stored.files} == {*images}:
                return {name: stored[name] for name in stored.files}
    from sklearn.linear_model import LogisticRegression

    from mobilenet_pipeline.models import anatomy, network
    from mobilenet_pipeline.models.architectures import mobilenet

    backbone = mobilenet.backbone(0.25, anatomy.STRIDES["stem-1"])
    backbone.load_weights(mobilenet.bundled_weights())
    scale, offset = network.PIXEL_RANGES["signed"]

    def features(pixels: np.ndarray) -> np.ndarray:
        parts = [
            backbone(pixels[start : start + 500] * np.float32(scale) + np.float32(offset), training=False).numpy()
            for start in trange(0, len(pixels), 500, desc="features")
        ]
        return np.concatenate(parts).mean(axis=(1, 2))

    head = LogisticRegression(max_iter=300).fit(features(np.asarray(data.images[training])), data.labels[training])
    answers = {name: head.predict_proba(features(pixels)).astype(np.float32) for name, pixels in images.items()}
    CACHE.parent.mkdir(exist_ok=True)
    np.savez(CACHE, **answers)
    return answers


if __name__ == "__main__":
    main()
