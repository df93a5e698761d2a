"""The process that asks Ray for workers: `python -m mobilenet_pipeline.cluster.driver JOB.json`.

Ray ends a process whose cluster is gone, so this is not the stage's own. It writes a JSON document a line for
`cluster.training`, and the checkpoint into the workspace.
"""

import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer
from ray.train.v2.api.callback import UserCallback

import mobilenet_pipeline
from mobilenet_pipeline.cluster import files
from mobilenet_pipeline.cluster.relay import Relay
from mobilenet_pipeline.cluster.worker import work
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.training import checkpoint
from mobilenet_pipeline.workspace.files import whole

RESTARTS = 3
"""How often Ray may start the workers again."""
LOOK_SECONDS = 0.2
ROOM_SECONDS = 5.0
TELL_SECONDS = 60.0
"""Seconds between two sentences about missing room."""


class Failed(Exception):
    """The training cannot go on; `lasting` if another try would fail, too."""

    def __init__(self, sentence: str, lasting: bool) -> None:
        super().__init__(sentence)
        self.lasting = lasting


class Restarts(UserCallback):
    """Tells the driver why Ray starts the workers again; it runs in Ray's controller."""

    def __init__(self, relay: Any) -> None:
        self.relay = relay

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note the first worker's error."""
        rank, error = min(worker_exceptions.items())
        lines = [line for line in str(error).splitlines() if line.strip()]
        self.relay.tell.remote({"lost": rank, "reason": lines[-1].strip() if lines else type(error).__name__})


def write(**message: Any) -> None:
    """Write a message for the stage."""
    print(json.dumps(message), flush=True)


def main() -> None:
    """Run the job of the command line, and write its outcome."""
    environment.prepare()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        with _connected(job):
            _run(job)
    except Failed as failure:
        write(error=str(failure), lasting=failure.lasting)


@contextmanager
def _connected(job: dict[str, Any]) -> Iterator[None]:
    """Connect to the cluster. Raises Failed if there is none, or if its Ray or Python differs."""
    address = job["address"]
    package = str(Path(mobilenet_pipeline.__file__).parent)
    # Workers run this code, whatever is installed where they are.
    runtime = {"py_modules": [package], "worker_process_setup_hook": "mobilenet_pipeline.cluster.worker.prepare"}
    settings: dict[str, Any] = {"runtime_env": runtime, "log_to_driver": False, "logging_level": "ERROR"}
    settings |= {"namespace": "mobilenet-pipeline"}
    try:
        ray.init(address, **settings)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        sentence = " ".join(str(error).split())
        raise Failed(f"no Ray cluster at {address!r}: {sentence}", lasting=False) from None
    try:
        yield
    finally:
        ray.shutdown()


def _run(job: dict[str, Any]) -> None:
    """Run the trainings of the job until one ends."""
    kept = Path(job["checkpoint"])
    state = kept.read_bytes() if kept.exists() else None
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    relay = ray.remote(num_cpus=0, scheduling_strategy=here)(Relay).remote(state)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: relay.stop.remote())
    Run(job, relay).to_the_end()


class Run:
    """One training on the cluster, from waiting for room to its last message."""

    def __init__(self, job: dict[str, Any], relay: Any) -> None:
        self.job, self.relay = job, relay
        self.restarts, self.last_epoch, self.over = 0, 0, False
        self.failure: BaseException | None = None
        self.workers = job["workers"]
        self.resource = "GPU" if ray.cluster_resources().get("GPU") else "CPU"

    def to_the_end(self) -> None:
        """Train. Raises Failed."""
        self.wait_for_room()
        write(placed={"workers": self.workers, "devices": self.job["devices"], "resource": self.resource})
        thread = threading.Thread(target=self._fit, daemon=True)
        thread.start()
        while thread.is_alive():
            self.pass_on()
            time.sleep(LOOK_SECONDS)
        self.pass_on()
        if not self.over:
            raise self._reason()

    def wait_for_room(self) -> None:
        """Wait until the cluster has room for the workers. Raises Failed after the limit."""
        deadline, told = time.monotonic() + self.job["limit"], -TELL_SECONDS
        while (room := self.room()) < self.workers:
            now = time.monotonic()
            if now > deadline:
                raise Failed(self._no_room(room) + f", after {self.job['limit']} s", lasting=False)
            if self.job["fewest"] and (fitting := [n for n in self.job["fewest"] if n <= room]):
                self.workers = max(fitting)
                write(say=f"{self._no_room(room)}: {self.workers} train with the same global batch")
                return
            if now - told > TELL_SECONDS:
                write(say=f"{self._no_room(room)}: waiting")
                told = now
            time.sleep(ROOM_SECONDS)

    def room(self) -> int:
        """Return how many workers the cluster's nodes have room for, other jobs aside."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(node.get(self.resource, 0) // self.job["devices"]) for node in nodes)

    def _no_room(self, room: int) -> str:
        devices = f"{self.job['devices']} {self.resource}{'s' if self.job['devices'] > 1 else ''}"
        return f"the candidate has {self.job['workers']} workers of {devices}, and the cluster has room for {room}"

    def _fit(self) -> None:
        """Let Ray place the workers and start them again when one is lost."""
        weights = Path(self.job["weights"]) if self.job["weights"] else None
        trainer = TensorflowTrainer(
            work,
            train_loop_config={
                **{key: self.job[key] for key in ("recipe", "candidate", "data", "digest")},
                "relay": self.relay,
                "weights": (weights.name, ray.put(weights.read_bytes())) if weights else None,
                "gpu": self.resource == "GPU",
            },
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=self.resource == "GPU",
                resources_per_worker={self.resource: self.job["devices"]},
            ),
            run_config=RunConfig(
                name=self.job["name"],
                storage_path=self.job["storage"],
                failure_config=FailureConfig(max_failures=RESTARTS),
                callbacks=[Restarts(self.relay)],
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self.failure = error

    def pass_on(self) -> None:
        """Pass the workers' messages on. Raises Failed for an error that no restart can mend."""
        for message in ray.get(self.relay.take.remote()):
            if "files_needed" in message:
                content = files.parts(Path(self.job["data"]))
                kept = [(name, [ray.put(part) for part in parts]) for name, parts in content]
                ray.get(self.relay.give_files.remote(kept))
            elif "error" in message:
                raise Failed(message["error"], message["lasting"])
            elif "lost" in message:
                self.restarts += 1
                lost = f"worker {message['lost'] + 1} is lost after epoch {self.last_epoch}: {message['reason']}"
                write(say=f"{lost}; Ray starts all workers again ({self.restarts} of {RESTARTS})")
            elif "state" in message:
                self._keep(message["state"])
            elif "trained" in message:
                Path(self.job["model"]).write_bytes(message["model"])
                write(trained=message["trained"])
                self.over = True
            else:
                self.over = self.over or "interrupted" in message
                self.last_epoch = message.get("epoch", {}).get("epoch", self.last_epoch)
                write(**message)

    def _keep(self, state: bytes) -> None:
        """Save a state into the workspace; that of another training gets another name."""
        path = Path(self.job["checkpoint"])
        with whole(path) as partial:
            partial.write_bytes(state)
            if path.exists() and checkpoint.identity_of(path) != checkpoint.identity_of(partial):
                with redirect_stdout(io.StringIO()) as said:
                    checkpoint.set_aside(path)
                write(say=said.getvalue().strip())

    def _reason(self) -> Failed:
        lines = [line for line in str(self.failure or "").splitlines() if line.strip()]
        reason = f": {lines[-1].strip()}" if lines else ""
        return Failed(f"the workers were lost {self.restarts} times{reason}", lasting=False)


if __name__ == "__main__":
    main()
