"""The files that run the Bento's image in a container, held against the service and against each other."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bentoml._internal.container.generate import BENTO_UID_GID

from mobilenet_pipeline import packaging
from serving import front_door

ROOT = Path(__file__).resolve().parents[2]
PORT = inspect.signature(packaging.serve_command).parameters["port"].default
KEY = "SERVING_API_KEY"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The one service of the Compose file."""
    (service,) = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"].values()
    return service


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The objects of the Kubernetes file by their kinds."""
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
    """What each file sets for the process: name → value, or where the value comes from."""
    return {
        "compose.yaml": compose["environment"],
        "kubernetes.yaml": {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]},
    }


def test_both_files_are_yaml_and_hold_what_they_should(compose: dict[str, Any], cluster: dict[str, Any]):
    assert compose["image"]
    assert set(cluster) == {"Deployment", "Service", "PodDisruptionBudget"}


def test_every_probe_asks_a_path_that_the_service_answers_without_a_key(container: dict[str, Any]):
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(asked.values()) <= set(front_door.OPEN)


def test_the_health_check_of_compose_asks_whether_the_service_is_ready(compose: dict[str, Any]):
    program, *arguments = compose["healthcheck"]["test"][1:]
    assert program == "python"  # curl is not in the image
    code = arguments[-1]
    compile(code, "healthcheck", "exec")
    assert '"/readyz"' in code
    assert "/readyz" in front_door.OPEN


def test_prometheus_is_sent_to_a_path_that_is_there(pod: dict[str, Any]):
    assert pod["metadata"]["annotations"]["prometheus.io/path"] in front_door.PATHS


def test_the_port_is_the_same_everywhere(
    compose: dict[str, Any], cluster: dict[str, Any], pod: dict[str, Any], container: dict[str, Any], variables: dict
):
    (named,) = container["ports"]
    (offered,) = cluster["Service"]["spec"]["ports"]
    found = {
        "published by compose": compose["ports"][0].rpartition(":")[2],
        "default outside of compose": re.findall(r":-(\d+)}", compose["ports"][0])[0],
        "health check": re.findall(r'"127\.0\.0\.1", (\d+)', compose["healthcheck"]["test"][-1])[0],
        "listened to in compose": variables["compose.yaml"]["BENTOML_PORT"],
        "listened to in the pod": variables["kubernetes.yaml"]["BENTOML_PORT"],
        "named in the pod": named["containerPort"],
        "offered to the cluster": offered["port"],
        "told to Prometheus": pod["metadata"]["annotations"]["prometheus.io/port"],
    }
    assert {name: int(port) for name, port in found.items()} == dict.fromkeys(found, PORT)
    asked = [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    assert {*asked, offered["targetPort"]} == {named["name"]}


def test_the_key_comes_from_outside_and_has_one_name(variables: dict[str, dict[str, Any]]):
    assert variables["compose.yaml"][KEY].startswith(f"${{{KEY}:?")  # without one, nothing starts
    source = variables["kubernetes.yaml"][KEY]["secretKeyRef"]
    assert source["key"] == KEY
    assert not source.get("optional")


def test_what_is_set_for_the_service_is_read_by_it(variables: dict[str, dict[str, Any]]):
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "serving").glob("*.py")))
    read = set(re.findall(r'environ(?:\.get\(|\[)"(SERVING_\w+)"', code))
    for name, values in variables.items():
        assert {key for key in values if key.startswith("SERVING_")} <= read, name


def test_the_same_is_set_in_both_files(variables: dict[str, dict[str, Any]]):
    plain = {name: {key: value for key, value in values.items() if key != KEY} for name, values in variables.items()}
    assert plain["compose.yaml"] == plain["kubernetes.yaml"]


def test_a_container_listens_to_the_outside_and_keeps_to_itself_what_it_does(variables: dict[str, dict[str, Any]]):
    for values in variables.values():
        assert values["BENTOML_HOST"] == "0.0.0.0"  # the service's own 127.0.0.1 would be the container's
        assert values["BENTOML_DO_NOT_TRACK"] == "True"


def test_compose_publishes_on_this_machine_only(compose: dict[str, Any]):
    assert compose["ports"]
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])
    assert "network_mode" not in compose


def test_the_cluster_does_not_offer_it_to_the_world(cluster: dict[str, Any], pod: dict[str, Any]):
    assert cluster["Service"]["spec"]["type"] == "ClusterIP"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])


def test_compose_runs_it_read_only_and_without_privileges(compose: dict[str, Any]):
    assert compose["read_only"] is True
    assert compose["cap_drop"] == ["ALL"]
    assert compose["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "volumes", "devices", "pid", "ipc"} & set(compose)


def test_the_pod_runs_it_read_only_and_without_privileges(pod: dict[str, Any], container: dict[str, Any]):
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_the_user_is_the_one_that_bentoml_makes_in_its_images(compose: dict[str, Any], pod: dict[str, Any]):
    context = pod["spec"]["securityContext"]
    assert compose["user"] == f"{BENTO_UID_GID}:{BENTO_UID_GID}"
    assert (context["runAsUser"], context["runAsGroup"]) == (BENTO_UID_GID, BENTO_UID_GID)


def test_what_bentoml_writes_goes_to_memory(
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


def test_memory_and_processors_are_limited_alike(compose: dict[str, Any], container: dict[str, Any]):
    limits = container["resources"]["limits"]
    assert compose["mem_limit"] + "i" == limits["memory"].lower()
    assert str(compose["cpus"]) == limits["cpu"]


def test_a_roll_out_takes_no_pod_away_before_a_new_one_is_ready(cluster: dict[str, Any]):
    assert cluster["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_every_selector_finds_the_pods(cluster: dict[str, Any], pod: dict[str, Any]):
    labels = pod["metadata"]["labels"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert cluster["Service"]["spec"]["selector"] == labels
    assert cluster["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
