"""Serve the web pages of MLflow and Prefect on this machine."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from flows import server
from mobilenet_pipeline.system import ports, process


def show(mlflow_port: int, prefect_port: int) -> None:
    """Serve both pages until this process is interrupted, and print their addresses.

    A server that is already running is used. Raises OSError if a port is taken or a server does not start.
    """
    from mobilenet_pipeline.registry import store as tracking

    server.prepare(quiet=True)
    store = tracking.use_store()
    remote = store.startswith(("http://", "https://"))
    api = server.connect()
    print("starting …", flush=True)
    with (
        nullcontext(store) if remote else mlflow_server(store, mlflow_port) as runs,
        nullcontext(api) if api else server.running(prefect_port) as flows,
    ):
        print(f"MLflow   {runs}\nPrefect  {flows.removesuffix('/api')}\nCtrl-C ends both", flush=True)
        while True:
            time.sleep(3600)


@contextmanager
def mlflow_server(store: str, port: int) -> Iterator[str]:
    """Run MLflow's server during the `with` body, and yield its address.

    Its log is mlruns/ui.log. Raises OSError if the port is taken or the server does not start.
    """
    ports.check_port(port, "MLflow", "--mlflow-port")
    log = Path("mlruns") / "ui.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Its jobs evaluate language models, in seven processes.
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as file, process.leashed(command, variables, stdout=file) as child:
        ports.wait_for(f"http://127.0.0.1:{port}/health", child, log)
        yield f"http://127.0.0.1:{port}"
