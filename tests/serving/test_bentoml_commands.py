"""BentoML's own commands: on the store, and in the repository, where the service's code is in no Bento."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bento_fixtures import Service

from serving.live import Live, only_pointer

ROOT = Path(__file__).resolve().parents[2]


def put_live(store: Path, name: str) -> Path:
    """Add a live Bento without models to the store, and return its pointer."""
    pointer = store / "live" / name
    source = store / "bentos" / name / "1" / "src"
    for folder in (pointer.parent, source):
        folder.mkdir(parents=True, exist_ok=True)
    pointer.write_text(f"{name}:1\n")
    (source / "served.json").write_text("{}")
    return pointer


def bentoml(store: Path, *arguments: str) -> str:
    """Run a `bentoml` command that fails, and return its last line."""
    command = [str(Path(sys.executable).parent / "bentoml"), *arguments]
    variables = {**os.environ, "BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def several(store: Path, *commands: str) -> list[str]:
    """Run `bentoml` commands in one process, which imports BentoML once, and return what each prints."""
    code = (
        "import sys, click.testing, bentoml_cli.cli as cli\n"
        "for line in sys.argv[1:]:\n"
        "    done = click.testing.CliRunner().invoke(cli.cli, line.split())\n"
        "    print(done.output, done.exit_code, end='\\0')"
    )
    variables = {**os.environ, "BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True", "COLUMNS": "200"}
    done = subprocess.check_output([sys.executable, "-c", code, *commands], env=variables, text=True)
    return done.split("\0")[:-1]


def test_a_bento_is_listed_exported_and_imported(filled_bento_store: Path, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "exported.bento"
    commands = ["list", "models list", f"get {service.tag}", f"export {service.tag} {file}"]
    bentos, models, facts, exported = several(filled_bento_store, *commands)
    assert service.tag in bentos
    assert models.count("cifar10-mobilenet:") == 2
    assert "service: serving.service:Classifier" in facts
    assert exported.endswith(" 0")
    imported, listed = several(tmp_path / "other", f"import {file}", "list")
    assert imported.endswith(" 0")
    assert service.tag in listed


def test_the_repository_serves_the_only_live_bento(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    put_live(tmp_path / ".bentoml", "digits")
    loaded = []
    live = Live(None, tmp_path / "served.json", lambda *paths: loaded.append(paths) or {})  # type: ignore[func-returns-value]
    store = tmp_path / ".bentoml"
    assert loaded == [(store / "bentos/digits/1/src/served.json", store / "models")]
    assert live.roles == {}


def test_a_change_of_the_live_bento_is_followed(tmp_path: Path) -> None:
    pointer = put_live(tmp_path, "digits")
    live = Live(pointer, tmp_path / "served.json", lambda *_: {})
    live.load = lambda roles_file, _: {"champion": None}
    roles_file = tmp_path / "bentos/digits/1/src/served.json"
    roles_file.write_text("{ }")
    live.look()
    assert (live.roles, live.refused) == ({"champion": None}, None)


def test_of_several_live_bentos_one_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    put_live(tmp_path, "cifar10")
    put_live(tmp_path, "digits")
    with pytest.raises(ValueError, match=rf"\(cifar10, digits\); set SERVING_LIVE to {tmp_path}/live/NAME"):
        only_pointer(ROOT)


def test_bentoml_serve_without_a_live_bento_says_what_to_do(tmp_path: Path) -> None:
    assert f"no Bento is live in {tmp_path}; run `mobilenet-pipeline run`" in bentoml(tmp_path, "serve", ".")


def test_bentoml_build_says_what_builds_bentos(tmp_path: Path) -> None:
    assert "`mobilenet-pipeline run` builds the Bentos of this repository" in bentoml(tmp_path, "build")
