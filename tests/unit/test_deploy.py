"""The files that run the Bento's image in containers: they agree with the service and with each other."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bentoml._internal.container.generate import BENTO_UID_GID

from mobilenet_pipeline.release import bento
from serving import front_door, settings

ROOT = Path(__file__).resolve().parents[2]
PORT = inspect.signature(bento.serve_command).parameters["port"].default
KEY = "SERVING_API_KEY"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The one service of the Compose file."""
    (service,) = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"].values()
    return service


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The objects of the Kubernetes file by their kind."""
    return {
        one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8"))
    }


@pytest.fixture(scope="module")
def pod(cluster: dict[str, Any]) -> dict[str, Any]:
    return cluster["Deployment"]["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def variables(compose: dict[str, Any], container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The environment that each file sets: {file: {name: value, or the source of the value}}."""
    return {
        "compose.yaml": compose["environment"],
        "kubernetes.yaml": {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]},
    }


def test_both_files_have_their_objects(compose: dict[str, Any], cluster: dict[str, Any]):
    assert compose["image"]
    assert set(cluster) == {"Deployment", "Service", "PodDisruptionBudget"}


def test_every_probe_asks_a_path_without_a_key(container: dict[str, Any]):
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(asked.values()) <= set(front_door.OPEN)


def test_the_health_check_of_compose_asks_readyz(compose: dict[str, Any]):
    program, *arguments = compose["healthcheck"]["test"][1:]
    assert program == "python"  # curl is not in the image
    code = arguments[-1]
    compile(code, "healthcheck", "exec")
    assert '"/readyz"' in code
    assert "/readyz" in front_door.OPEN


def test_prometheus_collects_from_a_known_path(pod: dict[str, Any]):
    assert pod["metadata"]["annotations"]["prometheus.io/path"] in front_door.PATHS


def test_all_files_agree_on_the_port(
    compose: dict[str, Any], cluster: dict[str, Any], pod: dict[str, Any], container: dict[str, Any], variables: dict
):
    (named,) = container["ports"]
    (offered,) = cluster["Service"]["spec"]["ports"]
    numbers = {
        "published by compose": compose["ports"][0].rpartition(":")[2],
        "default outside of compose": re.findall(r":-(\d+)}", compose["ports"][0])[0],
        "health check": re.findall(r'"127\.0\.0\.1", (\d+)', compose["healthcheck"]["test"][-1])[0],
        "of the process in compose": variables["compose.yaml"]["BENTOML_PORT"],
        "of the process in the pod": variables["kubernetes.yaml"]["BENTOML_PORT"],
        "named in the pod": named["containerPort"],
        "offered to the cluster": offered["port"],
        "for Prometheus": pod["metadata"]["annotations"]["prometheus.io/port"],
    }
    assert {name: int(port) for name, port in numbers.items()} == dict.fromkeys(numbers, PORT)
    asked = [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    assert {*asked, offered["targetPort"]} == {named["name"]}


def test_a_connection_is_kept_as_long_as_by_serve(compose: dict[str, Any], container: dict[str, Any]):
    expected = ["serve", "--timeout-keep-alive", str(settings.KEEP_ALIVE)]
    assert compose["command"] == container["args"] == expected


def test_the_key_comes_from_outside(variables: dict[str, dict[str, Any]]):
    assert variables["compose.yaml"][KEY].startswith(f"${{{KEY}:?")  # without one, nothing starts
    source = variables["kubernetes.yaml"][KEY]["secretKeyRef"]
    assert source["key"] == KEY
    assert not source.get("optional")


def test_the_service_reads_every_serving_variable(variables: dict[str, dict[str, Any]]):
    read = set(re.findall(r'"(SERVING_\w+)"', (ROOT / "serving/settings.py").read_text(encoding="utf-8")))
    for name, values in variables.items():
        assert {key for key in values if key.startswith("SERVING_")} <= read, name


def test_both_files_set_the_same_variables(variables: dict[str, dict[str, Any]]):
    plain = {name: {key: value for key, value in values.items() if key != KEY} for name, values in variables.items()}
    assert plain["compose.yaml"] == plain["kubernetes.yaml"]


def test_a_container_listens_outside_and_sends_no_telemetry(variables: dict[str, dict[str, Any]]):
    for values in variables.values():
        assert values["BENTOML_HOST"] == "0.0.0.0"  # 127.0.0.1 would be the container's own
        assert values["BENTOML_DO_NOT_TRACK"] == "True"


def test_compose_publishes_on_this_machine_only(compose: dict[str, Any]):
    assert compose["ports"]
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])
    assert "network_mode" not in compose


def test_the_cluster_keeps_the_service_inside(cluster: dict[str, Any], pod: dict[str, Any]):
    assert cluster["Service"]["spec"]["type"] == "ClusterIP"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])


def test_compose_runs_read_only_without_privileges(compose: dict[str, Any]):
    assert compose["read_only"] is True
    assert compose["cap_drop"] == ["ALL"]
    assert compose["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "volumes", "devices", "pid", "ipc"} & set(compose)


def test_the_pod_runs_read_only_without_privileges(pod: dict[str, Any], container: dict[str, Any]):
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_the_user_is_that_of_bentoml_s_images(compose: dict[str, Any], pod: dict[str, Any]):
    context = pod["spec"]["securityContext"]
    assert compose["user"] == f"{BENTO_UID_GID}:{BENTO_UID_GID}"
    assert (context["runAsUser"], context["runAsGroup"]) == (BENTO_UID_GID, BENTO_UID_GID)


def test_bentoml_writes_to_memory(
    compose: dict[str, Any], pod: dict[str, Any], container: dict[str, Any], variables: dict
):
    (mount,) = compose["tmpfs"]
    (volume,), (place,) = pod["spec"]["volumes"], container["volumeMounts"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert place["name"] == volume["name"]
    for values, writable in (
        (variables["compose.yaml"], mount.partition(":")[0]),
        (variables["kubernetes.yaml"], place["mountPath"]),
    ):
        assert Path(values["BENTOML_HOME"]).is_relative_to(writable)


def test_both_files_have_the_same_limits(compose: dict[str, Any], container: dict[str, Any]):
    limits = container["resources"]["limits"]
    assert compose["mem_limit"] + "i" == limits["memory"].lower()
    assert str(compose["cpus"]) == limits["cpu"]


def test_a_roll_out_keeps_every_old_pod_until_a_new_one_is_ready(cluster: dict[str, Any]):
    assert cluster["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_every_selector_matches_the_pods(cluster: dict[str, Any], pod: dict[str, Any]):
    labels = pod["metadata"]["labels"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert cluster["Service"]["spec"]["selector"] == labels
    assert cluster["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
