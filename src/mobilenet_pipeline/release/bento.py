"""Versions to a Bento: build it, check it, make it live, find the live one, discard it.

The BentoML store is `.bentoml` in the current directory, or BENTOML_HOME. BentoML runs in child processes only, because
it keeps its first store for the life of a process, and imports the service that it builds.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mobilenet_pipeline
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.inference import artefact, trust
from mobilenet_pipeline.system import environment, process
from mobilenet_pipeline.workspace import files

MODEL, METADATA, ROLES = "model.tflite", "metadata.json", "served.json"
BUILT = "built"
"""A file in a Bento that was built to its end."""
INFERENCE = ("__init__", "artefact", "preprocess", "statistics", "trust")
SHARED = ("__init__.py", *(f"inference/{name}.py" for name in INFERENCE))
"""The pipeline's modules that a Bento contains."""
PROGRAMS = ("build.py", "check.py", "start.py")
"""The modules of `serving` that a Bento does not contain: they run outside of the service."""
PACKAGES = ("ai-edge-litert", "httptools", "numpy", "orjson", "pillow", "uvloop")
"""What a serving process needs beside BentoML. With uvloop and httptools, uvicorn parses requests faster."""
OPTIONAL = ("pillow-heif",)
"""What a serving process can use, and gets if it is installed here."""


class PackagingError(ValueError):
    """A Bento cannot be built or found, or its answers are wrong."""


@dataclass(frozen=True)
class Bento:
    """A built Bento: its tag NAME:VERSION, and by role the registered version and the SHA-256 of the artefact.

    `is_current`: these models with the present code and packages would give the same Bento. `answering` is, by role,
    what decides the answers beside the artefact.
    """

    tag: str
    versions: dict[str, str | None]
    hashes: dict[str, str | None]
    is_current: bool
    answering: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.tag


def check_build_tools() -> None:
    """Raise PackagingError if uv, which BentoML runs while it builds, is not beside this Python."""
    folder = Path(sys.executable).parent
    if not shutil.which("uv", path=str(folder)):
        raise PackagingError(f"uv is not in {folder}, and BentoML cannot build without it; install the project again")


def package(recipe: Recipe, champion: Path, challenger: Path | None) -> str:
    """Build a Bento of these versions and return its tag. The live Bento stays live until `put_live`.

    `champion` and `challenger` are folders with model.tflite and metadata.json. Nothing is built if the store already
    has a Bento of the same artefacts and code. Raises PackagingError if a folder does not match its metadata, or if the
    build fails.
    """
    folders = {"champion": champion, "challenger": challenger}
    roles = {role: _model_tag(recipe, folder) if folder else None for role, folder in folders.items()}
    models = {tag: folder for tag, folder in zip(roles.values(), folders.values(), strict=True) if tag and folder}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        tag = _write_source(source, recipe.registered_model, _metadata(champion)["version"], roles)
        missing = {model: str(folder) for model, folder in models.items() if not _has(model, folder)}
        if not missing and (_bento_folder(tag) / BUILT).is_file():
            return tag
        # BentoML fails on the remains of a killed build.
        discard(tag)
        for model in missing:
            shutil.rmtree(_model_folder(model), ignore_errors=True)
        labels = {"recipe": recipe.name, "registered_model": recipe.registered_model}
        plan = {"tag": tag, "models": missing, "uses": list(models), "source": scratch, "packages": _packages()}
        _run([str(_serving() / "build.py")], f"building {tag}", plan | {"labels": labels})
    (_bento_folder(tag) / BUILT).touch()
    return tag


def put_live(tag: str) -> None:
    """Make this Bento the live one. Running services load its models within a second."""
    files.write_text(_pointer(tag.partition(":")[0]), f"{tag}\n")


def live(recipe: Recipe) -> Bento | None:
    """Return the live Bento; None if none was promoted yet, or if it or one of its models was deleted."""
    try:
        tag = _pointer(recipe.registered_model).read_text(encoding="utf-8").strip()
        folders = _folders(tag)
        facts = {role: _metadata(folder) if folder else None for role, folder in folders.items()}
        versions = {role: each["version"] if each else None for role, each in facts.items()}
        hashes = {role: artefact.sha256_of(folder / MODEL) if folder else None for role, folder in folders.items()}
    except (FileNotFoundError, PackagingError):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        current = _write_source(Path(scratch), recipe.registered_model, versions["champion"], _roles(tag))
    answering = {role: trust.answering(each) if each else None for role, each in facts.items()}
    return Bento(tag, versions, hashes, tag == current, answering)


def must_be_live(recipe: Recipe) -> Bento:
    """Return the live Bento. Raises PackagingError if there is none."""
    bento = live(recipe)
    if bento is None:
        raise PackagingError(f"no Bento of {recipe.name} is live; run `mobilenet-pipeline run --recipe {recipe.name}`")
    return bento


def served_models(recipe: Recipe) -> dict[str, Path | None]:
    """Return the live champion's and challenger's folders, which have model.tflite and metadata.json.

    Raises PackagingError if there is no live Bento.
    """
    return _folders(must_be_live(recipe).tag)


def stored_model(recipe: Recipe, sha256: str) -> Path | None:
    """Return the folder in the model store that has this artefact and its metadata, None if there is none."""
    folders = sorted((home() / "models" / recipe.registered_model).glob("*/"))
    complete = (folder for folder in folders if (folder / MODEL).is_file() and (folder / METADATA).is_file())
    return next((folder for folder in complete if artefact.sha256_of(folder / MODEL) == sha256), None)


def has_code_of(tag: str, other: str) -> bool:
    """Return whether two Bentos have the same code; a running service loads only the models of such a Bento."""
    sources = [_bento_folder(each) / "src" for each in (tag, other)]
    first, second = (
        {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.suffix in (".py", ".html")}
        for source in sources
    )
    return first == second


def discard(tag: str) -> None:
    """Delete the Bento, complete or not, from the store. Its models stay."""
    shutil.rmtree(_bento_folder(tag), ignore_errors=True)


def serve_command(tag: str, host: str = "127.0.0.1", port: int = 3000, record: Path | None = None) -> list[str]:
    """Return the command line that serves the Bento over HTTP, for `os.execv` or `subprocess`.

    With a folder `record`, the service records its answers there, and loads the models of later live Bentos.
    """
    variables: dict[str, Path | str] = {"BENTOML_HOME": home()}
    if record:
        variables |= {"SERVING_LIVE": _pointer(tag.partition(":")[0]), "SERVING_RECORD": record.resolve() / str(port)}
    start = [shutil.which("env") or "/usr/bin/env", *(f"{key}={value}" for key, value in variables.items())]
    address = ["--host", host, "--port", str(port), "--metrics", str(home() / "metrics" / f"{host}-{port}")]
    return [*start, sys.executable, "-P", str(_serving() / "start.py"), tag, *address]


def record_of(tag: str) -> Path:
    """Return the folder of the Bento's recorded answers: SERVING_RECORD, or one in the store."""
    return Path(os.environ.get("SERVING_RECORD") or home() / "answers" / tag.partition(":")[0])


def check(tag: str, milliseconds: float) -> None:
    """Serve the Bento on a free port and compare its answers with those of its artefact.

    Raises PackagingError with the end of the server's log if it does not start, if an answer differs, or if the median
    latency exceeds `milliseconds`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The key, the record and the live pointer are settings of the real service.
    trial = ["env", *(part for name in os.environ if name.startswith("SERVING_") for part in ("-u", name))]
    order = {
        "command": [*trial, *serve_command(tag, port=port)],
        "port": port,
        "champion": str(_folders(tag)["champion"]),
        "milliseconds": milliseconds,
    }
    _run([str(_serving() / "check.py")], f"checking {tag}", order)


def home() -> Path:
    """Return the folder of the BentoML store."""
    return Path(os.environ.get("BENTOML_HOME") or ".bentoml").resolve()


def _pointer(name: str) -> Path:
    """Return the file with the live Bento's tag. BentoML's own `latest` moves with every build, promoted or not."""
    return home() / "live" / name


def _bento_folder(tag: str) -> Path:
    return home() / "bentos" / tag.replace(":", "/")


def _roles(tag: str) -> dict[str, str | None]:
    """Return the model tags of the Bento's champion and challenger."""
    try:
        return dict(json.loads((_bento_folder(tag) / "src" / ROLES).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PackagingError(
            f"{tag} is not a Bento of this pipeline ({error}); build one with `mobilenet-pipeline run --recipe …`"
        ) from None


def _folders(tag: str) -> dict[str, Path | None]:
    return {role: _model_folder(model) if model else None for role, model in _roles(tag).items()}


def _model_folder(tag: str) -> Path:
    return home() / "models" / tag.replace(":", "/")


def _model_tag(recipe: Recipe, folder: Path) -> str:
    """Return the version's tag in the model store, made of its digest. Raises PackagingError for a damaged artefact."""
    facts = _metadata(folder)
    try:
        artefact.check_sha256(folder / MODEL, facts["sha256"])
    except artefact.ArtefactError as error:
        raise PackagingError(str(error)) from None
    if facts["registered_model"] != recipe.registered_model:
        raise PackagingError(
            f"{folder} has a version of {facts['registered_model']}, but recipe {recipe.name} serves "
            f"{recipe.registered_model}"
        )
    return f"{recipe.registered_model}:{facts['version']}-{_digest(folder, [], (MODEL, METADATA))[:12]}"


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / METADATA).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PackagingError(f"{folder / METADATA} cannot be read: {error}") from None


def _has(tag: str, folder: Path) -> bool:
    """Return whether the store has the complete model."""
    stored = _model_folder(tag)
    complete = all((stored / name).is_file() for name in (MODEL, METADATA, "model.yaml"))
    return complete and _digest(stored, [], (MODEL, METADATA)) == _digest(folder, [], (MODEL, METADATA))


def _packages() -> list[str]:
    """Return the serving packages and their dependencies, pinned to the installed versions.

    BentoML adds itself, in the version that builds.
    """
    versions: dict[str, str] = {}
    names = [*PACKAGES, *filter(_is_installed, OPTIONAL), "bentoml"]
    while names:
        name = canonicalize_name(names.pop())
        if name not in versions:
            versions[name] = metadata.version(name)
            needed = [Requirement(line) for line in metadata.requires(name) or ()]
            names += [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return sorted(f"{name}=={version}" for name, version in versions.items() if name != "bentoml")


def _is_installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _write_source(folder: Path, name: str, version: str | None, roles: Mapping[str, str | None]) -> str:
    """Write the Bento's code and roles into `folder`, and return the tag, made of their digest and the packages."""
    serving = _serving()
    service = [path.name for path in serving.iterdir() if path.suffix in (".py", ".html") and path.name not in PROGRAMS]
    for origin, names in ((Path(mobilenet_pipeline.__path__[0]), SHARED), (serving, service)):
        for file in names:
            copy = folder / origin.name / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / file, copy)
    (folder / ROLES).write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")
    return f"{name}:{version}-{_digest(folder, [*_packages(), metadata.version('bentoml')])[:12]}"


def _serving() -> Path:
    """Return the folder of the service's code."""
    package = util.find_spec("serving")
    if package is None or package.origin is None:
        raise PackagingError("the package `serving` is missing; install the project again, from its repository")
    return Path(package.origin).parent


def _digest(folder: Path, words: list[str], names: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 over the words, and the names and contents of the files (all if no `names` are given)."""
    paths = [folder / name for name in names] or sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256(json.dumps(words).encode())
    for path in paths:
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _run(arguments: list[str], task: str, order: Mapping[str, Any]) -> None:
    """Run this Python with the arguments and the order on its standard input. Raises PackagingError if it fails.

    Every process that it starts, a server too, ends with it or with this process.
    """
    variables = {**environment.prepared(os.environ), "BENTOML_HOME": str(home()), "PYTHONDONTWRITEBYTECODE": "1"}
    # BentoML looks for uv on PATH, on which cron has no virtual environment.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-P", *arguments]  # -P: do not import from the script's own folder
    with process.leashed(command, variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError), child.stdin as stream:  # the child has died, and its output says why
            stream.write(json.dumps(order).encode())
        output = child.stdout.read().decode(errors="replace").strip()
    if child.returncode:
        tail = "\n".join(output.splitlines()[-25:])
        raise PackagingError(f"{task} failed: {tail}")
