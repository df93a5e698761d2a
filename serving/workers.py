"""The service's processes: what they run, and how many processes and threads there are."""

import os

PROGRAM = "_bentoml_impl.worker.service"
"""BentoML's worker, a module to be run."""
CORES = int(os.environ.get("SERVING_CORES") or len(os.sched_getaffinity(0)))
"""Processors that the service may keep busy; a container's limit has to be told."""
WORKERS = int(os.environ.get("SERVING_WORKERS") or max(1, CORES // 2))
THREADS = max(1, CORES // WORKERS)
"""Of each worker, that decode and compute."""
