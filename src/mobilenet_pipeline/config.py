"""Recipes: every knob of the pipeline, typed, frozen, read once from `params.yaml`."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

CANDIDATES = ("scratch", "pretrained")
WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""Width multipliers that ImageNet weights exist for."""

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]


def _published(alpha: float) -> float:
    if alpha not in WIDTHS:
        raise ValueError(f"alpha must be one of {', '.join(map(str, WIDTHS))}")
    return alpha


Width = Annotated[float, AfterValidator(_published)]


class Section(BaseModel):
    """A part of `params.yaml`. Immutable; an unknown, missing or mistyped key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Where the images come from, and what they must be.

    `digest` is the SHA-256 over every image's (hash, label, split) in hash order: a source with others is refused.
    `channel_mean` and `channel_std` are of the training split, on the scale 0 to 1, red, green, blue.
    """

    source: Literal["digits", "cifar10"]
    digest: str
    class_names: list[str]
    train_rows: Positive
    test_rows: Positive
    channel_mean: list[float]
    channel_std: list[float]
    channel_tolerance: Rate
    class_balance_tolerance: Share


class Split(Section):
    """The share of training images held out for validation, stratified by class."""

    validation_share: Share
    seed: int


class Candidate(Section):
    """How one model is built and trained.

    `batch_size` is per replica and `learning_rate` the peak for one replica: the global batch and the rate grow with
    the replicas; so does `muon_rate`, that of Muon for the pointwise kernels, which learn like all others where it is
    null. The first `frozen` of stem and blocks do not learn.
    `warmup` is a share of all steps. `input_sizes` are the sides in pixels that images are resized to inside the
    model, each for an equal share of the steps; the last is that of the finished model. It trains for `epochs`, or for
    as many as fit into `cpu_minutes` of user and system time as measured when it starts, the last of them cut short.
    `precision` is what the layers compute in while training: `pointwise_bfloat16` is for CPUs that have instructions
    for it, `auto` takes it there and float32 on others, `mixed_*` are for GPUs. The weights are float32 in all.
    `sync_norm` takes the moments of batch normalisation over all replicas; without it each normalises by its own share
    of the batch, and what is kept is their average. `shift` and `cutout` are in pixels of the original image.
    """

    weights: Literal["none", "imagenet", "bundled"]
    alpha: Width
    strides: Literal["stock", "stem-1", "stem-block12", "stem-block2", "block2-block4", "stem-block2-block12"]
    input_sizes: Annotated[list[Positive], Field(min_length=1)]
    pixel_range: Literal["unit", "signed"]
    epochs: Positive | None
    cpu_minutes: Annotated[float, Field(gt=0)] | None
    batch_size: Positive
    precision: Literal["auto", "float32", "pointwise_bfloat16", "mixed_bfloat16", "mixed_float16"]
    sync_norm: bool
    learning_rate: Annotated[float, Field(gt=0)]
    muon_rate: Annotated[float, Field(gt=0)] | None
    frozen: Annotated[int, Field(ge=0, le=13)]
    warmup: Share
    weight_decay: Rate
    label_smoothing: Share
    flip: Literal["none", "random", "alternating"]
    shift: Annotated[int, Field(ge=0, le=31)]
    cutout: Annotated[int, Field(ge=0)]
    seed: int

    @property
    def input_size(self) -> int:
        """The side in pixels that the finished model resizes images to."""
        return self.input_sizes[-1]

    def with_precision(self, *, bfloat16: bool) -> Self:
        """The candidate with the precision that `auto` is where the processor has bfloat16, or has not."""
        chosen = "pointwise_bfloat16" if bfloat16 else "float32"
        return self.model_copy(update={"precision": chosen}) if self.precision == "auto" else self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.cpu_minutes is None):
            raise ValueError("give either epochs or cpu_minutes, and null for the other")
        return self


class Candidates(Section):
    """The two models that every recipe trains and compares."""

    scratch: Candidate
    pretrained: Candidate


class Lighter(Section):
    """When a candidate that is not better may replace the champion: shares of accuracy, and of size or time."""

    margin: Share
    saving: Share


class Gate(Section):
    """What a candidate must show before it may be served. Shares are of 1, so that 0.01 is a point of accuracy.

    By itself: `accuracy_floor` for the lower end of the accuracy's 95 % interval; `calibration_error` at most, between
    confidence and accuracy; `megabytes` and `milliseconds` (99 of 100 single images) of the artefact at most.

    Beside the champion: better at the level `significance` of the exact one-sided McNemar test or, with
    `as_good_and_lighter`, not worse by `margin` and smaller or faster by `saving`; no class's accuracy lower by
    `recall_drop` at that level; the loss higher by at most `loss_margin`; the mean accuracy on corrupted images not
    lower by more than `corruption_drop`, beyond chance (95 %).
    """

    accuracy_floor: Share
    calibration_error: Share
    megabytes: Rate
    milliseconds: Rate
    significance: Share
    as_good_and_lighter: Lighter | None
    recall_drop: Share
    loss_margin: Rate
    corruption_drop: Share


ServedPrecision = Literal["float32", "int8"]


class Serving(Section):
    """What the artefact computes in: int8 is smaller and faster, and less accurate, which the gate judges."""

    precision: ServedPrecision


class Recipe(Section):
    """Everything one pipeline run needs to know; `name` is its key in `params.yaml`.

    With `promotion: manual`, what passes the gate is served once a person has approved it.
    """

    name: str
    registered_model: str
    promotion: Literal["automatic", "manual"]
    data: Data
    split: Split
    candidates: Candidates
    serving: Serving
    gate: Gate

    def candidate(self, name: str) -> Candidate:
        """The candidate called `name`. Raises ValueError for a name that is not in `CANDIDATES`."""
        if name not in CANDIDATES:
            raise ValueError(f"unknown candidate {name!r}; there are: {', '.join(CANDIDATES)}")
        return getattr(self.candidates, name)

    def with_precision(self, *, bfloat16: bool) -> Self:
        """The recipe with the precision of both candidates chosen, too."""
        both = {name: self.candidate(name).with_precision(bfloat16=bfloat16) for name in CANDIDATES}
        return self.model_copy(update={"candidates": Candidates(**both)})


def load_recipe(name: str, path: Path = Path("params.yaml")) -> Recipe:
    """Read the recipe called `name`.

    Raises ValueError naming the file, the key, the value and what was expected.
    """
    recipes = _recipes(path)
    if name not in recipes:
        raise ValueError(f"{path}: no recipe {name!r}; there are: {', '.join(recipes)}")
    section = recipes[name]
    if not isinstance(section, dict):
        raise ValueError(f"{path}: recipes.{name} must be a mapping, not {section!r}")
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


def _recipes(path: Path) -> dict[str, object]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.resolve()} does not exist; run this from the project's root") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    recipes = document.get("recipes") if isinstance(document, dict) else None
    if not isinstance(recipes, dict) or not recipes:
        raise ValueError(f"{path} needs a section 'recipes' with at least one recipe")
    return recipes


def _sentences(path: Path, recipe: str, error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(["recipes", recipe, *map(str, fault["loc"])])
        value = "" if fault["type"] == "missing" else f" (it is {fault['input']!r})"
        lines.append(f"{path}: {key}: {fault['msg']}{value}")
    return "\n".join(lines)
