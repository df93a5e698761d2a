"""Fixtures: a real MLflow store per test, candidates made of small made-up files, and Bentos that are only recorded.

A plugin that tests/conftest.py registers, so that tests of `registry`, `release` and `workspace` share them. Only the
fixtures that need MLflow import it: that takes seconds.
"""

import copy
import csv
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mobilenet_pipeline.config import Recipe, load_recipe
from mobilenet_pipeline.evaluation import corruptions
from mobilenet_pipeline.inference import preprocess
from mobilenet_pipeline.inference.trust import answering
from mobilenet_pipeline.registry.snapshot import LOCATIONS
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.release.bento import Bento

if TYPE_CHECKING:
    import mlflow

ROWS = 200
DIGEST = "d" * 64
OLD_REVISION = "451aebb31d03"
"""The migration of MLflow's database that the stores of these tests start from."""
ROOT = Path(__file__).resolve().parents[1]

Make = Callable[..., None]
Run = Callable[[], str]
Runs = Callable[..., None]


@dataclass
class Packaging:
    """A Bento store in memory, with the functions of `release.bento` that promotion calls."""

    bentos: list[Bento] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    broken: bool = False
    pointer: str | None = None

    def package(self, recipe: Recipe, champion: Path, challenger: Path | None) -> str:
        folders = {"champion": champion, "challenger": challenger}
        metadata = {
            role: json.loads((folder / "metadata.json").read_text()) if folder else {}
            for role, folder in folders.items()
        }
        versions = {role: facts.get("version") for role, facts in metadata.items()}
        hashes = {role: facts.get("sha256") for role, facts in metadata.items()}
        limits = {role: answering(facts) if facts else None for role, facts in metadata.items()}
        for built in self.bentos:
            if (built.versions, built.hashes, built.is_current, built.answering) == (versions, hashes, True, limits):
                return built.tag
        self.bentos.append(Bento(f"{recipe.registered_model}:{len(self.bentos) + 1}", versions, hashes, True, limits))
        return self.bentos[-1].tag

    def check(self, tag: str, milliseconds: float) -> None:
        self.checked.append(tag)
        if self.broken:
            raise RuntimeError(f"{tag} does not answer")

    def put_live(self, tag: str) -> None:
        self.pointer = tag

    def live(self, recipe: Recipe) -> Bento | None:
        return next((built for built in self.bentos if built.tag == self.pointer), None)

    def must_be_live(self, recipe: Recipe) -> Bento:
        live = self.live(recipe)
        assert live is not None
        return live

    def stored_model(self, recipe: Recipe, sha256: str) -> Path | None:
        for built in self.bentos:
            for role, stored in built.hashes.items():
                if stored == sha256:
                    folder = Path(".bentoml/models") / sha256
                    put(folder / "metadata.json", {"version": built.versions[role], "sha256": sha256})
                    return folder
        return None

    def discard(self, tag: str) -> None:
        self.bentos = [built for built in self.bentos if built.tag != tag]


class SavedWorkspaces:
    """Workspaces that take seconds to fill: filled once a session, copied for every other test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bentos: dict[str, Packaging] = {}

    def fill(self, name: str, workspace: Path, packaging: Packaging, work: Callable[[], None]) -> None:
        """Do the work called `name` in the workspace, or copy what the work left in another one."""
        folder = self.root / name
        if name in self.bentos:
            copy_workspace(folder, workspace)
            vars(packaging).update(copy.deepcopy(vars(self.bentos[name])))
            return
        work()
        copy_workspace(workspace, folder)
        self.bentos[name] = copy.deepcopy(packaging)


def copy_workspace(source: Path, target: Path) -> None:
    """Copy the files and MLflow's database, whose paths are changed to those of the copy."""
    from mlflow.tracking._tracking_service import utils

    # MLflow remembers each run's place for the whole process; in the copy, the same run has another place.
    utils._artifact_repos_cache.clear()
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    with closing(sqlite3.connect(source / "mlflow.db")) as old, closing(sqlite3.connect(target / "mlflow.db")) as new:
        old.backup(new)  # not the file: a client may have the target open
        for table, column in LOCATIONS:
            new.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(source), str(target)))
        new.commit()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing else, migrated from an old MLflow's."""
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import Engine

    from mobilenet_pipeline.registry.store import use_store

    # The same for every store, and reading MLflow's migrations takes 0.1 s a store.
    utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)
    # These databases need not survive a power failure: SQLite does not wait for the disk.
    event.listen(Engine, "connect", _never_wait)
    folder = tmp_path_factory.mktemp("migrated")
    engine = create_engine(f"sqlite:///{folder}/mlflow.db")
    Base.metadata.create_all(engine)
    command.upgrade(utils._get_alembic_config(str(engine.url)), OLD_REVISION)
    here = Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        use_store()
    finally:
        os.chdir(here)
    return folder / "mlflow.db"


def _never_wait(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture
def store(workspace: Path, migrated: Path) -> Iterator[Path]:
    """The current directory, with a store of its own."""
    import mlflow

    shutil.copyfile(migrated, workspace / "mlflow.db")
    yield workspace
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def odd_workspace(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a store, whose path is no part of a URI: Jenkins makes such paths for branches."""
    folder = tmp_path / "feature%2Flogin what? #1"
    folder.mkdir()
    shutil.copyfile(migrated, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def recipe() -> Recipe:
    """The digits recipe with an accuracy floor of 85 % and no calibration limit: made-up probabilities have none."""
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
def client(store: Path) -> "mlflow.MlflowClient":
    """A client of this test's store."""
    import mlflow

    from mobilenet_pipeline.registry.store import use_store

    return mlflow.MlflowClient(use_store())


def artefacts_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no artefact store answer, as if it were on a server that was stopped."""
    import requests
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def refuse(*_: object, **__: object) -> None:
        raise requests.exceptions.ConnectionError("connection refused")

    for name in ("list_artifacts", "download_artifacts"):
        monkeypatch.setattr(LocalArtifactRepository, name, refuse)


@pytest.fixture
def make(workspace: Path, recipe: Recipe, dataset: dict[str, Any]) -> Make:
    """Write a candidate's files: `make("scratch", right=190)` classifies 190 of the 200 test images correctly."""

    def write(
        candidate: str, right: int, run_id: str = "0" * 32, digest: str = DIGEST, artefact: bytes | None = None
    ) -> None:
        folder = workspace / "models" / recipe.name / candidate
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
        put(workspace / "metrics" / recipe.name / f"{candidate}.json", metrics(right, digest))
        put(workspace / "data" / recipe.name / "dataset.json", dataset | {"digest": digest})

    return write


def put(path: Path, document: dict[str, Any]) -> None:
    """Write JSON, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def training(run_id: str, digest: str) -> dict[str, Any]:
    """Return a training.json."""
    costs = {"cpu_minutes": 1.5, "wall_minutes": 1.0, "parameters": 220_000, "multiply_adds": 1_900_000}
    facts = {"run_id": run_id, "weights": "none", "data_digest": digest, "git_commit": "c" * 40}
    return facts | costs | {"preprocessing": preprocess.fingerprint()}


def metrics(right: int, digest: str) -> dict[str, Any]:
    """Return a metrics/RECIPE/CANDIDATE.json."""
    scores = {"rows": ROWS, "loss": 0.3, "accuracy": right / ROWS, "macro_accuracy": right / ROWS}
    scores |= {"top3_accuracy": 0.99, "calibration_error": 0.02}
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
        "prediction_sets": {
            "stated_coverage": 0.95,
            "threshold": 0.0,
            "calibration_rows": 100,
            "coverage": 1.0,
            "mean_size": 10.0,
            "sizes": {"10": ROWS},
        },
        "unfamiliar": {
            "stated_share": 0.05,
            "threshold": 2.0,
            "test": 0.04,
            "corruptions": dict.fromkeys(corruptions.names(), 0.1),
            "other_images": {"photographs": 0.9, "noise": 1.0},
        },
    }


def predictions(right: int, digest: str) -> dict[str, np.ndarray]:
    """Return the arrays of a predictions.npz: confident answers, the first `right` of them correct."""
    labels = (np.arange(ROWS) % 10).astype(np.uint8)
    answers = np.where(np.arange(ROWS) < right, labels, (labels + 1) % 10)
    # `right` is in the numbers too, so that two models never agree to the last digit.
    sharp = np.float32(0.9 + right / 1e5)
    probabilities = np.full((ROWS, 10), (1 - sharp) / 9, np.float32)
    probabilities[np.arange(ROWS), answers] = sharp
    test = {"probabilities": probabilities, "labels": labels, "rows": np.arange(ROWS)}
    validation = {f"validation_{key}": value for key, value in test.items()}
    robust = np.packbits([np.arange(ROWS) < right] * len(corruptions.names()), axis=0)
    corrupted = {"corrupted_right": robust, "corrupted_rows": np.arange(ROWS)}
    return test | validation | corrupted | {"data_digest": np.array(digest)}


@pytest.fixture
def packaging(monkeypatch: pytest.MonkeyPatch) -> Packaging:
    """A recorder in place of the functions of `release.bento`: a real Bento takes long to build."""
    recorder = Packaging()
    for name in ("package", "check", "put_live", "live", "must_be_live", "stored_model", "discard"):
        # By name, so that a test can replace the recorder's own functions.
        monkeypatch.setattr(bento, name, lambda *words, _name=name: getattr(recorder, _name)(*words))
    return recorder


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging draws no figures, which take a second for every candidate."""
    from mobilenet_pipeline.release import judging

    for name in ("draw_candidate", "draw_beside_champion"):
        monkeypatch.setattr(judging, name, lambda *_: {})


@pytest.fixture(scope="session")
def saved_workspaces(tmp_path_factory: pytest.TempPathFactory) -> SavedWorkspaces:
    """The workspaces that several tests begin with."""
    return SavedWorkspaces(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def runs(make: Make, run: Run, store: Path, packaging: Packaging, saved_workspaces: SavedWorkspaces) -> Runs:
    """`runs((181, 183), (182, 195))` leaves the workspace as after a run of each such pair, scratch and pretrained."""

    def fill(*pairs: tuple[int, int]) -> None:
        def work() -> None:
            for scratch, pretrained in pairs:
                make("scratch", right=scratch)
                make("pretrained", right=pretrained)
                run()

        name = "-".join(f"{scratch}.{pretrained}" for scratch, pretrained in pairs)
        saved_workspaces.fill(name, store, packaging, work)

    return fill


@pytest.fixture
def run(recipe: Recipe, store: Path, packaging: Packaging, without_figures: None) -> Run:
    """What a flow does after its stages; returns "nothing to do", "waits" or the verdict's reason."""
    from mobilenet_pipeline.release import judging, promotion

    def once() -> str:
        promotion.reconcile(recipe)
        known = judging.recall(recipe)
        if known and promotion.is_applied(recipe, known):
            return "nothing to do"
        judgement = known or judging.judge(recipe)
        if promotion.waiting(recipe, judgement):
            return "waits"
        promotion.promote(recipe, judgement)
        return judgement.verdict.reason

    return once


@pytest.fixture
def decoded_otherwise(make: Make, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 was promoted when images were decoded differently; the candidates are of today's decoder."""
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "fingerprint", lambda: "0" * 64)
        make("scratch", right=181)
        make("pretrained", right=195)
        run()
    make("scratch", right=181)
    make("pretrained", right=195)
