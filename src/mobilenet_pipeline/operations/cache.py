"""DVC's cache as a whole: what the locks name, and the removal of what nothing needs."""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mobilenet_pipeline.stages import dvc
from mobilenet_pipeline.workspace.paths import HERE


class DvcFailed(OSError):
    """DVC did not do what it was asked; the text is its message."""


def run(*words: str, seconds: float | None = None) -> str:
    """Run a DVC command and return its output. Raises DvcFailed if it fails or takes longer than `seconds`."""
    try:
        done = dvc.run(*words, seconds=seconds)
    except subprocess.TimeoutExpired:
        raise DvcFailed(f"`dvc {words[0]}` has no answer after {seconds:.0f} s") from None
    if done.returncode:
        errors = re.findall(r"^ERROR: (.*)$", done.stderr, re.MULTILINE)
        raise DvcFailed(f"`dvc {words[0]}` failed: {' '.join(errors) or done.stderr.strip()[-300:] or 'no message'}")
    return done.stdout


def locked(workspace: Path = HERE) -> set[str]:
    """Return the MD5 of every output in dvc.lock and recipes/dvc.lock, also of recipes that DVC does not see now.

    Raises ValueError, naming the file, if one of them is damaged.
    """
    found: set[str] = set()
    for path in (workspace / "dvc.lock", workspace / "recipes" / "dvc.lock"):
        if not path.is_file():
            continue
        try:
            stages = (YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}).get("stages") or {}
            found |= {str(out["md5"]) for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}
        except (YAMLError, AttributeError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); restore the file") from None
    return found


def folder(workspace: Path = HERE) -> Path:
    """Return the folder of DVC's cache."""
    return workspace / run("cache", "dir").strip()


def place(cache: Path, md5: str) -> Path:
    """Return the path of this content in the cache."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def collect(keep: Iterable[str], dry: bool, workspace: Path = HERE) -> list[Path]:
    """Remove from the cache what neither the workspace nor Git's branches and tags nor `keep` need; return it.

    `keep` has MD5s. With `dry`, nothing is removed. The remote is left alone.
    """
    objects = folder(workspace).resolve()
    # DVC keeps what other projects need. Git's branches and tags do not have the outputs of an uncommitted dvc.lock.
    revisions = ["--all-branches", "--all-tags", "--all-experiments"] if (workspace / ".git").exists() else []
    with _project_that_needs(keep, objects, git=bool(revisions)) as project:
        words = ["gc", "--workspace", *revisions, "--projects", str(project), "--force", *["--dry"] * dry]
        output = run(*words)
    return [Path(line) for line in re.findall(r"^Removing (.*)$", output, re.MULTILINE)]


@contextmanager
def _project_that_needs(keep: Iterable[str], cache: Path, git: bool) -> Iterator[Path]:
    """Yield the folder of a temporary DVC project whose outputs are these objects of the cache."""
    objects = sorted(md5 for md5 in keep if place(cache, md5).is_file())
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch)
        (project / ".dvc").mkdir()
        scm = "" if git else "\n    no_scm = true"
        (project / ".dvc" / "config").write_text(f"[core]\n    analytics = false{scm}\n[cache]\n    dir = {cache}\n")
        if git:
            subprocess.run(["git", "init", "--quiet", str(project)], check=True, capture_output=True)
        if objects:
            outs = [{"md5": md5, "hash": "md5", "path": f"object{index}"} for index, md5 in enumerate(objects)]
            with (project / "keep.dvc").open("w", encoding="utf-8") as file:
                YAML(typ="safe").dump({"outs": outs}, file)
        yield project
