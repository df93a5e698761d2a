"""Alert rules and dashboard, checked with Prometheus's own promtool, and the runbook's pages."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")


def promtool(*words: str, folder: Path = RULES.parent) -> str:
    """Run promtool, and return its output, empty if it found nothing wrong."""
    done = subprocess.run([str(PROMTOOL), *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@needs_promtool
def test_prometheus_reads_configuration_and_rules() -> None:
    assert promtool("check", "config", "prometheus.yaml") == ""


@needs_promtool
def test_the_rules_say_what_they_should_of_planted_counts() -> None:
    assert promtool("test", "rules", "rules_test.yaml") == ""


@needs_promtool
def test_every_query_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert promtool("check", "rules", "rules.yaml", folder=tmp_path) == ""


def test_every_alert_has_its_page_in_the_runbook() -> None:
    pages = re.findall(r"runbook: (\S+)", RULES.read_text())
    assert [page for page in pages if not (ROOT / page).is_file()] == []


def test_every_metric_of_rules_and_dashboard_is_one_of_ours() -> None:
    code = "".join(
        (ROOT / name).read_text() for name in ("serving/measures.py", "src/mobilenet_pipeline/reports/gauges.py")
    )
    text = RULES.read_text() + (ROOT / "deploy/grafana/dashboard.json").read_text()
    names = {re.sub(r"^mobilenet_pipeline_|_bucket$", "", name) for name in re.findall(r"\bmobilenet_\w+", text)}
    assert names
    assert [name for name in names if f'"{name}"' not in code] == []
