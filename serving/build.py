"""Write models and a Bento into the BentoML store at BENTOML_HOME.

A program that reads its plan (JSON) from standard input. BentoML keeps its first store for the life of a process, and
imports the service that it builds; a child process keeps both away from the caller.
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
    """Write the models and the Bento of the plan.

    `models`: {model tag: folder of the artefacts} to write, replacing models of these tags; `tag`: the Bento's, which
    is replaced too; `source`: the folder of its code; `uses`: the tags of all its models; `packages`: pinned
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
        # Locking would query a package index and write its address into the Bento. The requirements are pinned already.
        python={"packages": plan["packages"], "lock_packages": False},
        build_ctx=plan["source"],
    )


if __name__ == "__main__":
    build(json.load(sys.stdin))
