"""The audit's rules on made-up reports, the licences of what is installed, and the bill of a real Bento."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import supply_chain
from supply_chain import AuditFailed

from mobilenet_pipeline.config import Recipe

ACCEPTED = [{"id": "GHSA-1", "package": "numpy", "reason": "never called"}]


def report(*findings: tuple[str, str], skipped: str | None = None) -> dict[str, Any]:
    """Return what pip-audit prints for these (package, vulnerability)."""
    packages = [
        {"name": name, "version": "1", "vulns": [{"id": known, "fix_versions": []}]} for name, known in findings
    ]
    more = [{"name": skipped, "skip_reason": "not found"}] if skipped else []
    return {"dependencies": [*packages, {"name": "pillow", "version": "1", "vulns": []}, *more]}


def test_a_clean_report_passes() -> None:
    assert supply_chain.audit(report(), []) == []


def test_a_vulnerability_fails_the_audit() -> None:
    with pytest.raises(AuditFailed, match="numpy has GHSA-1: `make lock`"):
        supply_chain.audit(report(("numpy", "GHSA-1")), [])


def test_an_accepted_vulnerability_is_shown_with_its_reason() -> None:
    assert supply_chain.audit(report(("numpy", "GHSA-1")), ACCEPTED) == ["numpy has GHSA-1: never called"]


def test_an_accepted_vulnerability_of_nothing_fails_the_audit() -> None:
    with pytest.raises(AuditFailed, match="which no package of the lock has; take it out"):
        supply_chain.audit(report(), ACCEPTED)


def test_a_package_that_was_not_looked_up_fails_the_audit() -> None:
    with pytest.raises(AuditFailed, match="1 of 2 packages could not be looked up, such as scipy"):
        supply_chain.audit(report(skipped="scipy"), [])


def test_every_accepted_vulnerability_has_a_reason() -> None:
    accepted = supply_chain.tomllib.loads(supply_chain.ACCEPTED.read_text())["accepted"]
    assert all(entry["reason"] and entry["id"] and entry["package"] for entry in accepted)


def test_the_bento_has_no_licence_that_extends_to_its_users() -> None:
    service = supply_chain.closure([*supply_chain.bento.PACKAGES, "bentoml"])
    assert [name for name in service if supply_chain.is_copyleft(supply_chain.licence_of(name))] == []


def test_the_licence_of_wheels_is_that_of_all_they_contain() -> None:
    assert supply_chain.is_copyleft(supply_chain.licence_of("pillow-heif"))  # its metadata says BSD-3-Clause


def test_every_licence_of_the_gpl_family_is_explained() -> None:
    assert "Not examined yet" not in supply_chain.licences_page()


def test_the_page_lists_every_package_of_the_pipeline() -> None:
    listed = set(re.findall(r"^\| ([\w.-]+) \|", supply_chain.LICENCES.read_text(), re.MULTILINE))
    assert supply_chain.closure([supply_chain.PROJECT]) - {supply_chain.PROJECT} <= listed


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("MIT", False), ("GPL-3.0-only", True), ("Apache-2.0 OR GPL-2.0-or-later", False), ("MPL-2.0", False)],
)
def test_a_choice_without_the_gpl_is_no_copyleft(licence: str, expected: bool) -> None:
    assert supply_chain.is_copyleft(licence) is expected


def test_the_bill_has_packages_and_models(
    bento_store: Path, served_recipe: Recipe, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(bento_store))
    bill = json.loads(supply_chain.bill_of_materials(served_recipe.name)[1])
    kinds = {part["name"]: part["type"] for part in bill["components"]}
    assert (kinds["numpy"], kinds["cifar10-mobilenet champion"]) == ("library", "machine-learning-model")
