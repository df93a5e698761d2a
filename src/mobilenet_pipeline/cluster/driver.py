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
        self.relay.tell.remote({"lost": rank, "reason": _sentence(error)})


def _sentence(error: BaseException | None) -> str:
    """Return what Ray or TensorFlow says of a failure, without the guesses and the traceback."""
    lines = [line.strip() for line in str(error).partition("Some common causes")[0].splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def write(**message: Any) -> None:
    """Write a message for the stage."""
    print(json.dumps(message), flush=True)


def main() -> None:
    """Run the job of the command line, and write its outcome."""
    environment.prepare()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    restarts, over = 0, False
    try:
        while not over:
            with _connected(job):
                run = Run(job, _relay(job), stop, restarts)
                over = run.to_the_end()
            restarts = run.restarts
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


def _relay(job: dict[str, Any]) -> Any:
    """Start the relay, with the state that the workspace has."""
    kept = Path(job["checkpoint"])
    state = kept.read_bytes() if kept.exists() else None
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Relay).remote(state)


class Run:
    """One training on the cluster, from waiting for room to its last message.

    `stop` is set when the training shall stop. `restarts` is how often the workers were started again before.
    """

    def __init__(self, job: dict[str, Any], relay: Any, stop: threading.Event, restarts: int) -> None:
        self.job, self.relay, self.stop, self.restarts = job, relay, stop, restarts
        self.last_epoch, self.over, self.running = 0, False, False
        self.failure: BaseException | None = None
        self.resource = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        self.workers = job["workers"]
        self.deadline, self.told = 0.0, 0.0

    def to_the_end(self) -> bool:
        """Train; return whether the training is over, False if fewer workers shall go on. Raises Failed."""
        self._start_clock()
        while not self._finds_room() and not self.stop.wait(ROOM_SECONDS):
            pass
        if self.stop.is_set():
            return self._interrupted()
        write(placed={"workers": self.workers, "devices": self.job["devices"], "resource": self.resource})
        thread = threading.Thread(target=self._fit, daemon=True)
        thread.start()
        looked = time.monotonic()
        while thread.is_alive():
            self._pass_on()
            if self.stop.is_set():
                if not self.running:  # nothing has happened since the last state
                    return self._interrupted()
                self.relay.stop.remote()
            if not self.running and time.monotonic() - looked > ROOM_SECONDS:
                looked, before = time.monotonic(), self.workers
                self._finds_room()
                if self.workers != before:
                    return False
            time.sleep(LOOK_SECONDS)
        self._pass_on()
        if not self.over:
            raise Failed(f"the workers were lost {self.restarts} times: {_sentence(self.failure)}", lasting=False)
        return True

    def _interrupted(self) -> bool:
        write(interrupted=True, saved=Path(self.job["checkpoint"]).exists())
        return True

    def _start_clock(self) -> None:
        self.deadline, self.told = time.monotonic() + self.job["limit"], -TELL_SECONDS

    def _finds_room(self) -> bool:
        """Return whether the cluster has room for the workers, for fewer if they may train.

        Raises Failed after the limit.
        """
        room, now = self.room(), time.monotonic()
        if room >= self.workers:
            return True
        devices = f"{self.job['devices']} {self.resource}{'s' if self.job['devices'] > 1 else ''}"
        sentence = f"the candidate has {self.workers} workers of {devices}, and the cluster has room for {room}"
        if fitting := [count for count in self.job["fewer"] if count <= room]:
            self.workers = max(fitting)
            write(say=f"{sentence}: {self.workers} train, with the same global batch")
            return True
        if now > self.deadline:
            remedy = "add a machine, or allow fewer_workers in the recipe"
            raise Failed(f"{sentence}, after {self.job['limit']} s; {remedy}", lasting=False)
        if now - self.told > TELL_SECONDS:
            write(say=f"{sentence}: waiting")
            self.told = now
        return False

    def room(self) -> int:
        """Return how many workers the cluster's nodes have room for, other jobs aside."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(node.get(self.resource, 0) // self.job["devices"]) for node in nodes)

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
                failure_config=FailureConfig(max_failures=RESTARTS - self.restarts),
                callbacks=[Restarts(self.relay)],
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self.failure = error

    def _pass_on(self) -> None:
        """Pass the workers' messages on. Raises Failed for an error that no restart can mend."""
        for message in ray.get(self.relay.take.remote()):
            if "files_needed" in message:
                content = files.parts(Path(self.job["data"]))
                kept = [(name, [ray.put(part) for part in parts]) for name, parts in content]
                ray.get(self.relay.give_files.remote(kept))
            elif "error" in message:
                raise Failed(message["error"], message["lasting"])
            elif "lost" in message:
                self.restarts, self.running = self.restarts + 1, False
                self._start_clock()
                lost = f"worker {message['lost'] + 1} is lost after epoch {self.last_epoch}: {message['reason']}"
                write(say=f"{lost}; Ray starts all workers again ({self.restarts} of {RESTARTS})")
            elif "state" in message:
                self._keep(message["state"])
            elif "trained" in message:
                Path(self.job["model"]).write_bytes(message["model"])
                write(trained=message["trained"])
                self.over = True
            else:
                self.over, self.running = self.over or "interrupted" in message, True
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


if __name__ == "__main__":
    main()
