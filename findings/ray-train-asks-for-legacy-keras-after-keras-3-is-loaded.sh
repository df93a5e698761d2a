#!/usr/bin/env bash
# ray 2.60.0 with tensorflow 2.21.0, keras 3.15.1 and tf-keras 2.21.0, Python 3.11: ray.train's TensorflowTrainer sets
# TF_USE_LEGACY_KERAS=1 in every worker, which makes `tf.keras` the package tf-keras (Keras 2) if it is set before
# TensorFlow loads Keras. But a worker has then loaded Keras already, while it unpacked its own trainer. So the variable
# says Keras 2, and `tf.keras` is Keras 3, although tf-keras is installed. A process that the worker starts inherits the
# variable and gets Keras 2: layers of the two do not mix.
#
# Output, of a training function that looks at its worker:
#   TF_USE_LEGACY_KERAS in the worker: 1
#   tf.keras in the worker: keras
#   tf.keras in a process of the worker: tf_keras
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "ray[train]==2.60.0" "tensorflow==2.21.0" "keras==3.15.1" "tf-keras==2.21.0"
unset TF_USE_LEGACY_KERAS KERAS_BACKEND
export RAY_USAGE_STATS_ENABLED=0 KERAS_HOME="$folder"
cat > look.py <<'PY'
import os

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer


def look():
    import subprocess
    import sys

    import tensorflow as tf

    program = "import tensorflow as tf; print(tf.keras.layers.Dense.__module__)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = [tf.keras.layers.Dense.__module__, child.stdout.strip()]
    return [os.environ.get("TF_USE_LEGACY_KERAS"), *(module.partition(".")[0] for module in found)]


ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
trainer = TensorflowTrainer(
    look, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=f"{os.getcwd()}/runs")
)
variable, worker, child = trainer.fit().return_value
print("TF_USE_LEGACY_KERAS in the worker:", variable)
print("tf.keras in the worker:", worker)
print("tf.keras in a process of the worker:", child)
PY
output=$(env/bin/python look.py 2> log) || { cat log; exit 1; }
printf '%s\n' "$output"
expected="TF_USE_LEGACY_KERAS in the worker: 1
tf.keras in the worker: keras
tf.keras in a process of the worker: tf_keras"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
