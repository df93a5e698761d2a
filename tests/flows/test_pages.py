"""MLflow's pages, served on this machine."""

from pathlib import Path
from urllib.request import urlopen

import psutil
from mlflow import MlflowClient
from waiting import free_port

from flows import pages
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import runs, store


def test_mlflow_s_pages_read_any_path_and_start_no_job_workers(odd_workspace: Path, recipe: Recipe) -> None:
    uri = store.use_store()
    run_id = MlflowClient().create_run(runs.experiment(recipe)).info.run_id
    runs.log_file(run_id, b"text", "card.md")
    with pages.mlflow_server(uri, free_port()) as address:
        page = urlopen(f"{address}/get-artifact?run_id={run_id}&path=card.md").read()
        commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert page == b"text"
    assert not [command for command in commands if "huey" in command or "job" in command]
