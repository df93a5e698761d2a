"""Run one DVC stage: `python -m mobilenet_pipeline.stages STAGE RECIPE [CANDIDATE]`.

Exit codes: 0 success; 65 wrong data, a retry would fail, too; 75 a network failure, a retry may succeed; 1 anything
else.
"""

import os
import sys
from importlib import import_module
from typing import NoReturn

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.system import environment

ARGUMENTS = {
    "ingest": ["RECIPE"],
    "validate": ["RECIPE"],
    "train": ["RECIPE", "CANDIDATE"],
    "export": ["RECIPE", "CANDIDATE"],
    "evaluate": ["RECIPE", "CANDIDATE"],
}


def main() -> None:
    """Run the stage of the command line.

    An error that the user can fix becomes one sentence and an exit code.
    """
    name, *names = sys.argv[1:] or [""]
    if len(names) != len(ARGUMENTS.get(name, [])) or name not in ARGUMENTS:
        usages = [" ".join([stage, *words]) for stage, words in ARGUMENTS.items()]
        sys.exit(f"usage: python -m mobilenet_pipeline.stages {' | '.join(usages)}")
    environment.prepare()
    try:
        recipe = load_recipe(names[0])
        for candidate in names[1:]:
            recipe.candidate(candidate)
        # Import the stage last: TensorFlow reads the environment when it is imported.
        import_module(f"mobilenet_pipeline.stages.{name}").main(recipe, *names[1:])
    except (ConnectionError, TimeoutError) as error:
        _leave(error, os.EX_TEMPFAIL)
    except ValueError as error:
        _leave(error, os.EX_DATAERR)
    except OSError as error:
        _leave(error, 1)


def _leave(error: Exception, code: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
