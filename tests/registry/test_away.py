"""What counts as MLflow being away, and how a step waits for it."""

import os
import sqlite3

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from mobilenet_pipeline.registry import away
from mobilenet_pipeline.registry.store import StoreAwayError, StoreError


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "RETRY_SECONDS", (0.0, 0.0, 0.0))


def test_a_server_that_refuses_connections_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    refused = r"does not answer \(.*Connection refused.*\); start it and run"
    with pytest.raises(StoreAwayError, match=refused), away.answering():
        MlflowClient("http://127.0.0.1:9").search_experiments()


def test_a_wrong_request_is_not_away() -> None:
    with pytest.raises(MlflowException, match="no such run"), away.answering():
        raise MlflowException("no such run")


def of_sqlite(words: str) -> MlflowException:
    """Return what MLflow raises for an error of its SQLite file."""
    error = MlflowException(words, TEMPORARILY_UNAVAILABLE)
    error.__cause__ = sqlite3.OperationalError(words)
    return error


def test_a_locked_database_may_answer_later() -> None:
    assert away.is_away(of_sqlite("database is locked"))


def test_a_damaged_database_is_named_and_not_tried_again() -> None:
    tries: list[int] = []

    def step() -> None:
        tries.append(1)
        raise of_sqlite("database disk image is malformed")

    with pytest.raises(StoreError, match=r"cannot be used \(database disk image is malformed\); restore it"):
        away.patiently(step, print)
    assert len(tries) == 1


def test_a_step_is_tried_again_until_mlflow_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    errors, warnings = [ConnectionAbortedError("gone"), None], []

    def step() -> str:
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
        if error := errors.pop(0):
            raise StoreAwayError("no MLflow server answers") from error
        return "done"

    assert away.patiently(step, warnings.append) == "done"
    assert warnings == ["no MLflow server answers; trying again in 0 s"]
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_the_tries_have_an_end() -> None:
    tries: list[int] = []

    def step() -> None:
        tries.append(1)
        raise StoreAwayError("no MLflow server answers")

    with pytest.raises(StoreAwayError):
        away.patiently(step, print)
    assert len(tries) == 1 + len(away.RETRY_SECONDS)
