#!/usr/bin/env bash
# mlflow 3.17.2, Python 3.11: a client of a copied tracking store writes and reads artifacts in the original store.
# MLflow keeps the artifact repository of a run for the whole process, by run id alone
# (mlflow/tracking/_tracking_service/client.py, _get_artifact_repo). A copy of a store has the same run ids, as after a
# backup or a migration to another server. Once the process has logged to a run of the original store, a client that
# was made for the copy logs into the original's folder, although get_run of the same client names the copy's folder.
# A process that has not used the original store writes into the copy, as expected.
#
# Output: where the copy's client says that artifacts are, and the folder that gets the file, in the same process and
# in a new one:
#   same process: artifact_uri in copy, file in original
#   new process: artifact_uri in copy, file in copy
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "mlflow==3.17.2"
mkdir original copy
cat > copied.py <<'PY'
import logging
import shutil
import sqlite3
import sys
from pathlib import Path

from mlflow import MlflowClient

logging.disable(logging.WARNING)
here = Path.cwd()


def store(name):
    return f"sqlite:///{here}/{name}/mlflow.db"


def found(name):
    return [place for place in ("original", "copy") if list((here / place / "artifacts").rglob(name))]


original = MlflowClient(store("original"))
if sys.argv[1] == "same":
    experiment = original.create_experiment("photos", artifact_location=(here / "original/artifacts").as_uri())
    run = original.create_run(experiment).info.run_id
    original.log_text(run, "1", "first.txt")
    shutil.copytree(here / "original", here / "copy", dirs_exist_ok=True)
    with sqlite3.connect(here / "copy/mlflow.db") as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '/original/', '/copy/')")
copy = MlflowClient(store("copy"))
run = copy.search_runs([copy.get_experiment_by_name("photos").experiment_id])[0]
copy.log_text(run.info.run_id, "2", f"{sys.argv[1]}.txt")
place = "copy" if "/copy/artifacts" in run.info.artifact_uri else "original"
print(f"{sys.argv[1]} process: artifact_uri in {place}, file in {' and '.join(found(sys.argv[1] + '.txt'))}")
PY
output=$(env/bin/python copied.py same 2> log; env/bin/python copied.py new 2>> log) || { cat log; exit 1; }
printf '%s\n' "$output"
expected='same process: artifact_uri in copy, file in original
new process: artifact_uri in copy, file in copy'
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
