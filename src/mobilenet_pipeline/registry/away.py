"""Turn the errors of MLflow's clients, databases and artefact stores that do not answer into one error."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import mlflow
from mlflow.exceptions import MlflowException, RestException

from mobilenet_pipeline.registry.store import StoreAwayError, StoreError
from mobilenet_pipeline.system import environment, failures
from mobilenet_pipeline.workspace.files import shown
from mobilenet_pipeline.workspace.records import RecordsAway, is_refused

Result = TypeVar("Result")

RETRY_SECONDS = (10.0, 60.0, 240.0)
"""Delays before the second, third and fourth try of a step that needs MLflow."""

_AWAY = {
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.RetryError",
    "requests.exceptions.Timeout",
    "urllib3.exceptions.ProtocolError",
    "urllib3.exceptions.TimeoutError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "sqlalchemy.exc.OperationalError",
}
"""The errors by which the libraries below MLflow say that a server does not answer, with those derived from them."""
AGAIN = "start it and run the same command again: what is recorded stays"


@contextmanager
def answering(remedy: str = AGAIN) -> Iterator[None]:
    """Raise what `translated` makes of an error in the `with` body, within seconds; other errors stay as they are."""
    try:
        with environment.impatient():
            yield
    except Exception as error:
        if sentence := translated(error, remedy):
            raise sentence from error
        raise


def translated(error: Exception, remedy: str = AGAIN) -> StoreError | None:
    """Return an error of MLflow's client or stores as a sentence that ends with the remedy, None for another error.

    It is a StoreAwayError if MLflow, its database or its artefact store did not answer, and a StoreError if its SQLite
    file is damaged or cannot be opened.
    """
    if isinstance(error, StoreError | RecordsAway | ValueError):
        return None  # a sentence already
    *_, cause = failures.chain(error)
    reason, place = f"({' '.join(str(cause).split())[:200]})", shown(mlflow.get_tracking_uri())
    if is_away(error):
        return StoreAwayError(f"MLflow at {place} does not answer {reason}; {remedy}")
    if isinstance(cause, sqlite3.DatabaseError) and not failures.is_full_disk(error):
        return StoreError(
            f"MLflow's database {place} cannot be used {reason}; restore it from a backup, or check that its file "
            "exists and can be written"
        )
    return None


def is_away(error: BaseException) -> bool:
    """Return whether a later try may succeed, because MLflow or one of its stores did not answer."""
    errors = list(failures.chain(error))
    if isinstance(errors[-1], sqlite3.Error):
        return "is locked" in str(errors[-1])
    return any(
        {f"{kind.__module__}.{kind.__name__}" for kind in type(each).__mro__} & _AWAY
        or (isinstance(each, MlflowException) and each.error_code == "TEMPORARILY_UNAVAILABLE")
        # A server whose database is away answers with an internal error.
        or (isinstance(each, RestException) and each.get_http_status_code() >= 500)
        for each in errors
    )


def patiently(step: Callable[[], Result], warn: Callable[[str], object]) -> Result:
    """Return the result of a step that can be repeated.

    While MLflow or the shared records do not answer, the step is tried again after `RETRY_SECONDS`. `warn` gets a
    sentence before each wait. Raises StoreAwayError or RecordsAway after the last try, and at once if they refuse the
    login.
    """
    for seconds in RETRY_SECONDS:
        try:
            with answering():
                return step()
        except (StoreAwayError, RecordsAway) as error:
            if is_refused(str(error)):
                raise
            warn(f"{error}; trying again in {seconds:.0f} s")
            time.sleep(seconds)
    with answering():
        return step()
