"""The files that train in a Kubernetes cluster: they follow the APIs' schemas, and agree with each other.

Kubernetes' own objects are checked with Kubernetes' schemas, and Prefect's template with the code of Prefect's worker.
No Python package with KubeRay's schema was found: `RayJob` and `RayCluster` below name the fields that the files use.
"""

import ast
import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.server.schemas.actions import WorkPoolCreate
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from mobilenet_pipeline import cli

for package in ("kubernetes_validate", "prefect_kubernetes"):
    pytest.importorskip(package, reason=f"{package} is not installed: make cluster")

import kubernetes_validate
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
"""Versions of Kubernetes whose schemas the files follow. ReadWriteOncePod is stable since 1.29."""
UNITS = {"Mi": 2**20, "Gi": 2**30}


class Strict(BaseModel):
    """A part of an object of KubeRay: other fields, and values of other types, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)  # KubeRay adds six characters of its own


class Head(Strict):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Group(Head):
    groupName: str
    replicas: PositiveInt
    minReplicas: PositiveInt
    maxReplicas: PositiveInt


class Cluster(Strict):
    rayVersion: str
    headGroupSpec: Head
    workerGroupSpecs: list[Group]


class Submitter(Strict):
    backoffLimit: PositiveInt


class Job(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    submitterConfig: Submitter
    submitterPodTemplate: dict[str, Any]
    activeDeadlineSeconds: PositiveInt
    backoffLimit: PositiveInt
    shutdownAfterJobFinishes: Literal[True]  # without it, KubeRay refuses ttlSecondsAfterFinished
    ttlSecondsAfterFinished: PositiveInt
    rayClusterSpec: Cluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: Job


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: Cluster


def objects(file: str) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of a file in deploy/."""
    return list(yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8")))


(RAY_JOB,) = objects("ray-job.yaml")
(RAY_CLUSTER,) = objects("ray-cluster.yaml")
ONCE = {each["kind"]: each for each in objects("training.yaml")}
TEMPLATE = json.loads((DEPLOY / "prefect-kubernetes.json").read_text(encoding="utf-8"))
JOB_CLUSTER, CLUSTER = RAY_JOB["spec"]["rayClusterSpec"], RAY_CLUSTER["spec"]


def rendered(**values: Any) -> dict[str, Any]:
    """Return the Kubernetes Job that Prefect's worker makes of the template for a flow run."""

    async def configure() -> KubernetesWorkerJobConfiguration:
        unused = PrefectClient("http://127.0.0.1/api")  # without a client, Prefect would start a server
        return await KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values, client=unused)

    configuration = asyncio.run(configure())
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="quick-fox"))
    return configuration.job_manifest


PODS = {
    "workspace": ONCE["Job"]["spec"]["template"],
    "submitter": RAY_JOB["spec"]["submitterPodTemplate"],
    "driver on the head": JOB_CLUSTER["headGroupSpec"]["template"],
    "worker of a job": JOB_CLUSTER["workerGroupSpecs"][0]["template"],
    "head of a cluster": CLUSTER["headGroupSpec"]["template"],
    "worker of a cluster": CLUSTER["workerGroupSpecs"][0]["template"],
    "driver of Prefect": rendered()["spec"]["template"],
}
WRITTEN = ["PREFECT_HOME", "MOBILENET_PIPELINE_CACHE", "DVC_SITE_CACHE_DIR"]
DRIVERS = ["driver on the head", "driver of Prefect"]
RAY_NODES = [name for name in PODS if name.startswith(("worker", "head")) or name == "driver on the head"]


def container(pod: str) -> dict[str, Any]:
    (one,) = PODS[pod]["spec"]["containers"]
    return one


def environment(pod: str) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(pod)["env"]}


def volume(pod: str, name: str) -> dict[str, Any]:
    (one,) = (each for each in PODS[pod]["spec"]["volumes"] if each["name"] == name)
    return one


def size(quantity: str) -> int:
    """Return a Kubernetes quantity such as 4Gi in bytes."""
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def validate_pod(template: dict[str, Any], version: str = NEWEST) -> None:
    """Raise ValidationError if a pod template has an unknown field or a wrong value."""
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "PodTemplate", "template": template}, version, strict=True
    )


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("pod", PODS)
def test_every_pod_follows_the_schema_of_kubernetes(pod: str, version: str):
    validate_pod(PODS[pod], version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", ONCE)
def test_every_object_of_kubernetes_follows_its_schema(kind: str, version: str):
    kubernetes_validate.validate(ONCE[kind], version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_prefect_s_job_follows_the_schema_of_kubernetes(version: str):
    kubernetes_validate.validate(rendered(), version, strict=True)


def test_the_ray_job_uses_known_fields():
    RayJob.model_validate(RAY_JOB)


def test_the_ray_cluster_uses_known_fields():
    RayCluster.model_validate(RAY_CLUSTER)


@pytest.mark.parametrize("place", ["spec", "securityContext", "container", "volume"])
def test_a_mistyped_field_of_a_pod_is_refused(place: str):
    pod = json.loads(json.dumps(PODS["worker of a job"]))
    spec = pod["spec"]
    parts = {"spec": spec, "container": spec["containers"][0], "volume": spec["volumes"][0]["emptyDir"]}
    parts["securityContext"] = spec["containers"][0]["securityContext"]
    parts[place]["mistyped"] = "1"
    with pytest.raises(kubernetes_validate.ValidationError, match="mistyped"):
        validate_pod(pod)


def test_a_mistyped_field_of_the_ray_job_is_refused():
    with pytest.raises(ValidationError, match="backOffLimit"):
        RayJob.model_validate({**RAY_JOB, "spec": {**RAY_JOB["spec"], "backOffLimit": 1}})


def test_prefect_s_server_accepts_the_template():
    WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=TEMPLATE)


def test_the_template_has_only_settings_that_prefect_s_worker_knows():
    known = KubernetesWorker.get_default_base_job_template()
    assert TEMPLATE["job_configuration"].keys() <= known["job_configuration"].keys()
    assert TEMPLATE["variables"]["properties"].keys() <= known["variables"]["properties"].keys()


def test_every_variable_of_the_template_is_used():
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])


def test_a_deployment_adds_to_the_environment():
    (one,) = rendered(env={"MOBILENET_PIPELINE_LOG": "json"})["spec"]["template"]["spec"]["containers"]
    names = {each["name"] for each in one["env"]}
    assert {"MOBILENET_PIPELINE_LOG", "MOBILENET_PIPELINE_CLUSTER", "PREFECT_HOME"} <= names


def test_all_pods_run_the_same_image():
    assert {container(pod)["image"] for pod in PODS} == {"TRAINING_IMAGE"}


def test_all_pods_run_as_the_user_of_the_image():
    (user,) = set(re.findall(r"^USER (\d+:\d+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    contexts = [pod["spec"]["securityContext"] for pod in PODS.values()]
    assert {f"{context['runAsUser']}:{context['runAsGroup']}" for context in contexts} == {user}


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_runs_read_only_without_privileges(pod: str):
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert PODS[pod]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert PODS[pod]["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_gets_no_token_and_no_variables_of_services(pod: str):
    assert PODS[pod]["spec"]["automountServiceAccountToken"] is False
    assert PODS[pod]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_s_home_is_writable(pod: str):
    mounts = {each["mountPath"]: each["name"] for each in container(pod)["volumeMounts"]}
    assert "emptyDir" in volume(pod, mounts[environment(pod)["HOME"]])


def test_every_pod_of_a_training_passes_the_network_policy():
    label = ONCE["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    reachable = [pod for pod in PODS if label.items() <= PODS[pod].get("metadata", {}).get("labels", {}).items()]
    assert reachable == [pod for pod in PODS if pod != "workspace"]


@pytest.mark.parametrize("pod", DRIVERS)
def test_a_driver_works_in_the_claimed_workspace(pod: str):
    claim = ONCE["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume(pod, "workspace")["persistentVolumeClaim"]["claimName"] == claim
    (mount,) = (each for each in container(pod)["volumeMounts"] if each["name"] == "workspace")
    assert (mount["mountPath"], mount["subPath"]) == ("/workspace", "workspace")


def test_the_clone_is_the_folder_that_drivers_mount():
    (mount,) = (each for each in container("workspace")["volumeMounts"] if each["name"] == "workspace")
    assert f"{mount['mountPath']}/workspace" in container("workspace")["command"][-1]


@pytest.mark.parametrize("pod", DRIVERS)
def test_a_driver_writes_only_to_its_volumes(pod: str):
    folders = [environment(pod)[name] for name in WRITTEN]
    assert all(folder.startswith("/workspace/") for folder in folders)


def test_only_drivers_and_the_clone_get_the_secret():
    with_secret = {pod: container(pod)["envFrom"] for pod in PODS if "envFrom" in container(pod)}
    assert set(with_secret) == {"workspace", *DRIVERS}
    assert all(each == [{"secretRef": {"name": "mobilenet-training"}}] for each in with_secret.values())


def test_drivers_have_the_same_settings():
    plain = [environment(pod) for pod in DRIVERS]
    shared = [{name for name in each if not name.startswith(("RAY_JOB", "PREFECT_"))} for each in plain]
    assert shared[1] - shared[0] == {"MOBILENET_PIPELINE_CLUSTER"}
    assert all(plain[0][name] == plain[1][name] for name in shared[0])


def test_the_entry_point_is_a_command_of_this_program():
    words = shlex.split(RAY_JOB["spec"]["entrypoint"])
    assert words[:3] == ["env", "--chdir=/workspace", "mobilenet-pipeline"]
    arguments = cli.parser().parse_args(words[3:])
    assert (arguments.recipe, arguments.cluster) == ("cifar10", "auto")


def test_the_entry_point_has_no_character_of_a_shell():
    assert re.fullmatch(r"[\w =./-]+", RAY_JOB["spec"]["entrypoint"])


def test_the_manifests_name_the_locked_version_of_ray():
    lock = (ROOT / "requirements-cluster.lock").read_text(encoding="utf-8")
    (version,) = re.findall(r"^ray(?:\[[\w,-]+\])?==([\w.]+)", lock, re.MULTILINE)
    assert JOB_CLUSTER["rayVersion"] == CLUSTER["rayVersion"] == version


def test_prefect_s_driver_connects_to_the_ray_cluster():
    address = urlsplit(environment("driver of Prefect")["MOBILENET_PIPELINE_CLUSTER"])
    (client,) = (each for each in container("head of a cluster")["ports"] if each["name"] == "client")
    assert address.scheme == "ray"
    assert address.hostname == f"{RAY_CLUSTER['metadata']['name']}-head-svc"
    assert address.port == client["containerPort"]


def test_both_clusters_have_the_same_workers():
    assert JOB_CLUSTER["workerGroupSpecs"] == CLUSTER["workerGroupSpecs"]


def test_the_operator_may_ask_the_dashboard():
    (dashboard,) = (each for each in container("driver on the head")["ports"] if each["name"] == "dashboard")
    operator = ONCE["NetworkPolicy"]["spec"]["ingress"][1]
    assert operator["ports"] == [{"port": dashboard["containerPort"]}]


def test_nothing_is_placed_on_a_head():
    assert {spec["headGroupSpec"]["rayStartParams"]["num-cpus"] for spec in (JOB_CLUSTER, CLUSTER)} == {"0"}


@pytest.mark.parametrize("pod", RAY_NODES)
def test_the_object_store_fits_into_shared_memory_and_that_into_the_limit(pod: str):
    parameters = {group["rayStartParams"]["object-store-memory"] for group in groups()}
    shared = volume(pod, "shm")["emptyDir"]
    assert shared["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(pod)["volumeMounts"]
    assert max(map(int, parameters)) < size(shared["sizeLimit"])
    assert size(shared["sizeLimit"]) <= size(container(pod)["resources"]["limits"]["memory"]) / 2


def groups() -> list[dict[str, Any]]:
    """Return the head and the worker groups of both clusters."""
    return [group for spec in (JOB_CLUSTER, CLUSTER) for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_has_limits(pod: str):
    assert container(pod)["resources"]["limits"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("pod", [*RAY_NODES, "driver of Prefect"])
def test_a_pod_that_computes_reserves_the_memory_of_its_limit(pod: str):
    resources = container(pod)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_a_pod_waits_longer_than_a_training_that_is_told_to_stop():
    wait = int(environment("driver on the head")["RAY_JOB_STOP_WAIT_TIME_S"])
    assert all(PODS[pod]["spec"]["terminationGracePeriodSeconds"] > wait for pod in DRIVERS)


def test_the_head_s_hook_is_python():
    program, option, code = container("driver on the head")["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, option) == ("python", "-c")
    ast.parse(code)


def test_a_lost_head_is_replaced_within_the_deadline_of_a_day():
    assert RAY_JOB["spec"]["activeDeadlineSeconds"] == 24 * 60 * 60
    assert RAY_JOB["spec"]["backoffLimit"] == 1


def test_the_image_of_the_cluster_has_the_cluster_s_lock():
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    target = dockerfile.partition("FROM base AS cluster")[2].partition("\nFROM ")[0]
    assert "pip install --require-hashes -r /project/requirements-cluster.lock" in target


def test_the_last_target_of_the_image_is_that_of_the_servers():
    last = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert "requirements.lock" in last
    assert "requirements-cluster.lock" not in last


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cluster.lock"])
def test_the_build_gets_every_lock(lock: str):
    assert f"!{lock}" in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
