"""A candidate's layers as a table for people: the case study's section III for our network."""

from rich.console import Console
from rich.table import Table

from mobilenet_pipeline.anatomy import Layer, layers, multiply_adds, parameters
from mobilenet_pipeline.config import Recipe


def print_anatomy(recipe: Recipe, candidate: str) -> None:
    """Print the candidate's layers with their cost, totals and ratios."""
    chosen = recipe.candidate(candidate)
    rows = layers(chosen, len(recipe.data.class_names))
    size = chosen.input_size
    table = Table(
        title=f"{recipe.name}, {candidate}: MobileNet α {chosen.alpha}, {size}×{size}, strides {chosen.strides}"
    )
    table.add_column("layer")
    for column in ("output", "parameters", "multiply-adds", "standard: parameters", "multiply-adds", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        standard = ("", "", "")
        if row.standard_multiply_adds:
            pair = row.multiply_adds + _depthwise_before(rows, row)
            ratio = f"{pair / row.standard_multiply_adds:.3f}"
            standard = (f"{row.standard_parameters:,}", f"{row.standard_multiply_adds:,}", ratio)
        output = "×".join(map(str, row.output))
        table.add_row(row.name, output, f"{row.parameters:,}", f"{row.multiply_adds:,}", *standard)
    total, standard_total = multiply_adds(rows), sum(row.standard_multiply_adds for row in rows)
    table.add_section()
    table.add_row(
        "total",
        "",
        f"{sum(row.parameters for row in rows):,}",
        f"{total:,}",
        f"{sum(row.standard_parameters for row in rows):,}",
        f"{standard_total:,}",
        f"{total / standard_total:.3f}",
    )
    console = Console()
    console.print(table)
    norms = sum(row.norm_parameters for row in rows)
    console.print(
        f"Batch normalisation adds {norms:,} parameters: {parameters(rows):,} in all. Costs are for one image; a ratio "
        "is depthwise + pointwise ÷ the standard convolution, 1/c' + 1/9."
    )


def _depthwise_before(rows: list[Layer], row: Layer) -> int:
    position = rows.index(row)
    return rows[position - 1].multiply_adds if rows[position - 1].name.startswith("conv_dw") else 0
