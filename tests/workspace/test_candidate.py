"""A candidate's files: read whole, or refused by name."""

from pathlib import Path

import pytest
from registry_fixtures import DIGEST, Make

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference.artefact import ArtefactError
from mobilenet_pipeline.workspace.candidate import read_candidate
from mobilenet_pipeline.workspace.files import WorkspaceError


def test_a_candidate_is_read_with_its_digest_and_its_curve(recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    files = read_candidate(recipe, "scratch")
    assert (files.name, files.data_digest, files.metrics["test"]["accuracy"]) == ("scratch", DIGEST, 0.95)
    assert files.history[-1] == {"epoch": 2, "train_loss": 1.0, "validation_accuracy": 0.75}


def test_an_artefact_that_was_changed_is_refused(recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    Path("models/digits/scratch/model.tflite").write_bytes(b"other")
    with pytest.raises(ArtefactError, match=r"models/digits/scratch/model\.tflite is damaged"):
        read_candidate(recipe, "scratch")


def test_a_candidate_of_other_data_is_refused(recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    make("pretrained", right=190, digest="e" * 64)
    with pytest.raises(
        WorkspaceError, match=r"dataset\.json is of data e+, .*scratch\.json of d+; .* --recipe digits makes"
    ):
        read_candidate(recipe, "scratch")


def test_a_missing_file_is_named(recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    Path("models/digits/scratch/predictions.npz").unlink()
    with pytest.raises(WorkspaceError, match=r"predictions\.npz does not exist"):
        read_candidate(recipe, "scratch")
