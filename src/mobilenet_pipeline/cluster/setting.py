"""The setting by which trainings run on a Ray cluster."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec

from mobilenet_pipeline.system.process import GRACE_SECONDS

CLUSTER = "MOBILENET_PIPELINE_CLUSTER"
"""The variable with the cluster's address; without it, a training runs in its stage's process."""

SAVE_SECONDS = 60.0
"""Seconds that workers have for saving their state after a stop request."""


def address(given: str | None = None) -> str | None:
    """Return the address `given`, else that of the environment, else None: trainings run in their stages' processes.

    Raises ValueError if it is no address, if Ray is not installed, or if TF_CONFIG names machines, too.
    """
    text = given or os.environ.get(CLUSTER)
    if not text:
        return None
    host, _, port = text.removeprefix("ray://").rpartition(":")
    is_client = text.startswith("ray://") and re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:]+\]", host) and port.isdecimal()
    if text not in ("auto", "local") and not (is_client and 0 < int(port) < 65536):
        raise ValueError(
            f"cluster {text!r} is no address: give auto for the cluster that this machine belongs to, ray://HOST:10001 "
            f"for another one, or local for a cluster of this machine alone (--cluster, or {CLUSTER})"
        )
    if find_spec("ray") is None:
        raise ValueError(f"cluster {text!r} needs Ray, which is not installed: make cluster")
    if os.environ.get("TF_CONFIG"):
        raise ValueError(f"cluster {text!r} and TF_CONFIG both name machines; unset one of them")
    return text


def grace(variables: Mapping[str, str]) -> float:
    """Return the seconds that a process with these variables has for its end after SIGTERM."""
    return GRACE_SECONDS + (SAVE_SECONDS if variables.get(CLUSTER) else 0)
