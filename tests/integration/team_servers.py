"""The servers of deploy/compose.servers.yaml on this machine's loopback, without containers.

Their commands, variables and health checks are those of that file. Debian's PostgreSQL and moto's S3 stand in for the
two images that are not ours.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import yaml
from waiting import free_port, wait_until

from mobilenet_pipeline.system.process import leashed

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose.servers.yaml"
BIN = Path(sys.executable).parent
BUCKET = "mobilenet"
SECRETS = {"POSTGRES_PASSWORD": "of-the-test", "AWS_ACCESS_KEY_ID": "A" * 20, "AWS_SECRET_ACCESS_KEY": "of-the-test"}
PORTS = ("5432", "8333", "5000", "4200", "8080")
"""The ports of PostgreSQL, S3, MLflow, Prefect and a worker's health check, as the Compose file has them."""


class CannotStart(Exception):
    """A server cannot be started on this machine; the message has the reason."""


class Servers:
    """PostgreSQL, S3, MLflow and Prefect, each of which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.services: dict[str, dict[str, Any]] = self._here(_interpolated(COMPOSE, SECRETS))["services"]
        self.running: dict[str, ExitStack] = {}
        # PostgreSQL's user may not enter pytest's folders.
        self.home = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.data = self.home / "data"

    def start_all(self) -> None:
        """Start every server. Raises CannotStart with the reason."""
        self.start_databases()
        self.start("s3")
        for name in ("mlflow", "prefect"):
            self.start(name, wait=False)
        for name in ("mlflow", "prefect"):
            self._wait_for(name)

    def start_databases(self) -> None:
        """Start PostgreSQL with the databases of all servers. Raises CannotStart with the reason."""
        self._make_databases()
        self.start("postgres")
        # The image's first start makes the records' database, too.
        script = self._here(_interpolated(COMPOSE, SECRETS))["configs"]["databases"]["content"]
        self.execute(f"CREATE DATABASE {BUCKET}", *filter(None, map(str.strip, script.split(";"))))

    def start(self, name: str, wait: bool = True, **place: Any) -> None:
        """Start a service, and wait until its health check passes. `place` has its `cwd` and `env`, if others."""
        stack = self.running[name] = ExitStack()
        log = stack.enter_context((self.folder / f"{name}.log").open("ab"))
        place = {"cwd": self.home if name == "postgres" else self.folder, **place}
        variables = self._variables(name, place)
        child = stack.enter_context(leashed(self._command(name), variables, stdout=log, **place))
        self.services[name]["child"] = child
        if wait:
            self._wait_for(name)
        if name == "s3":  # moto keeps its objects in memory
            self.once("bucket")

    def stop(self, name: str) -> None:
        """Stop a server. PostgreSQL aborts its sessions, as after a crash; S3 forgets everything."""
        if name == "postgres":
            command = [str(postgres_bin() / "pg_ctl"), "-D", str(self.data), "stop", "-m", "immediate", "--silent"]
            subprocess.run([*_as_postgres(), *command], check=False, cwd=self.home)
        self.running.pop(name).close()

    @contextmanager
    def started(self, name: str, **place: Any) -> Iterator[None]:
        """Run a service during the `with` body; see `start`."""
        self.start(name, **place)
        try:
            yield
        finally:
            self.stop(name)

    def stop_all(self) -> None:
        """Stop what runs, and delete PostgreSQL's data."""
        for name in reversed([*self.running]):
            self.stop(name)
        shutil.rmtree(self.home, ignore_errors=True)

    def once(self, name: str, **place: Any) -> str:
        """Run the command of a service that ends, and return its output. `place` says where it runs."""
        place = {"cwd": self.folder, **place}
        variables = self._variables(name, place)
        command = [_program(word) for word in self.services[name]["command"]]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, **place)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def settings(self, name: str = "worker") -> dict[str, str]:
        """Return the variables of a service."""
        return dict(self.services[name]["environment"])

    def _variables(self, name: str, place: dict[str, Any]) -> dict[str, str]:
        """Return the environment of a service in a folder; the container has the workspace in /workspace."""
        own = self.services[name].get("environment", {})
        here = {key: value.replace("/workspace", str(place["cwd"])) for key, value in own.items()}
        return {**os.environ, **here, **place.pop("env", {})}

    def query(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with psycopg2.connect(**self._login(database)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    def objects(self, prefix: str) -> list[str]:
        """Return the names of the objects on S3 that begin so."""
        pages = self.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def client(self, service: str) -> Any:
        """Return a client of the S3 server, with the administrator's key."""
        keys = {name.lower(): value for name, value in SECRETS.items() if name.startswith("AWS_")}
        address = self.settings()["AWS_ENDPOINT_URL"]
        return boto3.client(service, endpoint_url=address, region_name="us-east-1", **keys)

    def _here(self, value: Any) -> Any:
        """Return a value of the Compose file with this machine's address and ports."""
        if isinstance(value, dict):
            return {key: self._here(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._here(part) for part in value]
        if not isinstance(value, str):
            return value
        text = re.sub(r"\b(postgres|s3|mlflow|prefect):(?=\d)", "127.0.0.1:", value).replace("0.0.0.0", "127.0.0.1")
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda port: self.ports[port[0]], text)

    def _command(self, name: str) -> list[str]:
        command = self.services[name]["command"]
        if name == "s3":
            return [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", self.ports["8333"]]
        if name == "postgres":
            place = ["-D", str(self.data), "-h", "127.0.0.1", "-p", self.ports["5432"], "-k", str(self.home)]
            return [*_as_postgres(), str(postgres_bin() / command[0]), *command[1:], *place]
        return [_program(word) for word in command]

    def _wait_for(self, name: str) -> None:
        """Wait until the service's health check passes. Raises CannotStart with the end of the log if it ends."""
        check = self.services[name]["healthcheck"]["test"][1:]
        if name == "s3":
            check = ["python", "-c", f"import socket; socket.create_connection(('127.0.0.1', {self.ports['8333']}))"]
        command = [_program(word) for word in check]
        log = self.folder / f"{name}.log"

        def is_healthy() -> bool:
            if self.services[name]["child"].ended:
                raise CannotStart(f"{name} has ended: {log.read_text(errors='replace')[-1500:]}")
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        wait_until(is_healthy, lambda: log.read_text(errors="replace")[-1500:])

    def _make_databases(self) -> None:
        binaries = postgres_bin()
        secret = self.home / "password"
        secret.write_text(SECRETS["POSTGRES_PASSWORD"])
        user = _postgres_user()
        if user:
            for path in (self.home, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        settings = ["--username", "mobilenet", "--auth", "scram-sha-256", "--pwfile", str(secret), "--no-sync"]
        command = [*_as_postgres(), str(binaries / "initdb"), "-D", str(self.data), "--encoding", "UTF8", *settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.home)
        if done.returncode:
            raise CannotStart(f"PostgreSQL makes no databases: {done.stderr.strip()}")

    def execute(self, *statements: str) -> None:
        """Run statements of an administrator, each on its own."""
        connection = psycopg2.connect(**self._login("postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.close()

    def address(self, database: str) -> str:
        """Return the database as an SQLAlchemy URL."""
        login = self._login(database)
        return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**login)

    def _login(self, database: str) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.ports["5432"],
            "user": "mobilenet",
            "password": SECRETS["POSTGRES_PASSWORD"],
            "dbname": database,
        }


def postgres_bin() -> Path:
    """Return the folder of PostgreSQL's programs, the newest. Raises CannotStart if there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if folders:
        return folders[-1].parent
    program = shutil.which("initdb")
    if program is None:
        raise CannotStart("PostgreSQL is not installed: apt-get install postgresql")
    return Path(program).resolve().parent


def _postgres_user() -> pwd.struct_passwd | None:
    """Return the user that PostgreSQL runs as, because it refuses root; None if this user can run it."""
    if os.getuid():
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _as_postgres() -> list[str]:
    user = _postgres_user()
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []


def _program(word: str) -> str:
    """Return the path of a program of this environment or of PostgreSQL."""
    for folder in (BIN, postgres_bin()):
        if re.fullmatch(r"[\w-]+", word) and os.access(folder / word, os.X_OK):
            return str(folder / word)
    return word


def _interpolated(path: Path, variables: dict[str, str]) -> Any:
    """Return a Compose file with `${NAME}`, `${NAME:-default}` and `${NAME:?message}` replaced."""
    text = path.read_text(encoding="utf-8")
    form = r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}"
    return yaml.safe_load(re.sub(form, lambda found: variables.get(found[1]) or found[2] or "", text))
