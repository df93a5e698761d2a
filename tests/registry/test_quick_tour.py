"""MLflow's own commands and client, as docs/how-to/with-your-own-tools.md has them, on what a run leaves."""

from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.cli import cli
from registered import record_verdict, register
from registry_fixtures import Make

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import aliases
from mobilenet_pipeline.registry.versions import Version


@pytest.fixture
def champion(
    store: Path, client: mlflow.MlflowClient, recipe: Recipe, make: Make, monkeypatch: pytest.MonkeyPatch
) -> Version:
    """A promoted version, in a workspace where MLflow's commands find the store."""
    make("scratch", right=190)
    version = register(recipe, "scratch")
    record_verdict(version, "It is the first.", promoted=True)
    aliases.set_alias(version.name, "champion", version.version)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return version


def run(command: str) -> str:
    """Return what a command of MLflow prints; it must succeed."""
    result = CliRunner().invoke(cli, command.split()[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_mlflow_lists_the_recipe_and_its_runs(champion: Version) -> None:
    assert "digits" in run("mlflow experiments search")
    assert "scratch · digits · " in run("mlflow runs list --experiment-id 1")


def test_mlflow_describes_a_run(champion: Version) -> None:
    assert '"test/accuracy": 0.95' in run(f"mlflow runs describe --run-id {champion.run_id}")


def test_mlflow_downloads_what_is_served(champion: Version, store: Path) -> None:
    assert "served" in run(f"mlflow artifacts list --run-id {champion.run_id}")
    run(f"mlflow artifacts download --run-id {champion.run_id} --artifact-path served --dst-path copy")
    assert (store / "copy" / "served" / "model.tflite").exists()


def test_mlflow_collects_a_deleted_run(champion: Version, client: mlflow.MlflowClient, store: Path) -> None:
    client.delete_model_version(champion.name, champion.version)
    client.delete_run(champion.run_id)
    run("mlflow gc")
    assert list((store / "mlruns").rglob("model.tflite")) == []


def test_the_client_finds_champion_versions_and_runs(champion: Version, client: mlflow.MlflowClient) -> None:
    promoted = client.search_model_versions("name = 'digits-mobilenet' and tags.verdict = 'promoted'")
    runs = client.search_runs(["1"], "metrics.`test/accuracy` > 0.9 and tags.candidate = 'scratch'")
    assert client.get_model_version_by_alias(champion.name, "champion").run_id == champion.run_id
    assert ([str(entry.version) for entry in promoted], [entry.info.run_id for entry in runs]) == (
        ["1"],
        [champion.run_id],
    )


def test_mlflow_finds_the_images_of_a_run(champion: Version, client: mlflow.MlflowClient, store: Path) -> None:
    used = client.get_run(champion.run_id).inputs.dataset_inputs[0]
    assert Path(mlflow.data.get_source(used).load()).resolve() == store / "data" / "digits"
