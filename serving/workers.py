"""The worker processes of the service: the program that they run, their number and their threads."""

import os

PROGRAM = "_bentoml_impl.worker.service"
"""BentoML's worker, a module to run with `python -m`."""
CORES = int(os.environ.get("SERVING_CORES") or len(os.sched_getaffinity(0)))
"""Processors that the service may use. In a container, SERVING_CORES must give the container's limit."""
WORKERS = int(os.environ.get("SERVING_WORKERS") or max(1, CORES // 2))
THREADS = max(1, CORES // WORKERS)
"""Threads of each worker that decode and compute."""
