"""A day of a team: two workspaces, PostgreSQL, S3, MLflow, Prefect and a worker; in the order of the file."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from clones import MODEL, Clone, Done, Service, asking, change_params, git, make_team, serving
from team_servers import BIN, Servers
from waiting import wait_until

MINUTE = 60


@dataclass
class Team:
    """Two clones and the service of the second."""

    a: Clone
    b: Clone
    service: Service
    first: Done
    restored: Done
    champion: str


@pytest.fixture(scope="session")
def team(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The pipeline has run in one clone and then in another, which serves and follows the registry."""
    folder = tmp_path_factory.mktemp("team")
    a = make_team(folder, servers)
    first = a.run("run")
    b = Clone(a.origin, folder / "b", folder)
    restored = b.run("run")
    with serving(b) as service:
        yield Team(a, b, service, first, restored, b.champion)


@pytest.fixture(scope="session")
def better(team: Team) -> str:
    """A version that passed the gate and waits for approval."""
    change_params(team.a, epochs=8)
    assert team.a.run("run").returncode == 0
    return str(team.a.read("status")["waiting"]["version"])


def lock_of_the_champion(team: Team) -> str:
    """Return dvc.lock as the Git tag of the promotion has it."""
    champion = team.a.read("status")["champion"]
    tag = f"promoted/{MODEL}-{champion['version']}-{champion['run'][:8]}"
    return git(team.a.origin, "show", f"{tag}:dvc.lock")


def test_the_first_run_promotes(team: Team) -> None:
    assert team.first.returncode == 0, team.first.stdout + team.first.stderr
    assert team.a.read("status")["champion"]


def test_versions_and_runs_are_in_postgresql(team: Team, servers: Servers) -> None:
    assert servers.query("mlflow", "SELECT count(*) FROM model_versions")[0][0] >= 2
    assert servers.query("prefect", "SELECT DISTINCT state_name FROM flow_run") == [("Completed",)]


def test_artefacts_and_dvc_s_outputs_are_on_s3(team: Team, servers: Servers) -> None:
    assert any(name.endswith("model.tflite") for name in servers.objects("mlflow/"))
    assert servers.objects("dvc/files/md5/")
    assert not (team.a.folder / "mlruns").exists()


def test_the_lock_of_the_promotion_is_a_tag_of_the_team_s_repository(team: Team) -> None:
    assert "models/digits" in lock_of_the_champion(team)


def test_the_second_workspace_restores_what_the_first_has_trained(team: Team) -> None:
    assert team.restored.returncode == 0, team.restored.stdout + team.restored.stderr
    assert "epoch" not in team.restored.stdout
    assert team.b.champion == team.a.champion


def test_both_workspaces_have_one_history(team: Team) -> None:
    assert [event["what"] for event in team.b.read("history")] == ["promoted"]
    assert team.b.read("history") == team.a.read("history")


def test_the_second_workspace_traces_the_champion_without_a_doubt(team: Team) -> None:
    done = team.b.run("trace", team.champion)
    assert (done.returncode, "✗" in done.stdout, "?" in done.stdout) == (0, False, False), done.stdout


def test_a_forgotten_setting_is_refused(team: Team) -> None:
    done = team.b.run("status", MLFLOW_TRACKING_URI="")
    assert done.returncode == 1
    assert "belongs to the registry that was at" in done.stderr
    assert not (team.b.folder / "mlflow.db").exists()


def test_an_approval_reaches_the_service_of_another_workspace_without_a_lost_request(team: Team, better: str) -> None:
    with asking(team.service) as client:
        assert team.a.run("approve", better).returncode == 0
        assert team.service.wait_for(better) < MINUTE
        wait_until(lambda: better in client.versions, lambda: str(client.versions))
    assert client.failures == []


def test_the_lock_of_an_approval_is_a_tag_of_the_team_s_repository(team: Team, better: str) -> None:
    assert team.a.champion == better
    assert "models/digits" in lock_of_the_champion(team)


def test_status_tells_that_a_workspace_serves_another_version(team: Team, better: str) -> None:
    done = team.a.run("status", "--json", BENTOML_HOME=str(team.a.folder / "elsewhere"))
    assert (done.returncode, json.loads(done.stdout)["champion"]["version"]) == (3, better)


def test_a_rollback_without_mlflow_is_served_at_once(team: Team, servers: Servers, better: str) -> None:
    servers.stop("mlflow")
    assert team.service.serves == better
    done = team.b.run("rollback", "--reason", "the pictures of Monday")
    assert done.returncode == 0, done.stderr
    assert team.service.wait_for(team.champion) < MINUTE


def test_a_run_without_mlflow_ends_with_a_sentence(team: Team) -> None:
    done = team.a.run("status")
    assert (done.returncode, "no MLflow server answers at http://127.0.0.1" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_the_rollback_is_in_the_registry_and_in_both_histories_once_mlflow_is_back(
    team: Team, servers: Servers, better: str
) -> None:
    servers.start("mlflow")
    wait_until(lambda: team.a.champion == team.champion, lambda: team.service.text)
    assert [event["what"] for event in team.a.read("history")] == ["rolled back", "promoted", "approved", "promoted"]
    assert team.b.read("history") == team.a.read("history")


@pytest.fixture(scope="session")
def flow_run(team: Team, servers: Servers) -> Done:
    """A run of the team's deployment by a worker in the first clone, with another training."""
    change_params(team.a, epochs=9)
    place = {"cwd": team.a.folder, "env": team.a.env}
    servers.once("deployments", **place)
    with servers.started("worker", **place):
        command = [str(BIN / "prefect"), "deployment", "run", "train-and-promote/digits", "--watch"]
        return team.a.do(*command, PREFECT_API_URL=servers.settings()["PREFECT_API_URL"])


def test_a_worker_runs_the_team_s_deployment(flow_run: Done, servers: Servers) -> None:
    assert flow_run.returncode == 0, flow_run.stdout + flow_run.stderr
    names = servers.query("prefect", "SELECT DISTINCT state_name FROM flow_run")
    assert names == [("Completed",)]


def test_an_approval_beside_a_rollback_leaves_one_champion_and_one_history(team: Team, flow_run: Done) -> None:
    waiting = str(team.a.read("status")["waiting"]["version"])
    both = [team.a.start("approve", waiting), team.b.start("rollback", "--reason", "at the same time")]
    approved, rolled_back = (process.wait() == 0 for process in both)
    assert approved
    assert team.b.read("history") == team.a.read("history")
    assert team.a.champion == (team.champion if rolled_back else waiting)
    assert team.service.wait_for(team.a.champion) < MINUTE


def test_a_wrong_password_is_not_repeated(team: Team) -> None:
    done = team.a.run("run", PGPASSFILE="/dev/null", PGPASSWORD="expired")
    assert (done.returncode, "expired" in done.stdout + done.stderr) == (1, False)
    assert "password authentication failed" in done.stderr


def test_a_rollback_without_s3_is_served_at_once(team: Team, servers: Servers, better: str) -> None:
    servers.stop("s3")
    done = team.b.run("rollback", "--to", better, "--reason", "the pictures of Tuesday")
    assert done.returncode == 0, done.stderr
    assert team.service.wait_for(better) < MINUTE


def test_an_emptied_s3_gets_the_artefact_of_the_champion_back(team: Team, servers: Servers, better: str) -> None:
    servers.start("s3")
    wait_until(lambda: team.a.champion == better, lambda: team.service.text)
    assert any(name.endswith("model.tflite") for name in servers.objects("mlflow/"))
    assert team.service.serves == better


@pytest.mark.parametrize("command", ["status", "history", "run"])
def test_a_record_that_is_away_is_a_sentence(team: Team, postgresql_away: None, command: str) -> None:
    done = team.a.run(command)
    assert "Traceback" not in done.stdout + done.stderr
    expected = r"postgresql://127\.0\.0\.1\S* .*do not answer|answers 50\d|Database is not available"
    assert re.search(expected, done.stderr), done.stderr


def test_the_service_answers_while_postgresql_is_away(team: Team, postgresql_away: None) -> None:
    assert team.service.predict()["model_version"] == team.service.serves


@pytest.fixture(scope="session")
def postgresql_away(team: Team, servers: Servers) -> Iterator[None]:
    """PostgreSQL is away, with what stood in its memory."""
    champion = team.a.champion
    servers.stop("postgres")
    yield
    servers.start("postgres")
    assert team.a.champion == champion
