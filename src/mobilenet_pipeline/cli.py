"""`mobilenet-pipeline`: run, look at, review, schedule and serve a recipe."""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mobilenet_pipeline import environment
from mobilenet_pipeline.config import CANDIDATES, Recipe, load_recipe
from mobilenet_pipeline.pipeline import StageFailed

DEFAULT_RECIPE = "digits"
TAKEN_OVER = "A service that `serve` has started takes it over within a second."


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; gives the exit code. Errors that people can mend are one sentence, exit code 1."""
    environment.prepare()
    chosen = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        chosen.command(chosen)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, StageFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Every sub-command with its options."""
    root = argparse.ArgumentParser(prog="mobilenet-pipeline", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--recipe", default=DEFAULT_RECIPE, help="a section of params.yaml (default: %(default)s)")
        sub.set_defaults(command=command)
        return sub

    sub = add("run", run, "Run the whole pipeline: only what changed is done again, and the better model promoted.")
    sub.add_argument("--force", action="store_true", help="run every stage, also where nothing changed")
    sub.add_argument("--deterministic", action="store_true", help="refuse operations that differ from run to run")
    sub.add_argument("--results", type=Path, metavar="FOLDER", help="keep the figures as FOLDER/RECIPE.json")
    add("status", status, "Who is champion, what is served, and the last verdict.")
    sub = add("review", review, "The card of a version and the gate's verdict on it.")
    sub.add_argument("version", nargs="?", help="its number (default: what waits for approval, else the champion)")
    sub.add_argument("--json", action="store_true", help="the verdict as one JSON document")
    sub = add("approve", approve, "Promote a version that passed the gate, where the recipe wants a person to say so.")
    sub.add_argument("version", help="its number")
    sub = add("reject", reject, "Take a version out, so that no run promotes it.")
    sub.add_argument("version", help="its number")
    sub.add_argument("--reason", required=True, help="kept in the registry and in the history")
    sub = add("rollback", rollback, "Serve the champion before this one again, and take this one out.")
    sub.add_argument("--to", metavar="VERSION", help="another version to go back to")
    sub.add_argument("--reason", required=True, help="kept in the registry and in the history")
    add("history", show_history, "Every promotion, rollback, approval and rejection.")
    sub = add(
        "trace", trace, "From a version to its run, commit, data, validation and verdict; what has a hash is checked."
    )
    traced = sub.add_mutually_exclusive_group(required=True)
    traced.add_argument("version", nargs="?", help="its number, as the API's answers have it")
    traced.add_argument("--answer", metavar="FILE", help="an answer of /predict, as JSON, or - for standard input")
    sub = add("schedule", schedule, "Run the pipeline on a schedule, until Ctrl-C.")
    sub.add_argument("--cron", required=True, metavar='"0 3 * * *"', help="when: minute hour day month weekday")
    sub.add_argument("--timezone", default="UTC", help="of the cron expression, like Europe/Berlin (default: UTC)")
    sub.add_argument("--prefect-port", type=int, default=4200, help="of the server, if one is started (default: 4200)")
    sub = add("serve", serve, "Serve the promoted models as an HTTP API, until Ctrl-C.")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sub.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    sub = add("predict", predict, "What the promoted models say of a photo, side by side.")
    sub.add_argument("image", type=Path, metavar="IMAGE", help="an image file, of any size")
    sub = add("anatomy", anatomy, "Parameters and multiply-adds, layer by layer, beside standard convolutions.")
    sub.add_argument("--candidate", choices=CANDIDATES, help="one of the two (default: both)")
    sub = add("ui", ui, "Show the pages of MLflow and Prefect, until Ctrl-C.")
    sub.add_argument("--mlflow-port", type=int, default=5000, help="default: %(default)s")
    sub.add_argument("--prefect-port", type=int, default=4200, help="default: %(default)s")
    return root


def run(chosen: argparse.Namespace) -> None:
    """Run the flow in this process and show it."""
    from rich.console import Console

    from flows import server

    recipe = load_recipe(chosen.recipe)
    if chosen.deterministic:
        os.environ["TF_DETERMINISTIC_OPS"] = "1"  # TensorFlow's own, for the stages' processes
    server.prepare(quiet=True)
    console = Console()
    if server.connect() is None:
        console.print("starting Prefect …", style="dim")
    from flows import display

    sentence = display.run_and_show(recipe, chosen.force, console)
    display.print_summary(recipe, sentence, console)
    if chosen.deterministic and sentence.startswith("Nothing changed"):
        hint = "  --deterministic is about trainings, of which none was due: add --force to train again"
        console.print(hint, highlight=False, soft_wrap=True)
    if chosen.results:
        from mobilenet_pipeline.results import results_path

        if sentence.startswith("Skipped"):
            raise BlockingIOError(
                f"this run was skipped and has no figures to keep in {chosen.results}: run it again later"
            )
        chosen.results.mkdir(parents=True, exist_ok=True)
        kept = shutil.copyfile(results_path(recipe), chosen.results / f"{recipe.name}.json")
        console.print(f"  {'figures':<16} {kept}", highlight=False)


def status(chosen: argparse.Namespace) -> None:
    """Print what `promotion.status` knows."""
    from mobilenet_pipeline import promotion

    recipe = load_recipe(chosen.recipe)
    found = promotion.status(recipe)
    if not any(found.values()):
        print(f"{recipe.name} has not been run yet: mobilenet-pipeline run --recipe {recipe.name}")
        return
    for role in ("champion", "challenger"):
        version = found[role]
        facts = version and f"version {version.version}, {version.candidate}, test accuracy {version.accuracy:.2%}"
        print(f"{role:<12}{facts or '–'}")
    print(f"{'Bento':<12}{found['bento'] or '–'}")
    if found["verdict"]:
        print(f"{'verdict':<12}{found['verdict']['reason']} ({found['verdict']['judged_at']})")
    if found["waiting"]:
        number = found["waiting"].version
        print(f"{'waiting':<12}version {number}: mobilenet-pipeline approve {number} --recipe {recipe.name}, or reject")
    if found["drift"]:
        print(f"{'attention':<12}{found['drift']}")


def review(chosen: argparse.Namespace) -> None:
    """Print what a reviewer needs."""
    from mobilenet_pipeline import review as reviewing

    card, verdict = reviewing.show(load_recipe(chosen.recipe), chosen.version)
    if chosen.json:
        print(json.dumps(verdict, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(card)) if console.is_terminal else print(card)


def approve(chosen: argparse.Namespace) -> None:
    """Promote what waits."""
    from mobilenet_pipeline import history, running
    from mobilenet_pipeline import review as reviewing

    recipe = load_recipe(chosen.recipe)
    with running.deciding(recipe):
        print(reviewing.approve(recipe, chosen.version, history.person()), TAKEN_OVER, flush=True)
        _publish(recipe)


def reject(chosen: argparse.Namespace) -> None:
    """Take a version out."""
    from mobilenet_pipeline import history, running
    from mobilenet_pipeline import review as reviewing

    recipe = load_recipe(chosen.recipe)
    with running.deciding(recipe):
        print(reviewing.reject(recipe, chosen.version, chosen.reason, history.person()), flush=True)
        _publish(recipe)


def rollback(chosen: argparse.Namespace) -> None:
    """Go back to an earlier champion."""
    from mobilenet_pipeline import history, running
    from mobilenet_pipeline import review as reviewing

    recipe = load_recipe(chosen.recipe)
    with running.deciding(recipe):
        print(reviewing.rollback(recipe, chosen.to, chosen.reason, history.person()), TAKEN_OVER, flush=True)
        _publish(recipe)


def _publish(recipe: Recipe) -> None:
    """Let the report show what was decided, or say why it does not."""
    from mobilenet_pipeline import review as reviewing

    lacking = reviewing.publish(recipe)
    if lacking:
        print(lacking)


def show_history(chosen: argparse.Namespace) -> None:
    """Print the record, the newest first."""
    from mobilenet_pipeline import history

    recipe = load_recipe(chosen.recipe)
    events = history.read(recipe)
    if not events:
        print(f"nothing has happened to {recipe.registered_model} yet: mobilenet-pipeline run --recipe {recipe.name}")
    for event in reversed(events):
        change = "" if event.before == event.after else f", champion {event.before or 'none'} → {event.after}"
        print(f"{event.at}  version {event.version} {event.what} by {event.who}{change}: {event.why}".rstrip(": "))


def trace(chosen: argparse.Namespace) -> None:
    """Print the way back; an error where a link does not hold."""
    from mobilenet_pipeline import trace as tracing

    recipe, number = load_recipe(chosen.recipe), chosen.version
    if number is None:
        answer, source = _read_answer(chosen.answer)
        number = tracing.version_in(answer, recipe, source)
    links = tracing.trace(recipe, number)
    for link in links:
        print(f"{ {True: '✓', False: '✗', None: '?'}[link.holds] } {link.name:<12}{link.found}")
    broken = [link.name for link in links if link.holds is False]
    if broken:
        raise ValueError(f"{', '.join(broken)} of version {number} does not hold")


def _read_answer(file: str) -> tuple[str, str]:
    """An answer of the API, and what to call the place where it was."""
    if file == "-":
        return sys.stdin.read(), "standard input"
    try:
        # What is no text is no JSON either, and told so.
        return Path(file).read_text(encoding="utf-8", errors="replace"), file
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); give the path of an answer of /predict") from None


def schedule(chosen: argparse.Namespace) -> None:
    """Serve the flow's deployment, on a Prefect server that is there or is started here."""
    from contextlib import nullcontext

    from flows import server

    recipe = load_recipe(chosen.recipe)
    server.prepare(quiet=False)
    api = server.connect()
    with nullcontext(api) if api else server.running(chosen.prefect_port) as address:
        from flows import deployments

        page = address.removesuffix("/api")
        deployments.check(chosen.cron, chosen.timezone)
        print(f"{recipe.name} runs at {chosen.cron!r} ({chosen.timezone}); look at {page}, Ctrl-C ends it", flush=True)
        deployments.keep_schedule(recipe.name, chosen.cron, chosen.timezone)


def serve(chosen: argparse.Namespace) -> None:
    """Become the server of the live Bento."""
    from flows import server
    from mobilenet_pipeline import packaging

    recipe = load_recipe(chosen.recipe)
    bento = packaging.must_be_live(recipe)
    server.check_port(chosen.port, "the API", "--port", chosen.host)
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    print(f"{bento} on http://{host}:{chosen.port}, Ctrl-C ends it", flush=True)
    command = packaging.serve_command(bento.tag, chosen.host, chosen.port, packaging.record_of(bento.tag))
    os.execv(command[0], command)


def predict(chosen: argparse.Namespace) -> None:
    """Print the case study's table for one photo."""
    from mobilenet_pipeline import packaging, prediction

    recipe = load_recipe(chosen.recipe)
    try:
        data = chosen.image.read_bytes()
    except OSError as error:
        raise ValueError(f"{chosen.image} cannot be read ({error.strerror}); give the path of an image file") from None
    prediction.print_table(prediction.predict(data, packaging.served_models(recipe)), f"{chosen.image}, {recipe.name}")


def anatomy(chosen: argparse.Namespace) -> None:
    """Print what each layer costs."""
    from mobilenet_pipeline.anatomy_table import print_anatomy

    recipe = load_recipe(chosen.recipe)
    for candidate in [chosen.candidate] if chosen.candidate else CANDIDATES:
        print_anatomy(recipe, candidate)


def ui(chosen: argparse.Namespace) -> None:
    """Start whichever of the two servers is not there, and wait."""
    from flows import pages

    pages.show(chosen.mlflow_port, chosen.prefect_port)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
