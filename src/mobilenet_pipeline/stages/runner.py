"""Run a DVC stage as a child process: stream its output, time it, and end it with this process."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil
from ruamel.yaml import YAML

from mobilenet_pipeline.cluster import setting
from mobilenet_pipeline.config import Recipe, load_recipe, recipe_names
from mobilenet_pipeline.stages import dvc, team
from mobilenet_pipeline.system.process import Leashed
from mobilenet_pipeline.system.usage import Usage, measured
from mobilenet_pipeline.workspace.files import write_text
from mobilenet_pipeline.workspace.paths import HERE, dvc_file

_REDRAW_SECONDS = 5.0  # between two states of a progress bar, which redraws its line ten times a second
_LAST_LINES = 40
_NAMED = 4
"""How many of the changed files and settings a reason names."""
# TensorFlow's libraries write this before their log level is set.
_NOISE = re.compile(
    r"[IWE]0000 \S+ +\d+ \S+\.cc:|WARNING: All log messages before absl|To enable the following instr"
    r"|INFO: Created TensorFlow Lite"
)
_NOT_REPRODUCED = re.compile(r"ERROR: failed to reproduce '[^']*': ")
_FOLDER = ".dir"  # the end of the MD5 of a folder, which is that of the list of its files
_LOCKED = ("Unable to acquire lock", "is busy, it is being blocked by")


DEFAULT = "digits"
"""The recipe whose stages are in the dvc.yaml of the root, so that `dvc repro` runs them."""

Outcome = Literal["ran", "restored", "unchanged"]


class StageFailed(RuntimeError):
    """A stage failed. `exit_code` is the stage's own, or DVC's if the stage did not run; `lines` are its last lines."""

    def __init__(self, name: str, exit_code: int, lines: list[str]) -> None:
        super().__init__(name, exit_code, lines)  # pickle calls the class with these arguments again
        self.name, self.exit_code, self.lines = name, exit_code, lines

    def __str__(self) -> str:
        return f"stage {self.name} failed (exit code {self.exit_code}): {self.cause}"

    @property
    def cause(self) -> str:
        """The stage's error message: its lines from `error:` on, or its last line. If it did not run, DVC's message."""
        lines = self.lines
        if (last := next((i for i, line in enumerate(lines) if _NOT_REPRODUCED.match(line)), None)) is not None:
            reason = _NOT_REPRODUCED.sub("", "\n".join(lines[last:]))
            if not reason.startswith("failed to run: "):  # else the stage ran, and knows better
                return reason.strip()
            lines = lines[:last]
        starts = [index for index, line in enumerate(lines) if line.lower().startswith("error:")]
        message = lines[starts[-1] :] if starts else lines[-1:]
        return "\n".join(message).partition(":")[2].strip() if starts else "\n".join(message) or "it printed nothing"


class StagesFailed(RuntimeError):
    """Several stages that ran at the same time failed. `failures` are their errors, the first failure first."""

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__(failures)  # pickle calls the class with these arguments again
        self.failures = failures

    def __str__(self) -> str:
        return "; ".join(map(str, self.failures))


EXPECTED = (ValueError, OSError, StageFailed, StagesFailed)
"""Errors whose message is a sentence for people; others are faults of the program."""


@dataclass(frozen=True)
class StageResult:
    """The outcome of a stage, and what it took in this run: wall, CPU and GPU seconds, and its peak memory.

    "restored" means that DVC's cache had the outputs of an earlier run. `gpu_seconds` is None without an NVIDIA GPU.
    """

    name: str
    outcome: Outcome
    wall_seconds: float
    cpu_seconds: float
    gpu_seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def changed(self) -> bool:
        """Whether the outputs may have changed."""
        return self.outcome != "unchanged"


def data_stages(recipe: Recipe) -> list[str]:
    """Return the stages that ingest and validate the recipe's dataset, after that which completes the recipe."""
    completed = [] if dvc_file(recipe.name) == dvc_file(DEFAULT) else [f"recipe@{recipe.name}"]
    return [*completed, f"ingest@{recipe.name}", f"validate@{recipe.name}"]


def train_stages(recipe: Recipe) -> list[str]:
    """Return the stages that train the recipe's candidates."""
    return [f"train@{recipe.name}-{candidate}" for candidate in recipe.candidates]


def stage_names(recipe: Recipe) -> list[str]:
    """Return the recipe's stages, in the order in which they run."""
    scored = [f"{stage}@{recipe.name}-{name}" for name in recipe.artefacts for stage in ("export", "evaluate")]
    return data_stages(recipe) + train_stages(recipe) + scored


def predecessors(recipe: Recipe, evaluate_alone: bool = True) -> dict[str, list[str]]:
    """Return the recipe's stages, each with those that must end before it starts; the order is that of `stage_names`.

    What a stage needs of earlier ones follows from these, as a predecessor has predecessors, too. With
    `evaluate_alone`, an evaluation starts when no other stage is left but evaluations, and they run one after the
    other: they measure the latency of a single image.
    """
    *_, last = data = data_stages(recipe)
    before = {name: data[:index][-1:] for index, name in enumerate(data)}
    before |= {name: [last] for name in train_stages(recipe)}
    exports = {name: f"export@{recipe.name}-{name}" for name in recipe.artefacts}
    earlier: list[str] = []
    for name, artefact in recipe.artefacts.items():
        before[exports[name]] = [f"train@{recipe.name}-{artefact.candidate}"]
        evaluation = f"evaluate@{recipe.name}-{name}"
        # All exports: a run that begins between two evaluations has no earlier one to wait for.
        before[evaluation] = [*exports.values(), *earlier] if evaluate_alone else [exports[name]]
        earlier = [evaluation]
    return before


def address(name: str) -> str:
    """Return the name of a stage for DVC: `train@cifar10-scratch` is `recipes/dvc.yaml:train@cifar10-scratch`."""
    pipeline = dvc_file(_recipe_of(name))
    return name if pipeline == dvc_file(DEFAULT) else f"{pipeline.as_posix()}:{name}"


def choose(recipe_name: str, workspace: Path = HERE) -> None:
    """Let DVC see the recipe's stages, if they are in recipes/dvc.yaml.

    DVC's commands without a target look at all stages that they see, so the recipes of that file are hidden until they
    are used. Names that params.yaml lacks are taken out again. Raises ValueError if the dvc.yaml of the root does not
    have the candidates that params.yaml gives its recipe.
    """
    pipeline = dvc_file(recipe_name, workspace)
    if pipeline == dvc_file(DEFAULT, workspace):
        _check_variables(recipe_name, pipeline, workspace)
        return
    if not pipeline.exists():
        return
    recipe = load_recipe(recipe_name, workspace / "params.yaml")
    chosen = pipeline.with_name("chosen.yaml")
    before = YAML(typ="safe").load(chosen.read_text(encoding="utf-8")) if chosen.exists() else {}
    after: dict[str, Any] = {"recipe_names": []}
    for name in recipe_names(workspace / "params.yaml"):
        if name in (recipe_name, *before.get("recipe_names", [])):
            after["recipe_names"].append(name)
            # Of the other recipes, nothing is read that may be wrong in params.yaml now.
            kept = {key: _of_recipe(items, name) for key, items in before.items() if isinstance(items, dict)}
            for key, items in (variables(recipe) if name == recipe_name else kept).items():
                after.setdefault(key, {}).update(items)
    if after != before:
        write_text(chosen, json.dumps(after, indent=2) + "\n")  # JSON is YAML, too
        write_text(pipeline.with_name(".dvcignore"), "!dvc.yaml\n")


def variables(recipe: Recipe) -> dict[str, dict[str, dict[str, str]]]:
    """Return the variables of dvc.yaml by which its stages follow the recipe's candidates."""
    trainings = {f"{recipe.name}-{name}": {"recipe": recipe.name, "candidate": name} for name in recipe.candidates}
    artefacts = {
        f"{recipe.name}-{name}": {"recipe": recipe.name, "candidate": artefact.candidate, "artefact": name}
        for name, artefact in recipe.artefacts.items()
    }
    return {"trainings": trainings, "artefacts": artefacts}


def _of_recipe(items: Mapping[str, Any], recipe_name: str) -> dict[str, Any]:
    return {key: item for key, item in items.items() if item["recipe"] == recipe_name}


def _check_variables(recipe_name: str, pipeline: Path, workspace: Path) -> None:
    """Raise ValueError if the variables of dvc.yaml are not those of the recipe."""
    document = YAML(typ="safe").load(pipeline.read_text(encoding="utf-8")) if pipeline.exists() else {}
    present = {key: value for entry in document.get("vars", []) for key, value in entry.items()}
    if "trainings" not in present:  # a pipeline of the user's own
        return
    for key, expected in variables(load_recipe(recipe_name, workspace / "params.yaml")).items():
        if present.get(key) != expected:
            text = "\n".join(f"      {name}: {{{_flow(item)}}}" for name, item in expected.items())
            raise ValueError(
                f"{pipeline} does not have the candidates that params.yaml gives {recipe_name}; its vars need:\n"
                f"  - {key}:\n{text}"
            )


def _flow(item: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in item.items())


def stale(names: Iterable[str]) -> dict[str, str]:
    """Return the stages with outdated outputs, each with the reason in words. Raises StageFailed if DVC fails."""
    addresses = {address(name): name for name in names}
    for recipe_name in dict.fromkeys(_recipe_of(name) for name in addresses.values()):
        with dvc.preparing():
            _prepare(recipe_name)
    process = dvc.run("status", "--json", *addresses)
    if process.returncode:
        lines = [line.rstrip() for line in process.stderr.splitlines() if line.strip()]
        raise StageFailed("dvc status", process.returncode, ["error: " + "\n".join(lines)])
    return {addresses[place]: _reason(changes) for place, changes in json.loads(process.stdout).items()}


def _reason(changes: list[Mapping[str, Mapping[str, Any]] | str]) -> str:
    """Return what `dvc status` says of a stage in words, such as "modified params.yaml: split.seed"."""
    words: dict[str, list[str]] = {}
    for change in changes:
        if isinstance(change, str):  # "changed command"
            words.setdefault(change, [])
            continue
        missing = [path for path, state in change.get("changed outs", {}).items() if state == "deleted"]
        if missing:  # before its first run, DVC calls everything else modified
            return f"missing {', '.join(_shortened(missing))}"
        for entries in change.values():
            for path, state in entries.items():
                # The state of a file of settings is a dictionary of its keys.
                keys = {f"{path}: {key}": of_key for key, of_key in state.items()} if isinstance(state, dict) else None
                for name, word in (keys or {path: state}).items():
                    words.setdefault(word, []).append(name)
    return "; ".join(f"{state} {', '.join(_shortened(names))}".strip() for state, names in words.items())


def _shortened(names: list[str]) -> list[str]:
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return names[:_NAMED] + more


def run_stage(
    name: str, on_line: Callable[[str], None], env: Mapping[str, str] | None = None, force: bool = False
) -> StageResult:
    """Bring one stage up to date with `dvc repro --single-item`.

    `on_line` is called with every line that the stage writes. `env` is added to the child's environment. `force` runs
    the stage even if nothing changed. Seconds and memory are those of the child and all its descendants. What DVC
    restores is compared with its hash; of a damaged file, DVC's remote is asked before the stage runs again. Raises
    StageFailed if the stage fails. An exception from `on_line` or from a signal handler ends the child first.
    """
    started = time.monotonic()
    outcome, child, used = _reproduce(name, on_line, env, force)
    cpu_seconds = child.cpu_seconds
    for ask_remote in (True, False):
        if outcome != "restored" or not (damaged := _damaged(name)):
            break
        _drop(damaged)
        found = ask_remote and _fetch(name, damaged)
        remedy = "fetched from the DVC remote" if found else f"not in the DVC remote, so {name} runs again"
        on_line(f"warning: damaged in DVC's cache: {', '.join(map(str, damaged))}; {remedy}")
        outcome, child, used = _reproduce(name, on_line, env, force)
        cpu_seconds += child.cpu_seconds
    return StageResult(name, outcome, time.monotonic() - started, cpu_seconds, used.gpu_seconds, used.peak_bytes)


def _reproduce(
    name: str, on_line: Callable[[str], None], env: Mapping[str, str] | None, force: bool
) -> tuple[Outcome, Leashed, Usage]:
    """Bring the stage up to date, and return its outcome, its process, and what it used."""
    with dvc.preparing():
        _prepare(_recipe_of(name))
        has_remote = not force and team.follow_setting()
    words = ["repro", "--single-item", address(name)]
    # What another workspace of the team has trained is restored from the remote.
    words += ["--force"] if force else ["--pull"] if has_remote else []
    lines: list[str] = []
    variables = dvc.environment(env)
    with (
        dvc.started(*words, env=variables, grace=setting.grace(variables)) as child,
        measured(child.pid) as used,
    ):
        assert child.stdout is not None
        for line in _lines(child.stdout):
            if _NOISE.match(line):
                continue
            lines.append(line)
            on_line(line)
    if child.returncode:
        raise StageFailed(name, _stage_exit_code(lines, child.returncode), lines[-_LAST_LINES:])
    return _outcome(address(name), lines), child, used


def _damaged(name: str) -> dict[Path, str]:
    """Return the files of the stage's outputs that differ from dvc.lock, with the MD5 that they should have.

    DVC copies from its cache without a look at the content. Of a folder whose listing is damaged, the folder itself is
    returned.
    """
    with dvc.holding("lock"):  # DVC of another stage may be writing the file
        text = dvc_file(_recipe_of(name)).with_suffix(".lock").read_text(encoding="utf-8")
    lock, cache = YAML(typ="safe").load(text), _cache()
    files: dict[Path, str] = {}
    folders: dict[Path, str] = {}
    for out in lock["stages"][name]["outs"]:
        path, md5 = Path(out["path"]), str(out["md5"])
        listing = _object(cache, md5)
        if not md5.endswith(_FOLDER):
            files[path] = md5
        elif not _is_whole(listing, md5):
            folders[path] = md5
        else:
            files |= {path / entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}
    return folders | {path: md5 for path, md5 in files.items() if not _is_whole(path, md5)}


def _drop(damaged: Mapping[Path, str]) -> None:
    """Delete the outputs from the workspace and from DVC's cache, so that DVC restores them from nowhere.

    Content of the cache that is whole stays: another stage with the same output may have fetched it just now.
    """
    cache = _cache()
    for path, md5 in damaged.items():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if not _is_whole(_object(cache, md5), md5):
            _object(cache, md5).unlink(missing_ok=True)


def _fetch(name: str, damaged: Mapping[Path, str]) -> bool:
    """Fetch the stage's outputs, and return whether DVC's cache has them now; `dvc fetch` says 0 in any case."""
    with dvc.started("fetch", address(name)) as child:
        for _ in child.stdout or ():
            pass
    cache = _cache()
    return all(_object(cache, md5).exists() for md5 in damaged.values())


def _cache() -> Path:
    return Path(dvc.run("cache", "dir").stdout.strip())


def _object(cache: Path, md5: str) -> Path:
    """Return the path of this content in DVC's cache."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _is_whole(path: Path, md5: str) -> bool:
    """Return whether the file exists and has the content, or the listing of a folder, that DVC calls so."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return found == md5.removesuffix(_FOLDER)


def may_pass_again(failure: BaseException) -> bool:
    """Return whether the stage may succeed on another try.

    It may if a server did not answer or the DVC repository was locked.
    """
    if not isinstance(failure, StageFailed):
        return False
    locked = any(sign in line for line in failure.lines for sign in _LOCKED)
    return locked or failure.exit_code == os.EX_TEMPFAIL


def _recipe_of(name: str) -> str:
    """Return the recipe of a stage; a name that is none is taken for one of the root."""
    stage, _, rest = name.partition("@")
    if stage in ("train", "export", "evaluate"):
        rest = rest.rpartition("-")[0]  # no candidate has a hyphen
    return rest or DEFAULT


def _prepare(recipe_name: str) -> None:
    """Make DVC ready for the recipe's stages."""
    _clear_left_locks()
    if left := dvc.left_lock():
        raise StageFailed("dvc", os.EX_TEMPFAIL, [f"error: {left}"])
    _follow_git()
    choose(recipe_name)


def _follow_git() -> None:
    """Let DVC work without Git in a folder that is no repository, such as a downloaded archive."""
    project, local = (
        path.exists() and re.search(r"no_scm\s*=\s*true", path.read_text(encoding="utf-8"), re.IGNORECASE)
        for path in (Path(".dvc/config"), Path(".dvc/config.local"))
    )
    if not Path(".git").exists() and Path(".dvc").exists() and not (project or local):
        dvc.run("config", "--local", "core.no_scm", "true")
    elif Path(".git").exists() and local:
        dvc.run("config", "--local", "--unset", "core.no_scm")


def _clear_left_locks(path: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Take killed processes out of DVC's list of readers and writers; remove a list that is not JSON.

    If DVC is killed while it writes the list, it cannot start again. It also waits for a killed process whose number a
    zombie or another program has. Living processes stay in the list: each takes itself out.
    """
    locks = _locks(path)
    if not path.exists() or (locks and locks == _living(locks)):
        return
    with dvc.holding("rwlock.lock"):  # else the list may be half written now, and not by a killed process
        if locks := _locks(path):
            write_text(path, json.dumps(_living(locks)))
        else:
            path.unlink(missing_ok=True)


def _locks(path: Path) -> dict[str, Any] | None:
    """Return DVC's list: the writer and the readers by path. None if it is missing, or not such a list."""
    try:
        locks = json.loads(path.read_text(encoding="utf-8"))
        write = {place: _process(writer) for place, writer in locks.get("write", {}).items()}
        read = {place: [_process(reader) for reader in readers] for place, readers in locks.get("read", {}).items()}
        return {"write": write, "read": read}
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _process(info: Mapping[str, Any]) -> dict[str, Any]:
    return {"pid": int(info["pid"]), "cmd": str(info["cmd"])}


def _living(locks: Mapping[str, Any]) -> dict[str, Any]:
    """Return DVC's list without processes that have ended."""
    write = {place: writer for place, writer in locks["write"].items() if _is_dvc(writer["pid"])}
    read = {place: [each for each in readers if _is_dvc(each["pid"])] for place, readers in locks["read"].items()}
    return {"write": write, "read": {place: readers for place, readers in read.items() if readers}}


def _is_dvc(pid: int) -> bool:
    try:
        return dvc.is_dvc(psutil.Process(pid))
    except psutil.Error:
        return False


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines; of a redrawn line, yield one state every few seconds."""
    text = open(stream.fileno(), encoding="utf-8", errors="replace", newline="", closefd=False)  # noqa: SIM115
    shown = time.monotonic()
    for line in text:
        if not line.endswith("\r"):
            yield line.rstrip()
        elif line.strip() and time.monotonic() - shown > _REDRAW_SECONDS:
            shown = time.monotonic()
            yield line.strip()


def _outcome(address: str, lines: list[str]) -> Outcome:
    if f"Stage '{address}' didn't change, skipping" in lines:
        return "unchanged"
    cached = f"Stage '{address}' is cached - skipping run"
    return "restored" if any(line.startswith(cached) for line in lines) else "ran"


def _stage_exit_code(lines: list[str], otherwise: int) -> int:
    """Return the exit code that DVC prints for the stage; its own is always 255."""
    codes = [match[1] for line in lines if (match := re.search(r"^ERROR: .*exited with (-?\d+)$", line))]
    return int(codes[-1]) if codes else otherwise
