"""Environment variables that this process and its children start with. No telemetry unless the user asks for it."""

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

# TensorFlow does so by itself only where the processor has AVX-512; a step takes a quarter less time without it, too.
SPEED = {"TF_ENABLE_ONEDNN_OPTS": "1"}


def prepare() -> None:
    """Set every variable above that the user has not set. Call before importing a framework."""
    for name, value in {**TELEMETRY_OFF, **QUIET, **SPEED}.items():
        os.environ.setdefault(name, value)
