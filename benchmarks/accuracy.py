"""Measure the test accuracy of a candidate over one or more seeds, and write `docs/results/training.json`.

Each seed is trained, exported and evaluated by DVC's stages in its own clone under `.bench/`. The clone has the commit
that is checked out, or that of `--commit`, so that the workspace can be edited meanwhile. After an interruption, the
same command continues from the last epoch. Each seed reads the test images once.

The budget is CPU time, and one thread per operation uses the least: TF_NUM_INTRAOP_THREADS is 1 unless it is set. Two
candidates can be trained at the same time.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml
from ruamel.yaml import YAML

from mobilenet_pipeline import config
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.system import environment, process
from mobilenet_pipeline.workspace import files, provenance
from mobilenet_pipeline.workspace import paths as layout

CLONES = Path(".bench")
RESULTS = Path("docs/results/training.json")
CURVES = Path("docs/results/curves")


def main() -> None:
    """Train the missing seeds, then write the candidate's row."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a section of params.yaml")
    parser.add_argument("candidate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--commit", help="the commit of code and recipe (default: the commit that is checked out)")
    chosen = parser.parse_args()
    config.load_recipe(chosen.recipe)
    environment.prepare()
    if not chosen.commit and provenance.git_commit(Path("."))[1]:
        sys.exit("there are uncommitted changes; commit or stash them, so that the results belong to a commit")
    command = ["git", "rev-parse", "--verify", "--quiet", f"{chosen.commit or 'HEAD'}^{{commit}}"]
    # All seeds use this commit, even if the branch moves during the trainings.
    commit = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout.strip()
    if not commit:
        sys.exit(f"--commit is {chosen.commit}, an unknown commit; git log lists the known commits")
    runs = [reach(chosen.recipe, chosen.candidate, seed, commit) for seed in dict.fromkeys(chosen.seeds)]
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = [row for row in rows if (row["recipe"], row["candidate"]) != (chosen.recipe, chosen.candidate)]
    rows.append(summarise(chosen, runs))
    files.write_json(RESULTS, sorted(rows, key=lambda row: (row["candidate"], row["cpu_minutes"])))
    print(json.dumps(rows[-1], indent=1))


def reach(recipe: str, candidate: str, seed: int, commit: str) -> dict:
    """Train, export and evaluate with this seed and commit; return the results."""
    clone = CLONES / f"{recipe}-{candidate}-{seed}-{commit[:7]}"
    paths = {
        "PYTHONPATH": str((clone / "src").resolve()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    variables = {"TF_NUM_INTRAOP_THREADS": "1", **os.environ, **paths}
    if not clone.exists():
        for other in unfinished(recipe, candidate, seed):
            print(f"a training of commit {other} is not finished; continue it with --commit {other}", flush=True)
        subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
    params = YAML(typ="safe").load((clone / "params.yaml").read_text(encoding="utf-8"))
    # A recipe with a base may have no section of this candidate.
    params["recipes"][recipe].setdefault("candidates", {}).setdefault(candidate, {})["seed"] = seed
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    # A shared cache: results of the workspace and of other clones are reused.
    cache = ["dvc", "cache", "dir", "--local", str(Path(".dvc/cache").resolve())]
    subprocess.run(cache, cwd=clone, env=variables, check=True)
    target = f"evaluate@{recipe}-{candidate}"
    if (clone / "recipes").exists():  # commits from before have all stages in one dvc.yaml
        runner.choose(recipe, clone)
        target = runner.address(target)
    # The training ends with this program.
    with process.leashed(["dvc", "repro", target], variables, ending=signal.SIGINT, cwd=clone) as child:
        while not child.ended:
            time.sleep(0.5)
    if child.returncode:
        sys.exit(child.returncode)
    loaded = config.load_recipe(recipe, clone / "params.yaml")
    here, there = layout.ledger_path(loaded), layout.ledger_path(loaded, clone)
    known = here.read_text(encoding="utf-8").splitlines() if here.exists() else []
    for line in there.read_text(encoding="utf-8").splitlines() if there.exists() else []:
        if line not in known:  # the clone's reads of the test images count here, too
            files.append_line(here, line)
    history = pd.read_csv(layout.model_folder(loaded, candidate, clone) / "history.csv")
    CURVES.mkdir(parents=True, exist_ok=True)
    history.to_csv(CURVES / f"{recipe}-{candidate}-{seed}.csv", index=False, float_format="%.5g")
    metrics = files.read_json(layout.metrics_path(loaded, candidate, clone))
    training = files.read_json(layout.model_folder(loaded, candidate, clone) / "training.json")
    return {
        "seed": seed,
        "test_accuracy": metrics["test"]["accuracy"],
        "test_loss": metrics["test"]["loss"],
        "validation_accuracy": metrics["validation"]["accuracy"],
        **{
            key: training[key]
            for key in ("epochs", "cpu_minutes", "wall_minutes", "git_commit", "trained_at", "machine")
        },
    }


def unfinished(recipe: str, candidate: str, seed: int) -> list[str]:
    """Return the commits with an unfinished training of this seed."""
    states = CLONES.glob(f"{recipe}-{candidate}-{seed}-*/models/{recipe}/{candidate}/checkpoint.npz")
    return sorted(state.relative_to(CLONES).parts[0].rpartition("-")[2] for state in states)


def summarise(chosen: argparse.Namespace, runs: list[dict]) -> dict:
    """Return a candidate's row: means over the seeds.

    With several seeds, `sd` is the standard deviation of the accuracy, else None.
    """
    accuracies = [run["test_accuracy"] for run in runs]
    seeds = " ".join(map(str, chosen.seeds))
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS")
    prefix = f"TF_NUM_INTRAOP_THREADS={threads} " if threads else ""
    return {
        "recipe": chosen.recipe,
        "candidate": chosen.candidate,
        "cpu_minutes": round(statistics.mean(run["cpu_minutes"] for run in runs), 2),
        "test_accuracy": round(statistics.mean(accuracies), 5),
        "sd": round(statistics.stdev(accuracies), 5) if len(accuracies) > 1 else None,
        "seeds": len(accuracies),
        "command": f"{prefix}python benchmarks/accuracy.py {chosen.recipe} {chosen.candidate} --seeds {seeds}",
        "commit": runs[0]["git_commit"],
        "runs": runs,
    }


if __name__ == "__main__":
    main()
