#!/usr/bin/env bash
# mlflow 3.17.2, boto3 1.43.117, moto 5.2.5 as the S3 server, Python 3.11: a run has logged a file, and its artifacts
# are then deleted from the store, behind MLflow's back. MlflowClient.download_artifacts(run, "") for the whole run
# returns the path of an empty folder on S3, without an error or a warning. The same call raises on a local store, and on
# S3 it raises as soon as a folder or file is named. A script that saves all artifacts of a run, for instance before it
# moves a registry, therefore reports success although it has saved nothing.
#
# Output, the names that each call has downloaded, or the error:
#   s3 all: []
#   s3 served: MlflowException
#   local all: MlflowException
#   local served: MlflowException
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "mlflow==3.17.2" "boto3==1.43.117" "moto[s3]==5.2.5"
cat > download.py <<'PY'
import os
import shutil
from pathlib import Path

import boto3
import mlflow
from mlflow.exceptions import MlflowException
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
address = "http://{}:{}".format(*server.get_host_and_port())
os.environ |= {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "word", "AWS_DEFAULT_REGION": "us-east-1"}
os.environ["MLFLOW_S3_ENDPOINT_URL"] = address
s3 = boto3.client("s3", endpoint_url=address)
s3.create_bucket(Bucket="models")
mlflow.set_tracking_uri("sqlite:///mlflow.db")
client, runs = mlflow.MlflowClient(), {}
for name, place in (("s3", "s3://models/runs"), ("local", Path("runs").resolve().as_uri())):
    with mlflow.start_run(experiment_id=client.create_experiment(name, place)) as run:
        mlflow.log_text("weights", "served/model.txt")
    runs[name] = run.info.run_id
for entry in s3.list_objects_v2(Bucket="models")["Contents"]:
    s3.delete_object(Bucket="models", Key=entry["Key"])
shutil.rmtree("runs")
for name, run_id in runs.items():
    for part in ("", "served"):
        try:
            found = sorted(path.name for path in Path(client.download_artifacts(run_id, part)).rglob("*"))
        except MlflowException as error:
            found = type(error).__name__
        print(f"{name} {part or 'all'}: {found}")
server.stop()
PY
output=$(env/bin/python download.py 2> log) || { cat log; exit 1; }
printf '%s\n' "$output"
expected='s3 all: []
s3 served: MlflowException
local all: MlflowException
local served: MlflowException'
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
