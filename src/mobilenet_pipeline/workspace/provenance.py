"""The origin of a result: commit, lock file, data version and flow run. Read-only; git and DVC are optional."""

import hashlib
import os
import subprocess
from pathlib import Path

import yaml

# The pipeline's own outputs are no changes of its code.
_WRITTEN_BY_RUNS = (":!dvc.lock", ":!metrics", ":!reports", ":!models", ":!data", ":!docs/results")


def git_commit(workspace: Path = Path(".")) -> tuple[str | None, bool]:
    """Return the commit that is checked out, and whether files differ from it.

    Returns (None, False) without git or a repository, and (None, True) in a repository without a commit. Changes of
    `dvc.lock` and the pipeline's own outputs do not count.
    """
    if _git(workspace, "rev-parse", "--git-dir") is None:
        return None, False
    commit = _git(workspace, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return None, True
    changes = _git(workspace, "status", "--porcelain", "--", ".", *_WRITTEN_BY_RUNS)
    return commit, bool(changes)


def dvc_lock_sha256(workspace: Path = Path(".")) -> str | None:
    """Return the SHA-256, hex, of `dvc.lock`; None if no stage has run yet."""
    path = workspace / "dvc.lock"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def data_version(recipe_name: str, workspace: Path = Path(".")) -> str | None:
    """Return the DVC version of the recipe's dataset, None before its ingestion.

    It is the hash of `ingest@RECIPE`'s output in `dvc.lock`. With several outputs, it is the MD5 over their sorted
    `path hash` lines. Raises ValueError if `dvc.lock` is not YAML.
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
    """Return the origin of a result as tags of an MLflow run.

    Unknown values are left out. `flow_run` is by default the Prefect flow run of this process.
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


def _git(workspace: Path, *arguments: str) -> str | None:
    """Return git's output, None if git fails, hangs or is not installed."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=workspace, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
