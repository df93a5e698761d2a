"""Propose a recipe for images that were looked at: input size, network, length of the training, expectations. Pure."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mobilenet_pipeline.config import Candidate, Data
from mobilenet_pipeline.models import anatomy

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Image sizes that are proposed."""
SMALL = 32
"""The size for images that are smaller than every size: the convolutions need room."""
BY_STRIDES = ("stock", "stem-1", "stem-block2", "stem-block2-block12")
"""Strides that are proposed, the cheapest first."""
LEAST_MAP = 4
"""Side of the smallest final map that is proposed."""
MANY = 10_000
"""Training images from which on the larger network and the larger batch are proposed."""
TRAINED_PER_SECOND = 4e9
"""Multiply-adds of a forward pass that a core trains in a second: about half of what results/seed.json shows."""
VALIDATION_SHARE = 0.2
UNEVEN = 1.5
"""So many times an equal share is the largest class from which on class weights are proposed."""


@dataclass(frozen=True)
class Facts:
    """What the recipe says about the dataset. `balance` is the largest deviation of a class from an equal share.

    `test_share` is None if the source has test images of its own. `excluded` is the number of images left out of
    `found`.
    """

    path: str
    size: int
    resize: str
    digest: str
    class_names: Sequence[str]
    train_rows: int
    test_rows: int
    mean: Sequence[float]
    std: Sequence[float]
    balance: float
    largest_class: float
    test_share: float | None
    grouped: bool
    excluded: int
    found: int


def image_size(sides: Sequence[int]) -> int:
    """Return the size for images with these shorter sides in pixels: the largest of `SIZES` up to the median."""
    median = float(np.median(np.asarray(sides)))
    return max((size for size in SIZES if size <= median), default=SMALL)


def facts_of(
    manifest: pd.DataFrame,
    digest: str,
    class_names: Sequence[str],
    *,
    path: str,
    size: int,
    resize: str,
    test_share: float | None,
    found: int,
) -> Facts:
    """Return the facts of a manifest, as `validation` measures them."""
    train = manifest[manifest["split"] == "train"]
    mean = [float(train[f"mean_{name}"].mean()) for name in "rgb"]
    second = [float((train[f"std_{name}"] ** 2 + train[f"mean_{name}"] ** 2).mean()) for name in "rgb"]
    std = [math.sqrt(max(square - average**2, 0.0)) for square, average in zip(second, mean, strict=True)]
    counts = manifest.groupby(["split", "class_name"]).size().unstack(fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    return Facts(
        path=path,
        size=size,
        resize=resize,
        digest=digest,
        class_names=class_names,
        train_rows=len(train),
        test_rows=len(manifest) - len(train),
        mean=mean,
        std=std,
        balance=float(np.abs(shares - 1 / len(class_names)).max()),
        largest_class=float(shares.max()),
        test_share=test_share,
        grouped=bool((manifest["group"] != "").any()),
        excluded=found - len(manifest),
        found=found,
    )


def strides_for(input_size: int) -> str:
    """Return the cheapest strides whose final map has at least `LEAST_MAP` pixels a side."""
    fitting = (name for name in BY_STRIDES if input_size // math.prod(anatomy.STRIDES[name]) >= LEAST_MAP)
    return next(fitting, BY_STRIDES[-1])


def candidates(facts: Facts, cpu_minutes: float, imagenet: Sequence[float]) -> dict[str, Candidate]:
    """Return the candidates, each for half of `cpu_minutes`. `imagenet` are the widths whose weights are at hand."""
    many = facts.train_rows >= MANY
    symbols = all(len(name) == 1 or name.isdigit() for name in facts.class_names)
    images = facts.train_rows * (1 - VALIDATION_SHARE)
    smaller = [size for size in reversed(SIZES) if size < facts.size] if facts.size > 64 else []
    common: dict[str, Any] = {
        "pixel_range": "signed",
        "cpu_minutes": None,
        # At least eight steps an epoch, as far as that goes.
        "batch_size": 128 if many else 2 ** min(5, max(0, int(math.log2(max(1.0, images / 8))))),
        "precision": "auto",
        "sync_norm": False,
        "warmup": 0.2,
        "weight_decay": 5e-4,
        "class_weights": "balanced" if facts.largest_class * len(facts.class_names) > UNEVEN else "none",
        "flip": "none" if symbols else "random",
        "shift": max(1, facts.size // 12),
        "cutout": 0,
        "seed": 0,
    }

    def longest(options: list[tuple[float, int, str]], wanted: int, most: int, **settings: Any) -> Candidate:
        """Return the first of the networks that sees the images `wanted` times, or the one that sees them most."""
        fitted: list[tuple[float, Candidate]] = []
        for alpha, size, strides in options:
            fields = {"alpha": alpha, "input_sizes": [size], "strides": strides, "epochs": 1}
            candidate = Candidate(**{**common, **fields, **settings})
            cost = anatomy.multiply_adds(anatomy.mobilenet(candidate, len(facts.class_names)))
            epochs = cpu_minutes / 2 * 60 * TRAINED_PER_SECOND / (cost * images)
            fitted.append((epochs, candidate.model_copy(update={"epochs": min(max(int(epochs), 1), most)})))
            if epochs >= wanted:
                break
        return max(fitted, key=lambda fit: fit[0] if fit[0] < wanted else math.inf)[1]

    widths = (0.5, 0.25) if many else (0.25,)
    own = [(alpha, size, strides_for(size)) for size in (facts.size, *smaller) for alpha in widths]
    scratch = longest(
        own,
        10,
        30,
        weights="none",
        learning_rate=0.4 if many else 0.05,
        muon_rate=0.03 if many else None,
        frozen=0,
        label_smoothing=0.0,
    )
    fine = {"learning_rate": 0.05, "muon_rate": None}
    if imagenet:
        published = [(alpha, max(facts.size, 112), "stock") for alpha in sorted(imagenet, reverse=True)]
        pretrained = longest(published, 4, 15, weights="imagenet", frozen=4, label_smoothing=0.1, **fine)
    else:
        bundled = [option for option in own if option[0] == 0.25]
        pretrained = longest(bundled, 8, 20, weights="bundled", frozen=0, label_smoothing=0.0, **fine)
    return {"scratch": scratch, "pretrained": pretrained}


def changes(data: Data, facts: Facts) -> dict[str, Any]:
    """Return the data settings of a recipe that its images no longer meet, with the values that they meet now."""
    now: dict[str, Any] = {
        "path": facts.path,
        "digest": facts.digest,
        "train_rows": facts.train_rows,
        "test_rows": facts.test_rows,
        "channel_mean": [round(value, 8) for value in facts.mean],
        "channel_std": [round(value, 8) for value in facts.std],
    }
    return {key: value for key, value in now.items() if getattr(data, key) != value}


def over_limits(data: Data, facts: Facts) -> dict[str, str]:
    """Return the limits of a recipe that its images exceed, each with a sentence: the next run will stop there."""
    remedy = "the next run stops there; repair the images, or change the limit in params.yaml"
    measured = {"excluded_share": facts.excluded / facts.found, "class_balance_tolerance": facts.balance}
    return {
        key: f"now {value:.3f}, above the limit {getattr(data, key):g}: {remedy}"
        for key, value in measured.items()
        if value > getattr(data, key)
    }


def section(name: str, model: str, facts: Facts, chosen: Mapping[str, Candidate]) -> str:
    """Return the recipe as text for the end of params.yaml, with a comment at what people may want to change."""
    few = facts.test_rows < 1000
    lines = [
        f"  # Images of {_comment(facts.path)}, as `mobilenet-pipeline init` found them.",
        f"  {name}:",
        f"    registered_model: {model}",
        "    # Or manual: a person approves with `mobilenet-pipeline approve`.",
        "    promotion: automatic",
        "    data:",
        "      source: images",
        f"      path: {_text(facts.path)}",
        "      # 28 to 224. With another size, leave digest empty: the next run says the new values. A champion with",
        "      # another size cannot be compared: set another registered_model, too.",
        f"      image_size: {facts.size}",
        "      # Or pad: black borders instead of a cut.",
        f"      resize: {facts.resize}",
        "      # Share of the images for testing; null if the images have a test split of their own.",
        f"      test_share:{'' if facts.test_share is None else f' {facts.test_share:g}'}",
        "      split_seed: 0",
        "      # A run stops if a larger share of the images has to be left out.",
        f"      excluded_share: {_excluded_limit(facts):g}",
        "      # A hash of all images, labels and splits. A run refuses other images; after a change of them:",
        f"      # mobilenet-pipeline init {name} --update",
        f"      digest: {facts.digest}",
        "      class_names:",
        *(f"      - {_text(class_name)}" for class_name in facts.class_names),
        f"      train_rows: {facts.train_rows}",
        f"      test_rows: {facts.test_rows}",
        "      channel_mean:",
        *(f"      - {value:.8f}" for value in facts.mean),
        "      channel_std:",
        *(f"      - {value:.8f}" for value in facts.std),
        "      channel_tolerance: 0.001",
        f"      # An equal share would be {1 / len(facts.class_names):.2%} for every class.",
        f"      class_balance_tolerance: {min(1.0, math.ceil(facts.balance * 100 + 2) / 100):g}",
        f"    split: {{validation_share: {VALIDATION_SHARE:g}, seed: 0}}",
        "    candidates:",
    ]
    for candidate, settings in chosen.items():
        lines += [f"      {candidate}:", *_settings(settings)]
    floor = min(0.5, math.ceil(100 * max(facts.largest_class, 2 / len(facts.class_names))) / 100)
    lines += [
        "    serving:",
        "      # With int8 below it, every candidate has a smaller and faster twin.",
        "      precision:",
        "      - float32",
        "    gate:",
        "      # Modest: raise it to what the model has to reach.",
        f"      accuracy_floor: {floor:g}",
        f"      calibration_error: {0.1 if few else 0.05:g}",
        "      megabytes: 20",
        "      milliseconds: 100",
        "      # Share of the prediction sets that contain the right class; null gives no sets.",
        "      coverage: 0.95",
        "      significance: 0.05",
        "      # Or {margin: 0.003, saving: 0.2}; decide it before the run.",
        "      as_good_and_lighter:",
        "      recall_drop: 0.03",
        "      loss_margin: 0.01",
        "      corruption_drop: 0.01",
        "    monitoring:",
        "      retrain: false",
        "      window_minutes: 15",
        "      window_images: 15",
        "      images_per_class: 200",
        "      windows: 3",
        "      drifted_windows: 2",
        "      significance: 0.05",
        "      distance: 0.1",
        "      class_ratio: 0.8",
        "      milliseconds: 100",
        "      error_share: 0.01",
        "      accuracy_drop: 0.01",
        "      cool_down_hours: 24",
    ]
    return "\n".join(lines) + "\n"


COMMENTS = {
    "class_weights": "balanced: every class has the same part in the loss, however few images it has.",
    "alpha": "0.25, 0.5, 0.75 or 1.0: a wider network is slower.",
    "epochs": "How often the training sees every image.",
    "flip": "none for digits, letters, and whatever has a left and a right.",
}
ORDER = (
    "architecture",
    "weights",
    "alpha",
    "strides",
    "input_sizes",
    "pixel_range",
    "epochs",
    "cpu_minutes",
    "batch_size",
    "precision",
)


def _settings(settings: Candidate) -> list[str]:
    values = settings.model_dump()
    lines = []
    for key in (*ORDER, *(key for key in values if key not in ORDER)):
        if key in COMMENTS:
            lines.append(f"        # {COMMENTS[key]}")
        if isinstance(values[key], list):
            lines += [f"        {key}:", *(f"        - {value}" for value in values[key])]
        else:
            lines.append(f"        {key}:{_value(values[key])}")
    return lines


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f" {json.dumps(value)}" if isinstance(value, bool | float | int) else f" {value}"


def _excluded_limit(facts: Facts) -> float:
    """Return a share that is a little above what was found."""
    return min(1.0, math.ceil(100 * facts.excluded / facts.found + 1) / 100) if facts.excluded else 0.0


def _text(text: str) -> str:
    """Return the text as YAML that is a string again, whatever it looks like."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_/. -]*[A-Za-z0-9_]", text)
    words = {"true", "false", "null", "yes", "no", "on", "off"}
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())
