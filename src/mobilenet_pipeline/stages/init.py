"""Look at a folder of images, and write a recipe for it to params.yaml, or bring a recipe up to date."""

import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from tqdm import tqdm

from mobilenet_pipeline.config import WIDTHS, Candidate, Data, Recipe, load_recipe, recipe_names
from mobilenet_pipeline.data import ingest, near_duplicates, proposal
from mobilenet_pipeline.data.dataset import digest
from mobilenet_pipeline.data.sources.base import IngestError
from mobilenet_pipeline.data.sources.images import decoding
from mobilenet_pipeline.data.sources.images.found import Found, natural
from mobilenet_pipeline.data.sources.images.look import opened
from mobilenet_pipeline.data.sources.images.settle import Settled, settle
from mobilenet_pipeline.inference.preprocess import Resize
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace.files import write_text
from mobilenet_pipeline.workspace.paths import data_folder

PARAMS = Path("params.yaml")
SCRATCH = Path("data")
"""Where the pixels of all images are for a while: on the disk that will have the dataset."""
SAMPLE = 2_000
"""Images whose sizes decide the proposed image size."""
TEST_SHARE = 0.2
"""Proposed share of the images for testing, if the source has no test images."""
CPU_MINUTES = 60.0
"""Proposed length of both trainings together: an hour on one core."""


@dataclass(frozen=True)
class Look:
    """What was found, and what follows from it. `files` has size, mode and format of every image that can be read."""

    form: str
    files: pd.DataFrame
    settled: Settled
    manifest: pd.DataFrame
    facts: proposal.Facts
    validation_merged: bool
    near_twins: int


def look(path: Path, size: int | None = None, resize: Resize = "crop", former: Data | None = None) -> Look:
    """Return what is found at `path`, decoded at `size` or at the size that is proposed.

    With the data settings of a `former` recipe, classes and test images are chosen as it says. Raises IngestError if
    there are no images, or fewer than two classes with enough of them.
    """
    share, seed = (former.test_share, former.split_seed) if former else (TEST_SHARE, 0)
    SCRATCH.mkdir(exist_ok=True)
    with opened(path) as found, tempfile.TemporaryDirectory(prefix=".init-", dir=SCRATCH) as scratch:
        pixels = Path(scratch) / "pixels"
        headers = [] if size else decoding.headers(found, SAMPLE)
        size = size or proposal.image_size([min(row.width, row.height) for row in headers if row.width] or [0])
        with tqdm(total=len(found.records), desc="decoding", unit="image", delay=1, mininterval=1) as bar:
            decoded = decoding.decode_all(found, size, resize, pixels, ingest.cores(), bar.update)
        names = former.class_names if former else None
        first = settle(found, decoded, names, share, seed)
        names = names or _class_names(found, first.rows)
        if len(names) < 2:
            lines = [f"{problem.name}: {problem.sentence}" for problem in first.problems[:3]]
            raise IngestError(
                "; ".join(
                    [f"{path} has {len(names)} {'class' if len(names) == 1 else 'classes'} with enough images", *lines]
                )
                + "; a recipe needs at least two classes"
            )
        # Again, as ingestion will do it: the test images depend on the classes.
        second = settle(found, decoded, names, share, seed)
        manifest = ingest.manifest_of(second, names, size)
        facts = proposal.facts_of(
            manifest,
            digest(manifest),
            names,
            path=str(path),
            size=size,
            resize=resize,
            test_share=None if first.ready_made else share,
            found=second.found,
        )
        return Look(
            form=found.form,
            files=decoded.rows[decoded.rows["file_width"] > 0],
            settled=replace(second, problems=first.problems),
            manifest=manifest,
            facts=facts,
            validation_merged=found.names_validation,
            near_twins=_near_twins(pixels, manifest, size),
        )


def _near_twins(pixels: Path, manifest: pd.DataFrame, size: int) -> int:
    """Return how many test images show the same as a training image."""
    images = _Kept(np.memmap(pixels, np.uint8, "r").reshape(-1, size, size, 3), manifest["record"].to_numpy())
    return len(near_duplicates.find(cast(np.ndarray, images), (manifest["split"] == "test").to_numpy()).test)


class _Kept:
    """Some of the images of an array, which is never in memory as a whole."""

    def __init__(self, images: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        return self.images[self.rows[part]]


def _class_names(found: Found, rows: pd.DataFrame) -> list[str]:
    present = set(rows["label"])
    return [name for name in found.class_names if name in present] or natural(present)


def candidates(facts: proposal.Facts, cpu_minutes: float) -> dict[str, Candidate]:
    """Return the proposed candidates, with the ImageNet weights that are on this machine."""
    return proposal.candidates(facts, cpu_minutes, imagenet_widths())


def imagenet_widths() -> list[float]:
    """Return the widths whose ImageNet weights are in IMAGENET_WEIGHTS_DIR, or else among Keras's downloads."""
    folder = Path(os.environ.get("IMAGENET_WEIGHTS_DIR") or environment.keras_downloads() / "models")
    names = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}
    return [width for width in WIDTHS if any(folder.glob(f"mobilenet_{names[width]}_224_*no_top*.h5"))]


def check_name(name: str, params: Path = PARAMS) -> str:
    """Return a new recipe's registered model. Raises ValueError if the recipe cannot have this name."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"{name!r} is no name of a recipe; use letters, digits, '_' and '-', and begin with a letter")
    if not isinstance(value := YAML(typ="safe").load(name), str):
        raise ValueError(f"{name!r} is no name of a recipe, because YAML reads it as {value}; choose another name")
    if name in recipe_names(params):
        raise ValueError(f"{params} has a recipe {name} already; choose another name, or remove that section")
    model = f"{re.sub('[^a-z0-9]+', '-', name.lower())[:40].strip('-')}-mobilenet"
    recipes = YAML(typ="safe").load(params.read_text(encoding="utf-8"))["recipes"].values()
    taken = {recipe.get("registered_model") for recipe in recipes if isinstance(recipe, dict)}  # no recipe inherits it
    return next(
        f"{model}{end}" for end in ("", *(f"-{number}" for number in range(2, 999))) if f"{model}{end}" not in taken
    )


def append(name: str, text: str, params: Path = PARAMS) -> None:
    """Add a recipe's section to the end of params.yaml; every other byte stays.

    Raises ValueError, and changes nothing, if the file would not be read as before, with the recipe added.
    """
    before = _read(params)
    end = "\r\n" if "\r\n" in before else "\n"
    text = "\n" + text if before.endswith("\n") else "\n\n" + text
    _write(name, before, before + text.replace("\n", end), params)


def replace_values(name: str, values: Mapping[str, Any], params: Path = PARAMS) -> None:
    """Give a recipe these data settings; all other lines of params.yaml stay.

    Raises ValueError, and changes nothing, if the recipe would not be valid.
    """
    before = _read(params)
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 2**20
    document = editor.load(before.replace("\r\n", "\n"))
    unchanged, after = StringIO(), StringIO()
    editor.dump(document, unchanged)
    document["recipes"][name].setdefault("data", {}).update(values)
    editor.dump(document, after)
    _write(name, before, _with_own_lines(before, unchanged.getvalue(), after.getvalue()), params)


def _with_own_lines(own: str, before: str, after: str) -> str:
    """Return the document `after` with the lines of `own` that did not change since `before`.

    `own` is `before` as a person writes it: with other line ends, indents of lists, or words for null. Return `after`
    if the lines do not match, or do not mean the same together.
    """
    lines, old, new = (text.splitlines(keepends=True) for text in (own, before, after))
    if len(lines) != len(old):
        return after
    end = "\r\n" if "\r\n" in own else "\n"
    parts: list[str] = []
    for kind, start, stop, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        parts += lines[start:stop] if kind == "equal" else [line.replace("\n", end) for line in new[first:last]]
    try:
        same = YAML(typ="safe").load("".join(parts)) == YAML(typ="safe").load(after)
    except YAMLError:  # of a list, one line was changed, and the others have another indent
        same = False
    return "".join(parts) if same else after


def _read(params: Path) -> str:
    """Return the text with its own line ends, which `Path.read_text` changes."""
    return params.read_bytes().decode("utf-8")


def _write(name: str, before: str, after: str, params: Path) -> None:
    """Write params.yaml if the recipe is valid in it and the rest means what it meant before."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / params.name
        trial.write_text(after, encoding="utf-8")
        try:
            then, now = (YAML(typ="safe").load(text) for text in (before, after))
            if name not in now["recipes"]:
                raise ValueError("`recipes` is not its last section; move it to the end of the file")
            load_recipe(name, trial)
            for document in (then, now):
                document["recipes"].pop(name, None)
            if then != now:
                raise ValueError("another recipe would change; move `recipes` to the end of the file")
        except Exception as error:  # ruamel, pydantic and ValueError: the text is ours, the rest of the file is not
            reason = " ".join(str(error).replace(str(trial), params.name).split())
            raise ValueError(f"{params} was not changed: {reason}") from None
    write_text(params, after)


def relative(path: Path) -> str:
    """Return the path as a recipe has it: relative to the workspace if it is inside, else absolute."""
    full = path.expanduser().resolve()
    here = Path.cwd()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else str(full)


def tally(look: Look) -> list[tuple[str, str]]:
    """Return what was found as rows (what, value) for people."""
    facts, rows = look.facts, look.manifest
    counts = rows.groupby("class_name").size().sort_values(ascending=False)
    shorter = sorted(look.files[["file_width", "file_height"]].min(axis=1))
    kinds = Counter(problem.kind for problem in look.settled.problems)
    ratio = counts.iloc[0] / counts.iloc[-1]
    splits = f"{facts.train_rows:,} for training, {facts.test_rows:,} for testing"
    origin = "from the source" if facts.test_share is None else f"about {facts.test_share:.0%} are held out"
    if look.validation_merged:
        origin += "; ready-made validation images are training images, of which the pipeline holds out its own"
    table = [
        ("form", look.form),
        ("images", f"{facts.found:,} found, {len(rows):,} kept"),
        ("splits", f"{splits} ({origin})"),
        ("classes", f"{len(counts):,}; the largest has {ratio:.1f} times the images of the smallest"),
    ]
    shown = counts if len(counts) <= 20 else pd.concat([counts.head(10), counts.tail(10)])
    for position, (name, count) in enumerate(shown.items()):
        if len(counts) > 20 and position == 10:
            table.append(("  …", f"{len(counts) - 20:,} classes between"))
        table.append((f"  {name}", f"{count:,}"))
    table += [
        ("shorter sides", f"{shorter[0]:,} to {shorter[-1]:,} pixels, median {shorter[len(shorter) // 2]:,}"),
        ("modes", _shares(look.files["file_mode"])),
        ("file formats", _shares(look.files["file_format"].replace("", "pixels"))),
    ]
    near = f"{look.near_twins:,} of {facts.test_rows:,} test images look like a training image"
    table.append(("near duplicates", near))
    if facts.grouped:
        sides = rows[rows["group"] != ""].groupby("group")["split"].nunique()
        text = f"{(sides > 1).sum():,} of {len(sides):,} are on both sides of the split"
        table.append(("groups", f"{text}, which validation refuses" if (sides > 1).any() else text))
    table.append(
        (
            "problems",
            ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in sorted(kinds.items())) or "none",
        )
    )
    return table


def _shares(column: pd.Series) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in column.value_counts().items())


def update(name: str, path: Path | None = None, *, dry_run: bool = False) -> None:
    """Print what is found now, and what changed; without `dry_run`, change the recipe's data settings.

    `path` is where the images are now, by default where the recipe says. The classes stay: a model with other classes
    has another name, and so another recipe. Raises ValueError if the recipe reads no folder of images, or one of its
    classes has too few; params.yaml is then unchanged.
    """
    from mobilenet_pipeline.reports.tables import print_found

    recipe = load_recipe(name)
    data = recipe.data
    if data.source != "images" or data.path is None:
        raise ValueError(f"recipe {name} has the source {data.source}; --update is for recipes with the source images")
    place = relative(path) if path else data.path
    found = look(Path(place), data.image_size, data.resize, data)
    _check_classes(place, data.class_names, found.manifest)
    facts = replace(found.facts, path=place)
    values = proposal.changes(data, facts)
    rows = [(key, _change(getattr(data, key), value)) for key, value in values.items()] or [("changes", "none")]
    rows += proposal.over_limits(data, facts).items()
    if moved := _now_for_testing(recipe, found.manifest):
        text = f"{moved:,} that were for training are for testing now; the champion has seen them"
        rows.append(("images of small classes", text))
    print_found(f"{place}, as recipe {name}", tally(found), rows, found.settled.problems)
    if values and not dry_run:
        replace_values(name, values)
        print(f"params.yaml has the new values of {name} now. Look at them, then: make run RECIPE={name}")


def _check_classes(place: str, class_names: Sequence[str], manifest: pd.DataFrame) -> None:
    """Raise ValueError if a class cannot be trained, validated and tested."""
    counts = manifest.groupby(["class_name", "split"]).size()
    for name in class_names:
        train, test = (int(counts.get((name, split), 0)) for split in ("train", "test"))
        if train < 2 or test < 1:
            raise ValueError(
                f"{place} has {train} training and {test} test images of {name}; a class needs 2 and 1. Add images, or "
                f"make a recipe with other classes: mobilenet-pipeline init NEW_NAME --images {place}"
            )


def _now_for_testing(recipe: Recipe, manifest: pd.DataFrame) -> int:
    """Return how many training images of the last ingestion are test images now: a small class cannot do without."""
    path = data_folder(recipe) / "manifest.parquet"
    if not path.exists():
        return 0
    former = pd.read_parquet(path, columns=["hash", "split"])
    trained = former["hash"][former["split"] == "train"]
    return int(manifest["hash"][manifest["split"] == "test"].isin(trained).sum())


def _change(old: Any, new: Any) -> str:
    texts = (" ".join(f"{x:.4f}" for x in value) if isinstance(value, list) else str(value) for value in (old, new))
    return " → ".join(texts)


def main(
    name: str,
    path: Path,
    *,
    cpu_minutes: float = CPU_MINUTES,
    size: int | None = None,
    resize: Resize = "crop",
    dry_run: bool = False,
) -> None:
    """Print what is found at `path` and the proposal; without `dry_run`, add the recipe to params.yaml.

    Raises ValueError if the name cannot be taken or the images make no dataset; params.yaml is then unchanged.
    """
    from mobilenet_pipeline.reports.tables import print_found

    if not 0 < cpu_minutes < math.inf:
        raise ValueError(f"--cpu-minutes is {cpu_minutes:g}; give a number above 0")
    if size is not None and not 28 <= size <= 224:
        raise ValueError(f"--size is {size}; give a number of pixels from 28 to 224")
    model = check_name(name)
    place = relative(path)
    found = look(Path(place), size, resize)
    chosen = candidates(found.facts, cpu_minutes)
    print_found(f"{place}, as recipe {name}", tally(found), _proposal(found.facts, chosen), found.settled.problems)
    text = proposal.section(name, model, found.facts, chosen)
    if dry_run:
        print(text, end="")
        return
    append(name, text)
    print(f"params.yaml has the recipe {name} now. Look at it, then: make run RECIPE={name}")


def _proposal(facts: proposal.Facts, chosen: dict[str, Candidate]) -> list[tuple[str, str]]:
    rows = [("image size", f"{facts.size} pixels, {facts.resize}")]
    for name, candidate in chosen.items():
        weights = {"none": "random weights", "imagenet": "ImageNet weights", "bundled": "the bundled CIFAR-10 weights"}
        note = ", since no ImageNet weights are on this machine" if candidate.weights == "bundled" else ""
        rows.append(
            (
                name,
                f"{weights[candidate.weights]}{note}; α {candidate.alpha:g}, strides {candidate.strides}, input "
                f"{candidate.input_size} pixels, {candidate.epochs} epochs",
            )
        )
    return rows
