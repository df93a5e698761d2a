"""`mobilenet-pipeline`: run, inspect, review, schedule and serve a recipe."""

import argparse
import gc
import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module, metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import shtab

from mobilenet_pipeline.config import Recipe, did_you_mean, load_recipe
from mobilenet_pipeline.stages.runner import EXPECTED
from mobilenet_pipeline.system import environment, failures, ports

if TYPE_CHECKING:
    from mobilenet_pipeline.registry.versions import Version

DEFAULT_RECIPE = "digits"
ATTENTION = 3
"""The exit code of a command that works, and shows something that needs attention."""
LOOK_SECONDS = 10.0
"""Between two looks of `serve --follow` at the registry."""
STOP_SECONDS = 70.0
"""The longest time that `serve --follow` gives its service to answer the requests that have begun."""
TAKEN_OVER = "A service that `serve` has started takes it over within a second."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; an error that the user can fix is one sentence and code 1.

    It ends without a word if the reader of its output is gone, as after `… | head`.
    """
    try:
        try:
            return _run_command(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 128 + signal.SIGPIPE


def _run_command(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        environment.prepare()
        # Somebody waits for an answer; the flows have their own patience.
        waits = nullcontext() if options.command in (run, schedule) else environment.impatient()
        with waits, _uncollected() if options.command in (status, review, show_history, trace) else nullcontext():
            return options.command(options) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = None if isinstance(error, BrokenPipeError) and _reader_is_gone() else _explain(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1


def _explain(error: Exception) -> str | None:
    """Return the error as a sentence, None for a fault of this program."""
    if "mlflow" in sys.modules:  # loading it takes seconds, and an error before is not of its stores
        from mobilenet_pipeline.registry import away

        error = away.translated(error) or error
    return failures.explain(error, EXPECTED)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage in the `with` body, nor later in what it leaves: half of the time of a command that reads.

    Such a command imports much, reads little, and ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _reader_is_gone() -> bool:
    """Return whether nothing reads this program's output any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the words close to a mistyped one."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with code 2."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        super().error(message + (did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""))


def parser() -> argparse.ArgumentParser:
    """Return the parser with every command and its options."""
    root = Parser(prog="mobilenet-pipeline", description=__doc__)
    version = metadata.version("mobilenet-pipeline")
    root.add_argument("--version", action="version", version=f"%(prog)s {version}")
    shtab.add_argument_to(root, "--print-completion", help="print a completion script for this shell")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str, of_recipe: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if of_recipe:
            sub.add_argument("--recipe", default=DEFAULT_RECIPE, help="a section of params.yaml (default: %(default)s)")
        sub.set_defaults(command=command)
        return sub

    def add_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print one JSON document")

    sub = add("run", run, "Run the whole pipeline: repeat only what changed, and promote the better model.")
    sub.add_argument("--force", action="store_true", help="run every stage, even if nothing changed")
    text = "a Ray cluster for the trainings: auto, ray://HOST:10001 or local (default: MOBILENET_PIPELINE_CLUSTER)"
    sub.add_argument("--cluster", metavar="ADDRESS", help=text)
    text = "stages that run at the same time (default: MOBILENET_PIPELINE_JOBS, else 1 or 2, or all on auto or ray://)"
    sub.add_argument("--jobs", type=int, metavar="N", help=text)
    sub.add_argument("--deterministic", action="store_true", help="refuse operations that differ from run to run")
    sub.add_argument("--tensorboard", action="store_true", help="log the trainings for TensorBoard, in the folder logs")
    sub.add_argument("--results", type=Path, metavar="FOLDER", help="copy the results to FOLDER/RECIPE.json")
    sub.add_argument(
        "--new-registry", action="store_true", help="go on with MLflow's present store, not the former one"
    )
    sub = add("init", init, "Look at your images and add a recipe for them.", of_recipe=False)
    sub.add_argument("name", metavar="NAME", help="the new recipe's name; with --update, that of a recipe")
    images = sub.add_argument("--images", type=Path, metavar="PATH", help="a folder, table or archive")
    images.complete = shtab.FILE  # type: ignore[attr-defined]
    text = "processor time for both trainings together (default: 60)"
    sub.add_argument("--cpu-minutes", type=float, metavar="MINUTES", help=text)
    sub.add_argument("--size", type=int, metavar="PIXELS", help="image size, 28 to 224 (default: by the images' sizes)")
    text = "how an image becomes a square: cut, or with black borders (default: crop)"
    sub.add_argument("--resize", choices=("crop", "pad"), help=text)
    text = "the images have changed: give the recipe their digest, counts and means"
    sub.add_argument("--update", action="store_true", help=text)
    sub.add_argument("--dry-run", action="store_true", help="print what is found and proposed; change nothing")
    text = "Show the champion, what is served, and the last verdict. Exit code 3: what is served differs."
    add_json(add("status", status, text))
    sub = add("review", review, "Show the card of a version and the gate's verdict on it.")
    sub.add_argument("version", nargs="?", help="its number (default: what waits for approval, else the champion)")
    sub.add_argument(
        "--dry-run", action="store_true", help="the verdict on this workspace's candidates; records nothing"
    )
    sub.add_argument("--json", action="store_true", help="print the verdict as one JSON document")
    sub = add("approve", approve, "Promote a version that passed the gate and waits for approval.")
    sub.add_argument("version", help="its number")
    sub = add("reject", reject, "Withdraw a version, so that no run promotes it.")
    sub.add_argument("version", help="its number")
    sub.add_argument("--reason", required=True, help="kept in the registry and in the history")
    sub = add("rollback", rollback, "Serve the previous champion again, and withdraw the present one.")
    sub.add_argument("--to", metavar="VERSION", help="the version to serve instead of the previous champion")
    sub.add_argument("--reason", required=True, help="kept in the registry and in the history")
    add_json(add("history", show_history, "List every promotion, rollback, approval and rejection."))
    sub = add("trace", trace, "Follow a version to its run, commit, data, validation and verdict; check every hash.")
    traced = sub.add_mutually_exclusive_group(required=True)
    traced.add_argument("version", nargs="?", help="its number, as in the API's answers")
    answer = traced.add_argument("--answer", metavar="FILE", help="an answer of /predict as JSON; - for standard input")
    answer.complete = shtab.FILE  # type: ignore[attr-defined]
    add_json(sub)
    sub = add("schedule", schedule, "Run the pipeline on a schedule, until Ctrl-C.")
    sub.add_argument("--cron", required=True, metavar='"0 3 * * *"', help="when: minute hour day month weekday")
    sub.add_argument("--timezone", default="UTC", help="IANA name, such as Europe/Berlin (default: UTC)")
    sub.add_argument(
        "--prefect-port", type=int, default=4200, help="port of the server that is started (default: 4200)"
    )
    text = "Compare recorded answers with the champion's test images, and with true classes. Exit code 3: drift."
    sub = add("monitor", monitor, text)
    labels = sub.add_argument("--labels", type=Path, metavar="FILE.csv", help="true classes: answer_id,truth")
    labels.complete = shtab.FILE  # type: ignore[attr-defined]
    sub.add_argument("--every", type=int, metavar="MINUTES", help="look again and again, until Ctrl-C")
    add_json(sub)
    text = "Let Prefect notify people of failed, crashed and late runs, approvals and drift, of all recipes."
    sub = add("alerts", alerts, text, of_recipe=False)
    sub.add_argument("--webhook", metavar="URL", help="post subject and text as JSON to this address")
    sub.add_argument("--slack", metavar="URL", help="an incoming webhook of Slack")
    sub.add_argument("--email", metavar="ADDRESS", help="by SendGrid, from and to this address; needs SENDGRID_API_KEY")
    text = "a notification block of the Prefect server; may be given again"
    sub.add_argument("--block", action="append", default=[], metavar="TYPE/NAME", help=text)
    sub.add_argument("--test", action="store_true", help="send a message, too")
    sub = add("serve", serve, "Serve the promoted models as an HTTP API, until Ctrl-C.")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sub.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    sub.add_argument("--follow", action="store_true", help="serve what other machines promote or roll back, too")
    add("fetch", fetch, "Make the registry's champion live on this machine: fetch its models, build and try its Bento.")
    sub = add("predict", predict, "Show what the promoted models answer for a photo, side by side.")
    image = sub.add_argument("image", type=Path, metavar="IMAGE", help="an image file of any size")
    image.complete = shtab.FILE  # type: ignore[attr-defined]
    text = "Check installation, servers, records and models, and name remedies. Exit code 1: something fails."
    sub = add("doctor", doctor, text)
    sub.add_argument(
        "--repair", action="store_true", help="first restore lost artefacts and the Bento from other copies"
    )
    add_json(sub)
    text = "Save registry, artefacts, records, Bentos and live pointers of all recipes in one file, and check it."
    sub = add("backup", backup, text, of_recipe=False)
    sub.add_argument("file", type=Path, metavar="FILE.tar.gz", help="a new file, outside of what is saved")
    sub = add("restore", restore, "Bring back all that a backup holds, after a check of every hash.", of_recipe=False)
    archive = sub.add_argument("file", type=Path, metavar="FILE.tar.gz", help="what `backup` wrote")
    archive.complete = shtab.FILE  # type: ignore[attr-defined]
    sub.add_argument("--force", action="store_true", help="replace what is here, and keep it under another name")
    sub = add("gc", collect, "List what no longer counts in MLflow, BentoML, DVC and Prefect; with --yes, remove it.")
    sub.add_argument("--keep", type=int, required=True, metavar="N", help="the newest versions and flow runs that stay")
    sub.add_argument("--yes", action="store_true", help="remove what is listed; without it, nothing is removed")
    sub = add("anatomy", anatomy, "List parameters and multiply-adds per layer, beside standard convolutions.")
    sub.add_argument("--candidate", metavar="NAME", help="only this one (default: all)")
    sub = add("ui", ui, "Show the pages of MLflow and Prefect, until Ctrl-C.", of_recipe=False)
    sub.add_argument("--mlflow-port", type=int, default=5000, help="default: %(default)s")
    sub.add_argument("--prefect-port", type=int, default=4200, help="default: %(default)s")
    return root


def run(options: argparse.Namespace) -> None:
    """Run the flow in this process and show its progress."""
    from rich.console import Console

    from mobilenet_pipeline.cluster import setting
    from mobilenet_pipeline.stages.jobs import number_of_jobs

    recipe, cluster = load_recipe(options.recipe), setting.address(options.cluster)
    jobs = number_of_jobs(recipe, options.jobs, cluster)
    as_json, console = environment.logs_as_json(), Console(quiet=environment.logs_as_json())
    if options.deterministic:
        os.environ["TF_DETERMINISTIC_OPS"] = "1"  # TensorFlow's own, for the stages' processes
    if options.tensorboard:
        os.environ["MOBILENET_PIPELINE_TENSORBOARD"] = str(Path("logs").resolve())
    if options.new_registry:
        from mobilenet_pipeline.registry import identity

        identity.start_new(recipe)
    sentence = None if options.force or as_json else _nothing_to_do(recipe)
    if sentence is None:
        server = flow_module("server")
        server.prepare(quiet=not as_json)
        api = server.connect()
        if api is None:
            console.print("starting Prefect …", style="dim")
        with nullcontext() if api else server.temporary(meanwhile=lambda: flow_module("display")):
            sentence = flow_module("display").run_and_show(recipe, options.force, console, jobs, cluster)
    from mobilenet_pipeline.release import summary

    summary.print_summary(recipe, sentence, console)
    for option in ("deterministic", "tensorboard"):
        if getattr(options, option) and sentence.startswith("Nothing changed"):
            hint = f"  --{option} affects trainings only, and none was due: add --force to train again"
            console.print(hint, highlight=False, soft_wrap=True)
    if options.results:
        from mobilenet_pipeline.reports.results import results_path

        if sentence.startswith("Skipped"):
            raise BlockingIOError(f"this run was skipped, so {options.results} gets no results: run it again later")
        options.results.mkdir(parents=True, exist_ok=True)
        copy = shutil.copyfile(results_path(recipe), options.results / f"{recipe.name}.json")
        console.print(f"  {'results':<16} {copy}", highlight=False)


def _nothing_to_do(recipe: Recipe) -> str | None:
    """Return the summary of this run if it has nothing to do, None if it needs the flow, whose start takes seconds.

    The flow also says what fails here.
    """
    from mobilenet_pipeline.reports import gauges, results
    from mobilenet_pipeline.stages import runner
    from mobilenet_pipeline.workspace import locks

    began = time.monotonic()
    if not results.reported(recipe):
        return None
    with _uncollected(), locks.only_run(recipe) as busy, ThreadPoolExecutor(1) as beside:
        if busy:
            return None
        unchanged = beside.submit(import_module, "mobilenet_pipeline.release.unchanged")  # it takes as long as DVC
        try:
            if runner.stale(runner.stage_names(recipe)) or (sentence := unchanged.result().find(recipe)) is None:
                return None
            gauges.note_run(recipe, "succeeded", time.monotonic() - began)
        except EXPECTED:
            return None
    return sentence


def init(options: argparse.Namespace) -> None:
    """Print what is at a path, and add a recipe for it to params.yaml, or bring a recipe up to date."""
    from mobilenet_pipeline.stages import init as proposing

    given = {name: getattr(options, name) for name in ("cpu_minutes", "size", "resize")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.update:
        if given:
            word = min(given).replace("_", "-")
            raise ValueError(f"--{word} does not go with --update; change it in params.yaml, or choose a new name")
        proposing.update(options.name, options.images, dry_run=options.dry_run)
    elif options.images is None:
        raise ValueError("--images is missing; give a folder, a table or an archive of images")
    else:
        proposing.main(options.name, options.images, **given, dry_run=options.dry_run)


def status(options: argparse.Namespace) -> int:
    """Print `promotion.status`; the exit code is 3 if something needs attention."""
    from mobilenet_pipeline.release import bento, offline, promotion
    from mobilenet_pipeline.reports import gauges

    recipe = load_recipe(options.recipe)
    found, last = promotion.status(recipe), gauges.last_run(recipe)
    waiting = [decision.version for decision in offline.pending(recipe)]
    attention = found.drift
    if waiting:
        attention = f"The decision on version {waiting[0]} waits for MLflow; the next run or decision applies it."
    if options.json:
        _print_json(
            {
                "recipe": recipe.name,
                "registered_model": recipe.registered_model,
                "champion": _version(found.champion),
                "challenger": _version(found.challenger),
                "waiting": _version(found.waiting),
                "bento": found.bento,
                "verdict": found.verdict and found.verdict.model_dump(mode="json"),
                "last_run": last and dict(zip(("outcome", "at"), last, strict=True)),
                "attention": attention,
            }
        )
        return ATTENTION if attention else 0
    if not (last or any(vars(found).values())):
        print(f"{recipe.name} has not been run yet: mobilenet-pipeline run --recipe {recipe.name}")
        return 0
    for role, version in (("champion", found.champion), ("challenger", found.challenger)):
        facts = version and f"version {version.version}, {version.candidate}, test accuracy {version.accuracy:.2%}"
        print(f"{role:<12}{facts or '–'}")
    store = f" in BENTOML_HOME={bento.home()}"  # where BentoML's own commands find it
    print(f"{'Bento':<12}{f'{found.bento}{store}' if found.bento else '–'}")
    if found.verdict:
        print(f"{'verdict':<12}{found.verdict.reason} ({found.verdict.judged_at})")
    if found.waiting:
        number = found.waiting.version
        print(f"{'waiting':<12}version {number}: mobilenet-pipeline approve {number} --recipe {recipe.name}, or reject")
    if last:
        where = "; Prefect's page of flow runs says why" if last[0] == "failed" else ""
        print(f"{'last run':<12}{' '.join(last)}{where}")
    if attention:
        print(f"{'attention':<12}{attention}")
    return ATTENTION if attention else 0


def _version(version: "Version | None") -> dict[str, Any] | None:
    """Return what `status --json` says of a version."""
    if version is None:
        return None
    return {
        "version": version.version,
        "candidate": version.candidate,
        "test_accuracy": version.accuracy,
        "sha256": version.sha256,
        "run": version.run_id,
    }


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def review(options: argparse.Namespace) -> None:
    """Print card or verdict."""
    from mobilenet_pipeline.release.review import show

    if options.dry_run:
        _preview(load_recipe(options.recipe), options)
        return
    card, verdict = show(load_recipe(options.recipe), options.version)
    if options.json:
        print(verdict.to_json(), end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(card)) if console.is_terminal else print(card)


def _preview(recipe: Recipe, options: argparse.Namespace) -> None:
    """Print what the gate would decide about the workspace's candidates."""
    from mobilenet_pipeline.release import judging

    if options.version:
        raise ValueError(f"--dry-run is about the candidates of this workspace; leave out version {options.version}")
    decision = judging.preview(recipe)
    if options.json:
        print(decision.model_dump_json(indent=2))
        return
    print(decision.reason)
    for check in decision.checks:
        print(f"  {'✓' if check.passed else '✗'} {check.sentence}")
    if decision.warning:
        print(decision.warning)
    print("Nothing was registered, promoted or counted as a comparison.")


def approve(options: argparse.Namespace) -> None:
    """Promote the version that waits."""
    from mobilenet_pipeline.release import judging, promotion, review
    from mobilenet_pipeline.workspace import history

    recipe = load_recipe(options.recipe)
    _decide(recipe, lambda: f"{review.approve(recipe, options.version, history.person())} {TAKEN_OVER}")
    judgement = judging.recall(recipe)
    for sentence in promotion.share(recipe, judgement) if judgement else []:
        print(sentence, flush=True)


def reject(options: argparse.Namespace) -> None:
    """Withdraw a version."""
    from mobilenet_pipeline.release import offline, review
    from mobilenet_pipeline.workspace import history

    recipe = load_recipe(options.recipe)
    decision = (recipe, options.version, options.reason, history.person())
    _decide(recipe, lambda: review.reject(*decision), lambda: offline.reject(*decision))


def rollback(options: argparse.Namespace) -> None:
    """Return to an earlier champion."""
    from mobilenet_pipeline.release import offline, review
    from mobilenet_pipeline.workspace import history

    recipe = load_recipe(options.recipe)
    decision = (recipe, options.to, options.reason, history.person())
    _decide(recipe, lambda: f"{review.rollback(*decision)} {TAKEN_OVER}", lambda: offline.rollback(*decision))


def _decide(recipe: Recipe, decision: Callable[[], str], away: Callable[[], str] | None = None) -> None:
    """Print the sentence of a decision; `away` decides for this machine while MLflow or the records do not answer."""
    from mobilenet_pipeline.registry.away import answering
    from mobilenet_pipeline.registry.store import StoreAwayError
    from mobilenet_pipeline.release import offline
    from mobilenet_pipeline.workspace import locks
    from mobilenet_pipeline.workspace.records import RecordsAway

    try:
        with answering(), locks.deciding(recipe):
            for sentence in offline.replay(recipe):
                print(sentence)
            print(decision(), flush=True)
            _publish(recipe)
    except (StoreAwayError, RecordsAway) as error:
        if away is None:
            raise
        print(f"warning: {error}", file=sys.stderr)
        with locks.deciding(recipe, everywhere=False):
            print(away(), flush=True)


def _publish(recipe: Recipe) -> None:
    """Show the decision in the report, or print why the report lacks it."""
    from mobilenet_pipeline.release import review

    lacking = review.publish(recipe)
    if lacking:
        print(lacking)


def show_history(options: argparse.Namespace) -> None:
    """Print the history, the newest event first."""
    from mobilenet_pipeline.workspace import history
    from mobilenet_pipeline.workspace.records import RecordsAway

    recipe = load_recipe(options.recipe)
    try:
        events = history.read(recipe)
    except RecordsAway as away:
        print(f"warning: {away}; this is the copy of this workspace", file=sys.stderr)
        events = history.read(recipe, copy=True)
    if options.json:
        _print_json([asdict(event) for event in reversed(events)])
        return
    if not events:
        print(f"nothing has happened to {recipe.registered_model} yet: mobilenet-pipeline run --recipe {recipe.name}")
    for event in reversed(events):
        change = "" if event.before == event.after else f", champion {event.before or 'none'} → {event.after}"
        print(f"{event.at}  version {event.version} {event.what} by {event.who}{change}: {event.why}".rstrip(": "))


def trace(options: argparse.Namespace) -> None:
    """Print every link of the trace. Raises ValueError if one does not hold."""
    from mobilenet_pipeline.release import trace as tracing

    recipe, number = load_recipe(options.recipe), options.version
    if number is None:
        answer, source = _read_answer(options.answer)
        number = tracing.version_in(answer, recipe, source)
    links = tracing.trace(recipe, number)
    broken = [link.name for link in links if link.holds is False]
    if options.json:
        _print_json({"version": number, "holds": not broken, "links": [asdict(link) for link in links]})
    for link in [] if options.json else links:
        print(f"{ {True: '✓', False: '✗', None: '?'}[link.holds] } {link.name:<12}{link.sentence}")
    if broken:
        raise ValueError(f"{', '.join(broken)} of version {number} does not hold")


def _read_answer(file: str) -> tuple[str, str]:
    """Return an answer of the API, and the name of its place."""
    if file == "-":
        return sys.stdin.read(), "standard input"
    try:
        # Bytes that are not text are not JSON either, and get that message.
        return Path(file).read_text(encoding="utf-8", errors="replace"), file
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); give the path of an answer of /predict") from None


def schedule(options: argparse.Namespace) -> None:
    """Serve the flow's deployment, on a running Prefect server or on one started here."""
    recipe = load_recipe(options.recipe)
    server = flow_module("server")
    server.prepare(quiet=False)
    api = server.connect()
    with nullcontext(api) if api else server.running(options.prefect_port) as address:
        deployments = flow_module("deployments")
        page = address.removesuffix("/api")
        deployments.check(options.cron, options.timezone)
        for warning in deployments.warnings_of(options.cron, options.timezone):
            print(f"warning: {warning}", flush=True)
        times = deployments.next_times(options.cron, options.timezone)
        print(f"the next runs: {', '.join(f'{time:%Y-%m-%d %H:%M %Z}' for time in times)}")
        when = f"{options.cron!r} ({options.timezone})"
        print(f"{recipe.name} runs at {when}; its page is {page}, Ctrl-C ends the schedule", flush=True)
        deployments.keep_schedule(recipe.name, options.cron, options.timezone)


def monitor(options: argparse.Namespace) -> int:
    """Run the monitoring's flow, once or again and again; the exit code is 3 if drift or a worse champion is open."""
    recipe = load_recipe(options.recipe)
    if options.every is not None and options.every < 1:
        raise ValueError(f"--every is {options.every}; give a number of minutes from 1")
    server = flow_module("server")
    server.prepare(quiet=True)
    before = dict(os.environ)
    with nullcontext() if server.connect() else server.temporary(meanwhile=lambda: flow_module("monitoring")):
        monitoring = flow_module("monitoring")
        monitoring.outside.set(before)
        while options.every:
            try:
                _look(recipe, monitoring, options)
            except Exception as error:  # a server that is away for a minute must not end the monitoring
                print(_warning(error), file=sys.stderr, flush=True)
            time.sleep(60 * options.every)
        return ATTENTION if _look(recipe, monitoring, options) else 0


def _look(recipe: Recipe, monitoring: Any, options: argparse.Namespace) -> bool:
    """Run the flow and print what it found; return whether people are needed."""
    labels = str(options.labels) if options.labels else None
    document = monitoring.monitor(recipe.name, labels, return_state=True).result()
    if options.json:
        _print_json(document)
    else:
        print("\n".join(monitoring.sentences(document)), flush=True)
    return bool(document["drift"] or document["proposal"])


def alerts(options: argparse.Namespace) -> None:
    """Make the automations that notify people, on the running Prefect server."""
    server, key = flow_module("server"), os.environ.get("SENDGRID_API_KEY")
    if not any((options.webhook, options.slack, options.email, options.block)):
        raise ValueError("nobody to notify: give --webhook, --slack, --email or --block")
    if options.email and not key:
        raise ValueError("SENDGRID_API_KEY is not set, and --email needs SendGrid's API key; set it, or use --webhook")
    server.prepare(quiet=True)
    if server.connect() is None:
        raise ValueError("no Prefect server runs that could notify people: set PREFECT_API_URL, or start `make ui`")
    notify = flow_module("alerts")
    blocks = [notify.load(name) for name in options.block]
    blocks += [notify.webhook(options.webhook)] if options.webhook else []
    blocks += [notify.slack(options.slack)] if options.slack else []
    blocks += [notify.email(options.email, key)] if options.email else []
    if options.test:
        notify.test(blocks)
    for name in notify.set_up(blocks):
        print(name)


def serve(options: argparse.Namespace) -> None:
    """Replace this process by the server of the live Bento."""
    from mobilenet_pipeline.release import bento

    recipe = load_recipe(options.recipe)
    address = ports.check_port(options.port, "the API", "--port", options.host)
    if options.follow:
        _serve_and_follow(recipe, address, options.port)
    live = bento.must_be_live(recipe)
    command = bento.serve_command(live.tag, address, options.port, bento.record_of(live.tag))
    os.execv(command[0], command)


def fetch(options: argparse.Namespace) -> None:
    """Look at the registry once, as `serve --follow` does again and again."""
    from mobilenet_pipeline.release import bento, follow

    recipe = load_recipe(options.recipe)
    sentences = follow.look(recipe)
    print(*sentences or [f"Nothing changed: Bento {bento.must_be_live(recipe).tag} is live."], sep="\n")


def _serve_and_follow(recipe: Recipe, address: str, port: int) -> NoReturn:
    """Serve the registry's champion, and the next ones as they are promoted; ends with the server."""
    from mobilenet_pipeline.registry.identity import OtherRegistry
    from mobilenet_pipeline.release import bento, follow
    from mobilenet_pipeline.system.process import leashed

    said = ""
    try:
        sentences = follow.look(recipe)
    except Exception as error:  # this machine's Bento serves until the cause is put right
        if isinstance(error, OtherRegistry) or bento.live(recipe) is None:
            raise
        said = _warning(error)
        sentences = [said]
    while True:
        print(*sentences, sep="\n", flush=True)
        live = bento.must_be_live(recipe).tag
        command = bento.serve_command(live, address, port, bento.record_of(live))
        with leashed(command, grace=STOP_SECONDS) as server:
            outdated = False
            while not (server.ended or outdated):
                time.sleep(LOOK_SECONDS)
                try:
                    sentences = follow.look(recipe)
                    outdated, said = not bento.has_code_of(live, bento.must_be_live(recipe).tag), ""
                except Exception as error:  # whatever it is, it is said once, and the service goes on
                    sentences = [_warning(error)] if _warning(error) != said else []
                    said = _warning(error)
                print(*sentences, sep="\n", end="\n" if sentences else "", flush=True)
            if server.ended:
                raise ChildProcessError(f"the service has ended with exit code {server.returncode}; its log is above")
        sentences = ["The service's code has changed: it starts again."]


def _warning(error: Exception) -> str:
    return f"warning: {_explain(error) or repr(error)}"


def predict(options: argparse.Namespace) -> None:
    """Print the case study's table for one photo."""
    from mobilenet_pipeline.release import bento
    from mobilenet_pipeline.release import predict as prediction
    from mobilenet_pipeline.reports.tables import print_answers

    recipe = load_recipe(options.recipe)
    try:
        data = options.image.read_bytes()
    except OSError as error:
        raise ValueError(f"{options.image} cannot be read ({error.strerror}); give the path of an image file") from None
    print_answers(prediction.predict(data, bento.served_models(recipe)), f"{options.image}, {recipe.name}")


def doctor(options: argparse.Namespace) -> int:
    """Print the findings as they come; the exit code is 1 if one of them is a failure."""
    from mobilenet_pipeline.operations import doctor as examination

    signs, findings = {"ok": "✓", "warn": "!", "fail": "✗"}, []
    for sentence in examination.repair(load_recipe(options.recipe)) if options.repair else []:
        print(sentence, file=sys.stderr if options.json else sys.stdout, flush=True)
    more = {"Prefect": lambda *_: flow_module("upkeep").check_prefect()}
    for finding in examination.examine(load_recipe(options.recipe), more):
        findings.append(finding)
        if not options.json:
            print(f"{signs[finding.state]} {finding.name:<12}{finding.sentence}", flush=True)
            if finding.remedy:
                print(f"{'':<14}→ {finding.remedy}", flush=True)
    if options.json:
        _print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def backup(options: argparse.Namespace) -> None:
    """Write a backup of all recipes of this workspace."""
    from mobilenet_pipeline.operations import backup as saving

    saving.backup(options.file, _progress)


def restore(options: argparse.Namespace) -> None:
    """Bring a backup of all recipes back."""
    from mobilenet_pipeline.operations import backup as saving

    saving.restore(options.file, options.force, _progress)


def _progress(sentence: str) -> None:
    print(sentence, flush=True)


def collect(options: argparse.Namespace) -> None:
    """Print what may go and why the rest stays, and remove it if asked to."""
    from mobilenet_pipeline.operations import gc

    recipe = load_recipe(options.recipe)
    with gc.alone(recipe) if options.yes else nullcontext():
        plan = gc.plan(recipe, options.keep)
        leftovers = [*plan.leftovers, *flow_module("upkeep").leftovers(recipe, options.keep)]
        print("\n".join(gc.describe(leftovers, plan)), flush=True)
        for leftover in leftovers if options.yes else []:
            leftover.remove()
            print(f"removed {leftover.store}: {leftover.name}", flush=True)
    if leftovers and not options.yes:
        print(f"nothing was removed: mobilenet-pipeline gc --recipe {recipe.name} --keep {options.keep} --yes")


def anatomy(options: argparse.Namespace) -> None:
    """Print what each layer costs."""
    from mobilenet_pipeline.reports.tables import print_anatomy

    recipe = load_recipe(options.recipe)
    for candidate in [options.candidate] if options.candidate else recipe.candidates:
        print_anatomy(recipe, candidate)


def ui(options: argparse.Namespace) -> None:
    """Start whichever of the two servers does not run yet, and wait."""
    flow_module("pages").show(options.mlflow_port, options.prefect_port)


def flow_module(name: str) -> Any:
    """Import a module of `flows`, which is part of the repository and not of the installed package.

    Raises ValueError if it is not there.
    """
    try:
        return import_module(f"flows.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("flows", f"flows.{name}"):
            raise
        raise ValueError(
            "this command needs the repository's folder flows/, which the installed package does not have: clone the "
            "repository and run .venv/bin/mobilenet-pipeline there"
        ) from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
