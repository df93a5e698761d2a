"""What the service is told by environment variables, and the program of its workers."""

import os
from pathlib import Path

PROGRAM = "_bentoml_impl.worker.service"
"""BentoML's worker, a module to run with `python -m`."""
KEEP_ALIVE = 75
"""Seconds. A proxy must close an idle connection before the service does, and nginx and cloud proxies do after 60 s."""


def check() -> None:
    """Raise ValueError for the first wrong setting."""
    for read in (processes, keep_alive, key, keep_images):
        read()


def cores() -> int:
    """Return the processors that the service may use. In a container, SERVING_CORES must give the container's limit."""
    return _number("SERVING_CORES", len(os.sched_getaffinity(0)))


def processes() -> int:
    """Return the number of worker processes, by default one for two cores."""
    return _number("SERVING_WORKERS", max(1, cores() // 2))


def threads() -> int:
    """Return the threads of each worker that decode and compute."""
    return max(1, cores() // processes())


def keep_alive() -> int:
    """Return the seconds after which an idle connection is closed."""
    return _number("SERVING_KEEP_ALIVE", KEEP_ALIVE)


def key() -> bytes | None:
    """Return the key that requests need; None if they need none."""
    value = os.environ.get("SERVING_API_KEY")
    if value is not None and not value.strip():
        raise ValueError("SERVING_API_KEY is empty; set it to a key, or unset it")
    return value.strip().encode() if value else None


def live() -> Path | None:
    """Return the file with the live Bento's tag; None to serve the packaged models only."""
    return _path("SERVING_LIVE")


def record() -> Path | None:
    """Return the folder for the record of answers; None to keep none."""
    return _path("SERVING_RECORD")


def keep_images() -> bool:
    """Return whether the record of answers has the images."""
    value = os.environ.get("SERVING_KEEP_IMAGES", "").strip()
    if value not in ("", "0", "1"):
        raise ValueError(f"SERVING_KEEP_IMAGES is {value!r}; set it to 1 to keep images, or unset it")
    return value == "1"


def _path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def _number(name: str, default: int) -> int:
    """Return the variable as a number from 1; the default if it is unset or empty. Raises ValueError."""
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{name} is {value!r}; set it to a whole number from 1, or unset it")
    return int(value)
