"""Tables for the terminal: the layers of a candidate and their costs, the models' answers, and what `init` found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.models.anatomy import Layer, multiply_adds, parameters
from mobilenet_pipeline.models.costs import layers

EXAMPLES = 10
"""Problems of a kind that are printed."""


@dataclass(frozen=True)
class Answer:
    """A model's answer for one image: {class: probability}, its prediction set and whether the image is unfamiliar.

    A version without prediction sets or without a flag has None.
    """

    probabilities: dict[str, float]
    coverage: float | None = None
    prediction_set: list[str] | None = None
    unfamiliar: bool | None = None

    @property
    def choice(self) -> str:
        """The class with the highest probability."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


def print_anatomy(recipe: Recipe, candidate: str) -> None:
    """Print the candidate's layers with their costs, totals and ratios."""
    settings = recipe.candidate(candidate)
    rows = layers(settings, len(recipe.data.class_names))
    size = settings.input_size
    table = Table(title=f"{recipe.name}, {candidate}: {settings.title}, {size}×{size}")
    table.add_column("layer")
    standard_total = sum(row.standard_multiply_adds for row in rows)
    compared = ("standard: parameters", "multiply-adds", "ratio") if standard_total else ()
    for column in ("output", "parameters", "multiply-adds", *compared):
        table.add_column(column, justify="right")
    for row in rows:
        standard = tuple("" for _ in compared)
        if row.standard_multiply_adds:
            pair = row.multiply_adds + _depthwise_before(rows, row)
            ratio = f"{pair / row.standard_multiply_adds:.3f}"
            standard = (f"{row.standard_parameters:,}", f"{row.standard_multiply_adds:,}", ratio)
        output = "×".join(map(str, row.output))
        table.add_row(row.name, output, f"{row.parameters:,}", f"{row.multiply_adds:,}", *standard)
    total, standard = multiply_adds(rows), ()
    if standard_total:
        standard_parameters = sum(row.standard_parameters for row in rows)
        standard = (f"{standard_parameters:,}", f"{standard_total:,}", f"{total / standard_total:.3f}")
    table.add_section()
    table.add_row("total", "", f"{sum(row.parameters for row in rows):,}", f"{total:,}", *standard)
    console = Console()
    console.print(table)
    norms = sum(row.norm_parameters for row in rows)
    console.print(
        f"Batch normalisation adds {norms:,} parameters, {parameters(rows):,} in total. Costs are for one image."
        + (" A ratio is (depthwise + pointwise) ÷ standard convolution = 1/c' + 1/9." if compared else "")
    )


def _depthwise_before(rows: list[Layer], row: Layer) -> int:
    position = rows.index(row)
    return rows[position - 1].multiply_adds if rows[position - 1].name.startswith("conv_dw") else 0


def answers_table(answers: Mapping[str, Answer], title: str | None = None) -> Table:
    """Return a table of the answers by role, with a row per class and a column per model.

    The class with the model's highest probability is bold. The last rows have the answer, its prediction set and
    whether the image is unlike the training images.
    """
    table = Table(title=title and escape(title))
    table.add_column("class")
    for role in answers:
        table.add_column(role, justify="right")
    # The models may have different classes: the table has a row for each class of any model.
    for name in dict.fromkeys(name for answer in answers.values() for name in answer.probabilities):
        cells = [_cell(answer.probabilities.get(name), answer.choice == name) for answer in answers.values()]
        table.add_row(escape(name), *cells)
    table.add_section()
    table.add_row("answer", *(escape(answer.choice) for answer in answers.values()), style="bold")
    table.add_row("prediction set", *map(_set, answers.values()))
    table.add_row("unfamiliar image", *map(_flag, answers.values()))
    return table


def print_answers(answers: Mapping[str, Answer], title: str | None = None, console: Console | None = None) -> None:
    """Print the table of the models' answers."""
    (console or Console()).print(answers_table(answers, title))


def _set(answer: Answer) -> str:
    if answer.prediction_set is None or answer.coverage is None:
        return "–"
    return f"{escape(', '.join(answer.prediction_set))} ({answer.coverage * 100:g} %)"


def _flag(answer: Answer) -> str:
    return {None: "–", False: "no", True: "[bold red]yes[/]"}[answer.unfamiliar]


def _cell(share: float | None, chosen: bool) -> str:
    if share is None:
        return "–"
    return f"[bold green]{share:.2%}[/]" if chosen else f"{share:.2%}"


def print_found(
    title: str,
    found: Iterable[tuple[str, str]],
    proposed: Iterable[tuple[str, str]],
    problems: Sequence[tuple[str, str, str]],
    console: Console | None = None,
) -> None:
    """Print rows (what, value) of what was found and is proposed, and the problems (name, kind, sentence).

    Of every kind of problem, the first `EXAMPLES` are shown.
    """
    console = console or Console(soft_wrap=True)
    table = Table(title=escape(title), show_header=False, title_justify="left")
    for rows in (found, proposed):
        for what, value in rows:
            table.add_row(escape(what), escape(value))
        table.add_section()
    console.print(table, soft_wrap=False)
    shown: dict[str, int] = {}
    for name, kind, sentence in problems:
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= EXAMPLES:
            console.print(f"! {kind.replace('_', ' ')}: {name}: {sentence}", markup=False, highlight=False)
    for kind, count in shown.items():
        if count > EXAMPLES:
            line = f"! {kind.replace('_', ' ')}: {count - EXAMPLES:,} more, listed in reports/…/ingestion by the run"
            console.print(line, markup=False, highlight=False)
