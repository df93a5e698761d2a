"""The command line: what it says, and its exit code."""

import io
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilenet_pipeline import cli, config
from mobilenet_pipeline.release import bento, trace
from mobilenet_pipeline.workspace import history

REVIEWING = ["review", "approve", "reject", "rollback", "history", "trace"]
COMMANDS = ["run", "status", *REVIEWING, "schedule", "serve", "predict", "anatomy", "ui"]


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The program sets a handler for as long as it lives."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert "--recipe" in capsys.readouterr().out


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_the_recipe_is_digits_unless_another_is_named():
    assert {cli.parser().parse_args([command]).recipe for command in ("run", "status", "serve", "ui")} == {"digits"}


@pytest.mark.parametrize("command", [["run"], ["status"], ["serve"], ["predict", "photo.png"], ["anatomy"]])
def test_a_recipe_that_does_not_exist_is_an_error_in_a_sentence(
    command: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([*command, "--recipe", "nosuch"]) == 1
    assert capsys.readouterr().err.startswith("error: params.yaml: no recipe 'nosuch'; there are: digits")


def test_a_folder_without_a_pipeline_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run"]) == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path}/params.yaml does not exist; run this from the project's root\n"
    )


@pytest.mark.parametrize(("options", "expected"), [([], None), (["--deterministic"], "1")])
def test_a_deterministic_run_says_so_to_tensorflow(
    options: list[str],
    expected: str | None,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from flows import display, server

    seen: list[str | None] = []
    monkeypatch.setattr(server, "prepare", lambda quiet: None)
    monkeypatch.setattr(server, "connect", lambda: "http://127.0.0.1:1")
    monkeypatch.setattr(display, "print_summary", lambda *_: None)

    def run_and_show(*_: object) -> str:
        seen.append(os.environ.get("TF_DETERMINISTIC_OPS"))
        return "Nothing changed: no stage has anything to do."

    monkeypatch.setattr(display, "run_and_show", run_and_show)
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "")  # so that it is taken back
    monkeypatch.delenv("TF_DETERMINISTIC_OPS")
    assert cli.main(["run", *options]) == 0
    assert seen == [expected]
    assert ("--deterministic is about trainings, of which none was due" in capsys.readouterr().out) == bool(options)


def test_status_of_a_recipe_that_never_ran_says_what_to_do(workspace: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "digits has not been run yet: mobilenet-pipeline run --recipe digits\n"


def test_nothing_can_be_served_before_something_is_promoted(workspace: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["serve"]) == 1
    assert "no Bento of digits is live; run `mobilenet-pipeline run" in capsys.readouterr().err


def test_nothing_can_be_asked_before_something_is_promoted(workspace: Path, capsys: pytest.CaptureFixture[str]):
    (workspace / "photo.png").write_bytes(b"")
    assert cli.main(["predict", "photo.png"]) == 1
    assert "no Bento of digits is live; run `mobilenet-pipeline run --recipe digits`" in capsys.readouterr().err


def test_a_photo_that_is_not_there_is_named(workspace: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["predict", "nosuch.png"]) == 1
    assert "nosuch.png cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_port_that_is_taken_is_named_before_the_server_starts(
    host: str,
    family: int,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(bento, "must_be_live", lambda recipe: None)
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["serve", "--host", host, "--port", str(port)]) == 1
    assert f"port {port}, for the API, is taken" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_host_that_is_not_this_machine_is_named_and_not_the_port(
    host: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(bento, "must_be_live", lambda recipe: None)
    assert cli.main(["serve", "--host", host]) == 1
    error = capsys.readouterr().err
    assert f"error: {host}, for the API, is no address" in error
    assert "give another --host" in error


def test_a_number_that_is_no_port_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(bento, "must_be_live", lambda recipe: None)
    assert cli.main(["serve", "--port", "99999"]) == 1
    assert "99999 is no port" in capsys.readouterr().err


def test_anatomy_shows_both_candidates_or_the_one_asked_for(workspace: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["anatomy", "--recipe", "cifar10"]) == 0
    both = capsys.readouterr().out
    assert cli.main(["anatomy", "--recipe", "cifar10", "--candidate", "scratch"]) == 0
    one = capsys.readouterr().out
    assert both.startswith(one)
    assert "cifar10, pretrained" in both.removeprefix(one)


def test_a_candidate_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["anatomy", "--candidate", "nosuch"])
    assert "invalid choice: 'nosuch'" in capsys.readouterr().err


def test_ctrl_c_is_no_error_of_the_program(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_recipe", stop)
    assert cli.main(["status"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", ["reject", "rollback"])
def test_what_takes_a_version_out_needs_a_reason(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, *(["3"] if command == "reject" else [])])
    assert "--reason" in capsys.readouterr().err


def test_the_history_is_shown_newest_first(workspace: Path, capsys: pytest.CaptureFixture[str]):
    recipe = config.load_recipe("digits")
    history.append(recipe, "promoted", "2", "It is the first.", None, "2", "r", 0.9, "the gate")
    history.append(recipe, "rolled back", "1", "slow", "2", "1", "r", 0.8, "ann")
    assert cli.main(["history"]) == 0
    newest, oldest = capsys.readouterr().out.splitlines()
    assert newest.endswith("version 1 rolled back by ann, champion 2 → 1: slow")
    assert oldest.endswith("version 2 promoted by the gate, champion none → 2: It is the first.")


def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that are traced from now on; every link of theirs holds."""
    numbers: list[str] = []

    def walk(recipe: config.Recipe, number: str) -> list[trace.Link]:
        numbers.append(number)
        return [trace.Link("version", number, True)]

    monkeypatch.setattr(trace, "trace", walk)
    return numbers


ANSWER = '{"class": "3", "model_name": "digits-mobilenet", "model_version": "7"}'


def test_an_answer_that_was_saved_is_traced_to_its_version(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = traced(monkeypatch)
    (workspace / "answer.json").write_text(ANSWER)
    assert cli.main(["trace", "--answer", "answer.json"]) == 0
    assert numbers == ["7"]


def test_an_answer_from_standard_input_is_traced_to_its_version(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = traced(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO(ANSWER))
    assert cli.main(["trace", "--answer", "-"]) == 0
    assert numbers == ["7"]


def test_what_standard_input_has_is_called_so_in_errors(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["trace", "--answer", "-"]) == 1
    assert capsys.readouterr().err.startswith("error: standard input is not JSON; save what /predict answers")


def test_an_answer_that_cannot_be_read_is_named_with_the_remedy(workspace: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["trace", "--answer", "nosuch.json"]) == 1
    assert "error: nosuch.json cannot be read (No such file or directory); give the path" in capsys.readouterr().err


def test_a_photo_in_place_of_an_answer_is_no_json(workspace: Path, capsys: pytest.CaptureFixture[str]):
    (workspace / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    assert cli.main(["trace", "--answer", "photo.png"]) == 1
    assert "error: photo.png is not JSON; save what /predict answers" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["7", "--answer", "answer.json"]])
def test_either_a_version_or_an_answer_is_traced(given: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trace", *given])
    assert "--answer" in capsys.readouterr().err


def test_a_link_that_does_not_hold_is_an_error(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    links = [trace.Link("version", "2", True), trace.Link("artefact", "it is damaged", False)]
    monkeypatch.setattr(trace, "trace", lambda *_: links)
    assert cli.main(["trace", "2"]) == 1
    shown = capsys.readouterr()
    assert "✗ artefact    it is damaged" in shown.out
    assert "artefact of version 2 does not hold" in shown.err
