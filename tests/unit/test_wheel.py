"""The wheel: what is in it, and what it does outside the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def outside(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program from the wheel in a folder that is no repository, without the repository on the path."""
    code = (
        "import sys; from pathlib import Path; root, site = Path(sys.argv.pop(1)), sys.argv.pop(1); "
        "sys.path = [site, *(p for p in sys.path if p and Path(p) not in (root, root / 'src'))]; "
        "from mobilenet_pipeline.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-P", "-c", code, str(ROOT), str(installed), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_one_package_and_its_data(installed):
    names = {path.name for path in installed.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"mobilenet_pipeline"}
    package = installed / "mobilenet_pipeline"
    for file in ("py.typed", "reports/page.html.j2", "models/weights/mobilenet_0_25_cifar10.weights.h5"):
        assert (package / file).is_file()


def test_the_wheel_says_its_version_anywhere(installed, tmp_path):
    assert outside(installed, tmp_path, "--version").stdout == "mobilenet-pipeline 0.1.0\n"


def test_the_wheel_shows_its_help_anywhere(installed, tmp_path):
    assert "Run the whole pipeline" in outside(installed, tmp_path, "--help").stdout


def test_a_command_outside_a_workspace_says_where_it_belongs(installed, tmp_path):
    done = outside(installed, tmp_path, "status")
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path / 'params.yaml'} does not exist; run this from the project's root\n",
    )


def test_a_run_without_the_repository_says_what_it_lacks(installed, tmp_path):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    done = outside(installed, tmp_path, "run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: this command needs the repository's folder flows/")
