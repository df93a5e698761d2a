"""A reference, and answers for images that look like those of the reference, or not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mobilenet_pipeline.config import Monitoring, load_recipe
from mobilenet_pipeline.evaluation.reference import Reference
from mobilenet_pipeline.inference import statistics
from mobilenet_pipeline.monitoring.answers import Answers, Record

NAMES = ["cat", "dog", "fish", "bird"]
SHARES = (0.25, 0.25, 0.25, 0.25)


@pytest.fixture(scope="session")
def limits(request: pytest.FixtureRequest) -> Monitoring:
    """The limits of the recipe digits."""
    return load_recipe("digits", request.config.rootpath / "params.yaml").monitoring


@pytest.fixture(scope="session")
def reference() -> Reference:
    """1,000 test images, whose statistics have mean 100 and standard deviation 10."""
    rng = np.random.default_rng(0)
    return Reference(
        class_names=NAMES,
        rows=1000,
        names=list(statistics.NAMES),
        statistics=rng.normal(100, 10, (1000, len(statistics.NAMES))),
        predicted=np.arange(1000) % len(NAMES),
        confidence=rng.beta(8, 2, 1000),
    )


@pytest.fixture
def answered() -> Callable[..., Answers]:
    """A function that returns answers a second apart; `brightness` shifts it, in standard deviations."""

    def make(
        count: int,
        *,
        brightness: float = 0,
        shares: tuple[float, ...] = SHARES,
        start: float = 0,
        seed: int = 1,
        **other: Any,
    ) -> Answers:
        rng = np.random.default_rng(seed)
        measured = rng.normal(100, 10, (count, len(statistics.NAMES)))
        measured[:, 0] += 10 * brightness
        made = Answers(
            at=start + np.arange(count, dtype=float),
            ids=np.array([f"{index:016x}" for index in range(count)], object),
            versions=np.full(count, "3", object),
            predicted=rng.choice(len(NAMES), count, p=shares),
            confidence=rng.beta(8, 2, count),
            milliseconds=np.full(count, 5.0),
            first=np.ones(count, bool),
            statistics=measured,
        )
        return replace(made, **other)

    return make


@pytest.fixture
def recorded() -> Callable[..., Record]:
    """A function that returns the record of answers, one after the other, without failed requests."""

    def make(*parts: Answers) -> Record:
        columns = {name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])}
        return Record(Answers(**columns), np.zeros(0), np.zeros(0, int), damaged=0)

    return make
