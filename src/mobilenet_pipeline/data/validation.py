"""Validate a dataset's manifest against its recipe. No other module imports Great Expectations."""

import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from mobilenet_pipeline import config, data
from mobilenet_pipeline.data import split
from mobilenet_pipeline.system import environment

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.data_context import FileDataContext
    from great_expectations.datasource.fluent import PandasFilesystemDatasource
    from great_expectations.expectations.expectation import Expectation

# These values repeat those of ingestion: an expectation must not depend on the code that it checks.
SPLITS, CHANNELS = ("train", "test"), ("r", "g", "b")
EXAMPLES = 5  # failed rows in a message
STATISTICS = (*(f"mean_{name}" for name in CHANNELS), *(f"std_{name}" for name in CHANNELS))
IDENTITY = ("split", "label", "class_name", "group", "hash")
COLUMNS = (*IDENTITY, "height", "width", "channels", "dtype", "pixel_min", "pixel_max", *STATISTICS)


@dataclass(frozen=True, eq=False)
class Table:
    """A table: its expectations, and the columns that identify its rows. `file` is its Parquet file."""

    name: str
    expectations: list["Expectation"]
    identity: tuple[str, ...] = ("row",)
    file: str = ""

    @property
    def path(self) -> str:
        """The file in the folder of tables."""
        return f"{self.file or self.name}.parquet"


def validate(
    manifest: Path,
    recipe: config.Recipe,
    digest: str,
    folder: Path,
    additions: Path | None = None,
    ingestion: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run every expectation on a manifest, and keep the suites and results.

    Row i of the Parquet file `manifest` describes image i. `additions` is the JSON file of a suite of the user's own,
    `ingestion` is the content of problems.json, which says how many images of the source are left out, and why.
    Writes two folders: `folder/gx`, a project of Great Expectations with suites, checkpoint, tables and results, and
    `folder/data_docs`, its pages.

    Returns a JSON-ready document: whether all expectations passed, and for each expectation the number of unexpected
    rows and the first of them. A failed expectation raises nothing; `failures` returns its sentence. Raises ValueError
    if `additions` is not a suite.
    """
    environment.prepare()  # Great Expectations reads its telemetry variable when it is imported
    _prepare_for_large_tables()
    added = [Table(recipe.name, read_additions(additions), file="images")] if additions else []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.resolve(), prefix=".gx-") as name:
        fresh = Path(name)
        context = _open_project(fresh)
        source = _open_tables(context)
        rows, complete = _write_tables(manifest, recipe, source.base_directory, ingestion)
        _release()
        tables = [
            *(_tables(recipe.data, source.base_directory) if complete else [Table("images", [_expect_columns()])]),
            *added,
        ]
        results = [(table, result) for table in tables for result in _run(context, source, table, recipe.name)]
        context.build_data_docs()
        _make_self_contained(fresh / "data_docs")
        _name_tables(fresh, folder / "gx" / "tables")
        for output in ("gx", "data_docs"):
            shutil.rmtree(folder / output, ignore_errors=True)  # pages of earlier runs would slow every later run
            (fresh / output).replace(folder / output)
    expectations = [_describe(table, result) for table, result in results]
    return {
        "success": all(expectation["success"] for expectation in expectations),
        "recipe": recipe.name,
        "data_digest": digest,
        "rows": rows,
        "expectations": expectations,
        "problems": _problems(ingestion),
    }


def _problems(ingestion: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return how often each kind of problem was found in the source, with the first of them."""
    lines = ingestion["problems"] if ingestion else []
    return [
        {"kind": kind, "count": count, "examples": [line for line in lines if line["kind"] == kind][:EXAMPLES]}
        for kind, count in (ingestion["kinds"] if ingestion else {}).items()
    ]


def read_additions(path: Path) -> list["Expectation"]:
    """Return the expectations of a suite's JSON file. Raises ValueError naming the file and the fault."""
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["expectations"]
        # ExpectationSuite would leave out, with a log line only, an expectation that it does not know.
        return [ExpectationConfiguration(**{**row, "id": None}).to_domain_obj() for row in rows]
    except (ValueError, KeyError, TypeError, GreatExpectationsError) as error:
        fault = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a suite of Great Expectations ({fault}); correct the file") from None


def failures(document: dict[str, Any]) -> list[str]:
    """Return a sentence for every failed expectation; empty if all passed.

    `document` is what `validate` returned.
    """
    return [expectation["sentence"] for expectation in document["expectations"] if not expectation["success"]]


def _write_tables(
    manifest: Path, recipe: config.Recipe, folder: Path, ingestion: Mapping[str, Any] | None
) -> tuple[int, bool]:
    """Write the manifest, called `images`, and the tables derived from it as Parquet files into `folder`.

    The tables `groups` and `source` are written only if there are groups, and if `ingestion` is given.

    Returns the number of rows, and whether the manifest has all columns; without them, only `images` is written. The
    derived tables have the columns that identify a row and those that are checked. One table is in memory at a time:
    a million rows take 0.2 GiB.
    """
    images = pd.read_parquet(manifest).reset_index(drop=True).rename_axis("row").reset_index()
    images.to_parquet(folder / "images.parquet", index=False)
    rows, complete = len(images), set(COLUMNS) <= set(images.columns)
    del images

    def read(*columns: str) -> pd.DataFrame:
        return pd.read_parquet(folder / "images.parquet", columns=list(columns))

    def write(name: str, table: pd.DataFrame) -> None:
        table.to_parquet(folder / f"{name}.parquet", index=False)

    if complete:
        classes = read("row", "split", "label", "class_name")
        for name in SPLITS:
            write(name, classes[classes["split"] == name])
        write("class_shares", _shares(classes, recipe.data))
        pixels = read("split", *STATISTICS)
        write("training_pixels", _channels(pixels[pixels["split"] == "train"]))
        del classes, pixels
        # A duplicate inside a split and an image in both splits are two faults. Each is reported once.
        write("distinct_images", read("row", "split", "hash").drop_duplicates(["hash", "split"])[["row", "hash"]])
        grouped = read("label", "group", "split")
        if (grouped["group"].fillna("") != "").any():
            write("groups", _parts_of_groups(grouped.dropna(), recipe.split))
        if ingestion:
            write("source", pd.DataFrame([{"excluded_share": 1 - ingestion["kept"] / max(ingestion["found"], 1)}]))
    return rows, complete


def _parts_of_groups(images: pd.DataFrame, limits: config.Split) -> pd.DataFrame:
    """Return a row for each group and each part that it is in: training, validation or test images."""
    part = images["split"].to_numpy(object)
    rows = np.flatnonzero(part != "test")
    try:
        held_out = split.hold_out(
            images["label"].to_numpy()[rows], images["group"].to_numpy(str)[rows], limits.validation_share, limits.seed
        )[1]
        part[rows[held_out]] = "validation"
    except (ValueError, TypeError):  # the training says why there is no split, unless an expectation does
        pass
    parts = images[["group"]].assign(part=part)
    return parts[parts["group"] != ""].drop_duplicates()


def _release() -> None:
    """Return freed memory to the system, which Arrow and the C library keep for later."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


def _tables(data: config.Data, folder: Path) -> list[Table]:
    """Return the manifest and the tables derived from it that are in `folder`, with their expectations."""
    from great_expectations import expectations as gxe

    together = gxe.ExpectColumnValuesToBeUnique(
        column="group", description="No group is in two of training, validation and test images"
    )
    few = gxe.ExpectColumnValuesToBeBetween(
        column="excluded_share",
        max_value=data.excluded_share,
        description=f"At most {data.excluded_share:.2%} of the source's images are left out",
    )
    no_leak = gxe.ExpectColumnValuesToBeUnique(column="hash", description="No image is in both train and test")
    tables = [
        Table("images", [_expect_columns(), *_expect_of_images(data)]),
        Table("train", _expect_of_split("train", data.train_rows, data)),
        Table("test", _expect_of_split("test", data.test_rows, data)),
        Table("distinct_images", [no_leak]),
        Table("class_shares", _expect_balance(data), ("split", "class_name")),
        Table("training_pixels", _expect_channels(data), ()),
        Table("groups", [together], ("group", "part")),
        Table("source", [few], ()),
    ]
    return [table for table in tables if (folder / table.path).exists()]


def _expect_columns() -> "Expectation":
    from great_expectations import expectations as gxe

    return gxe.ExpectTableColumnsToMatchSet(
        column_set=["row", *COLUMNS], exact_match=True, description="The manifest has its columns and no others"
    )


def _shares(images: pd.DataFrame, data: config.Data) -> pd.DataFrame:
    """Return the rows of each class in each split, and their share of the split."""
    index = pd.MultiIndex.from_product([SPLITS, data.class_names], names=["split", "class_name"])
    rows = images.groupby(["split", "class_name"]).size().reindex(index, fill_value=0).rename("rows").reset_index()
    return rows.assign(share=(rows["rows"] / rows.groupby("split")["rows"].transform("sum")).fillna(0.0))


def _channels(train: pd.DataFrame) -> pd.DataFrame:
    """Return the exact mean and standard deviation of every channel, in one row.

    All images have the same size, so E[x²] of a channel is the mean of std² + mean² over the images.
    """
    row: dict[str, float] = {}
    for name in CHANNELS:
        mean = float(train[f"mean_{name}"].mean())
        second_moment = float((train[f"std_{name}"] ** 2 + train[f"mean_{name}"] ** 2).mean())
        row |= {f"mean_{name}": mean, f"std_{name}": math.sqrt(max(second_moment - mean**2, 0.0))}
    return pd.DataFrame([row])


def _expect_of_images(data: config.Data) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    def values(column: str, allowed: Sequence[object], description: str) -> "Expectation":
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(allowed), description=description)

    def between(column: str, low: float, high: float, description: str) -> "Expectation":
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, description=description)

    classes, pairs = data.class_names, list(enumerate(data.class_names))
    return [
        *(gxe.ExpectColumnValuesToNotBeNull(column=name, description=f"Every image has a {name}") for name in COLUMNS),
        values("split", SPLITS, "An image is in train or in test"),
        between("label", 0, len(classes) - 1, f"Labels are 0 to {len(classes) - 1}"),
        values("class_name", classes, "Classes are the recipe's"),
        gxe.ExpectColumnPairValuesToBeInSet(
            column_A="label", column_B="class_name", value_pairs_set=pairs, description="Label and class name agree"
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="hash", regex="^[0-9a-f]{64}$", description="Hashes are SHA-256, in hexadecimal"
        ),
        *(
            values(name, [size], f"The {name} of an image is {size}")
            for name, size in (("height", data.image_size), ("width", data.image_size), ("channels", len(CHANNELS)))
        ),
        values("dtype", ["uint8"], "Pixels are uint8"),
        *(between(name, 0, 255, "Pixels are 0 to 255") for name in ("pixel_min", "pixel_max")),
        *(between(name, 0, 1, "Statistics of pixels are on the scale 0 to 1") for name in STATISTICS),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="pixel_max", column_B="pixel_min", description="No image is blank: pixels differ"
        ),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["hash", "split"], description="No image is twice in the same split"
        ),
    ]


def _expect_of_split(name: str, rows: int, data: config.Data) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    return [
        gxe.ExpectTableRowCountToEqual(value=rows, description=f"The {name} split has {rows:,} images"),
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="class_name", value_set=data.class_names, description=f"Every class is in the {name} split"
        ),
    ]


def _expect_balance(data: config.Data) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    share, tolerance = 1 / len(data.class_names), data.class_balance_tolerance
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="share",
            min_value=share - tolerance,
            max_value=share + tolerance,
            description=f"Every class is {share:.1%} ± {tolerance:.1%} of its split",
        )
    ]


def _expect_channels(data: config.Data) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    expected = {f"mean_{name}": value for name, value in zip(CHANNELS, data.channel_mean, strict=True)}
    expected |= {f"std_{name}": value for name, value in zip(CHANNELS, data.channel_std, strict=True)}
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column=column,
            min_value=value - data.channel_tolerance,
            max_value=value + data.channel_tolerance,
            description=f"{column} of all training pixels is {value:.4f} ± {data.channel_tolerance:g}",
        )
        for column, value in expected.items()
    ]


def _open_project(folder: Path) -> "FileDataContext":
    """Return a new project in `folder/gx` that writes its pages to `folder/data_docs`."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="file", project_root_dir=folder)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    context.add_data_docs_site(
        "data_docs",
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,  # type: ignore[typeddict-unknown-key]
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": "../data_docs/"},
        },
    )
    styles = folder / "gx" / "plugins" / "custom_data_docs" / "styles"
    styles.mkdir(parents=True, exist_ok=True)
    sheet = resources.files(data).joinpath("data_docs.css").read_text(encoding="utf-8")
    (styles / "data_docs_custom_styles.css").write_text(sheet, encoding="utf-8")
    return context


def _open_tables(context: "FileDataContext") -> "PandasFilesystemDatasource":
    """Return the project's data source, the folder `gx/tables`."""
    folder = Path(context.root_directory) / "tables"
    folder.mkdir()
    return context.data_sources.add_pandas_filesystem("tables", base_directory=folder)


def _make_self_contained(docs: Path) -> None:
    """Remove from the pages what they would load from the network, and add plain links to the index page.

    Its own table needs scripts from the network and is empty without them.
    """
    for page in docs.glob("**/*.html"):
        document = page.read_text(encoding="utf-8")
        for pattern, replacement in _FOREIGN:
            document = pattern.sub(replacement, document)
        page.write_text(document, encoding="utf-8")
    results, suites = sorted(docs.glob("validations/**/*.html")), sorted(docs.glob("expectations/*.html"))
    lists = _links("Results by table", {page.relative_to(docs).parts[1]: page.relative_to(docs) for page in results})
    lists += _links("Expectations by table", {page.stem: page.relative_to(docs) for page in suites})
    index = docs / "index.html"
    document = index.read_text(encoding="utf-8").replace("</body>", f"<main>{lists}</main></body>")
    index.write_text(document, encoding="utf-8")


def _links(title: str, pages: Mapping[str, Path]) -> str:
    items = "".join(f'<li><a href="{quote(page.as_posix())}">{name}</a></li>' for name, page in pages.items())
    return f"<h4>{title}</h4><ul>{items}</ul>"


_FOREIGN = [
    # Inline scripts, too: they call libraries of the network.
    (re.compile(r"<script\b.*?</script>", re.DOTALL), ""),
    (re.compile(r"<link\b[^>]*https?://[^>]*>"), ""),
    (re.compile(r"<img\b[^>]*https?://[^>]*>"), "Great Expectations"),
    (re.compile(r"url\(['\"]?https?://[^)]*\)"), "none"),
]


def _name_tables(fresh: Path, tables: Path) -> None:
    """Write where the tables will be into everything that names them.

    The path starts in the current directory, as Great Expectations reads it.
    """
    before, after = str(fresh / "gx" / "tables"), os.path.relpath(tables)
    for path in [path for kind in ("yml", "json", "html") for path in fresh.rglob(f"*.{kind}")]:
        text = path.read_text(encoding="utf-8")
        if before in text:
            path.write_text(text.replace(before, after), encoding="utf-8")


def _run(
    context: "FileDataContext", source: "PandasFilesystemDatasource", table: Table, run_name: str
) -> list["ExpectationValidationResult"]:
    """Run a checkpoint on the table, which lies in the folder of `source`."""
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier

    batch = source.add_parquet_asset(table.name).add_batch_definition_path(table.name, table.path)
    suite = context.suites.add(gx.ExpectationSuite(name=table.name, expectations=table.expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=table.name, data=batch, suite=suite))
    checkpoint = gx.Checkpoint(
        name=table.name,
        validation_definitions=[definition],
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": EXAMPLES,
            "unexpected_index_column_names": list(table.identity),
        },
    )
    outcome = context.checkpoints.add(checkpoint).run(run_id=RunIdentifier(run_name=run_name))
    order = [expectation.id for expectation in suite.expectations]
    (results,) = outcome.run_results.values()
    manager = source.get_execution_engine().batch_manager
    manager.reset_batch_cache()  # the caches would keep every table in memory
    manager.batch_data_cache.clear()
    _release()
    return sorted(results.results, key=lambda result: order.index(result.expectation_config.id))  # type: ignore[union-attr]


@cache
def _prepare_for_large_tables() -> None:
    """Let Great Expectations take no fingerprints of tables, and replace its metric "pairs of values are in a set".

    A fingerprint of 1,000,000 rows takes 2 s and 0.2 GiB, and the document has the dataset's digest. The metric walks
    through the table row by row, 35 s for 1,000,000 rows. This one asks for each distinct pair once, and gives the same
    answers. Great Expectations' registry of metrics allows the replacement, with a warning.
    """
    from great_expectations.execution_engine import PandasExecutionEngine, pandas_execution_engine
    from great_expectations.expectations.metrics import ColumnPairValuesInSet
    from great_expectations.expectations.metrics.map_metric_provider import column_pair_condition_partial

    def in_set(cls: type, column_A: pd.Series, column_B: pd.Series, **values: Any) -> pd.Series:
        return pairs_in_set(column_A, column_B, values.get("value_pairs_set"))

    pandas_execution_engine.HASH_THRESHOLD = 0  # bytes from which on a table has no fingerprint
    registry = logging.getLogger("great_expectations.expectations.registry")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        type(
            "VectorisedPairsInSet",
            (ColumnPairValuesInSet,),
            {"_pandas": column_pair_condition_partial(engine=PandasExecutionEngine)(in_set)},
        )
    finally:
        registry.setLevel(level)


def pairs_in_set(first: pd.Series, second: pd.Series, allowed: Iterable[tuple[Any, Any]] | None) -> pd.Series:
    """Return for each row whether (first, second) is in `allowed`; a missing value counts as None."""
    if allowed is None:
        return pd.Series(True, index=first.index)
    pairs = {(one, other) for one, other in allowed}
    codes, found = pd.factorize(first)
    other_codes, others_found = pd.factorize(second)
    # The code of a missing value is -1, which is the last place of a list.
    ones, others = [*found, None], [*others_found, None]
    combined = (codes.astype(np.int64) % len(ones)) * len(others) + other_codes % len(others)
    present, index = np.unique(combined, return_inverse=True)
    holds = [(ones[pair // len(others)], others[pair % len(others)]) in pairs for pair in present]
    return pd.Series(np.array(holds, bool)[index], index=first.index)


def _describe(table: Table, result: "ExpectationValidationResult") -> dict[str, Any]:
    outcome: dict[str, Any] = result.to_json_dict()
    name, arguments = outcome["expectation_config"]["type"], outcome["expectation_config"]["kwargs"]
    single = [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    column = ", ".join(arguments.get("column_list", single)) or None
    rows = outcome["result"].get("unexpected_count") or 0
    examples = [] if outcome["success"] else _examples(table, column, outcome["result"])
    limits = {key: value for key, value in arguments.items() if key != "batch_id"}
    sentence = outcome["expectation_config"].get("description") or f"expected {json.dumps(limits)}"
    if not outcome["success"]:
        place = f" on column {column}" if column else ""
        detail = f"{rows:,} {'row' if rows == 1 else 'rows'}, the first: " if rows else ""
        detail += json.dumps(examples) if examples else f"not evaluated ({_cause(outcome['exception_info'])})"
        sentence = f"{name}{place} of {table.name} failed ({sentence}): {detail}"
    return {
        "expectation": name,
        "table": table.name,
        "column": column,
        "success": outcome["success"],
        "unexpected_rows": rows,
        "examples": examples,
        "sentence": sentence,
    }


def _examples(table: Table, column: str | None, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first unexpected rows, or the observed value of the whole table.

    A row is identified by the columns `table.identity`.
    """
    if "observed_value" in result:
        examples = [{"found": result["observed_value"]}]
    elif table.identity:
        examples = result.get("partial_unexpected_index_list", [])
    else:
        examples = [{str(column): value} for value in result.get("partial_unexpected_list", [])]
    order = [*table.identity, *sorted({key for example in examples for key in example} - {*table.identity})]
    return [{key: _to_json(example[key]) for key in order if key in example} for example in examples]


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity


def _cause(raised: dict[str, Any]) -> str:
    causes = [raised] if "exception_message" in raised else list(raised.values())
    return "; ".join(sorted({str(cause["exception_message"]) for cause in causes}))
