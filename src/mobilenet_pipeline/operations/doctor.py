"""Findings about an installation and a workspace: what is well, what is not, and what to do about it."""

import ctypes.util
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.operations import cache
from mobilenet_pipeline.stages import runner, team
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace import history, ledger, locks, paths, provenance, records
from mobilenet_pipeline.workspace.files import shown
from mobilenet_pipeline.workspace.paths import HERE, dvc_file

if TYPE_CHECKING:
    from mobilenet_pipeline.registry.aliases import State as RegistryState
    from mobilenet_pipeline.registry.versions import Version

State = Literal["ok", "warn", "fail"]

LIMIT_SECONDS = 60.0
"""The longest time for one check; a server that accepts a connection and says nothing would keep it for good."""
_ANSWER_SECONDS = 5.0
_LITTLE, _VERY_LITTLE = 5 * 2**30, 2**29
"""Free bytes of a disk below which a training of a large recipe, or any run, may fail."""
_SKEW, _BIG_SKEW = 60.0, 900.0
"""Seconds. S3 refuses requests of a clock that differs by more than 15 minutes."""
PACKAGE = "mobilenet-pipeline"


@dataclass(frozen=True)
class Finding:
    """What a check has found: a sentence, and what to do unless all is well."""

    name: str
    state: State
    sentence: str
    remedy: str = ""


Check = Callable[[Recipe, Path], Iterable[Finding]]


def examine(recipe: Recipe, more: Mapping[str, Check] | None = None, workspace: Path = HERE) -> Iterator[Finding]:
    """Yield the findings of all checks, and of `more` checks, for a recipe.

    Nothing is created or changed, except for a probe in the artefact store that is deleted again. A check that crashes
    or has no result after LIMIT_SECONDS is a finding.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(_ANSWER_SECONDS)))
    for name, check in {**CHECKS, **(more or {})}.items():
        yield from _guarded(name, check, recipe, workspace)


def repair(recipe: Recipe, workspace: Path = HERE) -> list[str]:
    """Restore what is lost and has another copy; return a sentence for everything that was lost.

    These are the artefacts of champion, challenger and all versions of the history, which go back to MLflow, and the
    live Bento. Raises StoreError if MLflow cannot store artefacts.
    """
    from mobilenet_pipeline.registry import snapshot, store
    from mobilenet_pipeline.release import bento, promotion, restore

    with locks.deciding(recipe, workspace):
        state, live = promotion.read_state(recipe, workspace), bento.live(recipe)
        if location := snapshot.artefact_location(recipe):
            store.check_artefacts(location)
        runs = {event.run for event in history.read(recipe, workspace)}
        wanted = [version for version in state.versions if version.run_id in runs]
        needed = {version.version: version for version in (state.champion, state.challenger, *wanted) if version}
        sentences = restore.put_back(recipe, needed.values(), workspace, damaged=True)
        if live is None:
            promotion.keep_serving(recipe, state, workspace)
            live = bento.live(recipe)
            sentences += [f"The Bento was lost; {live.tag} is live."] if live else []
    return sentences


# The frameworks are imported by the checks: one that cannot be imported is a finding.


def _guarded(name: str, check: Check, recipe: Recipe, workspace: Path) -> list[Finding]:
    """Return the check's findings; its failure is one, too."""
    findings: list[Finding] = []

    def work() -> None:
        try:
            findings.extend(check(recipe, workspace))
        except Exception as error:
            known = isinstance(error, ValueError | OSError)  # the project's sentences, which have a remedy
            text = " ".join(str(error).split()) or "no message"
            sentence = text if known else f"{type(error).__name__}: {text}"[:500]
            findings.append(Finding(name, "fail", sentence, "make install" if isinstance(error, ImportError) else ""))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    if thread.is_alive():
        late = f"no result after {LIMIT_SECONDS:.0f} s"
        return [*findings, Finding(name, "fail", late, "check the servers that the settings name, and the disk")]
    return findings or [Finding(name, "ok", "nothing to check")]


def check_python(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Compare the Python version and the installed packages with what the project asks for, and with the lock."""
    python = ".".join(map(str, sys.version_info[:3]))
    required = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    if Requirement(f"python{required}").specifier.contains(python):
        yield Finding("Python", "ok", f"{python} at {sys.executable}")
    else:
        yield Finding("Python", "fail", f"{python} is not {required}", "make PYTHON=python3.12 install")
    outside = [text for text in map(_outside, importlib.metadata.requires(PACKAGE) or ()) if text]
    if outside:
        yield Finding("packages", "fail", "; ".join(outside), "make install")
    lock = workspace / "requirements.lock"
    differing = [text for text in map(_differs, _locked(lock)) if text] if lock.is_file() else []
    if differing:
        rest = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        sentence = f"{', '.join(differing[:5])}{rest} differ from requirements.lock, which is tested"
        yield Finding("packages", "warn", sentence, "rm .venv/.ready && make install")
    if not outside and not differing:
        joints = ("prefect", "fastapi", "sqlalchemy", "mlflow", "bentoml", "dvc", "tensorflow")
        yield Finding("packages", "ok", ", ".join(f"{name} {_installed(name)}" for name in joints))


def _outside(line: str) -> str | None:
    """Return how the installed version breaks a requirement, None if it does not."""
    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    version = _installed(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is installed, {requirement.specifier} is needed"


def _differs(requirement: Requirement) -> str | None:
    """Return how an installed package differs from its line in the lock; a missing one may be an extra."""
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    version = _installed(requirement.name)
    if version is None or requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version}"


def _locked(lock: Path) -> Iterator[Requirement]:
    for line in lock.read_text(encoding="utf-8").splitlines():
        try:
            if line and not line.startswith((" ", "#", "-")):
                yield Requirement(line.rstrip("\\ "))
        except InvalidRequirement:
            continue


def _installed(name: str) -> str | None:
    return _versions().get(canonicalize_name(name))


@lru_cache
def _versions() -> dict[str, str]:
    """Return the versions of all installed packages; to look for each of them would take seconds."""
    return {canonicalize_name(it.metadata["Name"]): it.version for it in importlib.metadata.distributions()}


def check_tools(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Look for uv, Git and the commit that trainings record."""
    from mobilenet_pipeline.release import bento

    bento.check_build_tools()
    yield Finding("uv", "ok", f"beside this Python, version {_installed('uv')}")
    problem = provenance.why_no_commit(workspace)
    if problem:
        yield Finding("Git", "warn", "trainings record no commit", problem)
        return
    commit, dirty = provenance.git_commit(workspace)
    yield Finding("Git", "ok", f"commit {str(commit)[:12]}{', with changes that are not committed' if dirty else ''}")


def check_keras(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Check that the project's keras.json counts, and say what that of the user would change."""
    own = Path(os.environ.get("KERAS_HOME", "")) / "keras.json"
    settings = json.loads(own.read_text(encoding="utf-8"))
    if own.parent != environment.DEFAULTS or settings.get("floatx") != "float32":
        yield Finding("keras.json", "fail", f"{own} is not the project's", "make install")
        return
    other = environment.keras_downloads() / "keras.json"
    if not other.is_file():
        yield Finding("keras.json", "ok", "the project's")
        return
    try:
        theirs = json.loads(other.read_text(encoding="utf-8"))
        differing = [f"{key} {value}" for key, value in theirs.items() if settings.get(key, value) != value]
    except (ValueError, AttributeError):
        differing = ["no JSON"]
    ignored = f"; {other} ({', '.join(differing)}) is for other projects" if differing else ""
    yield Finding("keras.json", "ok", f"the project's{ignored}")


def check_gpus(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Check that TensorFlow sees every NVIDIA GPU of this machine, and that several can talk over NCCL."""
    program = shutil.which("nvidia-smi")
    listed = _output([program, "-L"], 20) if program else None
    gpus = [line for line in (listed or "").splitlines() if line.startswith("GPU ")]
    if not gpus:
        yield Finding("GPUs", "ok", "no NVIDIA GPU, so trainings use the CPU")
        return
    if _installed("nvidia-cudnn-cu12") is None and not ctypes.util.find_library("cudnn"):
        yield Finding("GPUs", "warn", f"{len(gpus)} GPUs, but TensorFlow's CUDA libraries are missing", "make gpu")
        return
    count = 'import tensorflow; print(len(tensorflow.config.list_physical_devices("GPU")))'
    seen = _output([sys.executable, "-c", count], LIMIT_SECONDS * 0.8)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA ignores everything from the first entry that is no device, such as -1.
    named = takewhile(lambda name: name and name[0] != "-", map(str.strip, (visible or "").split(",")))
    expected = len(gpus) if visible is None else len(list(named))
    if not expected:
        yield Finding("GPUs", "ok", f"CUDA_VISIBLE_DEVICES is {visible!r}, so trainings use the CPU")
        return
    if seen is None or int(seen.split()[-1]) < expected:
        found = seen.split()[-1] if seen else "no"
        sentence = f"TensorFlow sees {found} of {expected} GPUs"
        yield Finding("GPUs", "fail", sentence, "compare the driver's version (nvidia-smi) with `pip show tensorflow`")
        return
    yield Finding("GPUs", "ok", f"TensorFlow sees all {expected}")
    if expected > 1:
        nccl = _installed("nvidia-nccl-cu12") or ctypes.util.find_library("nccl")
        if nccl:
            yield Finding("NCCL", "ok", f"{nccl} for {expected} GPUs")
        else:
            yield Finding("NCCL", "fail", f"{expected} GPUs cannot exchange gradients: NCCL is missing", "make gpu")


def _output(command: list[str], seconds: float) -> str | None:
    """Return what the command prints, None if it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def check_disks(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Check that the disks of all folders that a run writes to have space, and that they can be written."""
    from mobilenet_pipeline.release import bento

    places = {
        "workspace": paths.home(workspace),
        "Bentos": bento.home(),
        "temporary": Path(tempfile.gettempdir()),
    }
    disks: dict[int, tuple[str, Path]] = {}
    for name, place in places.items():
        folder = next(folder for folder in (place.resolve(), *place.resolve().parents) if folder.is_dir())
        if not os.access(folder, os.W_OK):
            yield Finding(
                "disk", "fail", f"{folder} ({name}) cannot be written", "correct its owner or its permissions"
            )
        disks.setdefault(folder.stat().st_dev, (name, folder))
    for name, folder in disks.values():
        free = shutil.disk_usage(folder).free
        state: State = "fail" if free < _VERY_LITTLE else "warn" if free < _LITTLE else "ok"
        remedy = "" if state == "ok" else f"free space there: `mobilenet-pipeline gc --recipe {recipe.name} --keep 10`"
        yield Finding("disk", state, f"{free / 2**30:,.1f} GiB are free on the disk of {folder} ({name})", remedy)


def check_clock(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Compare this machine's clock with that of the disk, of the servers, and with the last recorded event."""
    differences = {}
    with tempfile.NamedTemporaryFile(dir=paths.home(workspace)) as probe:
        differences["the disk"] = os.stat(probe.name).st_mtime - time.time()
    for variable, url in _servers().items():
        date = _date_of(url)
        if date:
            differences[f"{shown(url)} ({variable})"] = date.timestamp() - time.time()
    for place, seconds in differences.items():
        if abs(seconds) > _SKEW:
            state: State = "fail" if abs(seconds) > _BIG_SKEW else "warn"
            sentence = f"this clock differs from that of {place} by {abs(seconds):,.0f} s"
            yield Finding("clock", state, sentence, "synchronise it: timedatectl set-ntp true")
    events = history.read(recipe, workspace, copy=True)
    last = max((datetime.fromisoformat(event.at) for event in events), default=None)
    if last and (ahead := (last - datetime.now(UTC)).total_seconds()) > _SKEW:
        sentence = f"the last recorded event is {ahead:,.0f} s in the future: this clock is slow, or that one was fast"
        yield Finding("clock", "warn", sentence, "synchronise it: timedatectl set-ntp true")
    elif all(abs(seconds) <= _SKEW for seconds in differences.values()):
        yield Finding("clock", "ok", f"as that of {' and '.join(differences)}")


def _servers() -> dict[str, str]:
    """Return the addresses over HTTP that the settings name, by variable."""
    names = (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "PREFECT_API_URL",
        "AWS_ENDPOINT_URL",
        "MLFLOW_S3_ENDPOINT_URL",
    )
    values = {name: os.environ.get(name, "") for name in names}
    return {name: value for name, value in values.items() if value.startswith(("http://", "https://"))}


def _date_of(url: str) -> datetime | None:
    """Return the server's time from any answer, None without one."""
    import httpx

    try:
        answer = httpx.get(url, timeout=_ANSWER_SECONDS)
        return parsedate_to_datetime(answer.headers["date"])
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError):
        return None


def check_proxies(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Name the servers of the settings to which a proxy would carry the requests."""
    proxies = {scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https", "all")}
    if not proxies:
        yield Finding("proxies", "ok", "none")
        return
    carried = {
        urlsplit(url).hostname or "": variable
        for variable, url in _servers().items()
        if (urlsplit(url).scheme in proxies or "all" in proxies) and not proxy_bypass(urlsplit(url).netloc)
    }
    names = ", ".join(f"{shown(url)} for {scheme}" for scheme, url in proxies.items())
    if carried:
        hosts = ", ".join(f"{host} ({variable})" for host, variable in carried.items())
        remedy = f"if they are in your own network: NO_PROXY={','.join(carried)}"
        yield Finding("proxies", "warn", f"requests to {hosts} pass a proxy: {names}", remedy)
    else:
        yield Finding("proxies", "ok", f"{names}; none for this machine and the servers of the settings")


def check_registry(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Check that MLflow answers and is this recipe's registry, then the artefacts and the live Bento against it."""
    from mobilenet_pipeline.registry import identity, snapshot, store
    from mobilenet_pipeline.release import promotion

    identity.check(recipe, workspace)
    name = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "in this workspace"
    if snapshot.kind() == "file" and not snapshot.database().exists():
        yield Finding("registry", "ok", f"there is none yet ({name}); a run creates it")
        return
    if snapshot.kind() == "file":
        snapshot.check(snapshot.database())
    address = shown(store.use_store())
    store.check_registry()
    location = snapshot.artefact_location(recipe)
    if location:
        store.check_artefacts(location)
    known = identity.remembered(recipe, workspace)
    sentence = f"{address} ({name}), identity {known.identity[:12]}" if known else f"{address} ({name})"
    yield Finding("registry", "ok", f"{sentence}{'; artefacts can be stored' if location else ''}")
    if snapshot.kind() == "server" and (server := store.server_version()) not in (None, _installed("mlflow")):
        sentence = f"the server has MLflow {server}, this client {_installed('mlflow')}"
        yield Finding("MLflow", "warn", sentence, "install the same version on both sides")
    state = promotion.read_state(recipe, workspace)
    for role, version in (("champion", state.champion), ("challenger", state.challenger)):
        if version:
            yield _check_artefacts(role, version)
    yield _check_bento(recipe, state)


def _check_artefacts(role: str, version: "Version") -> Finding:
    from mobilenet_pipeline.registry import versions as registry

    with tempfile.TemporaryDirectory() as scratch:
        try:
            registry.fetch(version, Path(scratch))
        except (ValueError, OSError) as error:
            remedy = f"mobilenet-pipeline doctor --repair --recipe {version.recipe} restores it if another copy exists"
            return Finding(role, "fail", " ".join(str(error).split()), remedy)
    return Finding(role, "ok", f"version {version.version}, artefact {version.sha256[:12]} is whole")


def _check_bento(recipe: Recipe, state: "RegistryState") -> Finding:
    from mobilenet_pipeline.release import bento, promotion

    live = bento.live(recipe)
    drift = promotion.drift(recipe, state, live)
    if drift and live:
        same = live.hashes["champion"] == (state.champion.sha256 if state.champion else None)
        return Finding("Bento", "warn" if same else "fail", drift)
    if drift:
        return Finding("Bento", "fail", drift)
    return Finding("Bento", "ok", f"{live.tag} serves what the registry names" if live else "none is live yet")


def check_history(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Check the chain of the history, the records of the test images, and decisions that wait for MLflow."""
    from mobilenet_pipeline.operations import backup
    from mobilenet_pipeline.release import offline

    place = records.shared()
    events = history.read(recipe, workspace)
    reads = ledger.count_reads(recipe.data.digest, workspace)
    ledger.last_comparison(recipe.data.digest, workspace)
    where = f" at {place}" if place else ""
    yield Finding("history", "ok", f"events: {len(events)}, reads of the test images: {reads}{where}; every hash holds")
    waiting = offline.pending(recipe, workspace)
    if waiting:
        decisions = ", ".join(f"{decision.what} of version {decision.version}" for decision in waiting)
        yield Finding(
            "journal", "warn", f"waits for MLflow: {decisions}", f"mobilenet-pipeline run --recipe {recipe.name}"
        )
    sentence = backup.interrupted(workspace)
    if sentence:
        yield Finding("restore", "fail", sentence, "mobilenet-pipeline restore FILE --force, with the same file")
    for folder in sorted(paths.home(workspace).glob(f"{backup.KEPT}*")):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        sentence = f"{folder} has what a restore has replaced, {size / 1e6:,.1f} MB"
        yield Finding("restore", "warn", sentence, "delete it when you are sure")


def check_dvc(recipe: Recipe, workspace: Path) -> Iterator[Finding]:
    """Check that DVC's remote answers, and that it or the cache has all outputs of the recipe."""
    if not (workspace / ".dvc").is_dir():
        yield Finding("DVC", "warn", "this folder is no DVC project", "run the commands in a clone of the repository")
        return
    setting = os.environ.get(team.DVC_REMOTE)
    if setting and not team.is_followed():
        sentence = f"DVC does not use {shown(setting)} ({team.DVC_REMOTE}) here yet"
        yield Finding("DVC", "warn", sentence, f"mobilenet-pipeline run --recipe {recipe.name} sets it up")
        return
    lock = dvc_file(recipe.name, workspace).with_suffix(".lock")
    cache.locked(workspace)
    if not lock.is_file():
        yield Finding("DVC", "ok", f"{lock} does not exist: no stage of {recipe.name} has run here")
        return
    names = [name for name in runner.stage_names(recipe) if name in _stages(lock)]
    if not names:
        yield Finding("DVC", "ok", f"{lock} has no stage of {recipe.name}")
        return
    words = ["status", "--cloud", "--json", *(runner.address(name) for name in names)]
    answer = json.loads(cache.run(*words, seconds=LIMIT_SECONDS * 0.8) or "{}")
    missing = sorted(path for path, state in answer.items() if state == "missing")
    unsent = sorted(path for path, state in answer.items() if state == "new")
    if missing:
        sentence = f"{len(missing)} files are neither in the cache nor in the remote: {', '.join(missing[:3])}"
        yield Finding("DVC", "fail", sentence, f"mobilenet-pipeline run --recipe {recipe.name} makes them again")
    elif unsent:
        yield Finding("DVC", "warn", f"{len(unsent)} files are in this cache only: {', '.join(unsent[:3])}", "dvc push")
    else:
        yield Finding("DVC", "ok", f"the remote has all outputs of {len(names)} stages")


def _stages(lock: Path) -> set[str]:
    return set((YAML(typ="safe").load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {})


CHECKS: Mapping[str, Check] = {
    "Python": check_python,
    "tools": check_tools,
    "keras.json": check_keras,
    "GPUs": check_gpus,
    "disk": check_disks,
    "clock": check_clock,
    "proxies": check_proxies,
    "history": check_history,
    "registry": check_registry,
    "DVC": check_dvc,
}
