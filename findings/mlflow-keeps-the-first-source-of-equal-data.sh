#!/usr/bin/env bash
# mlflow 3.17.2, Python 3.11: in one experiment, a data set that was logged before with the same name and the same
# content keeps the source of its first run. Later runs log another source, for instance because the images have moved
# to another store; log_input raises nothing, and those runs show the old address. MLflow's SQL store keeps one entry
# for (experiment, name, digest), and the digest that mlflow.data computes is of the content alone, not of the source.
# So lineage follows a store that no longer exists, and mlflow.data.get_source(...).load() fetches from it.
#
# Output, of two runs that log the same array with two sources:
#   logged https://old.example/pictures.npy, the run shows https://old.example/pictures.npy
#   logged https://new.example/pictures.npy, the run shows https://old.example/pictures.npy
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "mlflow==3.17.2"
cat > log.py <<'PY'
import json

import mlflow
import numpy as np
from mlflow.data.http_dataset_source import HTTPDatasetSource

mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("pictures")
pixels = np.arange(12, dtype=np.uint8).reshape(2, 6)
for host in ("old", "new"):
    source = HTTPDatasetSource(f"https://{host}.example/pictures.npy")
    with mlflow.start_run() as run:
        mlflow.log_input(mlflow.data.from_numpy(pixels, source=source, name="pictures"), context="training")
    entry = mlflow.get_run(run.info.run_id).inputs.dataset_inputs[0]
    print(f"logged {source.url}, the run shows {json.loads(entry.dataset.source)['url']}")
PY
output=$(env/bin/python log.py 2> log) || { cat log; exit 1; }
printf '%s\n' "$output"
expected='logged https://old.example/pictures.npy, the run shows https://old.example/pictures.npy
logged https://new.example/pictures.npy, the run shows https://old.example/pictures.npy'
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
