"""Recipes: every setting of the pipeline, typed, frozen, read once from `params.yaml`."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""Width multipliers of the paper."""


class Known(NamedTuple):
    """What a recipe may ask of an architecture, and its `title` for people.

    `blocks` is the number of its last block, counted from the stem, 0. `imagenet` are the width multipliers that
    ImageNet weights exist for.
    """

    title: str
    blocks: int
    imagenet: tuple[float, ...]


ARCHITECTURES = {
    "mobilenet": Known("MobileNet v1", 13, WIDTHS),
    "mobilenet_v2": Known("MobileNet v2", 18, (0.5, 0.75, 1.0)),
    "mobilenet_v3_small": Known("MobileNet v3 small", 12, (0.75, 1.0)),
}
"""The architectures; each is a module of `models/architectures`."""

REDUCTION = 32
"""The product of the strides of every architecture but `mobilenet`. Input sizes are multiples of it, because Keras pads
odd maps in another way where it knows their size, as in the served model, than where it does not."""

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]


def _published(alpha: float) -> float:
    if alpha not in WIDTHS:
        raise ValueError(f"alpha must be one of {', '.join(map(str, WIDTHS))}")
    return alpha


Width = Annotated[float, AfterValidator(_published)]


def _known(architecture: str) -> str:
    if architecture not in ARCHITECTURES:
        question = did_you_mean(architecture, ARCHITECTURES)
        raise ValueError(f"there is no such architecture{question}; use one of {', '.join(ARCHITECTURES)}")
    return architecture


Architecture = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": [*ARCHITECTURES]})]


def _fits_every_framework(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", name):
        raise ValueError(
            "use at most 63 lower-case letters, digits, '-', '_' and '.', with a letter or digit at both ends; "
            "BentoML takes no other name"
        )
    return name


ModelName = Annotated[str, AfterValidator(_fits_every_framework)]


def _differ(names: list[str]) -> list[str]:
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"it names {twice[0]!r} twice; name every class once")
    return names


ClassNames = Annotated[list[str], Field(min_length=2), AfterValidator(_differ)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
PartOf = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of `params.yaml`. Immutable; an unknown, missing or mistyped key is an error.

    The text under a field is its description in docs/reference/recipe.md, which `make reference` writes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Data(Section):
    """Where the images come from, and what they must be."""

    source: Literal["digits", "cifar10", "images"]
    """Where ingestion gets the images: `digits` ships with scikit-learn, `cifar10` is an archive, `images` are your
    own, in `path`."""
    path: str | None = None
    """Folder or file of the source `images`, relative to the workspace; null for other sources."""
    image_size: Annotated[int, Field(ge=28, le=224)]
    """Height and width of every image, in pixels."""
    resize: Literal["crop", "pad"] = "crop"
    """How an image of the source `images`, or of a request, becomes a square: `crop` takes the central square, `pad`
    adds black borders."""
    test_share: PartOf | None = None
    """About this share is held out for testing if the source `images` has no test split; else null. An image stays on
    its side when others are added. With another share, seed, size or `resize`, the champion has seen many of the test
    images: set another `registered_model`, too."""
    split_seed: int = 0
    """Seed of the choice of these test images."""
    excluded_share: Share = 0.0
    """Largest share of the source's images that the dataset may lack, because they cannot be read or are duplicates."""
    digest: str
    """SHA-256 over hash, label, split and group of every image, in hash order. Ingestion refuses any other digest."""
    class_names: ClassNames
    """Names of the classes, in the order of their labels."""
    train_rows: Positive
    """Number of training images, validation images included."""
    test_rows: Positive
    """Number of test images."""
    channel_mean: Channels
    """Expected mean of red, green and blue over the training images, on the scale 0 to 1."""
    channel_std: Channels
    """Expected standard deviation of red, green and blue over the training images, on the scale 0 to 1."""
    channel_tolerance: Rate
    """Largest difference from `channel_mean` and `channel_std` that passes validation."""
    class_balance_tolerance: Share
    """Largest difference of a class's share from an equal share that passes validation."""


class Split(Section):
    """Which training images are held out for validation."""

    validation_share: PartOf
    """Share of the training images that is held out, stratified by class; a group is held out as a whole."""
    seed: int
    """Seed of the split."""


class Candidate(Section):
    """How one model is built and trained."""

    architecture: Architecture = "mobilenet"
    """The network: `mobilenet` is MobileNet v1, with its own faster training layers; the others are those of
    `keras.applications`. `strides` other than `stock`, `muon_rate`, `precision: pointwise_bfloat16` and
    `weights: bundled` are for `mobilenet` only."""
    weights: Literal["none", "imagenet", "bundled"]
    """Initial weights: `none` is random, `imagenet` is pretrained, `bundled` is this package's CIFAR-10 checkpoint, for
    `alpha: 0.25` only."""
    alpha: Width
    """Width multiplier: 0.25, 0.5, 0.75 or 1.0."""
    strides: Literal["stock", "stem-1", "stem-block12", "stem-block2", "block2-block4", "stem-block2-block12"]
    """Which layers halve the resolution: `stock` is the published network, other values name layers that keep it."""
    input_sizes: Annotated[list[Positive], Field(min_length=1)]
    """Sides in pixels that the model resizes images to. Several sizes mean progressive resizing: each size is used for
    an equal share of the steps, and the finished model uses the last one."""
    pixel_range: Literal["unit", "signed", "standard"]
    """Range of the scaled pixels: `unit` is 0 to 1, `signed` is −1 to 1, as the ImageNet weights were trained.
    `standard` subtracts the mean of each image and divides by its standard deviation, so that brightness and contrast
    make no difference."""
    epochs: Positive | None
    """Length of the training in epochs; null if `cpu_minutes` is set."""
    cpu_minutes: Annotated[float, Field(gt=0)] | None
    """Length of the training in CPU minutes (user and system time); null if `epochs` is set. The number of steps is
    measured at the start and corrected after every epoch; the last epoch may be cut short."""
    batch_size: Positive
    """Images per step and replica. The global batch is `batch_size` × replicas."""
    precision: Literal["auto", "float32", "pointwise_bfloat16", "mixed_bfloat16", "mixed_float16"]
    """Number format of the layers during training; weights stay float32. `pointwise_bfloat16` is for CPUs with bfloat16
    instructions: the blocks compute in bfloat16, except normalisations that would be slower. `mixed_*` is for GPUs,
    `auto` is `pointwise_bfloat16` on such CPUs for `architecture: mobilenet`, and `float32` elsewhere."""
    sync_norm: bool
    """Whether batch normalisation uses the moments of all replicas. Otherwise each replica uses its own moments, and
    the running moments are averaged."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate for one replica; it is multiplied by the number of replicas."""
    muon_rate: Annotated[float, Field(gt=0)] | None
    """Peak learning rate of Muon for the pointwise kernels, scaled like `learning_rate`; null trains these kernels with
    Nesterov momentum, like all other variables."""
    frozen: Annotated[int, Field(ge=0)]
    """Number of frozen blocks, the stem included; all later blocks are fine-tuned. 0 fine-tunes all blocks. The last
    block is always fine-tuned."""
    warmup: Share
    """Share of the steps in which the learning rate rises linearly to its peak. Linear decay to zero follows."""
    weight_decay: Rate
    """L2 weight decay of stem, pointwise and dense kernels, except kernels that Muon trains."""
    label_smoothing: Share
    """Label smoothing: the share of the target probability that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the images in the training loss: `balanced` gives every class the same total weight, for classes with
    different numbers of images; `none` gives every image the same."""
    flip: Literal["none", "random", "alternating"]
    """Horizontal flips: `random` flips each image with probability ½, `alternating` flips each image in every second
    epoch."""
    shift: Annotated[int, Field(ge=0)]
    """Largest random shift in each direction, in pixels of the original image."""
    cutout: Annotated[int, Field(ge=0)]
    """Side of the cutout square, in pixels of the original image; 0 turns cutout off."""
    distorted: Share = 0.0
    """Share of each batch that gets random tone curves, fewer pixels or colours, and noise, for accuracy on distorted
    images."""
    seed: int
    """Seed of the initial weights, the order of the images and the augmentation."""
    workers: Positive = 1
    """Processes of a Ray cluster, or of TF_CONFIG, that train together; 1 leaves the number to TF_CONFIG."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """What a worker of a Ray cluster computes with: `auto` is GPUs if the cluster has any when the training starts. Set
    it for a cluster that starts its machines when they are asked for."""
    devices_per_worker: Positive = 1
    """GPUs of each worker on a Ray cluster; with `device: cpu`, CPU cores."""
    fewer_workers: bool = False
    """Whether fewer workers may train, with the same global batch, where there is no room for all. Otherwise such a
    training is refused."""

    @property
    def input_size(self) -> int:
        """The side in pixels that the finished model resizes images to."""
        return self.input_sizes[-1]

    @property
    def title(self) -> str:
        """Architecture and its settings, for people."""
        strides = f", strides {self.strides}" if self.architecture == "mobilenet" else ""
        return f"{ARCHITECTURES[self.architecture].title}, α {self.alpha:g}{strides}"

    def with_precision(self, *, bfloat16: bool) -> Self:
        """The candidate with the precision that `auto` is where the processor has bfloat16, or has not."""
        chosen = "pointwise_bfloat16" if bfloat16 and self.architecture == "mobilenet" else "float32"
        return self.model_copy(update={"precision": chosen}) if self.precision == "auto" else self

    def spread(self, planned: int, replicas: int) -> Self:
        """The candidate with which `replicas` train as `planned` replicas would: same global batch and learning rate.

        Raises ValueError if the global batch has no equal pieces for the replicas.
        """
        batch = self.batch_size * planned
        if batch % replicas:
            raise ValueError(
                f"{replicas} replicas cannot share a global batch of {batch} images equally; change workers or "
                "batch_size"
            )
        share = planned / replicas
        muon_rate = self.muon_rate and self.muon_rate * share
        changes = {"batch_size": batch // replicas, "learning_rate": self.learning_rate * share, "muon_rate": muon_rate}
        return self.model_copy(update=changes) if planned != replicas else self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.cpu_minutes is None):
            raise ValueError("give either epochs or cpu_minutes, and null for the other")
        return self

    @model_validator(mode="after")
    def _fits_its_architecture(self) -> Self:
        name, known = self.architecture, ARCHITECTURES[self.architecture]
        if self.frozen > known.blocks:
            raise ValueError(f"frozen is {self.frozen}; at most {known.blocks} blocks of {name} can be frozen")
        if self.weights == "imagenet" and self.alpha not in known.imagenet:
            widths = ", ".join(map(str, known.imagenet))
            raise ValueError(f"alpha is {self.alpha}; ImageNet weights of {name} exist for {widths}")
        if name == "mobilenet":
            return self
        for key, value, general in (
            ("weights", self.weights if self.weights == "bundled" else "none", "none"),
            ("strides", self.strides, "stock"),
            ("muon_rate", self.muon_rate, None),
            ("precision", self.precision if self.precision == "pointwise_bfloat16" else "auto", "auto"),
        ):
            if value != general:
                use = "null" if general is None else general
                raise ValueError(f"{key} is {value}, which is for `architecture: mobilenet` only; use {use} for {name}")
        if wrong := [size for size in self.input_sizes if size % REDUCTION]:
            raise ValueError(f"input_sizes has {wrong[0]}; {name} takes multiples of {REDUCTION} pixels")
        return self


def _fits_stages_and_folders(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise ValueError(
            f"{name!r} is no name of a candidate; use at most 31 lower-case letters, digits and '_', a letter first"
        )
    return name


CandidateName = Annotated[str, AfterValidator(_fits_stages_and_folders)]


class Lighter(Section):
    """When a candidate that is not better may replace the champion."""

    margin: Share
    """Non-inferiority margin: the one-sided confidence bound of the accuracy lost, at the level of the comparison, must
    stay below it."""
    saving: Share
    """Least share of size or time per image that the candidate must save."""


class Gate(Section):
    """Limits of the evaluation gate. Shares are of 1: 0.01 is one percentage point."""

    accuracy_floor: Share
    """Least value of the lower bound of the accuracy's 95 % Wilson interval."""
    calibration_error: Share
    """Largest expected calibration error."""
    megabytes: Rate
    """Largest size of the artefact, in MB."""
    milliseconds: Rate
    """Largest p99 latency of a single image, in milliseconds."""
    significance: Share
    """Error budget of the test images: the largest chance of ever promoting a candidate that is no better than the
    champion, over all comparisons on these images."""
    as_good_and_lighter: Lighter | None
    """Non-inferiority rule for smaller or faster candidates; null requires a higher accuracy."""
    recall_drop: Share
    """Largest drop of a class's accuracy against the champion; only a significant drop fails."""
    loss_margin: Rate
    """Largest increase of the test loss against the champion."""
    corruption_drop: Share
    """Largest drop of the mean accuracy on corrupted images against the champion; only a significant drop fails."""
    coverage: PartOf | None
    """Share of the images whose prediction set contains their class. Its threshold is from the validation images; the
    gate checks it on the test images, and only a significant shortfall fails. Null: no prediction sets."""


class Monitoring(Section):
    """When the answers of the service count as drifted, and what follows. Every limit is a smallest effect.

    Shares are of 1: 0.01 is one percentage point.
    """

    retrain: bool
    """Whether drift of images, classes or confidence starts a training, whose winner must pass the gate."""
    window_minutes: Positive
    """Shortest time of a short window; a window ends at a multiple of it."""
    window_images: Positive
    """Least number of images and failed requests of a short window; a window without them lasts longer."""
    images_per_class: Positive
    """Least number of images of a long window for each class. A long window sees small changes, a short one is
    early."""
    windows: Positive
    """Number of windows, the newest ones, that an alarm looks at."""
    drifted_windows: Positive
    """Number of these windows in which the same quantity must have drifted before an alarm."""
    significance: Share
    """Chance that any test finds drift in a window without drift; the p-values of a window are Holm-adjusted."""
    distance: Share
    """Least Kolmogorov-Smirnov distance of an input statistic or the confidence from the test images'."""
    class_ratio: PartOf
    """A class has drifted if its share of the predictions is below this part of its share on the test images, or above
    the inverse."""
    milliseconds: Rate
    """Latency that more than 1 % of the single images must exceed, from the complete upload to the answer."""
    error_share: Share
    """Share of failed requests, and of refused uploads, that must be exceeded."""
    accuracy_drop: Share
    """Least drop of the accuracy on labelled answers, against the test accuracy at promotion, for a proposal to roll
    back."""
    cool_down_hours: Rate
    """Hours after the end of an alert in which drift of the same quantities opens it again without a notification, and
    hours after an alert that started a training in which no other does."""

    @model_validator(mode="after")
    def _windows_suffice(self) -> Self:
        if self.drifted_windows > self.windows:
            raise ValueError(f"drifted_windows is {self.drifted_windows}; it must be at most windows, {self.windows}")
        return self


ServedPrecision = Literal["float32", "int8"]


class Serving(Section):
    """How the artefact is exported."""

    precision: Annotated[list[ServedPrecision], Field(min_length=1, max_length=2)]
    """Number formats of the artefacts. `int8` is smaller, faster and less accurate; the gate scores what is exported.
    With two formats, every candidate has a twin in the second one, called for example `scratch_int8`, which competes
    like a candidate."""

    @model_validator(mode="after")
    def _two_differ(self) -> Self:
        if len(set(self.precision)) < len(self.precision):
            raise ValueError(f"precision names {self.precision[0]} twice; name it once")
        return self


class Artefact(NamedTuple):
    """An exported model: a candidate in a number format."""

    candidate: str
    precision: ServedPrecision


class Recipe(Section):
    """Everything one pipeline run needs to know."""

    name: str
    """The recipe's key in `params.yaml`."""
    registered_model: ModelName
    """Name of the registered model in MLflow and of the Bento: lower-case letters, digits, `-`, `_` and `.`. Every
    recipe needs its own."""
    promotion: Literal["automatic", "manual"]
    """Who promotes a candidate that passes the gate: the pipeline, or a person with `mobilenet-pipeline approve`."""
    data: Data
    """Source and expected contents of the dataset."""
    split: Split
    """Validation split."""
    candidates: Annotated[dict[CandidateName, Candidate], Field(min_length=1, max_length=5)]
    """One to five candidates by name, each with its architecture and training. They train in this order; of equals, the
    gate prefers the first."""
    serving: Serving
    """Export of the artefact."""
    gate: Gate
    """Limits of the evaluation gate."""
    monitoring: Monitoring
    """Limits of the monitoring of answers."""

    @property
    def artefacts(self) -> dict[str, Artefact]:
        """What the gate compares, by name: the candidates in the first number format, each followed by its twin."""
        first = self.serving.precision[0]
        return {
            name if precision == first else f"{name}_{precision}": Artefact(name, precision)
            for name in self.candidates
            for precision in self.serving.precision
        }

    def candidate(self, name: str) -> Candidate:
        """Return the candidate called `name`, or whose twin is. Raises ValueError for a name of neither."""
        if name not in self.artefacts:
            question = did_you_mean(name, self.artefacts)
            raise ValueError(f"unknown candidate {name!r}{question}; there are: {', '.join(self.artefacts)}")
        return self.candidates[self.artefacts[name].candidate]

    def with_precision(self, *, bfloat16: bool) -> Self:
        """Return the recipe with the precision that `auto` means on such a processor."""
        candidates = {name: it.with_precision(bfloat16=bfloat16) for name, it in self.candidates.items()}
        return self.model_copy(update={"candidates": candidates})

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for name in self.candidates:
            if any(name == f"{other}_{precision}" for other in self.candidates for precision in ("float32", "int8")):
                raise ValueError(f"candidates.{name} is called like another candidate's twin; give it another name")
        return self

    @model_validator(mode="after")
    def _shifts_fit(self) -> Self:
        for name, candidate in self.candidates.items():
            if candidate.shift >= self.data.image_size:
                raise ValueError(
                    f"candidates.{name}.shift is {candidate.shift}; it must be less than data.image_size, "
                    f"{self.data.image_size}"
                )
        return self


def load_recipe(name: str, path: Path = Path("params.yaml")) -> Recipe:
    """Read the recipe called `name`, with the values that it has from its base.

    Raises ValueError naming the file, the key, the value and what was expected.
    """
    recipes = _recipes(path)
    section = _resolve(recipes, name, path)
    models = {key: entry.get("registered_model") for key, entry in recipes.items() if isinstance(entry, dict)}
    for other, model in models.items():
        if other != name and model is not None and model == section.get("registered_model"):
            # They would take turns as each other's champion.
            raise ValueError(
                f"{path}: recipes.{name}.registered_model: {model!r} is also that of recipe {other}; give each its own"
            )
    try:
        return Recipe.model_validate({"name": name, **section})
    except ValidationError as error:
        raise ValueError(_sentences(path, name, error)) from None


def base_of(name: str, path: Path = Path("params.yaml")) -> str | None:
    """Return the name of the recipe's base, None for a recipe that gives every key itself."""
    return _section(_recipes(path), name, path).get("base")


def recipe_names(path: Path = Path("params.yaml")) -> list[str]:
    """Return the names of all recipes, in the file's order. Raises ValueError if the file cannot be read."""
    return list(_recipes(path))


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a question that names the words close to a mistyped one; empty if there are none."""
    close = difflib.get_close_matches(word, words)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _recipes(path: Path) -> dict[str, Any]:
    try:
        # The reader that DVC uses, so that `5e-4` is a number for both.
        document = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.resolve()} does not exist; run this from the project's root") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from None
    except YAMLError as error:
        # The exception's own text has advice for programmers.
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{path} is not YAML: {place}{getattr(error, 'problem', None) or error}") from None
    recipes = document.get("recipes") if isinstance(document, dict) else None
    if not isinstance(recipes, dict) or not recipes:
        raise ValueError(f"{path} needs a section 'recipes' with at least one recipe")
    for name in recipes:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)) or not isinstance(name, str):
            raise ValueError(
                f"{path}: recipes.{name}: {name!r} is no name of a recipe; use letters, digits, '_' and '-' only, and "
                "quote a number"
            )
    return recipes


def _section(recipes: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    if name not in recipes:
        raise ValueError(f"{path}: no recipe {name!r}{did_you_mean(name, recipes)}; there are: {', '.join(recipes)}")
    if not isinstance(recipes[name], dict):
        raise ValueError(f"{path}: recipes.{name} must be a mapping, not {recipes[name]!r}")
    return recipes[name]


def _resolve(recipes: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return the recipe's section, completed by its base, by the base of that one, and so on."""
    chain = [name]
    section = _section(recipes, name, path)
    while "base" in section:
        base = section["base"]
        key = f"{path}: recipes.{chain[-1]}.base"
        if not isinstance(base, str) or base not in recipes:
            raise ValueError(f"{key}: no recipe {base!r}; there are: {', '.join(recipes)}")
        if base in chain:
            raise ValueError(f"{key}: {' → '.join([*chain, base])} is a circle; give one of them no base")
        own = {key: value for key, value in section.items() if key != "base"}
        section = _merge(_section(recipes, base, path), own)
        chain.append(base)
    candidates = section.get("candidates")
    if isinstance(candidates, dict) and len(chain) > 1:  # a recipe leaves out a candidate of its base by an empty value
        section = {**section, "candidates": {key: value for key, value in candidates.items() if value is not None}}
    return section


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `own`; a section in both is merged key by key."""
    merged = dict(base)
    for key, value in own.items():
        inherited = merged.get(key)
        merged[key] = _merge(inherited, value) if isinstance(inherited, dict) and isinstance(value, dict) else value
    return merged


def _sentences(path: Path, recipe: str, error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(["recipes", recipe, *(str(part) for part in fault["loc"] if part != "[key]")])
        # A rule about several keys names the values itself; its input is the whole section.
        value = "" if fault["type"] == "missing" or isinstance(fault["input"], dict) else f" (it is {fault['input']!r})"
        lines.append(f"{path}: {key}: {fault['msg'].removeprefix('Value error, ')}{value}")
    return "\n".join(lines)
