"""Promoted versions to a Bento: written into the BentoML store, looked up there, tried out, taken back.

The store is `.bentoml` in the current directory, or BENTOML_HOME. BentoML itself runs in child processes only: it keeps
to the first store it sees for as long as a process lives, and leaves the service it builds among the imported modules.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from mobilenet_pipeline import environment
from mobilenet_pipeline.config import Recipe

MODEL, METADATA, ROLES = "model.tflite", "metadata.json", "served.json"
# What goes into a Bento: the service and the modules that it shares with the pipeline, nothing else.
SHARED = ("__init__.py", "artefact.py", "preprocess.py")
SERVICE = ("__init__.py", "answers.py", "front_door.py", "served.py", "service.py")
# All that a serving process needs; BentoML adds itself, in the version that builds.
PACKAGES = ("ai-edge-litert", "numpy", "pillow")
NAME_RULE = r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?"


class PackagingError(ValueError):
    """A Bento could not be built, found, or does not answer as it should."""


@dataclass(frozen=True)
class Bento:
    """A built Bento: `tag` is NAME:VERSION, `champion` and `challenger` are versions of the registered model."""

    tag: str
    champion: str
    challenger: str | None

    def __str__(self) -> str:
        return self.tag


def package(recipe: Recipe, champion: Path, challenger: Path | None) -> str:
    """Build a Bento that serves these versions and return its tag; it is the newest one then.

    `champion` and `challenger` are folders with model.tflite and metadata.json. If the newest Bento holds the same
    artefacts and code already, nothing is built. Raises PackagingError where a folder is not what its metadata says or
    the build fails; the newest Bento is then the one before.
    """
    if not re.fullmatch(NAME_RULE, recipe.registered_model):
        rule = "BentoML wants small letters, digits, '-', '_' and '.' only; change it in params.yaml"
        raise PackagingError(f"recipes.{recipe.name}.registered_model is {recipe.registered_model!r}: {rule}")
    folders = {"champion": champion, "challenger": challenger}
    roles = {role: _model_tag(recipe, folder) if folder else None for role, folder in folders.items()}
    used = {tag: folder for tag, folder in zip(roles.values(), folders.values(), strict=True) if tag and folder}
    packages = [f"{name}=={metadata.version(name)}" for name in PACKAGES]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        _write_source(source, roles)
        digest = _digest(source, [*packages, metadata.version("bentoml")])
        tag = f"{recipe.registered_model}:{_metadata(champion)['version']}-{digest[:12]}"
        missing = {model: str(folder) for model, folder in used.items() if not _holds(model, folder)}
        if not missing and _newest(recipe.registered_model) == tag:
            return tag
        labels = {"recipe": recipe.name, "registered_model": recipe.registered_model}
        plan = {"tag": tag, "models": missing, "uses": list(used), "source": scratch, "packages": packages}
        _run([str(_serving() / "build.py")], f"building {tag}", plan | {"labels": labels})
    if (newest := _newest(recipe.registered_model)) != tag:
        raise PackagingError(f"{tag} was built, but {newest} counts as newer in {home()}; is the clock right?")
    return tag


def latest(model: Recipe | str) -> Bento | None:
    """The newest Bento of a recipe, or of the name it registers its models under; None where there is none."""
    tag = _newest(_name(model))
    try:
        folders = _folders(tag) if tag else {}
        versions = {role: _metadata(folder)["version"] for role, folder in folders.items() if folder}
    except PackagingError:  # its models were deleted: it cannot be served, so it is none
        return None
    return Bento(tag, versions["champion"], versions.get("challenger")) if tag else None


def served_models(model: Recipe | str) -> dict[str, Path | None]:
    """The folders, with model.tflite and metadata.json, of the newest Bento's champion and challenger.

    Raises PackagingError where there is no Bento.
    """
    bento = latest(model)
    if bento is None:
        raise PackagingError(f"there is no Bento of {_name(model)} in {home()}; `mobilenet-pipeline run` makes one")
    return _folders(bento.tag)


def discard(tag: str) -> None:
    """Take the Bento out of the store; the one before is the newest then. Its models stay."""
    _run(["-m", "bentoml", "delete", tag, "--yes"], f"discarding {tag}")


def serve_command(tag: str, host: str = "127.0.0.1", port: int = 3000) -> list[str]:
    """The command line that serves the Bento over HTTP, for `os.execv` or `subprocess`.

    Every port gets a BentoML home that shares the store: a second server in the same home deletes the first's metrics.
    """
    own = home() / "servers" / str(port)
    own.mkdir(parents=True, exist_ok=True)
    for name in ("bentos", "models"):
        if not (own / name).is_symlink():
            (own / name).symlink_to(Path("../..") / name)
    start = [shutil.which("env") or "/usr/bin/env", f"BENTOML_HOME={own}", sys.executable, "-m", "bentoml", "serve"]
    return [*start, tag, "--host", host, "--port", str(port)]


def check(tag: str) -> None:
    """Serve the Bento on a free port, ask it, compare with its own artefact, and end it.

    Raises PackagingError with the end of the server's log where it does not start or answers otherwise.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    order = {"command": serve_command(tag, port=port), "port": port, "champion": str(_folders(tag)["champion"])}
    try:
        _run([str(_serving() / "check.py")], f"checking {tag}", order)
    finally:
        shutil.rmtree(home() / "servers" / str(port), ignore_errors=True)


def home() -> Path:
    """The BentoML store."""
    return Path(os.environ.get("BENTOML_HOME") or ".bentoml").resolve()


def _name(model: Recipe | str) -> str:
    return model if isinstance(model, str) else model.registered_model


def _newest(name: str) -> str | None:
    """The tag that BentoML means by NAME:latest."""
    try:
        return f"{name}:{(home() / 'bentos' / name / 'latest').read_text(encoding='utf-8').strip()}"
    except FileNotFoundError:
        return None


def _folders(tag: str) -> dict[str, Path | None]:
    """The folders of the Bento's champion and challenger in the model store."""
    path = home() / "bentos" / tag.replace(":", "/") / "src" / ROLES
    try:
        roles = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackagingError(f"{tag} is not a Bento of this pipeline ({error}); `mobilenet-pipeline run`") from None
    return {role: _model_folder(model) if model else None for role, model in roles.items()}


def _model_folder(tag: str) -> Path:
    return home() / "models" / tag.replace(":", "/")


def _model_tag(recipe: Recipe, folder: Path) -> str:
    """The version's name in the model store, from what it holds. Raises PackagingError for a damaged artefact."""
    known = _metadata(folder)
    found = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest() if (folder / MODEL).is_file() else "missing"
    if found != known["sha256"]:
        raise PackagingError(f"{folder / MODEL} is damaged: its SHA-256 is {found}, it should be {known['sha256']}")
    if known["registered_model"] != recipe.registered_model:
        raise PackagingError(f"{folder} is of {known['registered_model']}, recipe {recipe.name} serves another model")
    return f"{recipe.registered_model}:{known['version']}-{_digest(folder, [], (MODEL, METADATA))[:12]}"


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / METADATA).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PackagingError(f"{folder / METADATA} cannot be read: {error}") from None


def _holds(tag: str, folder: Path) -> bool:
    """Whether the store has the model, whole."""
    stored = _model_folder(tag)
    whole = all((stored / name).is_file() for name in (MODEL, METADATA, "model.yaml"))
    return whole and _digest(stored, [], (MODEL, METADATA)) == _digest(folder, [], (MODEL, METADATA))


def _write_source(folder: Path, roles: Mapping[str, str | None]) -> None:
    for origin, names in ((Path(__file__).parent, SHARED), (_serving(), SERVICE)):
        (folder / origin.name).mkdir(parents=True)
        for name in names:
            shutil.copyfile(origin / name, folder / origin.name / name)
    (folder / ROLES).write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")


def _serving() -> Path:
    """The folder of the service's code."""
    found = util.find_spec("serving")
    if found is None or found.origin is None:
        raise PackagingError("the package `serving` is not installed; install the project again")
    return Path(found.origin).parent


def _digest(folder: Path, words: list[str], names: tuple[str, ...] = ()) -> str:
    """SHA-256 over the words, and the names and contents of the files (all if none are named)."""
    paths = [folder / name for name in names] or sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256(json.dumps(words).encode())
    for path in paths:
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _run(arguments: list[str], task: str, order: Mapping[str, Any] | None = None) -> None:
    """Run this Python with the arguments and the order on its standard input. Raises PackagingError."""
    variables = {**environment.TELEMETRY_OFF, **os.environ, "BENTOML_HOME": str(home()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", *arguments]  # -P: a script's own folder is no place to import from
    done = subprocess.run(command, env=variables, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-25:])
        raise PackagingError(f"{task} failed: {tail}")
