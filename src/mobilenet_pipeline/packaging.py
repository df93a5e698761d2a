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
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mobilenet_pipeline import environment, layout, pipeline
from mobilenet_pipeline.config import Recipe

MODEL, METADATA, ROLES = "model.tflite", "metadata.json", "served.json"
BUILT = "built"
"""A file in a Bento that was built to its end."""
# What goes into a Bento: the service and the modules that it shares with the pipeline, nothing else.
SHARED = ("__init__.py", "artefact.py", "preprocess.py")
SERVICE = (
    "__init__.py",
    "answers.py",
    "front_door.py",
    "live.py",
    "measures.py",
    "openapi.py",
    "page.html",
    "record.py",
    "served.py",
    "service.py",
    "workers.py",
)
# All that a serving process needs; BentoML adds itself, in the version that builds. With uvloop and httptools, which
# uvicorn takes where they are there, a request takes less time to be read and answered.
PACKAGES = ("ai-edge-litert", "httptools", "numpy", "orjson", "pillow", "uvloop")
NAME_RULE = r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?"


class PackagingError(ValueError):
    """A Bento could not be built, found, or does not answer as it should."""


@dataclass(frozen=True)
class Bento:
    """A built Bento: `tag` is NAME:VERSION, the roles' versions are of the registered model, the hashes SHA-256.

    `is_current`: the service's code and packages of today would make the same Bento of these models.
    """

    tag: str
    versions: dict[str, str | None]
    hashes: dict[str, str | None]
    is_current: bool

    def __str__(self) -> str:
        return self.tag


def package(recipe: Recipe, champion: Path, challenger: Path | None) -> str:
    """Build a Bento that serves these versions and return its tag. What is live stays so until `put_live`.

    `champion` and `challenger` are folders with model.tflite and metadata.json. If the store has a Bento of the same
    artefacts and code already, nothing is built. Raises PackagingError where a folder is not what its metadata says or
    the build fails.
    """
    if not re.fullmatch(NAME_RULE, recipe.registered_model):
        rule = "BentoML wants small letters, digits, '-', '_' and '.' only; change it in params.yaml"
        raise PackagingError(f"recipes.{recipe.name}.registered_model is {recipe.registered_model!r}: {rule}")
    folders = {"champion": champion, "challenger": challenger}
    roles = {role: _model_tag(recipe, folder) if folder else None for role, folder in folders.items()}
    used = {tag: folder for tag, folder in zip(roles.values(), folders.values(), strict=True) if tag and folder}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        tag = _write_source(source, recipe.registered_model, _metadata(champion)["version"], roles)
        missing = {model: str(folder) for model, folder in used.items() if not _holds(model, folder)}
        if not missing and (_bento_folder(tag) / BUILT).is_file():
            return tag
        # BentoML trips over what a killed build has left of a Bento or a model.
        discard(tag)
        for model in missing:
            shutil.rmtree(_model_folder(model), ignore_errors=True)
        labels = {"recipe": recipe.name, "registered_model": recipe.registered_model}
        plan = {"tag": tag, "models": missing, "uses": list(used), "source": scratch, "packages": _packages()}
        _run([str(_serving() / "build.py")], f"building {tag}", plan | {"labels": labels})
    (_bento_folder(tag) / BUILT).touch()
    return tag


def put_live(tag: str) -> None:
    """Make this Bento the one that is served from now on."""
    with layout.whole(_pointer(tag.partition(":")[0])) as partial:
        partial.write_text(f"{tag}\n", encoding="utf-8")


def live(recipe: Recipe) -> Bento | None:
    """The Bento that is served; None where none was promoted yet, or it or a model in it was deleted since."""
    try:
        tag = _pointer(recipe.registered_model).read_text(encoding="utf-8").strip()
        folders = _folders(tag)
        versions = {role: _metadata(folder)["version"] if folder else None for role, folder in folders.items()}
        hashes = {role: _sha256(folder / MODEL) if folder else None for role, folder in folders.items()}
    except (FileNotFoundError, PackagingError):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        wanted = _write_source(Path(scratch), recipe.registered_model, versions["champion"], _roles(tag))
    return Bento(tag, versions, hashes, tag == wanted)


def must_be_live(recipe: Recipe) -> Bento:
    """`live`, or PackagingError with the remedy."""
    bento = live(recipe)
    if bento is None:
        raise PackagingError(f"nothing of {recipe.name} is served: `mobilenet-pipeline run --recipe {recipe.name}`")
    return bento


def served_models(recipe: Recipe) -> dict[str, Path | None]:
    """The folders, with model.tflite and metadata.json, of champion and challenger as they are served.

    Raises PackagingError where nothing is.
    """
    return _folders(must_be_live(recipe).tag)


def discard(tag: str) -> None:
    """Take the Bento out of the store, whole or not. Its models stay."""
    shutil.rmtree(_bento_folder(tag), ignore_errors=True)


def serve_command(tag: str, host: str = "127.0.0.1", port: int = 3000, record: Path | None = None) -> list[str]:
    """The command line that serves the Bento over HTTP, for `os.execv` or `subprocess`.

    With a folder `record`, it takes over what goes live later, and keeps its answers there.
    """
    variables: dict[str, Path | str] = {"BENTOML_HOME": home()}
    if record:
        variables |= {"SERVING_LIVE": _pointer(tag.partition(":")[0]), "SERVING_RECORD": record.resolve() / str(port)}
    start = [shutil.which("env") or "/usr/bin/env", *(f"{key}={value}" for key, value in variables.items())]
    address = ["--host", host, "--port", str(port), "--metrics", str(home() / "metrics" / f"{host}-{port}")]
    return [*start, sys.executable, "-P", str(_serving() / "start.py"), tag, *address]


def record_of(tag: str) -> Path:
    """Where the Bento's servers keep their answers: SERVING_RECORD, or a folder beside the store."""
    return Path(os.environ.get("SERVING_RECORD") or home() / "answers" / tag.partition(":")[0])


def check(tag: str, milliseconds: float) -> None:
    """Serve the Bento on a free port, ask it about images, compare with its own artefact, and end it.

    Raises PackagingError with the end of the server's log where it does not start, answers otherwise, or takes more
    than `milliseconds` for an answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A key, a record or another Bento that is live are for those who serve; a trial knows nothing of them.
    trial = ["env", *(part for name in os.environ if name.startswith("SERVING_") for part in ("-u", name))]
    order = {
        "command": [*trial, *serve_command(tag, port=port)],
        "port": port,
        "champion": str(_folders(tag)["champion"]),
        "milliseconds": milliseconds,
    }
    _run([str(_serving() / "check.py")], f"checking {tag}", order)


def home() -> Path:
    """The BentoML store."""
    return Path(os.environ.get("BENTOML_HOME") or ".bentoml").resolve()


def _pointer(name: str) -> Path:
    """The file that says which Bento is live. Not BentoML's `latest`, which every build moves, promoted or not."""
    return home() / "live" / name


def _bento_folder(tag: str) -> Path:
    return home() / "bentos" / tag.replace(":", "/")


def _roles(tag: str) -> dict[str, str | None]:
    """The tags of the Bento's champion and challenger in the model store."""
    try:
        return dict(json.loads((_bento_folder(tag) / "src" / ROLES).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PackagingError(
            f"{tag} is not a Bento of this pipeline ({error}); mobilenet-pipeline run, with its --recipe, makes another"
        ) from None


def _folders(tag: str) -> dict[str, Path | None]:
    return {role: _model_folder(model) if model else None for role, model in _roles(tag).items()}


def _model_folder(tag: str) -> Path:
    return home() / "models" / tag.replace(":", "/")


def _model_tag(recipe: Recipe, folder: Path) -> str:
    """The version's name in the model store, from what it holds. Raises PackagingError for a damaged artefact."""
    known = _metadata(folder)
    found = _sha256(folder / MODEL) if (folder / MODEL).is_file() else "missing"
    if found != known["sha256"]:
        raise PackagingError(f"{folder / MODEL} is damaged: its SHA-256 is {found}, it should be {known['sha256']}")
    if known["registered_model"] != recipe.registered_model:
        raise PackagingError(f"{folder} is of {known['registered_model']}, recipe {recipe.name} serves another model")
    return f"{recipe.registered_model}:{known['version']}-{_digest(folder, [], (MODEL, METADATA))[:12]}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def _packages() -> list[str]:
    """What a serving process needs, and what that needs, in the versions that the Bento is tried out with."""
    found: dict[str, str] = {}
    waiting = [*PACKAGES, "bentoml"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found[name] = metadata.version(name)
            wanted = [Requirement(line) for line in metadata.requires(name) or ()]
            waiting += [one.name for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]
    return sorted(f"{name}=={version}" for name, version in found.items() if name != "bentoml")


def _write_source(folder: Path, name: str, version: str | None, roles: Mapping[str, str | None]) -> str:
    """Write the Bento's code and roles into `folder`, and give the tag that follows from them and the packages."""
    for origin, names in ((Path(__file__).parent, SHARED), (_serving(), SERVICE)):
        (folder / origin.name).mkdir(parents=True)
        for file in names:
            shutil.copyfile(origin / file, folder / origin.name / file)
    (folder / ROLES).write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")
    return f"{name}:{version}-{_digest(folder, [*_packages(), metadata.version('bentoml')])[:12]}"


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
    """Run this Python with the arguments and the order on its standard input. Raises PackagingError.

    Whatever it starts, a server too, ends with it or with this process.
    """
    variables = {**environment.TELEMETRY_OFF, **os.environ, "BENTOML_HOME": str(home()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", *arguments]  # -P: a script's own folder is no place to import from
    with pipeline.leashed(command, variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError), child.stdin as stream:  # one that has died already says why itself
            stream.write(json.dumps(order).encode())
        said = child.stdout.read().decode(errors="replace").strip()
    if child.returncode:
        tail = "\n".join(said.splitlines()[-25:])
        raise PackagingError(f"{task} failed: {tail}")
