"""The reference of a registered version: from the registry, or from the workspace that trained it."""

from dataclasses import replace

import numpy as np
import pytest
from registry_fixtures import ROWS, Make, artefacts_away

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.evaluation.reference import IMAGES, Reference, ReferenceError, describe
from mobilenet_pipeline.inference import statistics
from mobilenet_pipeline.monitoring import reference
from mobilenet_pipeline.registry import reference as store
from mobilenet_pipeline.registry.register import register
from mobilenet_pipeline.registry.store import StoreAwayError
from mobilenet_pipeline.registry.versions import Version
from mobilenet_pipeline.workspace.candidate import read_candidate

PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
MADE = describe(PIXELS, np.arange(3), np.eye(3, dtype=np.float32), ["a", "b", "c"])


@pytest.fixture
def version(make: Make, recipe: Recipe, client: object) -> Version:
    """A version that was registered without a reference."""
    make("scratch", right=190)
    return register(recipe, read_candidate(recipe, "scratch"))


def test_a_reference_has_no_labels_and_survives_its_file() -> None:
    again = Reference.from_bytes(MADE.to_bytes(), "file")
    assert {*vars(again)} == {"class_names", "rows", "names", "statistics", "predicted", "confidence"}
    assert again.predicted.tolist() == [0, 1, 2]
    assert again.statistics == pytest.approx(statistics.table(statistics.measure(PIXELS[:3])), rel=1e-5)


def test_of_many_test_images_a_sample_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilenet_pipeline.evaluation.reference.IMAGES", 10)
    few = describe(PIXELS, np.arange(ROWS), np.eye(ROWS, dtype=np.float32), [str(name) for name in range(ROWS)])
    assert (few.rows, len(few.predicted), len({*few.predicted})) == (ROWS, 10, 10)
    assert IMAGES == 20_000


def test_a_damaged_reference_is_named() -> None:
    with pytest.raises(ReferenceError, match=r"the file cannot be read .*; delete it, and it is made again"):
        Reference.from_bytes(MADE.to_bytes()[:-40], "the file")


def test_a_registration_stores_the_reference(make: Make, recipe: Recipe, client: object) -> None:
    make("scratch", right=190)
    version = register(recipe, read_candidate(recipe, "scratch"), describe=MADE.to_bytes)
    assert reference.find(recipe, version).predicted.tolist() == [0, 1, 2]


def test_a_version_without_a_reference_gets_one_from_its_images(version: Version, recipe: Recipe) -> None:
    np.save("data/digits/images.npy", PIXELS)
    made = reference.find(recipe, version)
    assert (made.rows, made.class_names) == (ROWS, recipe.data.class_names)
    assert store.fetch(version) == made.to_bytes()


def test_without_images_the_remedy_is_named(version: Version, recipe: Recipe) -> None:
    with pytest.raises(ReferenceError, match="MLflow has no reference of digits-mobilenet version 1, and data/digits"):
        reference.find(recipe, version)


def test_images_of_other_data_are_no_reference(version: Version, recipe: Recipe) -> None:
    np.save("data/digits/images.npy", PIXELS)
    with pytest.raises(ReferenceError, match="does not have the images"):
        reference.find(recipe, replace(version, data_digest="e" * 64))


def test_a_deleted_run_keeps_no_reference(version: Version) -> None:
    assert not store.put(replace(version, run_id="f" * 32), b"")


def test_a_store_that_is_away_has_not_lost_the_reference(
    version: Version, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("data/digits/images.npy", PIXELS)
    reference.find(recipe, version)
    monkeypatch.setattr(store, "put", None)  # nothing is written over the stored one
    artefacts_away(monkeypatch)
    with pytest.raises(StoreAwayError, match=r"does not answer \(connection refused\)"):
        reference.find(recipe, version)
