"""What is known of a result: commit, lock file, data version, a candidate's files. Only reads; needs no git or DVC."""

import csv
import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mobilenet_pipeline import layout, processor
from mobilenet_pipeline.config import Recipe

# What the pipeline itself writes says nothing about the code that wrote it.
_WRITTEN_BY_RUNS = (":!dvc.lock", ":!metrics", ":!reports", ":!models", ":!data", ":!docs/results")


class ProvenanceError(ValueError):
    """A file is missing, damaged, or of other data than the rest."""


@dataclass(frozen=True)
class CandidateFiles:
    """What the stages left of one candidate: its folder, its documents, and the SHA-256 of model.tflite."""

    folder: Path
    training: dict[str, Any]
    metrics: dict[str, Any]
    dataset: dict[str, Any]
    history: list[dict[str, float]] = field(repr=False)
    sha256: str

    @property
    def data_digest(self) -> str:
        """The digest of the dataset that the candidate was trained and tested on."""
        return str(self.metrics["data_digest"])


def read_candidate(recipe: Recipe, candidate: str, workspace: Path = Path(".")) -> CandidateFiles:
    """Read a candidate's files. Raises ProvenanceError naming the one that is missing, damaged or of other data."""
    recipe.candidate(candidate)
    folder = layout.model_folder(recipe, candidate, workspace)
    paths = {
        "training": folder / "training.json",
        "dataset": layout.data_folder(recipe, workspace) / "dataset.json",
        "metrics": layout.metrics_path(recipe, candidate, workspace),
    }
    found = {name: read_json(path) for name, path in paths.items()}
    digest = found["metrics"]["data_digest"]
    for name, key in (("training", "data_digest"), ("dataset", "digest")):
        if found[name][key] != digest:
            raise ProvenanceError(
                f"{paths[name]} is of data {found[name][key]}, {paths['metrics']} of {digest}; "
                f"mobilenet-pipeline run --recipe {recipe.name} makes them fit"
            )
    sha256 = str(read_json(folder / "export.json")["sha256"])
    check_sha256(folder / "model.tflite", sha256)
    existing(folder / "predictions.npz")
    with existing(folder / "history.csv").open(newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return CandidateFiles(folder, found["training"], found["metrics"], found["dataset"], history, sha256)


def check_sha256(path: Path, wanted: str, name: str | None = None) -> None:
    """Raise ProvenanceError with both hashes where the file called `name` is not what it was."""
    found = sha256_of(path)
    if found != wanted:
        raise ProvenanceError(f"{name or path} is damaged: its SHA-256 is {found}, it should be {wanted}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(existing(path).read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON document. Raises ProvenanceError naming the file and the remedy."""
    try:
        document = json.loads(existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ProvenanceError(
            f"{path} is not JSON ({error}); mobilenet-pipeline run, with its --recipe, makes it again"
        ) from None
    return dict(document)


def existing(path: Path) -> Path:
    """The path itself, if a file is there. Raises ProvenanceError if not."""
    if not path.is_file():
        raise ProvenanceError(f"{path} does not exist; mobilenet-pipeline run, with its --recipe, makes it")
    return path


def git_commit(workspace: Path = Path(".")) -> tuple[str | None, bool]:
    """The commit that is checked out, and whether files differ from it.

    (None, False) where there is no git or no repository; (None, True) in a repository without a commit.
    `dvc.lock` and the pipeline's own outputs and results do not make a workspace dirty.
    """
    if _git(workspace, "rev-parse", "--git-dir") is None:
        return None, False
    commit = _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return None, True
    changes = _git(workspace, "status", "--porcelain", "--", ".", *_WRITTEN_BY_RUNS)
    return commit, bool(changes)


def dvc_lock_sha256(workspace: Path = Path(".")) -> str | None:
    """SHA-256 of `dvc.lock`, hex; None where no stage has run yet."""
    path = workspace / "dvc.lock"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def data_version(recipe_name: str, workspace: Path = Path(".")) -> str | None:
    """The DVC version of the recipe's dataset: the hash of `ingest@RECIPE`'s output in `dvc.lock`.

    Several outputs give the MD5 over their sorted `path hash` lines. None where the stage has not run.
    """
    path = workspace / "dvc.lock"
    if not path.is_file():
        return None
    try:
        lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}); restore it with `git checkout {path.name}`") from None
    stage = ((lock or {}).get("stages") or {}).get(f"ingest@{recipe_name}") or {}
    versions = {out["path"]: str(out["md5"]) for out in stage.get("outs", []) if "md5" in out}
    if len(versions) <= 1:
        return next(iter(versions.values()), None)
    lines = "\n".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()


def origin(recipe_name: str, flow_run: str | None = None, workspace: Path = Path(".")) -> dict[str, str]:
    """All of the above and the flow run, as tags of a run; what is not known is left out.

    `flow_run` is by default the Prefect flow run that this process belongs to.
    """
    commit, dirty = git_commit(workspace)
    facts = {
        "recipe": recipe_name,
        "git_commit": commit,
        "git_dirty": str(dirty).lower() if commit else None,
        "dvc_lock_sha256": dvc_lock_sha256(workspace),
        "data_version": data_version(recipe_name, workspace),
        "flow_run": flow_run or os.environ.get("PREFECT__FLOW_RUN_ID"),
    }
    return {key: value for key, value in facts.items() if value}


def describe_machine() -> dict[str, Any]:
    """Processor, whether it has bfloat16, cores, memory in GiB, operating system and Python of this machine."""
    import psutil

    return {
        "cpu": processor.model(),
        "bfloat16": processor.computes_in_bfloat16(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def preprocessing() -> str:
    """The fingerprint of the code that decodes images."""
    from mobilenet_pipeline import preprocess

    return preprocess.fingerprint()


def parameters(recipe: Recipe, candidate: str) -> dict[str, str]:
    """The candidate's own knobs by their names, the recipe's others as SECTION.KEY, all as text."""
    knobs: dict[str, object] = {"recipe": recipe.name, "candidate": candidate}
    knobs |= recipe.candidate(candidate).model_dump()
    for section in ("data", "split", "gate"):
        knobs |= {f"{section}.{key}": value for key, value in getattr(recipe, section).model_dump().items()}
    return {key: str(value) for key, value in knobs.items()}


def _git(workspace: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, hangs or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=workspace, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
