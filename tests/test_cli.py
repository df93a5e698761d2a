"""The command line: its output, and its exit code."""

import gc
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from mobilenet_pipeline import cli, config
from mobilenet_pipeline.registry.versions import Version
from mobilenet_pipeline.release import bento, promotion, trace, unchanged
from mobilenet_pipeline.reports import gauges, results
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.workspace import history, locks
from mobilenet_pipeline.workspace.history import Event

REVIEWING = ["review", "approve", "reject", "rollback", "history", "trace"]
SERVING = ["serve", "fetch", "predict"]
UPKEEP = ["doctor", "backup", "restore", "gc"]
COMMANDS = ["run", "status", *REVIEWING, "schedule", "monitor", "alerts", *SERVING, *UPKEEP, "anatomy", "ui"]
NEEDS_FLOWS = [["run"], ["alerts"], ["monitor"], ["schedule", "--cron", "0 3 * * *"], ["ui"]]
DETERMINISTIC, TENSORBOARD = "TF_DETERMINISTIC_OPS", "MOBILENET_PIPELINE_TENSORBOARD"
ANSWER = '{"class": "3", "model_name": "digits-mobilenet", "model_version": "7"}'


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The program's signal handler stays in its test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: mobilenet-pipeline {command} ")


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_the_version_is_printed_with_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"mobilenet-pipeline {metadata.version('mobilenet-pipeline')}\n"


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "mobilenet_pipeline", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: mobilenet-pipeline ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_completion_script_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)


def test_bash_reads_the_completion_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_recipe_is_digits_by_default() -> None:
    assert {cli.parser().parse_args([command]).recipe for command in ("run", "status", "serve", "doctor")} == {"digits"}


@pytest.mark.parametrize("command", [["run"], ["status"], ["serve"], ["predict", "photo.png"], ["anatomy"]])
def test_an_unknown_recipe_is_an_error_in_a_sentence(
    command: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--recipe", "nosuch"]) == 1
    assert capsys.readouterr().err.startswith("error: params.yaml: no recipe 'nosuch'; there are: digits")


def test_a_wrong_number_of_jobs_is_an_error_in_a_sentence(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--jobs", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: jobs is '0'; give the number of stages that may run at the same")


def test_another_folder_is_sent_to_the_project_s_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run"]) == 1
    expected = f"error: {tmp_path}/params.yaml does not exist; run this from the project's root\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("command", NEEDS_FLOWS)
def test_without_the_flows_folder_a_command_says_what_to_do(
    command: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name == "flows" or name.startswith("flows.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without("flows"), *sys.meta_path])
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: this command needs the repository's folder flows/")
    assert "clone the repository" in error


@pytest.mark.parametrize("command", ["backup a.tar.gz", "restore a.tar.gz", "alerts", "ui", "init mine"])
def test_a_command_for_all_recipes_takes_no_recipe(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command.split(), "--recipe", "digits"])
    assert "unrecognized arguments: --recipe digits" in capsys.readouterr().err


class Without:
    """A finder to which a package does not exist."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], {}), (["--deterministic"], {DETERMINISTIC: "1"}), (["--tensorboard"], {TENSORBOARD: "logs"})],
)
def test_options_of_a_training_reach_it_as_variables(
    words: list[str],
    expected: dict[str, str],
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flows import display, server
    from mobilenet_pipeline.release import summary

    values: dict[str, str] = {}
    monkeypatch.setattr(server, "prepare", lambda quiet: None)
    monkeypatch.setattr(server, "connect", lambda: "http://127.0.0.1:1")
    monkeypatch.setattr(summary, "print_summary", lambda *_: None)

    def run_and_show(*_: object) -> str:
        values.update({name: os.environ[name] for name in (DETERMINISTIC, TENSORBOARD) if name in os.environ})
        return "Nothing changed: all stages are up to date."

    monkeypatch.setattr(display, "run_and_show", run_and_show)
    for name in (DETERMINISTIC, TENSORBOARD):
        monkeypatch.setenv(name, "")  # so that the test's end restores it
        monkeypatch.delenv(name)
    assert cli.main(["run", *words]) == 0
    assert {name: Path(value).name for name, value in values.items()} == expected
    assert ("add --force to train again" in capsys.readouterr().out) == bool(words)


SETTLED = "Nothing changed: all stages are up to date. Version 2 of digits-mobilenet (pretrained) is champion."


def quick_answer(monkeypatch: pytest.MonkeyPatch, stale: object, found: object) -> str | None:
    """Return what a run finds before it starts the flow. `stale` and `found` are answers, or errors that are raised."""

    def give(answer: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(results, "reported", lambda _: True)
    monkeypatch.setattr(runner, "stale", lambda _: give(stale))
    monkeypatch.setattr(unchanged, "find", lambda _: give(found))
    return cli._nothing_to_do(config.load_recipe("digits"))


def test_a_run_whose_stages_are_fresh_and_verdict_settled_needs_no_flow(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config.load_recipe("digits")
    assert quick_answer(monkeypatch, {}, SETTLED) == SETTLED
    outcome, _ = gauges.last_run(recipe) or ("", "")
    assert outcome == "succeeded"


@pytest.mark.parametrize(
    ("stale", "found"),
    [
        ({"ingest@digits": "missing"}, SETTLED),
        ({}, None),
        (runner.StageFailed("dvc", 1, ["error: broken"]), SETTLED),
        ({}, ConnectionError("no registry")),
        ({}, ValueError("a record is damaged")),
    ],
)
def test_a_run_with_anything_to_do_or_to_say_needs_the_flow(
    stale: object, found: object, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick_answer(monkeypatch, stale, found) is None
    assert gauges.last_run(config.load_recipe("digits")) is None


def test_a_run_beside_another_needs_the_flow_which_says_so(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locks.only_run(config.load_recipe("digits")):
        assert quick_answer(monkeypatch, {}, SETTLED) is None


def test_status_before_the_first_run_says_what_to_do(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "digits has not been run yet: mobilenet-pipeline run --recipe digits\n"


def test_status_as_json_has_the_same_keys_before_the_first_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = {"recipe": "digits", "registered_model": "digits-mobilenet"}
    assert document == names | dict.fromkeys(
        ["champion", "challenger", "waiting", "bento", "verdict", "last_run", "attention"]
    )


def test_status_says_that_the_last_run_has_failed(
    recipe: config.Recipe, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gauges.note_run(recipe, "succeeded", 90.0)
    gauges.note_run(recipe, "failed", 5.0)
    assert cli.main(["status"]) == 0
    assert re.search(r"^last run    failed 20\S+\+00:00; Prefect's page", capsys.readouterr().out, re.MULTILINE)


def test_status_as_json_names_a_version_with_its_hash(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = Version("digits-mobilenet", "3", "run", "scratch", "digits", 0.5, "data", "hash")
    status = promotion.Status(champion, None, None, None, None, None)
    monkeypatch.setattr(promotion, "status", lambda _: status)
    assert cli.main(["status", "--json"]) == 0
    expected = {"version": "3", "candidate": "scratch", "test_accuracy": 0.5, "sha256": "hash", "run": "run"}
    assert json.loads(capsys.readouterr().out)["champion"] == expected


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_output_ends_the_program_quietly(unbuffered: str, workspace: Path) -> None:
    recipe = config.load_recipe("digits")
    history.append(recipe, Event("promoted", "2", "the gate", "It is the first.", None, "2", "r", 0.9))
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mobilenet_pipeline", "history"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_mistyped_word_is_answered_with_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["stauts"])
    assert "(did you mean status?)" in capsys.readouterr().err


def test_a_mistyped_candidate_is_answered_with_close_ones(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["anatomy", "--candidate", "pretraind"]) == 1
    assert "unknown candidate 'pretraind' (did you mean pretrained?); there are: scratch" in capsys.readouterr().err


def test_a_mistyped_recipe_is_answered_with_close_ones(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--recipe", "digts"]) == 1
    assert "no recipe 'digts' (did you mean digits?); there are: digits" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["predict", "photo.png"]])
def test_without_a_live_bento_a_command_says_what_to_do(
    command: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "photo.png").write_bytes(b"")
    assert cli.main(command) == 1
    assert "no Bento of digits is live; run `mobilenet-pipeline run --recipe digits`" in capsys.readouterr().err


def test_there_is_nothing_to_fetch_before_the_first_run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch"]) == 1
    assert "mobilenet-pipeline run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nobody to notify: give --webhook, --slack, --email or --block"),
        (["--email", "ann@example.com"], "SENDGRID_API_KEY is not set"),
    ],
)
def test_alerts_need_an_address(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENDGRID_API_KEY", raising=False)
    assert cli.main(["alerts", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_photo_is_named(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "nosuch.png"]) == 1
    assert "nosuch.png cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_taken_port_is_named_before_the_server_starts(
    host: str,
    family: int,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bento, "must_be_live", lambda recipe: None)
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["serve", "--host", host, "--port", str(port)]) == 1
    assert f"port {port}, for the API, is taken" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_foreign_host_is_named_and_not_the_port(
    host: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bento, "must_be_live", lambda recipe: None)
    assert cli.main(["serve", "--host", host]) == 1
    error = capsys.readouterr().err
    assert f"error: {host}, for the API, is no address" in error
    assert "give another --host" in error


def test_a_number_that_is_no_port_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bento, "must_be_live", lambda recipe: None)
    assert cli.main(["serve", "--port", "99999"]) == 1
    assert "99999 is no port" in capsys.readouterr().err


def test_anatomy_shows_both_candidates_or_the_named_one(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["anatomy", "--recipe", "cifar10"]) == 0
    both = capsys.readouterr().out
    assert cli.main(["anatomy", "--recipe", "cifar10", "--candidate", "scratch"]) == 0
    one = capsys.readouterr().out
    assert both.startswith(one)
    assert "cifar10, pretrained" in both.removeprefix(one)


def test_ctrl_c_is_not_an_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_recipe", stop)
    assert cli.main(["status"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", ["reject", "rollback"])
def test_withdrawing_a_version_needs_a_reason(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, *(["3"] if command == "reject" else [])])
    assert "--reason" in capsys.readouterr().err


def test_the_history_as_json_has_every_field(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = config.load_recipe("digits")
    event = Event("promoted", "2", "the gate", "It is the first.", None, "2", "r", 0.9)
    history.append(recipe, event)
    assert cli.main(["history", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == vars(event)


def test_the_history_is_shown_newest_first(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = config.load_recipe("digits")
    history.append(recipe, Event("promoted", "2", "the gate", "It is the first.", None, "2", "r", 0.9))
    history.append(recipe, Event("rolled back", "1", "ann", "slow", "2", "1", "r", 0.8))
    assert cli.main(["history"]) == 0
    newest, oldest = capsys.readouterr().out.splitlines()
    assert newest.endswith("version 1 rolled back by ann, champion 2 → 1: slow")
    assert oldest.endswith("version 2 promoted by the gate, champion none → 2: It is the first.")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that are traced; each of their links holds."""
    numbers: list[str] = []

    def walk(recipe: config.Recipe, number: str) -> list[trace.Link]:
        numbers.append(number)
        return [trace.Link("version", number, True)]

    monkeypatch.setattr(trace, "trace", walk)
    return numbers


def test_a_saved_answer_is_traced_to_its_version(workspace: Path, traced: list[str]) -> None:
    (workspace / "answer.json").write_text(ANSWER)
    assert cli.main(["trace", "--answer", "answer.json"]) == 0
    assert traced == ["7"]


def test_an_answer_from_standard_input_is_traced(
    workspace: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ANSWER))
    assert cli.main(["trace", "--answer", "-"]) == 0
    assert traced == ["7"]


def test_errors_name_standard_input(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["trace", "--answer", "-"]) == 1
    assert capsys.readouterr().err.startswith("error: standard input is not JSON; save what /predict answers")


def test_an_unreadable_answer_is_named_with_the_remedy(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "--answer", "nosuch.json"]) == 1
    assert "error: nosuch.json cannot be read (No such file or directory); give the path" in capsys.readouterr().err


def test_a_photo_in_place_of_an_answer_is_not_json(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    assert cli.main(["trace", "--answer", "photo.png"]) == 1
    assert "error: photo.png is not JSON; save what /predict answers" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["7", "--answer", "answer.json"]])
def test_a_trace_needs_either_a_version_or_an_answer(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trace", *given])
    assert "--answer" in capsys.readouterr().err


def test_a_trace_as_json_says_what_holds(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "trace", lambda *_: [trace.Link("artefact", "it is damaged", False)])
    assert cli.main(["trace", "2", "--json"]) == 1
    link = {"name": "artefact", "sentence": "it is damaged", "holds": False}
    assert json.loads(capsys.readouterr().out) == {"version": "2", "holds": False, "links": [link]}


def test_a_link_that_does_not_hold_is_an_error(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [trace.Link("version", "2", True), trace.Link("artefact", "it is damaged", False)]
    monkeypatch.setattr(trace, "trace", lambda *_: links)
    assert cli.main(["trace", "2"]) == 1
    shown = capsys.readouterr()
    assert "✗ artefact    it is damaged" in shown.out
    assert "artefact of version 2 does not hold" in shown.err


def test_a_command_that_reads_looks_for_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    collecting = []
    monkeypatch.setattr(cli, "status", lambda _: collecting.append(gc.isenabled()))
    assert cli.main(["status"]) == 0
    assert (collecting, gc.isenabled()) == ([False], True)


def test_a_person_does_not_wait_for_mlflow_s_client(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def note(options: object) -> None:
        tries.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setattr(cli, "rollback", note)
    assert cli.main(["rollback", "--reason", "odd"]) == 0
    assert tries == ["2"]
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
