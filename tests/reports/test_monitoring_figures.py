"""The picture of the monitoring, of much, little and nothing."""

from dataclasses import replace

import numpy as np
import pytest

from mobilenet_pipeline.reports.monitoring_figures import Shown, draw

RNG = np.random.default_rng(0)
SHOWN = Shown(
    class_names=["cat", "dog $"],
    statistics={
        "colour_gradient": (RNG.normal(0, 1, 500), RNG.normal(1, 1, 50)),
        "saturation": (np.zeros(9), np.zeros(9)),
    },
    confidence=(RNG.uniform(0.5, 1, 500), RNG.uniform(0.5, 1, 50)),
    predicted=(np.arange(500) % 2, np.arange(50) % 2),
    title="digits, version 3",
    drifted={"colour gradient"},
    windows=[("short", 0, 900, {"images"}), ("long", 0, 3600, set())],
    causes=("images", "classes"),
    days=[("2026-11-29", 0.9, 0.8, 0.95)],
    promised=0.93,
)
NONE = np.zeros(0)


@pytest.mark.parametrize(
    "shown",
    [
        SHOWN,
        replace(SHOWN, days=[], windows=[]),
        replace(SHOWN, class_names=[f"class {number}" for number in range(1000)]),
        replace(SHOWN, statistics={"gradient": (np.ones(9), np.full(9, np.nan))}),
        replace(SHOWN, statistics={}, confidence=(np.ones(9), NONE), predicted=(np.arange(9) % 2, NONE.astype(int))),
    ],
    ids=["everything", "no windows", "many classes", "not recorded", "no answers"],
)
def test_the_picture_is_drawn(shown: Shown) -> None:
    assert draw(shown).startswith(b"\x89PNG")
