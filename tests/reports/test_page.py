import base64
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from planted_predictions import usage, verdict_on

from mobilenet_pipeline import config
from mobilenet_pipeline.evaluation.predictions import predictions_of, read_predictions, save_predictions
from mobilenet_pipeline.gate import verdict
from mobilenet_pipeline.metrics import scores
from mobilenet_pipeline.reports import page
from mobilenet_pipeline.workspace import history

PARAMS = Path(__file__).parents[2] / "params.yaml"
ODD = '<script>alert("cat")</script>'
NAMES = [ODD, *"123456789"]
DIGEST = "d1"
ROWS = 40


@pytest.fixture(scope="module")
def recipe() -> config.Recipe:
    digits = config.load_recipe("digits", PARAMS)
    return digits.model_copy(update={"data": digits.data.model_copy(update={"class_names": NAMES})})


@pytest.fixture
def workspace(tmp_path: Path, recipe: config.Recipe) -> Path:
    """The files of a run that ended with `pretrained` promoted."""
    labels = np.arange(ROWS, dtype=np.uint8) % 10
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "data/digits").mkdir(parents=True)
    np.save(tmp_path / "data/digits/images.npy", images)
    np.save(tmp_path / "data/digits/labels.npy", labels)
    dataset = {"digest": DIGEST, "rows": {"train": 0, "test": ROWS}, "class_names": NAMES}
    write(tmp_path / "data/digits/dataset.json", {**dataset, "image_shape": [32, 32, 3]})
    for name, right in (("scratch", 30), ("pretrained", 38)):
        write_candidate(tmp_path, name, labels, right)
    expectation = {"expectation": "no_leak", "column": "hash", "success": True, "unexpected_rows": 0, "examples": []}
    validation = {"success": True, "recipe": "digits", "data_digest": DIGEST, "rows": ROWS}
    write(
        tmp_path / "reports/digits/validation.json",
        {**validation, "expectations": [{**expectation, "sentence": "No image is in both splits."}]},
    )
    twins = {"sentence": "2 of 40 test images have a near twin", "pairs": [[0, 1, 2, 0.9], [2, 3, 4, 0.95]]}
    write(tmp_path / "reports/digits/near_duplicates.json", twins)
    candidates = {
        name: predictions_of(
            read_predictions(tmp_path / f"models/digits/{name}/predictions.npz"),
            json.loads((tmp_path / f"metrics/digits/{name}.json").read_text()),
            "p1",
        )
        for name in recipe.artefacts
    }
    limits = recipe.gate.model_copy(update={"accuracy_floor": 0.7, "calibration_error": 1.0})
    judged = verdict_on(verdict.decide(candidates, None, limits, "p1", usage()), limits=limits)
    (tmp_path / "reports/digits/verdict.json").write_text(judged.to_json(), encoding="utf-8")
    return tmp_path


def write(path: Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def write_candidate(workspace: Path, name: str, labels: np.ndarray, right: int) -> None:
    answer = np.where(np.arange(ROWS) < right, labels, (labels + 1) % 10)
    probabilities = (np.eye(10)[answer] * 0.9 + 0.01).astype(np.float32)
    arrays = {"probabilities": probabilities, "labels": labels, "rows": np.arange(ROWS)}
    arrays |= {f"validation_{key}": value for key, value in arrays.items()}
    robust = np.packbits([np.arange(ROWS) < ROWS // 2], axis=0)
    arrays |= {"corrupted_right": robust, "corrupted_rows": np.arange(ROWS)}
    folder = workspace / "models/digits" / name
    save_predictions(folder / "predictions.npz", {**arrays, "data_digest": np.array(DIGEST)})
    found = dict(scores.evaluate(probabilities, labels, NAMES))
    split = {key: found[key] for key in ("rows", "loss", "accuracy", "macro_accuracy", "top3_accuracy")}
    details = {key: found[key] for key in ("per_class_accuracy", "confusion_matrix")}
    facts = {
        "overlap": 0,
        "corruptions": {"noise 1": 0.5},
        "artefact": {"bytes": 1_000_000, "p50_ms": 0.1, "p99_ms": 0.2},
        "near_duplicates": {"rows": 2, "accuracy_with": 1.0, "accuracy_without": 0.7368},
        "prediction_sets": {
            "stated_coverage": 0.95,
            "threshold": 0.0,
            "calibration_rows": 100,
            "coverage": 1.0,
            "mean_size": 10.0,
            "sizes": {"10": ROWS},
        },
        "unfamiliar": {
            "stated_share": 0.05,
            "threshold": 2.0,
            "test": 0.04,
            "corruptions": {"noise 1": 0.1},
            "other_images": {"photographs": 0.9, "noise": 1.0},
        },
    }
    write(
        workspace / f"metrics/digits/{name}.json",
        {"data_digest": DIGEST, "test": split, "validation": split, **details, "class_names": NAMES, **facts},
    )
    parity = {"rows": ROWS, "argmax_differences": 0, "max_probability_difference": 1e-6}
    write(folder / "export.json", {"sha256": "ab", "bytes": 1234567, "precision": "float32", "parity": parity})
    write(folder / "training.json", {"run_id": f"run-of-{name}", "parameters": 219562, "cpu_minutes": 1.25})
    with (folder / "history.csv").open("w", newline="") as file:
        columns = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
        csv.writer(file).writerows([columns, [1, 2.0, 0.3, 2.1, 0.3], [2, 1.0, 0.7, 1.1, 0.6]])


def html_of(recipe: config.Recipe, workspace: Path) -> str:
    return page.write_report(recipe, workspace).read_text(encoding="utf-8")


def test_nothing_but_the_page_is_written(recipe: config.Recipe, workspace: Path) -> None:
    path = page.write_report(recipe, workspace)
    assert path == workspace / "reports/digits/index.html"
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "index.html",
        "near_duplicates.json",
        "validation.json",
        "verdict.json",
    ]


def test_accuracies_with_and_without_near_twins_are_shown(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    assert "2 of 40 test images have a near twin." in html
    assert 'alt="Near twins' in html
    assert re.search(r"without a near twin</th>\s*<td class=\"number\">73.68%", html)


def test_an_evaluation_that_looked_for_no_twins_is_shown(recipe: config.Recipe, workspace: Path) -> None:
    for path in (workspace / "metrics/digits").glob("*.json"):
        document = json.loads(path.read_text())
        del document["near_duplicates"]
        write(path, document)
    assert re.search(r"without a near twin</th>\s*<td class=\"number\">–", html_of(recipe, workspace))


def test_the_page_loads_nothing_from_outside_itself(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    loads = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']([^"']*)""", html) + re.findall(r"url\(", html)
    assert loads
    assert all(each.startswith("data:image/png;base64,") for each in loads)
    assert "@import" not in html
    assert "<script" not in html


def test_the_page_has_the_figures_of_both_candidates(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    for name in recipe.artefacts:
        assert f'alt="Confusion matrix of {name}"' in html
        assert f'alt="Most confident wrong answers of {name}"' in html
    images = re.findall(r"base64,([^\"]+)", html)
    assert len(images) == 14
    for shown in ("pretrained minus", "Accuracy against confidence", "Accuracy on corrupted test images"):
        assert f'alt="{shown}' in html
    assert all(base64.b64decode(each).startswith(b"\x89PNG") for each in images)


def test_the_page_has_coverage_and_flags_of_each_kind(recipe: config.Recipe, workspace: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", html_of(recipe, workspace))
    assert re.search(r"whose set has the true class\s+100.00%\s+91.2–100.0%; 95% stated", text)
    assert re.search(r"other images: photographs\s+90.00%\s+90.00%", text)


@pytest.mark.parametrize("lacking", [("prediction_sets", "unfamiliar"), ("unfamiliar",)])
def test_a_page_of_earlier_evaluations_is_written(
    recipe: config.Recipe, workspace: Path, lacking: tuple[str, ...]
) -> None:
    for name in recipe.artefacts:
        path = workspace / f"metrics/digits/{name}.json"
        document = json.loads(path.read_text())
        write(path, {key: value for key, value in document.items() if key not in lacking})
    assert ('id="answers"' in html_of(recipe, workspace)) == (len(lacking) == 1)


def test_class_names_are_escaped(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    assert ODD not in html
    assert "&lt;script&gt;alert" in html


def test_the_page_opens_with_the_verdict(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    assert ">pretrained is promoted</h1>" in html
    assert "no champion to keep" in html


def decided(recipe: config.Recipe, workspace: Path, *events: tuple[history.What, str]) -> str:
    """Return the page after a verdict that waits for approval and these events."""
    path = workspace / "reports/digits/verdict.json"
    write(path, json.loads(path.read_text()) | {"waits_for_approval": True})
    for what, version in events:
        history.append(recipe, history.Event(what, version, "ann", "it is slow", None, None, "r", 0.9), workspace)
    return html_of(recipe, workspace)


def test_a_candidate_awaiting_approval_is_the_headline(recipe: config.Recipe, workspace: Path) -> None:
    html = decided(recipe, workspace)
    assert ">pretrained passed the gate and needs an approval</h1>" in html
    assert "After this verdict" not in html


def test_an_approval_is_shown_with_who_gave_it(recipe: config.Recipe, workspace: Path) -> None:
    html = decided(recipe, workspace, ("approved", "2"), ("promoted", "2"))
    assert ">pretrained is promoted</h1>" in html
    assert "version 2 was approved by ann" in html


def test_a_rejection_is_the_headline_with_its_reason(recipe: config.Recipe, workspace: Path) -> None:
    html = decided(recipe, workspace, ("rejected", "2"))
    assert ">pretrained passed the gate and was rejected</h1>" in html
    assert re.search(r"version 2 was rejected by ann on \d{4}-\d\d-\d\d: it is slow", html)


def test_a_rejection_of_the_other_candidate_leaves_the_headline(recipe: config.Recipe, workspace: Path) -> None:
    html = decided(recipe, workspace, ("rejected", "1"))
    assert ">pretrained passed the gate and needs an approval</h1>" in html
    assert "version 1 was rejected by ann" in html


def test_a_rollback_is_the_headline(recipe: config.Recipe, workspace: Path) -> None:
    html = decided(recipe, workspace, ("promoted", "2"), ("rolled back", "1"), ("rejected", "3"))
    assert ">Version 1 is champion again</h1>" in html


def test_a_decision_before_the_verdict_is_not_shown(recipe: config.Recipe, workspace: Path) -> None:
    decided(recipe, workspace, ("rolled back", "1"))
    path = workspace / "reports/digits/verdict.json"
    write(path, json.loads(path.read_text()) | {"judged_at": "9999-01-01T00:00:00+00:00"})
    assert "champion again" not in html_of(recipe, workspace)


def test_the_page_shows_the_numbers_of_each_candidate(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    for shown in ("95.00%", "75.00%", "83.5–98.6%", "219,562", "1,234,567", "1.2", "run-of-scratch"):
        assert shown in html


def test_of_many_checks_those_that_passed_are_folded(
    recipe: config.Recipe, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "CHECKS", 3)
    before, _, folded = html_of(recipe, workspace).partition("checks that passed</summary>")
    assert "✓ passed" not in before
    assert "✓ passed" in folded


def test_a_twin_is_compared_with_its_candidate(recipe: config.Recipe) -> None:
    both = recipe.serving.model_copy(update={"precision": ["float32", "int8"]})
    names = ["scratch", "scratch_int8", "pretrained", "pretrained_int8"]
    assert page._compared(recipe.model_copy(update={"serving": both}), names) == {
        "scratch_int8": "scratch",
        "pretrained": "scratch",
        "pretrained_int8": "pretrained",
    }


def test_the_page_links_the_data_docs_of_the_validation(recipe: config.Recipe, workspace: Path) -> None:
    docs = workspace / "reports/digits/data_docs/index.html"
    docs.parent.mkdir()
    docs.write_text("")
    html = html_of(recipe, workspace)
    assert "1 of 1 expectations passed" in html
    assert 'href="data_docs/index.html"' in html


def test_the_page_shows_what_the_stages_cost(recipe: config.Recipe, workspace: Path) -> None:
    row = {"name": "train@digits-scratch", "outcome": "unchanged", "wall_seconds": 1234.5, "cpu_seconds": None}
    write(workspace / "reports/digits/results.json", {"stages": [row | {"price": 0.02, "currency": "<b>€</b>"}]})
    text = re.sub(r"\s+", " ", html_of(recipe, workspace))
    assert (
        '<th scope="row">train@digits-scratch</th><td class="roomy">unchanged</td><td class="number">1,234.5</td>'
        in text
    )
    assert "0.0200 &lt;b&gt;€&lt;/b&gt;" in text


def test_a_page_without_results_has_no_costs(recipe: config.Recipe, workspace: Path) -> None:
    html = html_of(recipe, workspace)
    assert 'id="cost"' not in html
    assert "results.json" not in html


def test_a_failed_expectation_is_the_headline(recipe: config.Recipe, workspace: Path) -> None:
    path = workspace / "reports/digits/validation.json"
    document = json.loads(path.read_text())
    failed = {"success": False, "unexpected_rows": 2, "examples": ["row 17"]}
    write(path, {**document, "success": False, "expectations": [{**document["expectations"][0], **failed}]})
    html = html_of(recipe, workspace)
    assert "The data did not pass validation</h1>" in html
    assert "for example row 17" in html


def test_problems_of_the_source_are_named(recipe: config.Recipe, workspace: Path) -> None:
    assert "Problems of the source" not in html_of(recipe, workspace)
    path = workspace / "reports/digits/validation.json"
    line = {"name": "cat/<1>.png", "kind": "not_an_image", "sentence": "This is not an image."}
    problem = {"kind": "not_an_image", "count": 1234, "examples": [line]}
    write(path, {**json.loads(path.read_text()), "problems": [problem]})
    html = html_of(recipe, workspace)
    assert "<code>cat/&lt;1&gt;.png</code>: This is not an image." in html
    assert ">1,234</td>" in html


def test_many_classes_can_be_searched(recipe: config.Recipe, workspace: Path) -> None:
    names = [f"class {number}" for number in range(40)]
    shares = dict.fromkeys(names, 1.0)
    for path in (workspace / "metrics/digits").glob("*.json"):
        document = json.loads(path.read_text())
        matrix = np.eye(40, dtype=int).tolist()
        write(path, {**document, "class_names": names, "per_class_accuracy": shares, "confusion_matrix": matrix})
    many = recipe.model_copy(update={"data": recipe.data.model_copy(update={"class_names": names})})
    (workspace / "data/digits/images.npy").unlink()
    html = html_of(many, workspace)
    assert "All 40 classes" in html
    assert '<input type="search"' in html
    assert html.count('<th scope="row">class 17</th>') == 1  # neither among the worst nor the best


def test_a_verdict_on_earlier_evaluations_is_marked(recipe: config.Recipe, workspace: Path) -> None:
    assert "about earlier evaluations" not in html_of(recipe, workspace)
    path = workspace / "metrics/digits/scratch.json"
    document = json.loads(path.read_text())
    write(path, {**document, "test": {**document["test"], "accuracy": 0.8}})
    assert "about earlier evaluations" in html_of(recipe, workspace)


def test_a_candidate_that_the_verdict_does_not_know_makes_it_an_earlier_one(
    recipe: config.Recipe, workspace: Path
) -> None:
    write_candidate(workspace, "third", np.arange(ROWS) % 10, 35)
    candidates = {**recipe.candidates, "third": recipe.candidate("scratch")}
    html = html_of(recipe.model_copy(update={"candidates": candidates}), workspace)
    assert "about earlier evaluations" in html
    assert 'alt="Confusion matrix of third"' in html


@pytest.mark.parametrize(
    "missing",
    [
        ["data/digits/dataset.json", "data/digits/images.npy", "reports/digits/validation.json"],
        ["data/digits/labels.npy", "reports/digits/verdict.json", "models/digits/scratch/history.csv"],
        ["models/digits/scratch/training.json", "models/digits/scratch/export.json", "metrics/digits/scratch.json"],
        ["models/digits/pretrained/predictions.npz"],
    ],
)
def test_missing_files_are_named_on_the_page(recipe: config.Recipe, workspace: Path, missing: list[str]) -> None:
    for path in missing:
        (workspace / path).unlink()
    html = html_of(recipe, workspace)
    assert all(f"<code>{path}</code>" in html for path in missing)


def test_without_any_files_there_is_no_verdict_yet(recipe: config.Recipe, tmp_path: Path) -> None:
    html = html_of(recipe, tmp_path)
    assert "No verdict yet</h1>" in html
    assert "The data have not been validated yet." in html


def test_a_damaged_verdict_is_refused_by_name(recipe: config.Recipe, workspace: Path) -> None:
    (workspace / "reports/digits/verdict.json").write_text('{"promote": true}')
    with pytest.raises(ValueError, match=r"reports/digits/verdict\.json is not a verdict"):
        page.write_report(recipe, workspace)


def test_a_damaged_file_is_refused_by_name(recipe: config.Recipe, workspace: Path) -> None:
    (workspace / "metrics/digits/scratch.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics/digits/scratch\.json is not JSON"):
        page.write_report(recipe, workspace)


def test_a_page_that_cannot_be_made_leaves_the_earlier_one(recipe: config.Recipe, workspace: Path) -> None:
    earlier = html_of(recipe, workspace)
    (workspace / "models/digits/scratch/history.csv").write_text("epoch,train_loss\n1,x\n")
    with pytest.raises(ValueError, match=r"history\.csv"):
        page.write_report(recipe, workspace)
    assert (workspace / "reports/digits/index.html").read_text(encoding="utf-8") == earlier


def test_the_same_files_give_the_same_page(recipe: config.Recipe, workspace: Path) -> None:
    assert html_of(recipe, workspace) == html_of(recipe, workspace)
