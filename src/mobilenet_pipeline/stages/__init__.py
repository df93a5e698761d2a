"""One module a DVC stage: `python -m mobilenet_pipeline.stages.NAME RECIPE [CANDIDATE]`, files in and files out.

Exit codes: 0 done, 65 the data are wrong and another try would fail too, 75 the network failed and another try may
succeed, 1 anything else.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mobilenet_pipeline import environment
from mobilenet_pipeline.config import load_recipe


def run_stage(stage: Callable[..., None], takes_candidate: bool) -> None:
    """Call `stage` with what the command line names; turn errors for people into a sentence and an exit code."""
    environment.prepare()
    names = ["RECIPE", "CANDIDATE"][: 1 + takes_candidate]
    if len(sys.argv) != 1 + len(names):
        sys.exit(f"usage: python -m {stage.__module__} {' '.join(names)}")
    try:
        recipe = load_recipe(sys.argv[1])
        if takes_candidate:
            recipe.candidate(sys.argv[2])
        stage(recipe, *sys.argv[2:])
    except (ConnectionError, TimeoutError) as error:
        _leave(error, os.EX_TEMPFAIL)
    except ValueError as error:
        _leave(error, os.EX_DATAERR)
    except OSError as error:
        _leave(error, 1)


def _leave(error: Exception, code: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
