"""Write models and a Bento into the BentoML store that BENTOML_HOME names.

A program of its own: it reads a plan (JSON) from its standard input, so that BentoML, which keeps its store for as
long as a process lives and imports the service that it builds, never gets into the process that orders the build.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import NotFound

ARTEFACTS = ("model.tflite", "metadata.json")


def build(plan: dict[str, Any]) -> None:
    """Carry out the plan.

    `models`: {model tag: folder with the artefacts} to be written, over what is there; `tag`: the Bento's, also over
    what is there; `source`: the folder that becomes its code; `uses`: all its models' tags; `packages`: pinned
    requirements; `labels`.
    """
    for tag, folder in plan["models"].items():
        with contextlib.suppress(NotFound):
            bentoml.models.delete(tag)
        with bentoml.models.create(tag, labels=plan["labels"]) as model:
            for name in ARTEFACTS:
                shutil.copyfile(Path(folder) / name, model.path_of(name))
    with contextlib.suppress(NotFound):
        bentoml.bentos.delete(plan["tag"])
    name, _, version = plan["tag"].partition(":")
    bentoml.build(
        "serving.service:Classifier",
        name=name,
        version=version,
        labels=plan["labels"],
        models=plan["uses"],
        # Locking would ask a package index and write its address into the Bento; these are pinned already.
        python={"packages": plan["packages"], "lock_packages": False},
        build_ctx=plan["source"],
    )


if __name__ == "__main__":
    build(json.load(sys.stdin))
