"""What a team shares of the file stages: DVC's remote, and a Git tag for the outputs of each promotion.

Two settings switch this on: MOBILENET_PIPELINE_DVC_REMOTE and MOBILENET_PIPELINE_GIT_REMOTE. Nothing is committed to
anybody's branch.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.stages import dvc
from mobilenet_pipeline.workspace.files import shown
from mobilenet_pipeline.workspace.paths import HERE, dvc_file
from mobilenet_pipeline.workspace.provenance import GitFailed, git

DVC_REMOTE, GIT_REMOTE = "MOBILENET_PIPELINE_DVC_REMOTE", "MOBILENET_PIPELINE_GIT_REMOTE"
NAME = "team"
"""The name of DVC's remote in `.dvc/config.local`."""
_AUTHOR = {"NAME": "mobilenet-pipeline", "EMAIL": "mobilenet-pipeline@localhost"}


def follow_setting() -> bool:
    """Make the team's remote DVC's default in this workspace, and return whether there is one."""
    url, present = _setting(), _present()
    if url and present != url:
        dvc.run("remote", "add", "--local", "--default", "--force", NAME, url)
    elif present and not url:
        dvc.run("remote", "remove", "--local", NAME)
    return bool(url)


def is_followed() -> bool:
    """Return whether DVC has the remote of the setting, or none of the team's without a setting."""
    return _present() == _setting()


def _setting() -> str | None:
    url = os.environ.get(DVC_REMOTE) or None
    return str(Path(url).resolve()) if url and "://" not in url else url  # DVC would take it from its own folder


def _present() -> str | None:
    local = Path(".dvc/config.local")
    known = local.read_text(encoding="utf-8") if local.exists() else ""
    present = re.search(rf"\['remote \"{NAME}\"'\]\s+url = (.*)", known)
    return present[1].strip() if present else None


def share(recipe: Recipe, addresses: list[str], version: str, run_id: str, workspace: Path = HERE) -> list[str]:
    """Push the recipe's outputs to DVC's remote, and keep their dvc.lock in a Git tag; return a sentence for each.

    `addresses` are the recipe's stages as DVC calls them, `version` and `run_id` those of the promoted version. A
    failure is a sentence, too: the promotion stands, and the next one pushes what is missing.
    """
    tag, sentences = f"promoted/{recipe.registered_model}-{version}-{run_id[:8]}", []
    place, remote = shown(os.environ[DVC_REMOTE]) if follow_setting() else None, os.environ.get(GIT_REMOTE)
    message = f"Outputs of version {version} of {recipe.registered_model}, run {run_id}"
    message += f", in {place}" if place else ""
    if not (place or remote) or _is_shared(tag, message, remote, workspace):
        return []
    if place:
        failure = _failure(dvc.run("push", "--run-cache", "--quiet", *addresses))
        if failure:
            return [f"DVC cannot push to {place} ({DVC_REMOTE}): {failure}; the next run tries again."]
        sentences.append(f"The outputs are in {place}.")
    try:
        keep_lock(recipe, tag, message, workspace)
        sentences.append(f"Their dvc.lock is in the Git tag {tag}.")
    except GitFailed as error:
        return [*sentences, f"The tag with dvc.lock was not made: {error}."]
    if remote:
        try:
            git(workspace, "push", "--quiet", remote, f"refs/tags/{tag}")
        except GitFailed as error:
            git(workspace, "tag", "--delete", tag)
            sentences.append(
                f"Git cannot push the tag to {shown(remote)} ({GIT_REMOTE}): {error}; the next run tries again."
            )
    return sentences


def keep_lock(recipe: Recipe, tag: str, message: str, workspace: Path = HERE) -> None:
    """Tag a commit that is the one checked out and the recipe's dvc.lock. No branch moves.

    Raises GitFailed if Git fails, or if there is no repository.
    """
    lock = dvc_file(recipe.name, workspace).with_suffix(".lock").relative_to(workspace)
    head = git(workspace, "rev-parse", "--verify", "HEAD")
    with tempfile.TemporaryDirectory() as scratch:
        variables = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        variables |= {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _AUTHOR.items()}
        git(workspace, "read-tree", head, variables=variables)
        git(workspace, "add", "--force", str(lock), variables=variables)
        tree = git(workspace, "write-tree", variables=variables)
        commit = git(workspace, "commit-tree", tree, "-p", head, "-m", message, variables=variables)
    git(workspace, "tag", "--force", tag, commit)


def _is_shared(tag: str, message: str, remote: str | None, workspace: Path) -> bool:
    """Return whether the tag is where all workspaces see it: on the remote, else here, for the same outputs."""
    try:
        if remote:
            return bool(git(workspace, "ls-remote", "--tags", remote, f"refs/tags/{tag}"))
        return git(workspace, "tag", "--list", tag, "--format=%(contents:subject)") == message
    except GitFailed:
        return False


def _failure(process: subprocess.CompletedProcess[str]) -> str | None:
    """Return the last line of DVC's message if it failed."""
    lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {process.returncode}") if process.returncode else None
