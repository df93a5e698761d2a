"""What the project is made of: known vulnerabilities, licences, and a bill of materials of the Bento.

`make audit`, `make licences` and `make sbom` run it.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mobilenet_pipeline.config import load_recipe
from mobilenet_pipeline.release import bento
from mobilenet_pipeline.workspace import paths
from mobilenet_pipeline.workspace.files import read_json, write_text

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
ACCEPTED = Path(__file__).with_name("audit.toml")
LICENCES = ROOT / "docs" / "reference" / "licences.md"
PROJECT = "mobilenet-pipeline"
NOTES = {
    "grandalf": "Draws `dvc dag` for DVC. The pipeline does not use it.",
    "pillow-heif": "Extra `heic` only. Its wheels contain libheif and libde265 (LGPLv3), and x265 (GPLv2 or later), an "
    "encoder that nothing here calls.",
    "psycopg2-binary": "Extra `servers` only. It is used as a library, unchanged.",
    "pygit2": "DVC's access to Git. Its licence permits linking from programs of any licence.",
    "text-unidecode": "Offered under the Artistic License, too, under which it is used.",
}
"""Why a package whose licence extends to programs that contain it is acceptable."""
WHEELS = {"pillow-heif": "BSD-3-Clause, its wheels GPLv2"}
"""The licences of packages whose wheels contain libraries of other licences than their metadata declares."""


class AuditFailed(ValueError):
    """The audit found something, or could not be made."""


def audit(report: Mapping[str, Any], accepted: Iterable[Mapping[str, str]]) -> list[str]:
    """Return a sentence for each accepted finding of pip-audit's `report`.

    Raises AuditFailed for findings that are not accepted, for accepted ones that nothing has any more, and if packages
    could not be looked up: no answer is no clean bill.
    """
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        raise AuditFailed(
            f"{len(skipped)} of {len(packages)} packages could not be looked up, such as {skipped[0]}; connect to "
            "the Python package index, or set PIP_AUDIT_VULNERABILITY_SERVICE=osv to ask OSV"
        )
    found = {(package["name"], finding["id"]) for package in packages for finding in package["vulns"]}
    reasons = {(entry["package"], entry["id"]): entry["reason"] for entry in accepted}
    if new := sorted(found - reasons.keys()):
        names = "; ".join(f"{package} has {identifier}" for package, identifier in new)
        raise AuditFailed(f"{names}: `make lock` takes a later version; else explain it in tools/{ACCEPTED.name}")
    if gone := sorted(reasons.keys() - found):
        names = ", ".join(f"{identifier} of {package}" for package, identifier in gone)
        raise AuditFailed(f"tools/{ACCEPTED.name} accepts {names}, which no package of the lock has; take it out")
    return [f"{package} has {identifier}: {reason}" for (package, identifier), reason in sorted(reasons.items())]


def ask_pip_audit() -> dict[str, Any]:
    """Return pip-audit's report on requirements.lock. Raises AuditFailed if it has none."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        lines = done.stderr.strip().splitlines()
        raise AuditFailed(
            f"pip-audit has no answer ({lines[-1][:200] if lines else 'no message'}); it needs the Python package index"
        ) from None


def closure(names: Iterable[str], extra: str = "") -> set[str]:
    """Return the installed packages that these need, with themselves."""
    found: set[str] = set()
    waiting = [(name, extra) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        key = canonicalize_name(name)
        if key in found:
            continue
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(key)
        for requirement in map(Requirement, needed):
            if not requirement.marker or requirement.marker.evaluate({"extra": wanted}):
                waiting += [(requirement.name, each) for each in requirement.extras or {""}]
    return found


def licence_of(name: str) -> str:
    """Return the licence that a package declares: an SPDX expression, its classifiers, or its own words.

    That of its wheels comes first, if it is another one.
    """
    if name in WHEELS:
        return WHEELS[name]
    facts: Any = importlib.metadata.metadata(name)  # typed without the `get` that it has
    classifiers = [line for line in facts.get_all("Classifier") or [] if line.startswith("License :: ")]
    words = [line.rpartition(" :: ")[2] for line in classifiers if not line.endswith("OSI Approved")]
    first_line = (facts.get("License") or "").strip().partition("\n")[0]
    return facts.get("License-Expression") or "; ".join(words) or first_line[:60] or "not declared"


def is_copyleft(licence: str) -> bool:
    """Return whether the licence extends to programs that contain the package; there may be no other choice."""
    return bool(re.search(r"GPL|General Public License", licence)) and " OR " not in licence


def licences_page() -> str:
    """Return the page of all licences, by the part of the project that needs the package."""
    service = closure([*bento.PACKAGES, "bentoml"])
    photographs = closure(bento.OPTIONAL) - service
    pipeline = closure([PROJECT]) - service - {PROJECT}
    locked = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", LOCK.read_text("utf-8"), re.MULTILINE)}
    installed = {canonicalize_name(it.metadata["Name"]) for it in importlib.metadata.distributions()}
    groups: dict[str, tuple[Set[str], str]] = {
        "In the Bento": (service, "The service is built of these. Who passes a Bento or its image on passes them on."),
        "In the Bento, if installed": (
            photographs,
            "These read HEIC. To build a Bento without them, uninstall them first: `uv pip uninstall pillow-heif`.",
        ),
        "In the pipeline": (pipeline, "These run ingestion, training, gate and promotion."),
        "For development and servers": (
            (locked & installed) - service - photographs - pipeline,
            "These are in the lock for tests, documentation and PostgreSQL.",
        ),
    }
    parts = [
        "# Licences",
        "<!-- Generated by `make licences` from the packages' own metadata; do not edit. -->",
        "What each package of `requirements.lock` declares. ⚠ marks licences of the GPL family, which extend to "
        "programs that\ncontain the package. This page is a list, not legal advice.",
    ]
    for title, (names, text) in groups.items():
        rows = [f"| {name} | {_shown(name)} |" for name in sorted(names)]
        parts += [f"## {title}", text, "\n".join(["| package | licence |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def _shown(name: str) -> str:
    licence = licence_of(name).replace("|", "/")
    return f"⚠ {licence}. {NOTES.get(name, 'Not examined yet.')}" if is_copyleft(licence) else licence


def bill_of_materials(recipe_name: str) -> tuple[str, str]:
    """Return the live Bento's tag and its bill of materials, CycloneDX as JSON: packages and models.

    Raises PackagingError if no Bento is live.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    recipe = load_recipe(recipe_name)
    live = bento.must_be_live(recipe)
    name, _, version = live.tag.partition(":")
    service = Component(name=name, version=version, type=ComponentType.APPLICATION, bom_ref=live.tag)
    parts = []
    for line in _requirements(live.tag):
        package, _, number = line.partition("==")
        try:
            licence = licence_of(package)
        except importlib.metadata.PackageNotFoundError:  # the Bento may be of another machine
            licence = ""
        parts.append(
            Component(
                name=package,
                version=number,
                type=ComponentType.LIBRARY,
                bom_ref=line,
                purl=PackageURL("pypi", name=canonicalize_name(package), version=number),
                licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
            )
        )
    for role, folder in bento.served_models(recipe).items():
        if folder:
            digest = live.hashes[role] or ""
            parts.append(
                Component(
                    name=f"{name} {role}",
                    version=str(read_json(folder / bento.METADATA)["version"]),
                    type=ComponentType.MACHINE_LEARNING_MODEL,
                    bom_ref=f"{role}:{digest[:12]}",
                    hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
                )
            )
    bom = Bom(components=parts)
    bom.metadata.component = service
    bom.register_dependency(service, parts)
    return live.tag, str(JsonV1Dot6(bom).output_as_string(indent=2))


def _requirements(tag: str) -> list[str]:
    """Return the pinned packages of a Bento."""
    path = bento.home() / "bentos" / tag.replace(":", "/") / "env" / "python" / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [match[0] for line in lines if (match := re.match(r"[\w.-]+==[\w.!+-]+", line))]


def main() -> int:
    """Run one of the three, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("audit", "licences", "sbom"))
    parser.add_argument("--recipe", default="digits", help="the recipe of the live Bento (default: %(default)s)")
    options = parser.parse_args()
    try:
        if options.what == "audit":
            accepted = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))["accepted"]
            print(*audit(ask_pip_audit(), accepted), "no package of requirements.lock has another one known", sep="\n")
        elif options.what == "licences":
            write_text(LICENCES, licences_page())
            print(LICENCES.relative_to(ROOT))
        else:
            tag, text = bill_of_materials(options.recipe)
            target = paths.report_folder(load_recipe(options.recipe)) / "sbom.cdx.json"
            write_text(target, text + "\n")
            print(f"{target}: what {tag} consists of")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
