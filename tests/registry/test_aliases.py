"""Aliases of a registered model, in a real SQLite store."""

from pathlib import Path

import mlflow
import pytest
from registered import register
from registry_fixtures import Make

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.registry import aliases, versions


def test_an_alias_is_set_and_removed(client: mlflow.MlflowClient, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    version = register(recipe, "scratch")
    aliases.set_alias(version.name, "champion", version.version)
    assert aliases.with_alias(version.name, "champion") == version
    aliases.set_alias(version.name, "champion", None)
    assert aliases.with_alias(version.name, "champion") is None


def test_the_state_is_versions_newest_first_and_aliases(store: Path, recipe: Recipe, make: Make) -> None:
    make("scratch", right=190)
    make("pretrained", right=195)
    first, second = register(recipe, "scratch"), register(recipe, "pretrained")
    aliases.set_alias(first.name, "challenger", first.version)
    state = aliases.read_state(recipe.registered_model)
    assert (state.versions, state.champion, state.challenger) == ([second, first], None, first)
    assert state.aliases == {"champion": None, "challenger": "1"}


def test_an_unknown_model_has_no_versions_and_no_champion(client: mlflow.MlflowClient) -> None:
    assert versions.versions("nobody's-model") == []
    assert aliases.with_alias("nobody's-model", "champion") is None


def test_an_alias_on_another_program_s_version_is_refused(client: mlflow.MlflowClient, recipe: Recipe) -> None:
    client.create_registered_model(recipe.registered_model)
    client.create_model_version(recipe.registered_model, "runs:/" + "a" * 32 + "/model")
    client.set_registered_model_alias(recipe.registered_model, "champion", "1")
    with pytest.raises(versions.RegistryError, match="version 1, was not registered by this pipeline"):
        aliases.with_alias(recipe.registered_model, "champion")
