"""Aliases of a registered model: which versions are champion and challenger, and how that changes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mobilenet_pipeline.registry.store import StoreError, use_store
from mobilenet_pipeline.registry.versions import RegistryError, Version, is_ours, number_of, version_of, versions


class ChampionChanged(RegistryError):
    """The alias `champion` was moved after the verdict, or during the check of a Bento."""


@dataclass(frozen=True)
class State:
    """A registered model now: its complete versions, newest first, and the versions with the two aliases."""

    name: str
    versions: list[Version]
    champion: Version | None
    challenger: Version | None

    @property
    def aliases(self) -> dict[str, str | None]:
        """The numbers of champion and challenger."""
        return {"champion": number_of(self.champion), "challenger": number_of(self.challenger)}


def read_state(name: str, withdrawn: Mapping[str, str] | None = None) -> State:
    """Read the registered model `name`.

    `withdrawn` has the reason for each artefact (SHA-256) that was withdrawn on record. Its versions count as withdrawn
    even if the registry has lost the tag. Raises RegistryError if an alias is on a version of another program.
    """
    recorded = withdrawn or {}

    def judged(version: Version) -> Version:
        return replace(version, withdrawn=version.withdrawn or recorded.get(version.sha256))

    champion, challenger = (
        judged(version) if version else None
        for version in (with_alias(name, "champion"), with_alias(name, "challenger"))
    )
    return State(name, [judged(version) for version in versions(name)], champion, challenger)


def with_alias(name: str, alias: str) -> Version | None:
    """Return the version with the alias, None if there is none.

    Raises RegistryError if the alias is on a version of another program.
    """
    use_store()
    try:
        entry = MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise StoreError(f"MLflow cannot read the alias {alias} of {name}: {error.message}") from None
    if not is_ours(entry):
        raise RegistryError(
            f"the {alias} of {name}, version {entry.version}, was not registered by this pipeline; in the MLflow UI, "
            "remove the alias or move it to a version that was"
        )
    return version_of(entry)


def set_alias(name: str, alias: str, version: str | None) -> None:
    """Set the alias to the version; None removes it."""
    use_store()
    client = MlflowClient()
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)


def move_aliases(former: State, champion: Version, challenger: Version | None) -> None:
    """Set the aliases `challenger`, `previous` and, last, `champion`.

    Raises ChampionChanged, and moves nothing, if the champion is no longer that of `former`.
    """
    name, current = former.name, with_alias(former.name, "champion")
    if number_of(current) not in (number_of(former.champion), champion.version):
        moved_to = f"version {current.version}" if current else "no version"
        raise ChampionChanged(
            f"the alias champion of {name} was moved to {moved_to} while version {champion.version} was checked; see "
            f"`mobilenet-pipeline status --recipe {champion.recipe}`"
        )
    set_alias(name, "challenger", number_of(challenger))
    if former.champion and former.champion.version != champion.version:
        set_alias(name, "previous", former.champion.version)
    set_alias(name, "champion", champion.version)
