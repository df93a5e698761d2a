"""What `registry/store` uses of MLflow beyond its public API; a new MLflow that moves it fails here, with the place."""

import inspect
from importlib import import_module

import pytest

STORE = "src/mobilenet_pipeline/registry/store.py"


@pytest.mark.parametrize(
    ("module", "name", "parameters", "use"),
    [
        ("mlflow.store.db.utils", "_get_latest_schema_revision", [], "_newest_revision"),
        ("mlflow.store.db.utils", "_upgrade_db", ["engine"], "_migrate"),
        ("mlflow.store.db.utils", "create_sqlalchemy_engine", ["db_uri"], "_migrate"),
        ("mlflow.tracking._tracking_service.utils", "_get_store", [], "registry/removal"),
        ("mlflow.utils.credentials", "get_default_host_creds", ["store_uri"], "_probe"),
        ("mlflow.utils.rest_utils", "http_request", ["host_creds", "endpoint", "method"], "_probe"),
    ],
)
def test_mlflow_has_the_function_that_the_store_uses(module, name, parameters, use):
    function = getattr(import_module(module), name, None)
    assert function is not None, f"MLflow has moved {module}.{name}, which {use} in {STORE} uses: adapt it there"
    first = list(inspect.signature(function).parameters)[: len(parameters)]
    assert first == parameters, f"{module}.{name} takes {first}, not {parameters}: adapt {use} in {STORE}"


@pytest.mark.parametrize("name", ["_hard_delete_run", "_hard_delete_logged_model"])
def test_a_store_in_a_database_deletes_for_good(name):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assert hasattr(SqlAlchemyStore, name), f"MLflow has moved {name}, which registry/removal.py uses: adapt it there"
