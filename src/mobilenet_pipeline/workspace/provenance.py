"""The origin of a result: commit, lock file, data version and flow run. Read-only; git and DVC are optional."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mobilenet_pipeline.workspace.paths import dvc_file

# The pipeline's own outputs are no changes of its code.
_OUTPUTS = ("dvc.lock", "recipes/dvc.lock", "metrics", "reports", "models", "data", "docs/results")


class GitFailed(OSError):
    """Git did not answer. The text says why, and what to do."""


def git_commit(workspace: Path = Path(".")) -> tuple[str | None, bool]:
    """Return the commit that is checked out, and whether files differ from it.

    Returns (None, False) if git does not answer, and (None, True) in a repository without a commit; `why_no_commit`
    has the reason. Changes of `dvc.lock` and the pipeline's own outputs do not count; if git cannot tell, files differ.
    """
    try:
        git(workspace, "rev-parse", "--git-dir")
    except GitFailed:
        return None, False
    try:
        commit = git(workspace, "rev-parse", "--verify", "--quiet", "HEAD")
    except GitFailed:
        return None, True
    status = ["status", "--porcelain", "--untracked-files=normal"]  # whatever status.showUntrackedFiles says
    try:
        return commit, bool(git(workspace, *status, "--", ".", *(f":!{path}" for path in _OUTPUTS)))
    except GitFailed:
        return commit, True


def why_no_commit(workspace: Path = Path(".")) -> str | None:
    """Return why `git_commit` has no commit and what to do, None if it has one."""
    try:
        git(workspace, "rev-parse", "--git-dir")
    except GitFailed as error:
        return str(error)
    if git_commit(workspace)[0] is None:
        return "the repository has no commit yet; commit before you train"
    return None


def has_commit(commit: str, workspace: Path = Path(".")) -> bool:
    """Return whether the repository has the commit. Raises GitFailed if git does not answer."""
    git(workspace, "rev-parse", "--git-dir")
    try:
        git(workspace, "cat-file", "-e", f"{commit}^{{commit}}")
    except GitFailed:
        return False
    return True


def dvc_lock_sha256(recipe_name: str, workspace: Path = Path(".")) -> str | None:
    """Return the SHA-256, hex, of the `dvc.lock` with the recipe's stages; None if no stage has run yet."""
    path = dvc_file(recipe_name, workspace).with_suffix(".lock")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def data_version(recipe_name: str, workspace: Path = Path(".")) -> str | None:
    """Return the DVC version of the recipe's dataset, None before its ingestion.

    It is the hash of the folder `data/RECIPE` in `dvc.lock`: the same for the same images, whatever files they come
    from. Raises ValueError if `dvc.lock` is not YAML.
    """
    path = dvc_file(recipe_name, workspace).with_suffix(".lock")
    if not path.is_file():
        return None
    try:
        lock = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}); delete it, then `dvc repro` writes it again") from None
    stage = ((lock or {}).get("stages") or {}).get(f"ingest@{recipe_name}") or {}
    versions = {out["path"]: out.get("md5") for out in stage.get("outs", [])}
    return versions.get(f"data/{recipe_name}")


def origin(recipe_name: str, flow_run: str | None = None, workspace: Path = Path(".")) -> dict[str, str]:
    """Return the origin of a result as tags of an MLflow run.

    Unknown values are left out. `flow_run` is by default the Prefect flow run of this process. `git_problem` says why
    there is no commit.
    """
    commit, dirty = git_commit(workspace)
    facts = {
        "recipe": recipe_name,
        "git_commit": commit,
        "git_dirty": str(dirty).lower() if commit else None,
        "git_problem": None if commit else why_no_commit(workspace),
        "dvc_lock_sha256": dvc_lock_sha256(recipe_name, workspace),
        "data_version": data_version(recipe_name, workspace),
        "flow_run": flow_run or os.environ.get("PREFECT__FLOW_RUN_ID"),
    }
    return {key: value for key, value in facts.items() if value}


def git(workspace: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> str:
    """Return git's output; `variables` are added to its environment.

    Raises GitFailed if git fails, hangs or is not installed.
    """
    try:
        process = subprocess.run(
            ["git", *arguments],
            cwd=workspace,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "LC_ALL": "C", **(variables or {})},
        )
    except FileNotFoundError:
        raise GitFailed("git is not installed or not on PATH; install it") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitFailed(f"git cannot be run: {error}") from None
    if process.returncode == 0:
        return process.stdout.strip()
    message = process.stderr.strip()
    if "not a git repository" in message:
        raise GitFailed(f"{workspace.resolve()} is not in a Git repository; `git init` there and commit, or clone it")
    if "dubious ownership" in message:
        folder = workspace.resolve()
        raise GitFailed(
            f"{folder} belongs to another user, so Git refuses it; git config --global --add safe.directory {folder}"
        )
    raise GitFailed(f"git {arguments[0]} failed: {message or f'exit code {process.returncode}'}")
