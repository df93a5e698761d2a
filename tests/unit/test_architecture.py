"""The rules of the house, read from the code with `ast`: who imports whom, and what DVC is told about it."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mobilenet_pipeline"
ORDER = [
    {"environment"},
    {"config"},
    {"layout"},
    {
        "budget",
        "split",
        "metrics",
        "paired",
        "corruptions",
        "anatomy",
        "preprocess",
        "ledger",
        "history",
        "running",
        "processor",
    },
    {"checks", "card", "provenance"},
    {"gate", "artefact", "images"},
    {"sources"},
    {"ingest"},
    {"validation"},
    {"dataset"},
    {"fast_layers", "distribution", "checkpoint"},
    {"mobilenet", "optimizer"},
    {"steps"},
    {"training"},
    {"export"},
    {"evaluation"},
    {"figures", "anatomy_table"},
    {"verdict_figures"},
    {"report", "results"},
    {"tracking"},
    {"registry"},
    {"pipeline"},
    {"packaging", "prediction", "judging"},
    {"promotion"},
    {"review", "trace"},
    {"stages"},
    {"cli"},
]
# They cannot change what a stage makes (`environment` no more than how it rounds), so an edit to them need not run it
# again: most record what happens, `config` has no defaults, and the values it reads are the stage's `params`; `layout`
# knows the paths that dvc.yaml names.
OBSERVERS = {"environment", "config", "layout", "ledger", "tracking", "provenance", "figures"}


def modules() -> dict[str, Path]:
    return {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything that the file imports, at whatever depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path) -> set[str]:
    """The project's modules that the file imports."""
    parts = [name.split(".") for name in imports(path) if name.startswith("mobilenet_pipeline.")]
    return {part[1] for part in parts} & {*modules(), "stages"}


def reached(path: Path) -> set[str]:
    """`own`, and what those import in turn; observers are not followed."""
    found, waiting = set(), own(path)
    while waiting:
        name = waiting.pop()
        if name in found | OBSERVERS | {"stages"}:
            continue
        found.add(name)
        waiting |= own(modules()[name])
    return found


def test_every_module_has_its_place_in_the_order():
    assert set(modules()) - set().union(*ORDER) == set()


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_stands_left_of_it(name):
    place = next(index for index, names in enumerate(ORDER) if name in names)
    left = set().union(*ORDER[:place])
    beside = ORDER[place] if name in {"gate"} else set()
    assert own(modules()[name]) - left - beside == set()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("prefect", set()),
        ("great_expectations", {"validation"}),
        ("mlflow", {"tracking", "registry", "cli"}),
        ("bentoml", {"packaging"}),
    ],
)
def test_a_framework_is_imported_in_its_own_room_only(package, allowed):
    users = {name for name, path in modules().items() if package in {dotted.split(".")[0] for dotted in imports(path)}}
    assert users <= allowed


@pytest.mark.parametrize("name", ["metrics", "split", "gate", "artefact", "preprocess", "anatomy"])
def test_the_pure_middle_and_the_served_part_know_no_tensorflow(name):
    assert not {dotted.split(".")[0] for dotted in imports(modules()[name])} & {"tensorflow", "keras"}


@pytest.mark.parametrize("path", sorted((ROOT / "serving").glob("*.py")), ids=lambda path: path.name)
def test_serving_knows_no_tensorflow_and_no_training_code(path):
    assert not {dotted.split(".")[0] for dotted in imports(path)} & {"tensorflow", "keras", "mlflow", "prefect"}
    assert own(path) <= {"artefact", "preprocess"}


def pipeline() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def test_a_training_s_state_is_of_the_code_of_every_module_that_decides_how_it_goes_on():
    function = next(
        node
        for node in ast.parse(modules()["training"].read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "_code"
    )
    named = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    # `metrics` comes after the last step; `processor` only makes a precision of `auto`, and that is a knob.
    assert reached(modules()["training"]) - named <= {"metrics", "processor"}


@pytest.mark.parametrize("stage", ["ingest", "validate", "train", "export", "evaluate"])
def test_a_stage_depends_on_every_module_it_imports(stage):
    entry = PACKAGE / "stages" / f"{stage}.py"
    expected = {f"src/mobilenet_pipeline/{name}.py" for name in reached(entry)}
    expected.add(str(entry.relative_to(ROOT)))
    assert {dep for dep in pipeline()["stages"][stage]["deps"] if dep.endswith(".py")} == expected


def test_every_stage_is_a_matrix_over_every_recipe():
    recipes = list(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["recipes"])
    assert pipeline()["vars"] == [{"recipe_names": recipes}]
    assert all(stage["matrix"]["recipe"] == "${recipe_names}" for stage in pipeline()["stages"].values())
