"""Log lines as JSON."""

import json
import logging
import sys

import pytest

from flows import logs
from mobilenet_pipeline.system import environment


def line(message: str = "epoch 1/3", **fields: object) -> dict[str, object]:
    """Return a formatted record as the object that it is."""
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "created": 0.0, **fields})
    return dict(json.loads(logs.JsonLines("digits").format(record)))


def test_a_line_names_recipe_run_and_stage() -> None:
    assert line(flow_run_name="calm-owl", flow_run_id="77", task_run_name="train@digits-scratch") == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "recipe": "digits",
        "run": "calm-owl",
        "run_id": "77",
        "stage": "train@digits-scratch",
        "message": "epoch 1/3",
    }


def test_a_line_about_the_run_has_no_stage() -> None:
    assert "stage" not in line(flow_run_name="calm-owl")


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        text = logs.JsonLines("digits").format(logging.makeLogRecord({"msg": "no", "exc_info": sys.exc_info()}))
    assert "\n" not in text
    assert "ValueError: a\nb" in str(json.loads(text)["exception"])


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.LOG_FORM, "xml")
    with pytest.raises(ValueError, match="MOBILENET_PIPELINE_LOG='xml' is no form of log lines; set it to text or"):
        environment.logs_as_json()
