"""The process that asks Ray for workers: `python -m mobilenet_pipeline.cluster.driver JOB.json`.

Ray ends a process whose cluster is gone, so this is not the stage's own. It writes a JSON document a line for
`cluster.job`, and files into the workspace.
"""

import io
import json
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

import mobilenet_pipeline
from mobilenet_pipeline.cluster import files, worker
from mobilenet_pipeline.cluster.relay import Message, Relay
from mobilenet_pipeline.system import environment
from mobilenet_pipeline.training import checkpoint, distribution

RESTARTS = 3
"""How often Ray may start the workers again."""
VARIABLES = (distribution.LIMIT, "TF_DETERMINISTIC_OPS", "TF_FORCE_GPU_ALLOW_GROWTH")
"""Variables of this process that the workers get."""
LOOK_SECONDS = 0.2
ROOM_SECONDS = 5.0
FEWER_SECONDS = 60.0
"""Seconds that lost workers are waited for before fewer go on."""
TELL_SECONDS = 60.0
"""Seconds between two sentences about missing room."""
_MISMATCH = "Version mismatch"


class Failed(Exception):
    """The job cannot go on; `lasting` if another try would fail, too."""

    def __init__(self, sentence: str, lasting: bool) -> None:
        super().__init__(sentence)
        self.lasting = lasting


class Restarts(ControllerCallback):
    """Tells the driver why Ray starts the workers again; it runs in Ray's controller."""

    def __init__(self, relay: Any) -> None:
        self.relay = relay

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Tell the error of workers that are gone, or that could not start; that they wait for room is no error."""
        error = getattr(current_state, "training_failed_error", None)
        if isinstance(current_state, RestartingState):
            # Of several errors, those of living workers follow from that of the one that is gone.
            errors = sorted(
                getattr(error, "worker_failures", {0: error}).items(),
                key=lambda each: not isinstance(each[1], WorkerHealthCheckFailedError),
            )
            self.relay.tell.remote({"lost": errors[0][0], "reason": _sentence(errors[0][1])})
        elif isinstance(current_state, ReschedulingState):
            cause: BaseException | None = getattr(error, "controller_failure", error)
            if cause and not isinstance(cause, WorkerGroupStartupTimeoutError):
                self.relay.tell.remote({"not_started": _sentence(cause.__cause__ or cause)})


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
    # After the end of the connection, a thread that still asks Ray would start a Ray of its own.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    stop = threading.Event()
    try:
        with _connected(job):
            for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set handlers of its own
                signal.signal(number, lambda *_: stop.set())
            run = KINDS[job["kind"]](job, stop)
            if not run.to_the_end():
                write(again={"workers": run.workers, "restarts": run.restarts})
    except Failed as failure:
        write(error=str(failure), lasting=failure.lasting)
    except Exception as error:
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        hint = "; see the logs of the cluster's machines" if isinstance(error, ray.exceptions.RayError) else ""
        write(error=f"the driver of {job['candidate']} has failed: {name}{_sentence(error)}{hint}", lasting=False)


@contextmanager
def _connected(job: dict[str, Any]) -> Iterator[None]:
    """Connect to the cluster for the `with` body. Raises Failed if there is none, or if its Ray or Python differs."""
    address = job["address"]
    # Workers run this code, whatever is installed where they are.
    runtime = {
        "py_modules": [str(Path(mobilenet_pipeline.__file__).parent)],
        "worker_process_setup_hook": "mobilenet_pipeline.system.environment.prepare",
        "env_vars": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    try:
        ray.init(address, runtime_env=runtime, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        sentence = " ".join(str(error).split())
        if _MISMATCH in sentence:
            raise Failed(
                f"this workspace cannot use the Ray cluster at {address!r}: {sentence}", lasting=True
            ) from None
        # Ray's clients send a token by themselves only to a cluster that they have found on this machine.
        hint = "" if "RAY_AUTH_MODE" in os.environ else " (if it asks for a token, set RAY_AUTH_MODE=token)"
        raise Failed(f"no Ray cluster at {address!r}{hint}: {sentence}", lasting=False) from None
    try:
        yield
    except Exception:
        if _is_gone():  # Ray's client says that it is not connected
            raise Failed(f"the Ray cluster at {address} is gone", lasting=False) from None
        raise
    finally:
        ray.shutdown()


def _is_gone() -> bool:
    """Return whether the connection to the cluster has ended."""
    try:
        return not ray.is_initialized()
    except Exception:  # the client asks its server
        return True


class Run(ABC):
    """One job on the cluster, from its start to its last message. `stop` is set when it shall stop."""

    saves = False
    """Whether its workers save their state when they are asked to stop."""

    def __init__(self, job: dict[str, Any], stop: threading.Event) -> None:
        self.job, self.stop, self.workers, self.restarts = job, stop, job["workers"], job["restarts"]
        self.failed_starts = 0
        self.storage = f"/tmp/mobilenet-pipeline-{job['name']}"
        """A folder for Ray's own notes, on the machine of the relay."""
        place = {"node_id": ray.get_runtime_context().get_node_id(), "soft": False}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(**place)
        self.relay = ray.remote(num_cpus=0, scheduling_strategy=here)(Relay).remote(self.state())
        self.resource = self.resource_of_devices()
        self.over, self.running = False, False
        self.failure: BaseException | None = None
        self.began, self.told = time.monotonic(), 0.0

    def state(self) -> bytes | None:
        """Return what the workers start from."""
        return None

    def resource_of_devices(self) -> str:
        """Return what a device is for Ray."""
        return "CPU"

    @abstractmethod
    def work(self) -> None:
        """Let Ray do the job."""

    def to_the_end(self) -> bool:
        """Do the job; return whether it is over, False if fewer workers shall go on. Raises Failed."""
        write(placed={"workers": self.workers, "devices": self.job["devices"], "resource": self.resource})
        thread = threading.Thread(target=self._guarded, daemon=True)
        thread.start()
        try:
            return self._follow(thread)
        finally:
            ray.get(self.relay.remove.remote(self.storage))

    def _follow(self, thread: threading.Thread) -> bool:
        looked = 0.0
        while thread.is_alive():
            self._pass_on()
            if self.stop.is_set():
                if not (self.running and self.saves):  # nothing has happened since the last state
                    self.interrupted()
                    return True
                self.relay.stop.remote()
            # While there is no room, Ray waits, and a cluster that can grow does so.
            if not self.running and time.monotonic() - looked > ROOM_SECONDS:
                looked = time.monotonic()
                if self._goes_on_with_fewer():
                    return False
            time.sleep(LOOK_SECONDS)
        self._pass_on()
        if not self.over:
            lost = f"the workers were lost {self.restarts + 1} times: " if self.restarts else ""
            raise Failed(f"{lost}{_sentence(self.failure)}", lasting=False)
        return True

    def interrupted(self) -> None:
        """Tell the stage that the job was stopped. Raises Failed if that is all."""
        raise Failed(f"the work on {self.job['candidate']} was stopped", lasting=False)

    def _guarded(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.failure = error

    def _goes_on_with_fewer(self) -> bool:
        """Look for room; return whether fewer workers, which have it, are to go on. Raises Failed after the limit."""
        nodes, waited, limit = _nodes(self.resource), time.monotonic() - self.began, self.job["limit"]
        room = sum(int(found // self.job["devices"]) for found in nodes)  # other jobs aside
        devices = f"{self.job['devices']} {self.resource}{'s' if self.job['devices'] > 1 else ''}"
        needed = f"{self.job['candidate']} has {self.workers} worker{'s' if self.workers > 1 else ''} of {devices}"
        if room >= self.workers:
            if self.waits_for_other_jobs():
                self.began = time.monotonic()
                self._tell_now_and_then(f"{needed}, and other jobs have the room: waiting")
            elif waited > limit:
                raise Failed(f"{needed}, and Ray has not started them within {limit} s; see its page", lasting=False)
            return False
        sentence = f"{needed}, and the cluster has room for {room}"
        fitting = [count for count in self.job["fewer"] if count <= room]
        if fitting and waited > (min(FEWER_SECONDS, limit) if self.restarts else limit):
            self.workers = max(fitting)
            write(say=f"{sentence}: {self.workers} train, with the same global batch")
            return True
        if waited > limit:
            remedy = "add a machine"
            if not room:
                remedy += f" with {devices}: the largest has {max(nodes, default=0):g} (devices_per_worker)"
            elif not self.job["fewer"]:
                remedy += ", or allow fewer_workers in the recipe"
            raise Failed(f"{sentence}, after {limit} s; {remedy}", lasting=False)
        self._tell_now_and_then(f"{sentence}: waiting")
        return False

    def _tell_now_and_then(self, sentence: str) -> None:
        if time.monotonic() - self.told > TELL_SECONDS:
            write(say=sentence)
            self.told = time.monotonic()

    @abstractmethod
    def waits_for_other_jobs(self) -> bool:
        """Return whether other jobs have the room that this one needs."""

    def _pass_on(self) -> None:
        """Pass the workers' messages on. Raises Failed for an error that no restart can mend."""
        for message in ray.get(self.relay.take.remote()):
            if "wanted" in message:
                name, index = message["wanted"]
                reference = ray.put(files.part(Path(self.job["data"]), name, index))
                ray.get(self.relay.give_part.remote(name, index, [reference]))
            elif "error" in message:
                raise Failed(message["error"], message["lasting"])
            elif "lost" in message:
                self._lose(message["lost"], message["reason"])
            elif "not_started" in message:
                self._fail_to_start(message["not_started"])
            else:
                # What workers have told before they were lost may come after the loss.
                self.running = self.running or "started" in message
                self.hear(message)

    def _lose(self, rank: int, reason: str) -> None:
        self.restarts, self.running, self.began = self.restarts + 1, False, time.monotonic()
        write(say=f"worker {rank + 1} is lost: {reason}; Ray starts all workers again ({self.restarts} of {RESTARTS})")

    def _fail_to_start(self, reason: str) -> None:
        """Tell that workers could not start. Raises Failed if that happens too often: Ray would try it for ever."""
        self.failed_starts += 1
        sentence = f"the workers of {self.job['candidate']} cannot start: {reason}"
        if self.failed_starts > RESTARTS:
            raise Failed(f"{sentence}; see the logs of its machines, and that they have the packages", lasting=False)
        write(say=f"{sentence}; Ray tries again ({self.failed_starts} of {RESTARTS})")

    def hear(self, message: Message) -> None:
        """Pass a message of this kind of job on."""
        write(**message)


def _nodes(resource: str) -> list[float]:
    """Return how much of a resource each living node has, used or not."""
    return [node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"]]


class Training(Run):
    """The training of a candidate."""

    saves = True

    def state(self) -> bytes | None:
        """Return the checkpoint that the workspace has."""
        path = Path(self.job["checkpoint"])
        return path.read_bytes() if path.exists() else None

    def resource_of_devices(self) -> str:
        """Return what the candidate says; GPU by itself if the cluster has any now."""
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        return {"gpu": "GPU", "cpu": "CPU", "auto": "GPU" if has_gpus else "CPU"}[self.job["device"]]

    def interrupted(self) -> None:
        """Tell the stage whether the workspace has a checkpoint."""
        write(interrupted=True, saved=Path(self.job["checkpoint"]).exists())

    def waits_for_other_jobs(self) -> bool:
        """Return whether Ray has not reserved the workers' devices yet."""
        return bool(ray.get(self.relay.waits.remote(self.workers, {self.resource: self.job["devices"]})))

    def work(self) -> None:
        """Let Ray place the workers, and start them again when one is lost."""
        weights = Path(self.job["weights"]) if self.job["weights"] else None
        left = max(0, RESTARTS - self.restarts)
        trainer = TensorflowTrainer(
            worker.train,
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
                storage_path=self.storage,
                failure_config=FailureConfig(max_failures=left, max_preemption_failures=left),
                callbacks=[Restarts(self.relay)],
            ),
        )
        trainer.fit()

    def hear(self, message: Message) -> None:
        """Keep state and model as files, and pass the rest on."""
        if "state" in message:
            with redirect_stdout(io.StringIO()) as said:
                checkpoint.keep(Path(self.job["checkpoint"]), message["state"])
            if said.getvalue():
                write(say=said.getvalue().strip())
            return
        if "trained" in message:
            Path(self.job["model"]).write_bytes(message.pop("model"))
        self.over = self.over or bool(message.keys() & {"trained", "interrupted"})
        write(**message)


class Evaluation(Run):
    """The evaluation of an artefact."""

    def waits_for_other_jobs(self) -> bool:
        """Return whether no CPU is free; its own worker starts soon after it has one."""
        return float(ray.available_resources().get(self.resource, 0)) < 1

    def work(self) -> None:
        """Let Ray place the worker, and place it again when it is lost."""
        job = {key: self.job[key] for key in ("recipe", "data", "digest")}
        job |= {"relay": self.relay, "artefact": ray.put(Path(self.job["artefact"]).read_bytes())}
        task = ray.remote(num_cpus=1, max_retries=0)(worker.evaluate)
        for _ in range(RESTARTS):
            try:
                ray.get(task.remote(job))
                return
            except ray.exceptions.RayError as error:
                ray.get(self.relay.tell.remote({"lost": 0, "reason": _sentence(error)}))
        ray.get(task.remote(job))

    def hear(self, message: Message) -> None:
        """Keep the predictions as a file, and pass the rest on."""
        if "document" in message:
            Path(self.job["predictions"]).write_bytes(message.pop("predictions"))
            self.over = True
        write(**message)


KINDS: dict[str, Callable[[dict[str, Any], threading.Event], Run]] = {"train": Training, "evaluate": Evaluation}

if __name__ == "__main__":
    main()
