"""Validation: a faithful manifest passes every expectation, and every expectation notices the fault it is there for."""

import inspect
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
import pytest
from cifar10_archives import Images, recipe_for, with_data

from mobilenet_pipeline import config, data
from mobilenet_pipeline.data import ingest, validation
from mobilenet_pipeline.data.sources.base import LabelledImages

IMAGES = Images()
TABLES = ["class_shares", "distinct_images", "images", "test", "train", "training_pixels"]
RECIPE = recipe_for(IMAGES, config.load_recipe("cifar10", Path(__file__).resolve().parents[2] / "params.yaml"))


def faithful() -> pd.DataFrame:
    found = LabelledImages(IMAGES.rgb(), IMAGES.labels, np.arange(60) >= 50, "test images")
    return ingest.arrange(found, RECIPE.data.class_names)[1]


def validate(manifest: pd.DataFrame, recipe: config.Recipe, digest: str, folder: Path, *suite: Path) -> dict[str, Any]:
    """Validate a manifest that is still in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.parquet")
    manifest.to_parquet(path)
    return validation.validate(path, recipe, digest, folder, *suite)


def put(row: int, column: str, value: object) -> Callable[[pd.DataFrame], None]:
    def plant(manifest: pd.DataFrame) -> None:
        manifest[column] = manifest[column].astype(object)
        manifest.at[row, column] = value
        manifest[column] = manifest[column].infer_objects()

    return plant


def copy_hash(from_split: str, to_split: str) -> Callable[[pd.DataFrame], None]:
    """The last image of one split becomes the same as the first of the other, or of its own."""

    def plant(manifest: pd.DataFrame) -> None:
        source = manifest.index[manifest["split"] == from_split][0]
        manifest.at[manifest.index[manifest["split"] == to_split][-1], "hash"] = manifest.at[source, "hash"]

    return plant


def drop_class(split: str, label: int) -> Callable[[pd.DataFrame], None]:
    def plant(manifest: pd.DataFrame) -> None:
        chosen = (manifest["split"] == split) & (manifest["label"] == label)
        manifest.drop(index=manifest.index[chosen], inplace=True)

    return plant


def scale(column: str) -> Callable[[pd.DataFrame], None]:
    def plant(manifest: pd.DataFrame) -> None:
        manifest[column] *= 1.01

    return plant


def add_column(manifest: pd.DataFrame) -> None:
    manifest["comment"] = "surprise"


@dataclass(frozen=True)
class Fault:
    """What to plant, and the expectation (name, table, column) that must notice it."""

    plant: Callable[[pd.DataFrame], None]
    name: str
    table: str
    column: str | None
    row: int | None = None
    manifest: str = "values"  # faults that would hide each other are planted in manifests of their own

    def __str__(self) -> str:
        return f"{self.name} {self.table} {self.column}"


WRONG = {"split": "validation", "class_name": "zebra", "height": 31, "width": 33, "channels": 1, "dtype": "float32"}
BEYOND = {"label": 10, "pixel_min": -1, "pixel_max": 256} | dict.fromkeys(validation.STATISTICS, 1.5)
BETWEEN, IN_SET = "expect_column_values_to_be_between", "expect_column_values_to_be_in_set"
NOT_NULL, SAME_CLASSES = "expect_column_values_to_not_be_null", "expect_column_distinct_values_to_equal_set"
FAULTS = [
    *(Fault(put(i, name, None), NOT_NULL, "images", name, i, "nulls") for i, name in enumerate(validation.COLUMNS)),
    *(Fault(put(i, name, value), IN_SET, "images", name, i) for i, (name, value) in enumerate(WRONG.items())),
    *(Fault(put(i, name, value), BETWEEN, "images", name, i) for i, (name, value) in enumerate(BEYOND.items(), 10)),
    Fault(put(30, "hash", "xyz"), "expect_column_values_to_match_regex", "images", "hash", 30),
    Fault(put(1, "class_name", "zebra"), "expect_column_pair_values_to_be_in_set", "images", "label, class_name", 1),
    Fault(
        put(31, "pixel_max", 0),
        "expect_column_pair_values_a_to_be_greater_than_b",
        "images",
        "pixel_max, pixel_min",
        31,
    ),
    Fault(
        copy_hash("train", "train"), "expect_compound_columns_to_be_unique", "images", "hash, split", manifest="twins"
    ),
    Fault(copy_hash("train", "test"), "expect_column_values_to_be_unique", "distinct_images", "hash", manifest="leak"),
    Fault(add_column, "expect_table_columns_to_match_set", "images", None, manifest="leak"),
    Fault(drop_class("train", 3), "expect_table_row_count_to_equal", "train", None, manifest="classes"),
    Fault(drop_class("train", 3), SAME_CLASSES, "train", "class_name", manifest="classes"),
    Fault(drop_class("test", 4), "expect_table_row_count_to_equal", "test", None, manifest="classes"),
    Fault(drop_class("test", 4), SAME_CLASSES, "test", "class_name", manifest="classes"),
    Fault(drop_class("test", 4), BETWEEN, "class_shares", "share", manifest="classes"),
    *(Fault(scale(name), BETWEEN, "training_pixels", name, manifest="twins") for name in validation.STATISTICS),
]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What validation says of a faithful manifest, and of each manifest with planted faults."""
    folder, made = tmp_path_factory.mktemp("docs"), {}
    for name in ["faithful", *dict.fromkeys(fault.manifest for fault in FAULTS)]:
        manifest = faithful()
        for fault in FAULTS:
            if fault.manifest == name:
                fault.plant(manifest)
        made[name] = validate(manifest, RECIPE, "the digest", folder / name)
    return made


def find(document: dict[str, Any], fault: Fault) -> dict[str, Any]:
    wanted = (fault.name, fault.table, fault.column)
    (found,) = [e for e in document["expectations"] if (e["expectation"], e["table"], e["column"]) == wanted]
    return found


def test_a_faithful_manifest_passes(documents):
    assert validation.failures(documents["faithful"]) == []
    assert {key: documents["faithful"][key] for key in ("success", "recipe", "data_digest", "rows")} == {
        "success": True,
        "recipe": "cifar10",
        "data_digest": "the digest",
        "rows": 60,
    }


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_fails_its_expectation(documents, fault):
    found = find(documents[fault.manifest], fault)
    assert not found["success"]
    assert found["sentence"] in validation.failures(documents[fault.manifest])
    assert fault.row in (None, *(example.get("row") for example in found["examples"]))


def test_no_expectation_is_without_a_planted_fault(documents):
    every = {(e["expectation"], e["table"], e["column"]) for e in documents["faithful"]["expectations"]}
    assert every == {(fault.name, fault.table, fault.column) for fault in FAULTS}


def test_a_failure_names_expectation_column_and_first_row(documents):
    found = find(documents["values"], Fault(add_column, IN_SET, "images", "height"))
    assert found["unexpected_rows"] == 1
    assert found["examples"] == [{"row": 2, "height": 31}]
    assert found["sentence"] == (
        "expect_column_values_to_be_in_set on column height of images failed (The height of an image is 32):"
        ' 1 row, the first: [{"row": 2, "height": 31}]'
    )


def test_an_image_in_both_splits_is_one_failure_of_two_rows(tmp_path):
    manifest = faithful()
    copy_hash("train", "test")(manifest)
    document = validate(manifest, RECIPE, "", tmp_path)
    (failed,) = [expectation for expectation in document["expectations"] if not expectation["success"]]
    first, last = manifest.index[manifest["split"] == "train"][0], manifest.index[manifest["split"] == "test"][-1]
    assert failed["sentence"].startswith("expect_column_values_to_be_unique on column hash of distinct_images failed")
    assert {example["row"] for example in failed["examples"]} == {first, last}


def test_a_wrong_row_count_is_reported_with_the_actual_one(documents):
    found = find(documents["classes"], Fault(add_column, "expect_table_row_count_to_equal", "train", None))
    assert found["sentence"].endswith('failed (The train split has 50 images): [{"found": 45}]')


def test_the_expected_size_is_that_of_the_recipe(tmp_path):
    manifest = faithful().assign(height=28, width=28)
    document = validate(manifest, with_data(RECIPE, image_size=28), "", tmp_path)
    assert validation.failures(document) == []


def test_a_manifest_without_a_column_fails_and_says_so(tmp_path):
    document = validate(faithful().drop(columns="hash"), RECIPE, "", tmp_path)
    (sentence,) = validation.failures(document)
    assert sentence.startswith("expect_table_columns_to_match_set of images failed")


def test_a_column_of_the_wrong_type_fails_instead_of_crashing(tmp_path):
    manifest = faithful().astype({"label": str})
    assert any("on column label of images failed" in text for text in failed_sentences(manifest, tmp_path))


def test_an_empty_manifest_fails(tmp_path):
    sentences = failed_sentences(faithful()[:0], tmp_path)
    assert any("The train split has 50 images" in text for text in sentences)


def test_balance_is_a_share_of_the_split_within_the_tolerance(tmp_path):
    manifest = faithful()
    drop_class("test", 4)(manifest)  # the other nine classes are 11.1 % of the test split now
    data = {"test_rows": 9, "class_balance_tolerance": 0.05}
    document = validate(manifest, with_data(RECIPE, **data), "", tmp_path)
    found = find(document, Fault(add_column, BETWEEN, "class_shares", "share"))
    assert found["examples"] == [{"split": "test", "class_name": "deer", "share": 0.0}]


GROUPS = {"groups": "expect_column_values_to_be_unique", "source": BETWEEN}
"""The tables of images with groups, and of a source with problems."""


def of_patients(leak: bool, found: int, folder: Path) -> dict[str, Any]:
    """Validate six images each of ten patients, of which one has a test image more if there is a `leak`."""
    manifest = faithful()
    number = manifest.groupby("split").cumcount()
    manifest["group"] = np.where(manifest["split"] == "test", "t", "p") + (number % 5).astype(str)
    if leak:
        manifest.loc[manifest.index[manifest["split"] == "test"][0], "group"] = "p3"
    line = {"name": "cat/1.png", "kind": "empty", "sentence": "The file is empty."}
    problems = {"found": found, "kept": 60, "kinds": {"empty": found - 60}, "problems": [line] * (found - 60)}
    path = folder / "manifest.parquet"
    manifest.to_parquet(path)
    recipe = with_data(RECIPE, excluded_share=0.02)
    return validation.validate(path, recipe, "", folder / "out", ingestion=problems)


def test_groups_on_one_side_and_few_excluded_images_pass(tmp_path):
    document = of_patients(leak=False, found=61, folder=tmp_path)
    assert validation.failures(document) == []
    assert {**GROUPS}.items() <= {(e["table"], e["expectation"]) for e in document["expectations"]}
    assert document["problems"][0]["count"] == 1


def test_a_group_on_both_sides_and_many_excluded_images_fail(tmp_path):
    leak, excluded = validation.failures(of_patients(leak=True, found=63, folder=tmp_path))
    assert "No group is in two of training, validation and test images" in leak
    assert '"group": "p3"' in leak
    assert "At most 2.00% of the source's images are left out" in excluded


def failed_sentences(manifest: pd.DataFrame, folder) -> list[str]:
    return validation.failures(validate(manifest, RECIPE, "", folder))


def test_the_document_is_json_and_the_same_each_time(documents, tmp_path):
    again = validate(faithful(), RECIPE, "the digest", tmp_path)
    assert again == documents["faithful"]
    assert all(json.loads(json.dumps(document, allow_nan=False)) == document for document in documents.values())


def test_an_infinite_statistic_is_still_json(tmp_path):
    manifest = faithful()
    manifest.loc[0, "mean_r"] = np.inf
    document = validate(manifest, RECIPE, "", tmp_path)
    assert '{"row": 0, "mean_r": "inf"}' in json.dumps(document, allow_nan=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two validations of a manifest with a fault have written, with a suite of the user's own."""
    folder = tmp_path_factory.mktemp("written")
    suite = folder / "cifar10.json"
    suite.write_text(json.dumps({"name": "cifar10", "expectations": [DARK]}))
    for _ in range(2):
        document = validate(faithful().assign(width=28), RECIPE, "", folder / "reports", suite)
    (folder / "document.json").write_text(json.dumps(document))
    return folder


DARK = {
    "type": "expect_column_values_to_be_between",
    "kwargs": {"column": "mean_r", "max_value": 0.001},
    "meta": {},
}


def test_data_docs_show_the_results_and_do_not_pile_up(written: Path) -> None:
    docs = written / "reports" / "data_docs"
    pages = sorted(path.relative_to(docs) for path in docs.glob("validations/**/*.html"))
    index = (docs / "index.html").read_text()
    assert [page.parts[1] for page in pages] == ["cifar10", *TABLES]
    assert all(f'href="{page}"' in index for page in pages)
    assert "The width of an image is 32" in (docs / pages[3]).read_text()
    assert sorted(path.name for path in (written / "reports").iterdir()) == ["data_docs", "gx"]


def test_data_docs_load_nothing_from_the_network(written: Path) -> None:
    for page in (written / "reports" / "data_docs").glob("**/*.html"):
        assert not re.search(r"<(script|link|img)\b[^>]*https?:|url\(.?https?:|@import", page.read_text()), page


def test_data_docs_bring_their_style(written: Path) -> None:
    index = (written / "reports" / "data_docs" / "index.html").read_text()
    assert resources.files(data).joinpath("data_docs.css").read_text().strip() in index


def test_great_expectations_finds_suites_and_checkpoints(written: Path) -> None:
    context = gx.get_context(mode="file", project_root_dir=written / "reports")
    assert {suite.name for suite in context.suites.all()} == {"cifar10", *TABLES}
    assert not context.checkpoints.get("images").run().success
    assert context.checkpoints.get("train").run().success
    assert list((written / "reports" / "gx" / "uncommitted" / "validations").glob("images/**/*.json"))


def test_unexpected_rows_are_counted_and_the_first_ones_named(written: Path) -> None:
    found = find(json.loads((written / "document.json").read_text()), Fault(add_column, IN_SET, "images", "width"))
    assert found["unexpected_rows"] == 60
    assert [example["row"] for example in found["examples"]] == list(range(validation.EXAMPLES))


def test_an_expectation_that_a_person_added_counts(written: Path) -> None:
    sentences = validation.failures(json.loads((written / "document.json").read_text()))
    limits = '(expected {"column": "mean_r", "max_value": 0.001})'
    assert any(f"on column mean_r of cifar10 failed {limits}: 60 rows" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "Expecting property name"),
        ("{}", "'expectations'"),
        ('{"expectations": [{"type": "expect_magic", "kwargs": {}}]}', "expect_magic"),
    ],
)
def test_a_file_that_is_no_suite_is_named(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "digits.json").write_text(text)
    with pytest.raises(ValueError, match=rf"digits.json is not a suite of Great Expectations \(.*{fault}"):
        validation.read_additions(tmp_path / "digits.json")


def test_pairs_are_found_as_great_expectations_own_loop_finds_them() -> None:
    from great_expectations.expectations.metrics import ColumnPairValuesInSet

    rng = np.random.default_rng(0)
    labels = pd.Series(rng.choice([0, 1, 2, None], 300))
    names = pd.Series(rng.choice(["cat", "dog", None], 300), dtype="str")
    allowed = [[0, "cat"], [1, "dog"], [2, None], [None, None]]
    loop = inspect.unwrap(ColumnPairValuesInSet._pandas)
    for first in (labels, labels.astype(float)):
        expected = loop(ColumnPairValuesInSet, first, names, value_pairs_set=allowed)
        assert validation.pairs_in_set(first, names, allowed).tolist() == expected.tolist()


def test_60_000_rows_take_less_than_30_seconds(tmp_path):
    manifest = pd.concat([faithful()] * 1000, ignore_index=True)
    manifest["hash"] = [f"{row:064x}" for row in range(len(manifest))]
    before = time.process_time()  # not the clock's: the machine may be busy with something else
    document = validate(manifest, with_data(RECIPE, train_rows=50_000, test_rows=10_000), "", tmp_path)
    assert validation.failures(document) == []
    assert time.process_time() - before < 30
