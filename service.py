"""What BentoML's own commands find in this folder: `bentoml serve .` serves the live Bento's models with this code.

`bentoml build` cannot know which versions are champion and challenger, and says so.
"""

import os
from pathlib import Path

import click
from bentoml.exceptions import BentoMLException

from serving.live import only_pointer
from serving.service import Classifier

__all__ = ["Classifier"]

context = click.get_current_context(silent=True)
if context and context.info_name == "build":
    raise BentoMLException(
        "`mobilenet-pipeline run` builds the Bentos of this repository: a Bento needs the registry's champion. "
        "Serve the live one with `mobilenet-pipeline serve`; list all with `BENTOML_HOME=.bentoml bentoml list`."
    )
if context and context.info_name == "serve" and "SERVING_LIVE" not in os.environ:
    try:
        only_pointer(Path(__file__).parent)
    except ValueError as error:  # BentoML would start its workers again and again
        raise BentoMLException(str(error)) from None
