"""Environment variables for this process and its children. They turn telemetry off unless the user sets them."""

import os

TELEMETRY_OFF = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
QUIET = {
    "GRPC_VERBOSITY": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
}

# TensorFlow uses oneDNN by default only on processors with AVX-512. On others, too, a step takes 25 % less time.
SPEED = {"TF_ENABLE_ONEDNN_OPTS": "1"}


def prepare() -> None:
    """Set every variable above that the user has not set.

    Call this before importing a framework.
    """
    for name, value in {**TELEMETRY_OFF, **QUIET, **SPEED}.items():
        os.environ.setdefault(name, value)
