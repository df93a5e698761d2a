"""The evidence of a verdict: each file is read once, and the champion is measured on the candidates' images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_fixtures import DIGEST, ROWS, Make, Packaging, Run, Runs

from mobilenet_pipeline import config
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.data.dataset import Dataset
from mobilenet_pipeline.gate.checks import AS_GOOD
from mobilenet_pipeline.release import evidence, judging
from mobilenet_pipeline.workspace import ledger

pytestmark = pytest.mark.usefixtures("store")


def use_dataset(monkeypatch: pytest.MonkeyPatch, rows: int, digest: str) -> None:
    """Let the dataset that the champion is evaluated on be of `rows` images."""
    labels = (np.arange(rows) % 10).astype(np.uint8)
    data = Dataset(np.zeros((rows, 32, 32, 3)), labels, np.ones(rows, bool), digest, [], 0)
    monkeypatch.setattr(evidence, "open_dataset", lambda folder: data)
    monkeypatch.setattr(evidence, "split_rows", lambda *_: (np.arange(0), np.arange(0)))


def lighter(recipe: Recipe) -> Recipe:
    """Return the recipe in which a lighter candidate that is as good takes over."""
    rule = config.Lighter(margin=0.1, saving=0.2)
    return recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"as_good_and_lighter": rule})})


@pytest.mark.usefixtures("without_figures")
def test_judging_reads_each_predictions_file_once(make: Make, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    load = np.load

    def count(path: Any, *words: Any, **options: Any) -> Any:
        opened.append(str(path))
        return load(path, *words, **options)

    make("scratch", right=185)
    make("pretrained", right=195)
    monkeypatch.setattr(np, "load", count)
    judging.judge(recipe)
    assert opened == [f"models/digits/{name}/predictions.npz" for name in recipe.artefacts]


def test_a_champion_of_other_data_is_evaluated_on_the_new_test_images(
    make: Make, recipe: Recipe, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[bytes] = []

    def evaluate(artefact: Path, *_: object) -> tuple[dict, dict]:
        evaluated.append(artefact.read_bytes())
        document = json.loads(Path("metrics/digits/scratch.json").read_text())
        arrays = dict(np.load("models/digits/scratch/predictions.npz"))
        return document, arrays | {"probabilities": np.full((ROWS, 10), 0.1, np.float32)}

    runs((181, 185))
    for candidate, right in (("scratch", 182), ("pretrained", 190)):
        make(candidate, right=right, digest="e" * 64)
    use_dataset(monkeypatch, ROWS, "e" * 64)
    monkeypatch.setattr(evidence, "evaluate", evaluate)
    assert "pretrained is promoted" in run()
    verdict = judging.read_verdict(recipe)
    assert verdict.champion is not None
    assert (verdict.champion_measured_again, verdict.champion.accuracy) == (True, 0.1)
    assert evaluated == [b"pretrained 185 " + b"d" * 64]
    assert (verdict.test_reads, ledger.count_reads("e" * 64)) == (1, 1)


def test_a_champion_with_fewer_measurements_is_evaluated_again(
    make: Make, recipe: Recipe, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 185))
    make("scratch", right=197)
    document = json.loads(Path("metrics/digits/pretrained.json").read_text())
    arrays = dict(np.load("models/digits/pretrained/predictions.npz"))
    use_dataset(monkeypatch, 1, DIGEST)
    monkeypatch.setattr(evidence, "is_complete", lambda *_: False)
    monkeypatch.setattr(evidence, "evaluate", lambda *_: (document, arrays))
    assert judging.judge(recipe).verdict.champion_measured_again


def test_if_lighter_counts_champion_and_candidates_are_timed_in_turn(
    make: Make, recipe: Recipe, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[bytes] = []

    def time_in_turn(artefacts: list[Path]) -> list[float]:
        timed.extend(path.read_bytes()[:11] for path in artefacts)
        return [0.5, 0.75, 1.0]

    runs((185, 195))
    make("scratch", right=194)
    monkeypatch.setattr(evidence, "time_in_turn", time_in_turn)
    verdict = judging.judge(lighter(recipe)).verdict
    assert timed == [b"scratch 194", b"pretrained ", b"pretrained "]  # pretrained is the champion itself
    sentences = {check.candidate: check.sentence for check in verdict.checks if check.name == AS_GOOD}
    assert "0.500 ms" in sentences["scratch"]
    assert "1.000 ms" in sentences["scratch"]


def test_if_lighter_does_not_count_nothing_is_timed(
    make: Make, recipe: Recipe, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((185, 195))
    make("scratch", right=194)
    monkeypatch.setattr(evidence, "time_in_turn", lambda *_: pytest.fail("timed"))
    verdict = judging.judge(recipe).verdict
    assert verdict.champion is not None
    assert verdict.champion.version == "2"


def test_a_champion_trained_with_another_decoder_is_replaced(
    decoded_otherwise: None, run: Run, recipe: Recipe, packaging: Packaging
) -> None:
    assert "pretrained is promoted" in run()
    live = packaging.live(recipe)
    assert live is not None
    assert live.versions == {"champion": "4", "challenger": "3"}
