"""A real SQLite store per test, copied from one that was migrated once, and candidates made of small made-up files."""

import csv
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from alembic import command
from bentos import Packaging
from kept import Kept
from mlflow.store.db import utils
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine

import mobilenet_pipeline
from mobilenet_pipeline import corruptions, judging, promotion, provenance, tracking
from mobilenet_pipeline.config import Recipe, load_recipe

ROWS = 200
DIGEST = "d" * 64
ROOT = Path(__file__).resolve().parents[2]


# The same for every store, and reading MLflow's migrations takes 0.1 s a store.
utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)


@event.listens_for(Engine, "connect")
def without_waiting(connection: Any, record: Any) -> None:
    """These databases need not outlive a power failure: SQLite does not wait for the disk."""
    connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing else, migrated from an old MLflow's."""
    folder = tmp_path_factory.mktemp("migrated")
    engine = create_engine(f"sqlite:///{folder}/mlflow.db")
    Base.metadata.create_all(engine)
    command.upgrade(_get_alembic_config(str(engine.url)), "451aebb31d03")
    here = Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        tracking.use_store()
    finally:
        os.chdir(here)
    return folder / "mlflow.db"


@pytest.fixture
def store(workspace: Path, migrated: Path) -> Iterator[Path]:
    """The current directory, with a store of its own."""
    shutil.copyfile(migrated, workspace / "mlflow.db")
    yield workspace
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def recipe() -> Recipe:
    """The embedded recipe with a floor of 85 %, and no limit on calibration: made-up probabilities have none."""
    digits = load_recipe("digits", ROOT / "params.yaml")
    return digits.model_copy(
        update={"gate": digits.gate.model_copy(update={"accuracy_floor": 0.85, "calibration_error": 1.0})}
    )


@pytest.fixture
def dataset() -> dict[str, Any]:
    """dataset.json."""
    return {
        "digest": DIGEST,
        "rows": {"train": 1437, "test": ROWS},
        "class_names": [str(digit) for digit in range(10)],
        "image_shape": [32, 32, 3],
        "source": "digits",
    }


@pytest.fixture
def client(store: Path) -> mlflow.MlflowClient:
    """A client of this test's store."""
    return mlflow.MlflowClient(tracking.use_store())


@pytest.fixture
def make(store: Path, recipe: Recipe, dataset: dict[str, Any]) -> Callable[..., None]:
    """Write a candidate's files: `make("scratch", right=190)` classifies 190 of the 200 test images correctly."""

    def write(
        candidate: str, right: int, run_id: str = "0" * 32, digest: str = DIGEST, artefact: bytes | None = None
    ) -> None:
        folder = store / "models" / recipe.name / candidate
        folder.mkdir(parents=True, exist_ok=True)
        artefact = artefact or f"{candidate} {right} {digest}".encode()
        (folder / "model.tflite").write_bytes(artefact)
        parity = {"rows": ROWS, "argmax_differences": 0, "max_probability_difference": 0.0}
        sha256 = hashlib.sha256(artefact).hexdigest()
        put(
            folder / "export.json", {"sha256": sha256, "bytes": len(artefact), "precision": "float32", "parity": parity}
        )
        put(folder / "training.json", training(run_id, digest))
        with (folder / "history.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerows([["epoch", "train_loss", "validation_accuracy"], [1, 2.0, 0.5], [2, 1.0, 0.75]])
        np.savez(folder / "predictions.npz", **predictions(right, digest))
        put(store / "metrics" / recipe.name / f"{candidate}.json", metrics(right, digest))
        put(store / "data" / recipe.name / "dataset.json", dataset | {"digest": digest})

    return write


def put(path: Path, document: dict[str, Any]) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def training(run_id: str, digest: str) -> dict[str, Any]:
    """training.json."""
    costs = {"cpu_minutes": 1.5, "wall_minutes": 1.0, "parameters": 220_000, "multiply_adds": 1_900_000}
    facts = {"run_id": run_id, "weights": "none", "data_digest": digest, "git_commit": "c" * 40}
    return facts | costs | {"preprocessing": provenance.preprocessing()}


def metrics(right: int, digest: str) -> dict[str, Any]:
    """metrics/RECIPE/CANDIDATE.json."""
    scores = {"rows": ROWS, "loss": 0.3, "accuracy": right / ROWS, "top3_accuracy": 0.99, "calibration_error": 0.02}
    confusion = np.diag(np.full(10, ROWS // 10)).tolist()
    names = [str(digit) for digit in range(10)]
    per_class = dict.fromkeys(names, 0.9)
    return {
        "data_digest": digest,
        "test": scores,
        "validation": scores,
        "per_class_accuracy": per_class,
        "confusion_matrix": confusion,
        "class_names": names,
        "overlap": 0,
        "corruptions": dict.fromkeys(corruptions.names(), right / ROWS),
        "artefact": {"bytes": 1_000_000, "p50_ms": 0.1, "p99_ms": 0.2},
    }


def predictions(right: int, digest: str) -> dict[str, np.ndarray]:
    """predictions.npz: confident answers, the first `right` of them correct."""
    labels = (np.arange(ROWS) % 10).astype(np.uint8)
    answers = np.where(np.arange(ROWS) < right, labels, (labels + 1) % 10)
    # `right` is in the numbers too, so that two models never agree to the last digit.
    sharp = np.float32(0.9 + right / 1e5)
    probabilities = np.full((ROWS, 10), (1 - sharp) / 9, np.float32)
    probabilities[np.arange(ROWS), answers] = sharp
    test = {"probabilities": probabilities, "labels": labels, "rows": np.arange(ROWS)}
    held_out = {f"validation_{key}": value for key, value in test.items()}
    robust = np.packbits([np.arange(ROWS) < right] * len(corruptions.names()), axis=0)
    corrupted = {"corrupted_right": robust, "corrupted_rows": np.arange(ROWS)}
    return test | held_out | corrupted | {"data_digest": np.array(digest)}


@pytest.fixture
def packaging(monkeypatch: pytest.MonkeyPatch) -> Packaging:
    """Stands in for mobilenet_pipeline.packaging."""
    recorder = Packaging()
    monkeypatch.setattr(mobilenet_pipeline, "packaging", recorder, raising=False)
    monkeypatch.setitem(sys.modules, "mobilenet_pipeline.packaging", recorder)
    return recorder


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The workspaces that several tests begin with."""
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def runs(
    make: Callable[..., None], run: Callable[[], str], store: Path, packaging: Packaging, kept: Kept
) -> Callable[..., None]:
    """`runs((181, 183), (182, 195))` leaves the workspace as after a run of each such pair, scratch and pretrained."""

    def fill(*pairs: tuple[int, int]) -> None:
        def work() -> None:
            for scratch, pretrained in pairs:
                make("scratch", right=scratch)
                make("pretrained", right=pretrained)
                run()

        kept.fill("-".join(f"{scratch}.{pretrained}" for scratch, pretrained in pairs), store, packaging, work)

    return fill


@pytest.fixture
def run(recipe: Recipe, packaging: Packaging, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What a flow does once the candidates' files are there; returns "nothing to do" or the reason of the verdict."""
    for drawn in ("_figures", "_figures_beside"):  # a second each
        monkeypatch.setattr(judging, drawn, lambda *_: {})

    def once() -> str:
        known = judging.recall(recipe)
        if known and promotion.carried_out(recipe, known):
            return "nothing to do"
        judgement = known or judging.judge(recipe)
        if promotion.waiting(recipe, judgement):
            return "waits"
        promotion.promote(recipe, judgement)
        return str(judgement.document["reason"])

    return once
