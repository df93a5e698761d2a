"""The rules of ARCHITECTURE.md, read from the code with `ast`: who imports what, and what DVC depends on."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.stages import runner

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "mobilenet_pipeline"
LAYERS = [
    {"config", "system", "inference", "metrics"},
    {"workspace", "data", "models"},
    {"training", "evaluation", "registry"},
    {"gate", "reports"},
    {"cluster", "release", "stages", "monitoring", "operations"},
    {"flows"},
    {"cli"},
]
"""A package imports from lower layers, and from its own layer without a circle."""

FRAMEWORKS = {
    "mlflow": {"registry"},
    "great_expectations": {"data.validation"},
    "bentoml": {"serving", "release.bento"},
    "_bentoml_impl": {"serving"},
    "prefect": {"flows"},
    "tensorflow": {"models", "training", "evaluation.export"},
    "keras": {"models", "training", "evaluation.export", "registry.runs", "cluster.training"},
    "ray": {"cluster"},
}
"""Where a framework may be imported: packages or modules.

`registry.runs` logs a Keras model to MLflow; `cluster.training` opens that of a worker.
"""

FILES = {"io", "os", "pathlib", "shutil", "tempfile", "subprocess", "socket", "urllib"}

RECORDS = {
    *("config", "system.environment", "system.machine", "workspace", "registry", "reports", "cluster"),
    "inference.preprocess",
}
"""They record what happens and cannot change a stage's result, so DVC does not depend on them.

`config` has defaults only for keys that older recipes lack, and its values are the stages' params; `workspace` knows
the paths that dvc.yaml names; `cluster` runs the same training elsewhere; `inference.preprocess` decodes the images of
ingestion only; a training records its fingerprint.
"""


def modules() -> dict[str, Path]:
    """{module: file}: those of the package without its name, `flows.x` and `serving.x`."""
    found = {}
    for top, folder in ((PACKAGE, PACKAGE), (ROOT, ROOT / "flows"), (ROOT, ROOT / "serving")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(top).with_suffix("").parts
            if parts[-1] not in ("__init__", "__main__"):
                found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Dotted names of everything that the file imports, at whatever depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


BY_NAME = {"models.network": "models.architectures"}
"""Modules that import any module of a package, by a name from the recipe."""


def own(path: Path) -> set[str]:
    """The project's modules that the file imports."""
    return {name.removeprefix("mobilenet_pipeline.") for name in imports(path)} & {*MODULES}


def frameworks(path: Path) -> set[str]:
    """The top-level names of what the file imports."""
    return {name.split(".")[0] for name in imports(path)}


def package_of(module: str) -> str:
    return module.split(".")[0]


def layer_of(package: str) -> int:
    return next(index for index, packages in enumerate(LAYERS) if package in packages)


def within(module: str, places: set[str]) -> bool:
    """Whether the module is one of the places, or in one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_every_package_has_a_layer():
    assert {package_of(module) for module in MODULES} - {"serving"} == set().union(*LAYERS)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {name for name in MODULES if name.startswith("serving.")}))
def test_a_module_imports_no_higher_layer(module):
    above = [name for name in own(MODULES[module]) if layer_of(package_of(name)) > layer_of(package_of(module))]
    assert above == []


def test_packages_of_one_layer_import_one_way():
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph.setdefault(package_of(module), set()).update(package_of(name) for name in own(path))
    for package, others in graph.items():
        others.discard(package)
    assert list(TopologicalSorter(graph).static_order())


def test_there_is_no_circle_of_modules():
    assert list(TopologicalSorter({module: own(path) for module, path in MODULES.items()}).static_order())


def test_only_the_command_line_knows_the_flows():
    users = {module for module, path in MODULES.items() if "flows" in frameworks(path)} - set(flow_modules())
    # cli imports them by name, so that its other commands work without the repository.
    assert users == set()
    assert "flows." in MODULES["cli"].read_text(encoding="utf-8")


def flow_modules() -> list[str]:
    return [module for module in MODULES if module.startswith("flows.")]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_imported_in_its_places_only(framework):
    users = {module for module, path in MODULES.items() if framework in frameworks(path)}
    assert {module for module in users if not within(module, FRAMEWORKS[framework])} == set()


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("serving.")))
def test_serving_imports_inference_only(module):
    assert {package_of(name) for name in own(MODULES[module])} <= {"serving", "inference"}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if package_of(name) in ("gate", "metrics")))
def test_gate_and_metrics_touch_no_files(module):
    assert frameworks(MODULES[module]) & FILES == set()


def test_a_test_file_lies_where_its_module_does():
    tests = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    folders = {path.parent.as_posix() for path in tests}
    packages = {package_of(module) for module in MODULES} - {"cli", "config"}
    assert packages <= {folder.split("/")[0] for folder in folders}


@pytest.mark.parametrize("package", sorted(set().union(*LAYERS) - {"cli", "config", "flows"}))
def test_the_table_of_packages_names_every_module(package):
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{package}/` \|.*$", text, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", row.split("|")[2]))
    assert named == {module.split(".")[1] for module in MODULES if module.startswith(f"{package}.")}


def document(path: str = "dvc.yaml") -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def stages_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the stages without what multiplies them."""
    return {name: stage.get("do", stage) for name, stage in document["stages"].items()}


def reached(module: str) -> set[str]:
    """What the module imports, and what those import in turn; records are not followed."""
    found, waiting = set(), own(MODULES[module])
    records = RECORDS - {"inference.preprocess"} if module == "stages.ingest" else RECORDS
    while waiting:
        name = waiting.pop()
        if name in found or within(name, records):
            continue
        found.add(name)
        chosen = {module for module in MODULES if name in BY_NAME and within(module, {BY_NAME[name]})}
        waiting |= own(MODULES[name]) | chosen
    return found


@pytest.mark.parametrize("stage", ["ingest", "validate", "train", "export", "evaluate"])
def test_a_stage_depends_on_the_code_that_decides_its_result(stage):
    places = [dep for dep in stages_of(document())[stage]["deps"] if dep.startswith("src/")]
    covered = {module for module, path in MODULES.items() if any(path.is_relative_to(ROOT / dep) for dep in places)}
    assert covered == {f"stages.{stage}", *reached(f"stages.{stage}")}


@pytest.mark.parametrize("dep", sorted({dep for stage in stages_of(document()).values() for dep in stage["deps"]}))
def test_a_dependency_on_code_exists(dep):
    assert not dep.startswith("src/") or (ROOT / dep).exists()


def test_every_stage_follows_the_recipes_and_their_candidates():
    expected = runner.variables(load_recipe("digits", ROOT / "params.yaml"))
    assert document("dvc.yaml")["vars"] == [{"recipe_names": ["digits"]}, *({key: expected[key]} for key in expected)]
    over = {name: stage.get("foreach") or stage["matrix"] for name, stage in document("dvc.yaml")["stages"].items()}
    assert over == {
        "ingest": {"recipe": "${recipe_names}"},
        "validate": {"recipe": "${recipe_names}"},
        "train": "${trainings}",
        "export": "${artefacts}",
        "evaluate": "${artefacts}",
    }


def test_recipes_apart_have_the_same_stages_with_completed_params():
    apart, root = document("recipes/dvc.yaml"), document()
    (completed,) = apart["stages"].pop("recipe")["outs"]
    for stage in stages_of(apart).values():
        assert stage.pop("wdir") == ".."
        stage["params"] = [f"recipes.${{item.recipe}}.{key}" for key in stage["params"][0][completed]]
    assert apart == {"vars": ["chosen.yaml"], "stages": root["stages"]}
