"""One file with everything that a champion needs: registry, artefacts, records, Bentos, live pointer, DVC's locks."""

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mobilenet_pipeline.config import Recipe, load_recipe, recipe_names
from mobilenet_pipeline.inference.artefact import sha256_of
from mobilenet_pipeline.registry import snapshot
from mobilenet_pipeline.registry.store import StoreError
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.system import failures
from mobilenet_pipeline.workspace import history, locks, paths, provenance, records
from mobilenet_pipeline.workspace.files import whole, write_json
from mobilenet_pipeline.workspace.paths import HERE

FORMAT = 1
MANIFEST, DUMP = "manifest.json", "mlflow.dump"
KINDS = ("history", "test_reads", "comparisons", "registry")
"""The records that other workspaces may have written to, too."""
BENTOML = ("bentos", "models", "live")
WORKSPACE = ("dvc.lock", "recipes/dvc.lock", "recipes/chosen.yaml", "recipes/.dvcignore")
REPORTS = ("verdict.json", "validation.json", "monitoring/state.json", "monitoring/labels.csv")
"""What `status`, `trace` and `monitor` read of a recipe's reports, and cannot make again."""
KEPT = "before-restore-"
"""The beginning of the name of a folder with what a restore has replaced."""
_MARK, _STAGING = ".restoring.json", ".restore-"
_CHUNK = 1 << 20
_SILENCE_SECONDS = 5

Say = Callable[[str], None]


class BackupError(ValueError):
    """A backup cannot be written, or is not one; nothing was changed."""


@dataclass(frozen=True)
class Swap:
    """A file or folder that a restore replaces; `staged` is None for one that only has to go."""

    target: Path
    staged: Path | None


def backup(file: Path, say: Say = print, workspace: Path = HERE) -> None:
    """Write a backup of this workspace to `file`, a .tar.gz, and read it back before it gets its name.

    Decisions wait meanwhile; trainings do not. `say` gets sentences about the progress. Raises BackupError if there is
    nothing to save or the file exists, and StoreError if the registry cannot be read.
    """
    _check_target(file, workspace)
    recipes = _recipes(workspace)
    with ExitStack() as stack:
        for recipe in recipes:
            stack.enter_context(locks.deciding(recipe, workspace))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=file.parent.resolve(), prefix=".backup-")))
        for recipe in recipes:
            history.read(recipe, workspace)
        _update_records(workspace)
        say(f"reading the registry ({snapshot.kind()}) …")
        notes = snapshot.save(scratch)
        with whole(file) as partial:
            _write(partial, [*_sources(scratch, workspace)], _facts(workspace), say)
            say("reading the backup …")
            with tempfile.TemporaryDirectory(dir=scratch) as nowhere:
                manifest = _read(partial, Path(nowhere), keep=False)
            partial.chmod(0o600)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
    for champion in manifest["champions"].values():
        say(f"{champion['bento']} is live: version {champion['version']}, {champion['sha256'][:12]}")
    for note in notes:
        say(f"attention: {note}")
    say(f"{file} has {len(manifest['files']):,} files, {file.stat().st_size / 1e6:,.1f} MB")


def restore(file: Path, force: bool = False, say: Say = print, workspace: Path = HERE) -> None:
    """Bring back what a backup holds.

    Everything is unpacked and checked in a folder beside the workspace's files before any of them is replaced. What is
    replaced is kept in the folder `before-restore-TIME`. A restore that was killed is undone by the next one. Raises
    BackupError if the file is no whole backup, if the workspace is not empty and `force` is not given, or if MLflow's
    settings name another kind of store.
    """
    root = paths.home(workspace).resolve()
    with ExitStack() as stack:
        stack.enter_context(records.exclusively("restoring", workspace, everywhere=False))
        _undo(workspace)
        for left in root.glob(f"{_STAGING}*"):
            shutil.rmtree(left)
        staging = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root, prefix=_STAGING)))
        say(f"checking {file} …")
        try:
            manifest = _read(file, staging, keep=True)
        except OSError as error:
            if failures.is_full_disk(error):
                raise OSError(error.errno, error.strerror, str(staging)) from error
            raise BackupError(f"{file} cannot be read ({error.strerror or error}); nothing was changed") from None
        _check_content(file, manifest, staging, workspace)
        swaps = _swaps(staging, manifest, workspace)
        _check_empty(file, [swap.target for swap in swaps], force)
        for recipe in _recipes(workspace):
            busy = stack.enter_context(locks.only_run(recipe, workspace))
            if busy:
                raise BlockingIOError(f"nothing was restored: {busy}")
            stack.enter_context(locks.deciding(recipe, workspace))
        former = Path(manifest["artefacts"])
        if manifest["kind"] == "file":
            snapshot.relocate(former, snapshot.artefacts().resolve(), staging / "mlflow.db")
        at = f"{KEPT}{datetime.now(UTC):%Y%m%dT%H%M%S}"

        def load() -> None:
            _load_database(staging / DUMP, former, root / at, say)

        _exchange(swaps, at, workspace, say, load if manifest["kind"] == "database" else None)
        for sentence in snapshot.put_back(staging):
            say(f"attention: {sentence}")
    _update_records(workspace)
    params = workspace / "params.yaml"
    if manifest["params_sha256"] and params.is_file() and sha256_of(params) != manifest["params_sha256"]:
        say(f"attention: {params} is not that of the backup; a run with other settings trains again")
    again = "live again" if manifest["kind"] == "server" else "champion again"  # a server's registry is as it was
    for name, champion in manifest["champions"].items():
        say(f"{name}: version {champion['version']} is {again} ({champion['sha256'][:12]}), {champion['bento']}")
    say(f"restored {len(manifest['files']):,} files of {manifest['at']}; `mobilenet-pipeline doctor` checks them")


def interrupted(workspace: Path = HERE) -> str | None:
    """Return a sentence if a restore was killed while it replaced files."""
    mark = paths.home(workspace) / _MARK
    if not mark.exists():
        return None
    return f"a restore was killed ({mark} is left), so old and new files are mixed"


def _recipes(workspace: Path) -> list[Recipe]:
    """Return the recipes that this workspace has run."""
    recipes = [load_recipe(name) for name in recipe_names()]
    return [
        recipe
        for recipe in recipes
        if paths.history_path(recipe, workspace).parent.exists() or paths.report_folder(recipe, workspace).exists()
    ]


def _update_records(workspace: Path) -> None:
    """Bring the files of shared records up to date; what only the files have is added to the shared record."""
    for kind in KINDS:
        for path in records.of_kind(kind, workspace):
            records.lines(path)


def _check_target(file: Path, workspace: Path) -> None:
    if file.exists():
        raise BackupError(f"{file} exists; give the backup another name, such as one with the date")
    if not file.parent.is_dir():
        raise BackupError(f"there is no folder {file.parent} for the backup; create it")
    inside = [root for root in (snapshot.artefacts(), paths.records_folder(workspace), bento.home()) if root.exists()]
    for root in inside:
        if file.resolve().is_relative_to(root.resolve()):
            raise BackupError(f"{file} is in {root}, which is part of the backup; give a path outside of it")
    if snapshot.is_empty() and not any(inside):
        raise BackupError("there is nothing to save: this workspace has no registry, no records and no Bentos")


def _facts(workspace: Path) -> dict[str, Any]:
    """Return what the manifest says beside the files."""
    champions = {}
    for recipe in map(load_recipe, recipe_names()):
        live = bento.live(recipe)
        if live:
            champions[recipe.name] = {
                "version": live.versions["champion"],
                "sha256": live.hashes["champion"],
                "bento": live.tag,
            }
    params = workspace / "params.yaml"
    return {
        "format": FORMAT,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": snapshot.kind(),
        "artefacts": str(snapshot.artefacts().resolve()),
        "versions": {name: metadata.version(name) for name in ("mobilenet-pipeline", "mlflow", "bentoml", "dvc")},
        "commit": provenance.git_commit(workspace)[0],
        "params_sha256": sha256_of(params) if params.is_file() else None,
        "champions": champions,
    }


def _sources(scratch: Path, workspace: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the archive, path) of every file; the database first, so that artefacts are never older."""
    yield from _files("", scratch)
    yield from _files("artefacts/", snapshot.artefacts())
    yield from _files("records/", paths.records_folder(workspace))
    recipes = [load_recipe(name) for name in recipe_names()]
    for part in BENTOML:
        for recipe in recipes:
            yield from _files(
                f"bentoml/{part}/{recipe.registered_model}", bento.home() / part / recipe.registered_model
            )
    for name in WORKSPACE:
        yield from _files(f"workspace/{name}", workspace / name)
    for recipe in recipes:
        for name in REPORTS:
            path = paths.report_folder(recipe, workspace) / name
            yield from _files(f"workspace/reports/{recipe.name}/{name}", path)


def _files(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the file, or the files of the folder; temporary ones and locks start with a dot and are left out."""
    if path.is_file():
        yield name, path
    for entry in sorted(path.rglob("*")) if path.is_dir() else []:
        relative = entry.relative_to(path)
        if entry.is_file() and not entry.is_symlink() and not relative.parts[0].startswith("."):
            yield f"{name.rstrip('/')}/{relative.as_posix()}".lstrip("/"), entry


class _Hashing:
    """A readable file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self.file.read(size)
        self.digest.update(data)
        self.bytes += len(data)
        return data

    @property
    def entry(self) -> dict[str, Any]:
        """The manifest's entry of what was read."""
        return {"sha256": self.digest.hexdigest(), "bytes": self.bytes}


def _write(target: Path, sources: list[tuple[str, Path]], facts: Mapping[str, Any], say: Say) -> None:
    """Write the archive: the files, then the manifest with the hashes of the bytes that were written."""
    entries, shares = {}, _Shares(len(sources), "saved", say)
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for name, path in sources:
            try:
                with path.open("rb") as opened:
                    hashing, member = _Hashing(opened), archive.gettarinfo(arcname=name, fileobj=opened)
                    archive.addfile(member, hashing)
            except FileNotFoundError:
                continue  # a training's file that was replaced meanwhile; no version has it
            entries[name] = hashing.entry
            shares.count()
        document = json.dumps({**facts, "files": entries}, indent=2).encode()
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(document)
        with tempfile.SpooledTemporaryFile(_CHUNK) as spooled:
            spooled.write(document)
            spooled.seek(0)
            archive.addfile(member, spooled)


def _read(file: Path, folder: Path, keep: bool) -> dict[str, Any]:
    """Read the whole archive, check it against its manifest, and return that; `keep` leaves the files in `folder`.

    Raises BackupError for anything but a whole backup.
    """
    if not file.is_file():
        raise BackupError(f"there is no file {file}; give the path of a backup")
    remedy = "nothing was changed; take another copy of the backup"
    found: dict[str, dict[str, Any]] = {}
    document = b""
    try:
        with gzip.open(file) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as archive:
            for member in archive:
                tarfile.data_filter(member, str(folder))  # refuses names and links that lead out of the folder
                if not member.isreg() or member.name in found:
                    raise BackupError(f"{file} has {member.name!r}, which no backup has; {remedy}")
                source = archive.extractfile(member)
                assert source is not None
                if member.name == MANIFEST:
                    document = source.read()
                    continue
                target = folder / PurePosixPath(member.name) if keep else None
                found[member.name] = _unpack(source, target)
                if target:
                    target.chmod(member.mode & 0o755 | 0o600)
            while unzipped.read(_CHUNK):  # to its end, where gzip's checksum is
                pass
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise BackupError(f"{file} is damaged or cut off ({error}); {remedy}") from None
    except OSError as error:
        if error.errno is None:  # gzip: a wrong header or checksum
            raise BackupError(f"{file} is damaged or no backup ({error}); {remedy}") from None
        raise
    try:
        manifest = dict(json.loads(document))
        version, expected = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError):
        raise BackupError(f"{file} is damaged or cut off: it has no manifest; {remedy}") from None
    if version != FORMAT:
        raise BackupError(f"{file} has format {version}, this version reads {FORMAT}; use the version that wrote it")
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if differing:
        raise BackupError(f"{file} is damaged: {differing[0]} differs from its manifest; {remedy}")
    return manifest


def _unpack(source: IO[bytes], target: Path | None) -> dict[str, Any]:
    hashing = _Hashing(source)
    if target is None:
        while hashing.read(_CHUNK):
            pass
        return hashing.entry
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as opened:
        shutil.copyfileobj(hashing, opened, _CHUNK)
    return hashing.entry


def _check_content(file: Path, manifest: Mapping[str, Any], staging: Path, workspace: Path) -> None:
    """Raise BackupError unless this workspace can use the backup."""
    here = snapshot.kind()
    if manifest["kind"] != here:
        names = {"file": "an SQLite file", "database": "PostgreSQL", "server": "a server"}
        raise BackupError(
            f"{file} is of a registry in {names[manifest['kind']]}, and MLFLOW_TRACKING_URI names {names[here]}; "
            "set MLFLOW_TRACKING_URI as it was when the backup was made"
        )
    shared = os.environ.get(records.SETTING, "")
    own = snapshot.database().resolve() if here == "file" and shared.startswith("sqlite:") else None
    if own and snapshot.sqlite_file(shared).resolve() == own:
        raise BackupError(
            f"{shared} ({records.SETTING}) is MLflow's own file, and a restore would undo the decisions of other "
            "workspaces since the backup; give the records a copy of that file as their own, and nothing else"
        )
    newer = [name for name in ("mlflow",) if _number(manifest["versions"][name]) > _number(metadata.version(name))]
    if newer:
        raise BackupError(
            f"{file} is of MLflow {manifest['versions']['mlflow']}, {metadata.version('mlflow')} is installed; install "
            "the newer one: `make install` in the backup's version of the repository"
        )
    try:
        if here == "file":
            snapshot.check(staging / "mlflow.db")
    except StoreError as error:
        raise BackupError(f"{file}: {error}; nothing was changed") from None
    for path in sorted((staging / "records").glob("*/history.jsonl")):
        history.parse(path.relative_to(staging), records.own_lines(path))
    for path in sorted((staging / "records").glob("*/*.jsonl")):
        if path.stem in KINDS and not records.agrees(path):
            raise BackupError(
                f"{path.relative_to(staging)} in {file} and the shared record at {records.shared()} "
                f"({records.SETTING}) contradict each other; nothing was changed. Restore that database from its own "
                "backup, or name an empty one"
            )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _swaps(staging: Path, manifest: Mapping[str, Any], workspace: Path) -> list[Swap]:
    """Return what replaces what; a part that the backup lacks is replaced by nothing, so that nothing is mixed."""
    swaps, root = [], paths.home(workspace).resolve()
    if manifest["kind"] == "file":
        database = snapshot.database()
        swaps += [Swap(database, staging / "mlflow.db")]
        swaps += [Swap(database.with_name(database.name + ending), None) for ending in ("-wal", "-shm", "-journal")]
    if manifest["kind"] != "server":
        swaps.append(Swap(snapshot.artefacts(), _staged(staging / "artefacts")))
    places = {path.name for folder in (staging / "records", root / "records") for path in folder.glob("[!.]*")}
    swaps += [Swap(root / "records" / name, _staged(staging / "records" / name)) for name in sorted(places)]
    for part in BENTOML:
        for model in sorted(load_recipe(name).registered_model for name in recipe_names()):
            swaps.append(Swap(bento.home() / part / model, _staged(staging / "bentoml" / part / model)))
    for name in WORKSPACE:
        swaps.append(Swap(root / name, _staged(staging / "workspace" / name)))
    for report in (paths.report_folder(load_recipe(name)) / part for name in recipe_names() for part in REPORTS):
        swaps.append(Swap(root / report, _staged(staging / "workspace" / report)))
    return [swap for swap in swaps if (swap.staged or swap.target.exists()) and not _same(swap)]


def _same(swap: Swap) -> bool:
    """Return whether the file is that of the backup already, such as a dvc.lock from Git."""
    both = swap.staged and swap.staged.is_file() and swap.target.is_file()
    return bool(both) and swap.staged is not None and sha256_of(swap.staged) == sha256_of(swap.target)


def _staged(path: Path) -> Path | None:
    return path if path.exists() else None


def _check_empty(file: Path, targets: list[Path], force: bool) -> None:
    """Raise BackupError if a target has something to lose and `force` is not given."""
    mine = [path for path in targets if path.exists() and (path.is_file() or any(path.iterdir()))]
    if snapshot.kind() == "file" and snapshot.is_empty():
        mine = [path for path in mine if path != snapshot.database()]  # a command has made an empty one
    if snapshot.kind() == "database" and not snapshot.is_empty():
        mine.insert(0, Path("MLflow's database"))
    if mine and not force:
        more = f" and {len(mine) - 1} others" if len(mine) > 1 else ""
        raise BackupError(
            f"{mine[0]}{more} would be replaced by {file}; back this workspace up, then repeat with --force, which "
            f"keeps what it replaces in a folder {KEPT}TIME"
        )


def _load_database(dump: Path, former: Path, kept: Path, say: Say) -> None:
    """Replace the PostgreSQL database, after a copy in the folder `kept` if it has something to lose."""
    if not snapshot.is_empty():
        kept.mkdir(exist_ok=True)
        snapshot.copy_to(kept / DUMP)
        say(f"the database as it was is in {kept / 'mlflow.dump'}")
    snapshot.load_database(dump, former, token=kept.name)


def _exchange(
    swaps: list[Swap], at: str, workspace: Path, say: Say, load_database: Callable[[], None] | None = None
) -> None:
    """Replace the targets, then the database; a mark with the way back lies in the workspace until all are replaced.

    The database comes last, because it changes at once: with it, the restore is complete.
    """
    mark = paths.home(workspace) / _MARK
    former = {swap.target: _former(swap.target.absolute(), at, workspace) for swap in swaps if swap.target.exists()}
    way_back = [
        [str(swap.target.absolute()), str(former[swap.target]) if swap.target in former else None] for swap in swaps
    ]
    write_json(mark, {"swaps": way_back, "database": at if load_database else None})
    try:
        for swap in swaps:
            swap.target.parent.mkdir(parents=True, exist_ok=True)
            if swap.target in former:
                former[swap.target].parent.mkdir(parents=True, exist_ok=True)
                swap.target.rename(former[swap.target])
            if swap.staged:
                shutil.move(swap.staged, swap.target)
        if load_database:
            load_database()
    except BaseException:
        _undo(workspace)
        raise
    mark.unlink()
    if former:
        first = next(iter(former.values()))
        say(f"what was here before is in {next(folder for folder in first.parents if folder.name == at)}")


def _former(target: Path, at: str, workspace: Path) -> Path:
    """Return where a replaced file is kept, on the same disk and outside of the folders that programs list."""
    for base in (paths.home(workspace).resolve(), bento.home()):
        if target.is_relative_to(base):
            return base / at / target.relative_to(base)
    return target.parent / at / target.name


def _undo(workspace: Path) -> None:
    """Put back what a restore that did not reach its end has replaced."""
    mark = paths.home(workspace) / _MARK
    if not mark.exists():
        return
    left = json.loads(mark.read_text(encoding="utf-8"))
    # The database is the last that is replaced: the files that go with it are here.
    done = left["database"] and snapshot.is_loaded(left["database"])
    for name, kept in [] if done else left["swaps"]:
        target, former = Path(name), Path(kept) if kept else None
        if target.exists() and (former is None or former.exists()):
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        if former and former.exists():
            former.rename(target)
        if former:
            _remove_empty(former.parent)
    if left["database"] and not done:
        copy = paths.home(workspace).resolve() / left["database"] / DUMP
        copy.unlink(missing_ok=True)
        _remove_empty(copy.parent)
    mark.unlink()


def _remove_empty(folder: Path) -> None:
    """Remove the folder and those above it in `before-restore-TIME`, as far as they are empty."""
    while any(name.startswith(KEPT) for name in folder.parts) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


class _Shares:
    """Says how far a loop over many files is, every few seconds."""

    def __init__(self, total: int, word: str, say: Say) -> None:
        self.total, self.word, self.say, self.done, self.said = total, word, say, 0, time.monotonic()

    def count(self) -> None:
        """Count one more file."""
        self.done += 1
        if time.monotonic() - self.said > _SILENCE_SECONDS:
            self.said = time.monotonic()
            self.say(f"  {self.done:,} of {self.total:,} files {self.word}")
