"""Run one DVC stage: `python -m mobilenet_pipeline.stages STAGE RECIPE [CANDIDATE]`.

`choose RECIPE` lets DVC's own commands see a recipe of recipes/dvc.yaml.

Exit codes: 0 success; 65 wrong data, a retry would fail, too; 75 a network failure, a retry may succeed; 1 anything
else. SIGTERM ends a stage with 143, after it has removed its temporary files; `train` saves its state first.
"""

import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

from mobilenet_pipeline.config import Recipe, base_of, load_recipe
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.workspace import provenance
from mobilenet_pipeline.workspace.files import read_json
from mobilenet_pipeline.workspace.paths import dvc_file, resolved_path

ARGUMENTS = {
    "choose": ["RECIPE"],
    "recipe": ["RECIPE"],
    "ingest": ["RECIPE"],
    "validate": ["RECIPE"],
    "train": ["RECIPE", "CANDIDATE"],
    "export": ["RECIPE", "ARTEFACT"],
    "evaluate": ["RECIPE", "ARTEFACT"],
}


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the removal of temporary files
    sys.exit(128 + number)


def main() -> None:
    """Run the stage of the command line.

    An error that the user can fix becomes one sentence and an exit code.
    """
    name, *names = sys.argv[1:] or [""]
    if len(names) != len(ARGUMENTS.get(name, [])) or name not in ARGUMENTS:
        usages = [" ".join([stage, *words]) for stage, words in ARGUMENTS.items()]
        sys.exit(f"usage: python -m mobilenet_pipeline.stages {' | '.join(usages)}")
    if name != "train":  # a training has handlers of its own, which see a second signal
        signal.signal(signal.SIGTERM, _end)
    try:
        environment.prepare()
        recipe = load_recipe(names[0])
        for artefact in names[1:]:
            recipe.candidate(artefact)
        if name == "choose":
            runner.choose(recipe.name)
            return
        if name != "recipe":
            check_settings(recipe)
        if name == "train" and (reason := provenance.why_no_commit()):
            print(f"warning: no commit will be recorded for this model: {reason}", flush=True)
        # Import the stage last: TensorFlow reads the environment when it is imported.
        import_module(f"mobilenet_pipeline.stages.{name}").main(recipe, *names[1:])
    except (ConnectionError, TimeoutError) as error:
        _leave(error, os.EX_TEMPFAIL)
    except ValueError as error:
        _leave(error, os.EX_DATAERR)
    except OSError as error:
        _leave(error, 1)


def check_settings(recipe: Recipe) -> None:
    """Raise ValueError if DVC's params of the recipe are not those of params.yaml.

    DVC sees the settings of a recipe with a base in `models/RECIPE/recipe.json`, which the stage `recipe` writes.
    """
    path, base = resolved_path(recipe), base_of(recipe.name)
    if dvc_file(recipe.name) == dvc_file(runner.DEFAULT):
        if base:
            raise ValueError(
                f"params.yaml: recipes.{recipe.name}.base is {base!r}, which the stages of {recipe.name} do not look "
                "at; give this recipe every key, or give the heir a name of its own"
            )
    elif path.exists() and read_json(path) != recipe.model_dump(mode="json"):
        raise ValueError(
            f"params.yaml has changed since {path} was written; write it again: "
            f"dvc repro {runner.address(f'recipe@{recipe.name}')}"
        )


def _leave(error: Exception, code: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
