"""Workspaces of a team: clones of one Git repository with the same servers.env, and what people do in them."""

import http.client
import io
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from team_servers import BIN, ROOT, SECRETS, Servers
from waiting import free_port, wait_until

from mobilenet_pipeline.system.process import leashed

MODEL = "digits-mobilenet"
_END = "  # CIFAR-10 on"
"""What follows the recipe `digits` in params.yaml."""
Done = subprocess.CompletedProcess[str]


class Clone:
    """A clone of the team's repository, with its own records, Bentos and DVC cache."""

    def __init__(self, origin: Path, folder: Path, home: Path) -> None:
        self.origin, self.folder = origin, folder
        git(folder.parent, "clone", "--quiet", str(origin), str(folder))
        own = ("MLFLOW_TRACKING", "PREFECT_", "BENTOML_HOME", "AWS_", "PG", "MOBILENET_PIPELINE_RECORDS")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        # Credentials are where their libraries look for them, not in servers.env.
        self.env |= {name: value for name, value in SECRETS.items() if name.startswith("AWS_")}
        self.env |= {"PGPASSFILE": str(home / "pgpass"), "AWS_DEFAULT_REGION": "us-east-1"}
        self.env |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{folder / 'src'}:{folder}",
            "PWD": str(folder),
        }

    def run(self, *words: str, **variables: str) -> Done:
        """Run `mobilenet-pipeline` here until it ends."""
        return self.do(str(BIN / "mobilenet-pipeline"), *words, **variables)

    def do(self, *command: str, **variables: str) -> Done:
        """Run a command here until it ends."""
        env = {**self.env, **variables}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `mobilenet-pipeline` here, and return at once."""
        program = [str(BIN / "mobilenet-pipeline"), *words]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(program, cwd=self.folder, env=self.env, **streams)

    def read(self, *words: str) -> Any:
        """Return what a command prints with --json."""
        return json.loads(self.run(*words, "--json").stdout)

    @property
    def champion(self) -> str:
        """The champion's version."""
        return str(self.read("status")["champion"]["version"])

    def change(self, message: str, files: Mapping[str, str]) -> None:
        """Commit files and push them to the team's repository."""
        for name, text in files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        identity = ["-c", "user.name=ann", "-c", "user.email=ann@example.com"]
        git(self.folder, *identity, "commit", "--quiet", "--all", "--message", message)
        git(self.folder, "push", "--quiet")


class Service:
    """`serve --follow` of a clone."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log

    @property
    def serves(self) -> str | None:
        """The version that /model names, None while nothing answers."""
        try:
            return str(json.loads(_ask(self.port, "GET", "/model"))["champion"]["version"])
        except (OSError, http.client.HTTPException):
            return None

    def predict(self) -> dict[str, Any]:
        """Return the answer for a grey image."""
        return dict(json.loads(_ask(self.port, "POST", "/predict", *_image())))

    def wait_for(self, version: str) -> float:
        """Wait until this version is served, and return the seconds that it took."""
        started = time.monotonic()
        wait_until(lambda: self.serves == version, lambda: f"{self.serves} is served: {self.text}")
        return time.monotonic() - started

    @property
    def text(self) -> str:
        """What the service has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Client(threading.Thread):
    """A client that asks all the time; `versions` are those that answered, `failures` what went wrong."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service, self.over = service, threading.Event()
        self.versions: dict[str, int] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        """Send one image after the other."""
        while not self.over.is_set():
            try:
                version = self.service.predict()["model_version"]
                self.versions[version] = self.versions.get(version, 0) + 1
            except Exception as error:  # whatever a client may see
                self.failures.append(repr(error))
            time.sleep(0.02)


@contextmanager
def asking(service: Service) -> Iterator[Client]:
    """Ask the service all the time in the `with` body."""
    client = Client(service)
    client.start()
    try:
        yield client
    finally:
        client.over.set()
        client.join()


@contextmanager
def serving(clone: Clone) -> Iterator[Service]:
    """Serve in a clone during the `with` body, and follow the registry."""
    port, log = free_port(), clone.folder / "logs" / "serve.log"
    log.parent.mkdir(exist_ok=True)
    command = [str(BIN / "mobilenet-pipeline"), "serve", "--follow", "--port", str(port)]
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        child = stack.enter_context(leashed(command, clone.env, stdout=output, cwd=clone.folder))
        service = Service(port, log)
        wait_until(lambda: service.serves or child.ended, lambda: service.text)
        yield service


def make_team(folder: Path, servers: Servers) -> Clone:
    """Return the first clone of a new repository of the team, a copy of this repository's commit, with servers.env."""
    origin = folder / "team.git"
    git(folder, "clone", "--quiet", "--bare", str(ROOT), str(origin))
    login = ["127.0.0.1", servers.ports["5432"], "*", "mobilenet", SECRETS["POSTGRES_PASSWORD"]]
    (folder / "pgpass").write_text(":".join(login))
    (folder / "pgpass").chmod(0o600)
    clone = Clone(origin, folder / "a", folder)
    settings = servers.settings() | {"MOBILENET_PIPELINE_GIT_REMOTE": "origin"}
    text = (clone.folder / "servers.env").read_text(encoding="utf-8")
    filled = re.sub(r"^#(\w+)=.*", lambda line: f"{line[1]}={settings[line[1]]}", text, flags=re.M)
    params = (clone.folder / "params.yaml").read_text(encoding="utf-8")
    clone.change("The team's servers, and short trainings", {"servers.env": filled, "params.yaml": shorten(params)})
    return clone


def shorten(params: str) -> str:
    """Return params.yaml with one epoch of a small network for `digits`, and with a gate that lets it pass."""
    digits, mark, others = params.partition(_END)
    easy = {"accuracy_floor": 0.01, "calibration_error": 1.0, "recall_drop": 1.0, "loss_margin": 9.0, "coverage": 0.01}
    for key, value in (easy | {"epochs": 1, "strides": "stock", "corruption_drop": 1.0}).items():
        digits = re.sub(rf"\b{key}: .*", f"{key}: {value}", digits)
    return digits + mark + others


def change_params(clone: Clone, epochs: int) -> None:
    """Commit a longer training of `pretrained`, whose promotion waits for a person, for the whole team."""
    params = (clone.folder / "params.yaml").read_text(encoding="utf-8")
    digits, mark, others = params.partition(_END)
    head, candidate, rest = digits.partition("      pretrained:")
    digits = head + candidate + re.sub(r"\bepochs: .*", f"epochs: {epochs}", rest, count=1)
    digits = digits.replace("promotion: automatic", "promotion: manual")
    clone.change(f"Train for {epochs} epochs", {"params.yaml": digits + mark + others})


def git(folder: Path, *words: str) -> str:
    """Run Git and return its output."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _ask(port: int, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"{answer.status}: {content[:200]!r}")
        return content
    finally:
        connection.close()


def _image() -> tuple[bytes, str]:
    """Return a form with a grey image, and its content type."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(file, "PNG")
    head = b'--form\r\nContent-Disposition: form-data; name="image"; filename="grey.png"\r\n'
    head += b"Content-Type: image/png\r\n\r\n"
    return head + file.getvalue() + b"\r\n--form--\r\n", "multipart/form-data; boundary=form"
