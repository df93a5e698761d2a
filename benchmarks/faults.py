"""Kill the pipeline at every boundary of its steps and at random moments, while a champion serves.

A clone of this repository runs the recipe `digits` with short trainings. Its service answers all the time. Runs and
rollbacks are killed with SIGKILL. After each kill, the history must be whole and have a champion. At the end, one run
must serve the registry's champion. The results are written to docs/results/faults.json.

    python benchmarks/faults.py --moments 50
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import load
import numpy as np
import psutil
import services
from keeping import keep
from tqdm import tqdm

from mobilenet_pipeline.system import ports, process

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/faults.json"
PROGRAM = Path(sys.executable).parent / "mobilenet-pipeline"
QUICK = {"epochs": "1", "strides": "stock", "accuracy_floor": "0.01", "calibration_error": "1.0", "recall_drop": "1.0"}
QUICK |= {"loss_margin": "9.0", "corruption_drop": "1.0", "coverage": "0.01"}
STEPS = 11
"""The steps of a run of `digits`: eight stages, and judge, promote and report."""
ORPHAN_SECONDS = 20
"""How long children of a killed program may take to notice."""


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and what was left: `step` is the last line of progress, `orphans` are processes."""

    command: str
    after_seconds: float
    step: str
    finished: bool
    history: int
    champion: str
    consistent: bool
    orphans: int


class Client(threading.Thread):
    """A client that asks /predict all the time; it counts answers by version, and failures by message."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.versions, self.failures = port, Counter[str](), Counter[str]()
        self.over = threading.Event()

    def run(self) -> None:
        """Ask until `over` is set."""
        body = load.form("image", [load.png(np.full((32, 32, 3), 128, np.uint8))])
        while not self.over.wait(0.05):
            try:
                status, content = load.post(self.port, "/predict", load.FORM, body)
                if status != 200:
                    raise ConnectionError(f"status {status}")
                self.versions[json.loads(content)["model_version"]] += 1
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.failures[repr(error)[:80]] += 1


class Workspace:
    """A clone with short trainings, and what people do in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seed = folder, 0
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        own = ("MLFLOW_", "PREFECT_", "BENTOML_HOME", "MOBILENET_PIPELINE_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        self.env |= {"PYTHONPATH": f"{folder / 'src'}:{folder}", "PWD": str(folder)}
        self.service: psutil.Process | None = None
        params = folder / "params.yaml"
        digits, mark, others = params.read_text().partition("  # CIFAR-10 on")
        for key, value in QUICK.items():
            digits = re.sub(rf"\b{key}: .*", f"{key}: {value}", digits)
        params.write_text(digits + mark + others)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the program until it ends."""
        command = [str(PROGRAM), *words]
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)

    def must(self, *words: str) -> str:
        """Run the program, and return its output. Raises ChildProcessError if it fails."""
        done = self.run(*words)
        if done.returncode:
            raise ChildProcessError(f"{' '.join(words)}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    def change(self) -> None:
        """Give the scratch candidate another seed, so that the next run trains it, and judges again."""
        self.seed += 1
        params = self.folder / "params.yaml"
        text = params.read_text()
        params.write_text(re.sub(r"\bseed: \d+(?=\n      pretrained)", f"seed: {self.seed}", text, count=1))

    def champions(self) -> list[str]:
        """Return the versions that were champion, the newest first, without repetition."""
        events = json.loads(self.must("history", "--json"))
        return list(dict.fromkeys(event["after"] for event in events if event["after"]))

    def other_version(self) -> str:
        """Return a version to which a rollback can go: not the champion."""
        document = json.loads(self.run("status", "--json").stdout)
        champion, challenger = document["champion"]["version"], document["challenger"]
        known = [version for version in self.champions() if version != champion]
        return str(known[0] if known else challenger["version"])

    def kill(self, words: list[str], moment: float | int) -> Kill:
        """Start the program, kill it with SIGKILL, and return what was left.

        `moment` is a time in seconds, or the number of the step after whose end it is killed.
        """
        started, step, steps = time.monotonic(), "", 0
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        child = subprocess.Popen([str(PROGRAM), *words], cwd=self.folder, env=self.env, **streams)
        timer = threading.Timer(moment, child.kill) if isinstance(moment, float) else None
        if timer:
            timer.start()
        for line in child.stdout or []:
            if line.rstrip().endswith("…"):
                step = line.strip(" …\n")
            if re.search(r" (ran|restored|unchanged), [\d.]+ s$", line):
                steps += 1
                if steps == moment:
                    child.send_signal(signal.SIGKILL)
                    step = f"end of {step}"
        code = child.wait()
        if timer:
            timer.cancel()
        seconds = time.monotonic() - started
        orphans = self._orphans()
        events = json.loads(self.must("history", "--json"))  # raises if a line is damaged
        status = self.run("status", "--json")
        document = json.loads(status.stdout) if status.stdout else {}
        champion = (document.get("champion") or {}).get("version", "")
        whole = status.returncode in (0, 3) and bool(champion)
        return Kill(" ".join(words), round(seconds, 2), step, code == 0, len(events), str(champion), whole, orphans)

    def _orphans(self) -> int:
        """Return how many processes of the killed program still run in this workspace."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while left := self._processes():
            if time.monotonic() > deadline:
                return len(left)
            time.sleep(0.5)
        return 0

    def _processes(self) -> list[psutil.Process]:
        """Return the processes that run in this workspace, except the service."""
        spared = [self.service, *self.service.children(recursive=True)] if self.service else []
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.cwd() == str(self.folder) and one.status() != psutil.STATUS_ZOMBIE and one not in spared:
                    found.append(one)
        return found


def torture(folder: Path, moments: int, seed: int) -> dict[str, Any]:
    """Kill runs and rollbacks in a new workspace in `folder`, and return what was seen."""
    chance, workspace = random.Random(seed), Workspace(folder)
    workspace.must("run")
    workspace.change()
    began = time.monotonic()
    workspace.must("run")
    run_seconds = time.monotonic() - began
    port = services.free_port()
    kills: list[Kill] = []
    command = [str(PROGRAM), "serve", "--port", str(port)]
    with (
        (folder / "serve.log").open("wb") as log,
        process.leashed(command, workspace.env, stdout=log, cwd=folder) as server,
    ):
        ports.wait_for(f"http://127.0.0.1:{port}/model", server, folder / "serve.log")
        workspace.service = psutil.Process(server.pid)
        client = Client(port)
        client.start()
        plan: list[tuple[str, float | int]] = [("run", number) for number in range(1, STEPS + 1)]
        plan += [(chance.choice(["run", "rollback"]), -1.0) for _ in range(moments)]
        for what, moment in tqdm(plan, "kills", file=sys.stderr):
            words = ["run", "--force"] if isinstance(moment, int) else ["run"]
            if what == "run":
                workspace.change()
            else:
                words = ["rollback", "--to", workspace.other_version(), "--reason", "a test of failures"]
            limit = run_seconds if what == "run" else 20.0
            kills.append(workspace.kill(words, moment if isinstance(moment, int) else chance.uniform(0.5, limit)))
            tqdm.write(str(kills[-1]), file=sys.stderr)
        workspace.must("run")
        final = json.loads(workspace.must("status", "--json"))["champion"]["version"]
        traced = workspace.run("trace", final)
        time.sleep(5)
        before = client.versions.copy()
        time.sleep(5)
        client.over.set()
        client.join()
        return {
            "kills": len(kills),
            "at_boundaries": STEPS,
            "at_random_moments": moments,
            "finished_before_the_kill": sum(kill.finished for kill in kills),
            "inconsistent": sum(not kill.consistent for kill in kills),
            "orphans": sum(kill.orphans for kill in kills),
            "events_lost": sum(later.history < earlier.history for earlier, later in pairwise(kills)),
            "requests": sum(client.versions.values()),
            "failed_requests": dict(client.failures),
            "versions_that_answered": dict(client.versions),
            "champion": final,
            "champion_answers": (client.versions - before)[final] > 0 and len(client.versions - before) == 1,
            "trace_holds": traced.returncode == 0,
            "moments": [asdict(kill) for kill in kills],
        }


def main() -> int:
    """Write the results, and return 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="kills at random moments (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="faults-") as scratch:
        found = torture(Path(scratch) / "workspace", options.moments, options.seed)
    command = f"python benchmarks/faults.py --moments {options.moments} --seed {options.seed}"
    keep(RESULTS, "killed", found, command, ["prefect", "mlflow", "dvc", "bentoml"])
    print(json.dumps({key: value for key, value in found.items() if key != "moments"}, indent=2))
    lost = found["inconsistent"] or found["orphans"] or found["events_lost"] or found["failed_requests"]
    return int(bool(lost or not found["champion_answers"] or not found["trace_holds"]))


if __name__ == "__main__":
    sys.exit(main())
