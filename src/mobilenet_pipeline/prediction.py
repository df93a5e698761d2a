"""One photo, the promoted models, all ten classes with their confidences: the case study's demonstration."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilenet_pipeline import preprocess
from mobilenet_pipeline.artefact import Artefact, ArtefactError

Answers = dict[str, dict[str, float]]
"""{role: {class: probability}}"""


def predict(data: bytes, folders: Mapping[str, Path | None]) -> Answers:
    """What each model says of an image file.

    `folders` is {role: folder with model.tflite and metadata.json}; a role without a folder has no answer. Raises
    preprocess.ImageError for bytes that are no image, ArtefactError naming the file for a model that cannot be read.
    """
    pixels = preprocess.decode(data)[None]
    answers = {}
    for role, folder in folders.items():
        if folder is not None:
            names = _class_names(folder)
            shares = Artefact(folder / "model.tflite").predict(pixels)[0].tolist()
            answers[role] = dict(zip(names, shares, strict=True))
    return answers


def table(answers: Answers, title: str | None = None) -> Table:
    """A row a class, a column a model; each model's own choice is bold."""
    drawn = Table(title=title)
    drawn.add_column("class")
    choices = {}
    for role, shares in answers.items():
        choices[role] = max(shares, key=lambda name: shares[name])
        drawn.add_column(role, justify="right")
    # Two models may know different classes: every class that any of them knows has its row.
    for name in dict.fromkeys(name for shares in answers.values() for name in shares):
        cells = [_cell(shares.get(name), choices[role] == name) for role, shares in answers.items()]
        drawn.add_row(escape(name), *cells)
    drawn.add_section()
    drawn.add_row("answer", *map(escape, choices.values()), style="bold")
    return drawn


def print_table(answers: Answers, title: str | None = None, console: Console | None = None) -> None:
    """Print the table of what the models say."""
    (console or Console()).print(table(answers, title))


def _cell(share: float | None, chosen: bool) -> str:
    if share is None:
        return "–"
    return f"[bold green]{share:.2%}[/]" if chosen else f"{share:.2%}"


def _class_names(folder: Path) -> list[str]:
    path = folder / "metadata.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["class_names"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(f"{path} does not say which classes the model knows ({error}); package it again") from None
