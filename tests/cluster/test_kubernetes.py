"""What kubectl makes of deploy/kubernetes is valid, and fits the server's own figures."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dragoman_server.backend import _MAX_STALLED_SECONDS
from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import Config
from dragoman_server.metrics import Metrics
from dragoman_server.registry.loading import max_load_seconds

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("overlays/*"))
ALL = ["base", *OVERLAYS, "kserve"]
SELECTOR = {"app.kubernetes.io/name": "dragoman", "app.kubernetes.io/component": "server"}
CONFIG = Config()

Thing = dict[str, Any]


def built(kubectl: str, folder: str) -> dict[tuple[str, str], Thing]:
    """The objects by their kinds and names."""
    command = [kubectl, "kustomize", str(FOLDER / folder)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {(thing["kind"], thing["metadata"]["name"]): thing for thing in yaml.safe_load_all(text)}


def pod(things: dict[tuple[str, str], Thing]) -> tuple[Thing, Thing]:
    """The server's pod and its one container."""
    spec = things["Deployment", "dragoman"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def seconds(probe: Thing) -> int:
    """After which a probe that always fails has its effect."""
    return int(probe["periodSeconds"] * probe["failureThreshold"])


@pytest.mark.parametrize("folder", ALL)
def test_it_is_valid(kubectl: str, cluster_python: str, folder: str) -> None:
    things = [*built(kubectl, folder).values()]
    assert things
    command = [cluster_python, str(Path(__file__).with_name("validate.py"))]
    ended = subprocess.run(command, input=json.dumps(things), check=True, capture_output=True, text=True)
    assert json.loads(ended.stdout) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "template", "spec", "containers", 0, "readinessProbe", "grpc", "port"), "grpc"),
        (("spec", "template", "spec", "terminationGracePeriod"), 40),
        (("spec", "replicas"), "3"),
    ],
)
def test_what_is_not_valid_is_found(kubectl: str, cluster_python: str, path: tuple[Any, ...], value: object) -> None:
    thing: Any = built(kubectl, "base")["Deployment", "dragoman"]
    inner = thing
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    command = [cluster_python, str(Path(__file__).with_name("validate.py"))]
    ended = subprocess.run(command, input=json.dumps([thing]), check=True, capture_output=True, text=True)
    assert json.loads(ended.stdout)


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_it_ends_within_the_grace_of_kubernetes(kubectl: str, folder: str) -> None:
    spec, container = pod(built(kubectl, folder))
    set_here = {entry["name"]: entry["value"] for entry in container["env"]}
    grace = float(set_here.get("DRAGOMAN_SHUTDOWN_GRACE_SECONDS", CONFIG.shutdown_grace_seconds))
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + grace < spec["terminationGracePeriodSeconds"]


def test_kserve_s_pods_end_within_theirs(kubectl: str) -> None:
    (container,) = built(kubectl, "kserve")["ServingRuntime", "dragoman"]["spec"]["containers"]
    set_here = {entry["name"]: entry["value"] for entry in container["env"]}
    assert float(set_here["DRAGOMAN_SHUTDOWN_GRACE_SECONDS"]) < 30  # Kubernetes' own, which KServe leaves


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_probes_give_the_server_its_time(kubectl: str, folder: str) -> None:
    things = built(kubectl, folder)
    _, container = pod(things)
    startup, readiness, liveness = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    port = int(CONFIG.listen.rpartition(":")[2])
    assert {probe["grpc"]["port"] for probe in (startup, readiness, liveness)} == {port}
    # A load may take twice as long as a trial, which the embedded model is spared.
    load = 2 * max_load_seconds(embedded_bundle())
    assert seconds(startup) > load
    assert things["Deployment", "dragoman"]["spec"]["progressDeadlineSeconds"] > seconds(startup)
    # A server that only starts to be stuck is out of the way first, and is ended later.
    assert seconds(readiness) < seconds(liveness)
    assert seconds(liveness) > _MAX_STALLED_SECONDS
    # Callers are told that it goes before it refuses them.
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= seconds(readiness)


def test_a_gpu_s_server_has_time_for_gigabytes(kubectl: str, tmp_path: Path) -> None:
    _, container = pod(built(kubectl, "overlays/gpu"))
    with (tmp_path / "weights.bin").open("wb") as weights:
        weights.truncate(3_000_000_000)
    assert seconds(container["startupProbe"]) > 3 * max_load_seconds(tmp_path)  # the trial, and the load
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].startswith("dragoman-server-cuda:")


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_a_pod_may_do_as_little_as_the_image_needs(kubectl: str, folder: str) -> None:
    things = built(kubectl, folder)
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for (kind, _), thing in things.items():
        if kind != "Deployment":
            continue
        spec = thing["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
    spec, container = pod(things)
    assert f"USER {spec['securityContext']['runAsUser']}:" in dockerfile
    # What the options of the image open is what the pod has as ports.
    for port in container["ports"]:
        assert f":{port['containerPort']}" in dockerfile


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_all_select_the_servers_and_nothing_else(kubectl: str, folder: str) -> None:
    things = built(kubectl, folder)
    assert things["Deployment", "dragoman"]["spec"]["template"]["metadata"]["labels"] == SELECTOR
    for kind, name in (("Deployment", "dragoman"), ("PodDisruptionBudget", "dragoman")):
        assert things[kind, name]["spec"]["selector"] == {"matchLabels": SELECTOR}
    assert things["NetworkPolicy", "dragoman"]["spec"]["podSelector"] == {"matchLabels": SELECTOR}
    service = things["Service", "dragoman-servers"]
    assert service["spec"]["selector"] == SELECTOR
    assert service["spec"]["clusterIP"] == "None"
    ports = {port["name"] for port in pod(things)[1]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports


@pytest.mark.parametrize(("folder", "kind"), [("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")])
def test_an_autoscaler_has_the_number_of_servers(kubectl: str, folder: str, kind: str) -> None:
    things = built(kubectl, f"overlays/{folder}")
    assert "replicas" not in things["Deployment", "dragoman"]["spec"]
    assert things[kind, "dragoman"]["spec"]["scaleTargetRef"]["name"] == "dragoman"
    monitor = things["ServiceMonitor", "dragoman"]["spec"]
    service = things["Service", "dragoman-servers"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_what_autoscalers_ask_for_is_on_the_server_s_page(kubectl: str) -> None:
    rules = yaml.safe_load((FOLDER / "components/hpa/adapter-rules.yaml").read_text())["rules"]["custom"]
    (metric,) = built(kubectl, "overlays/hpa")["HorizontalPodAutoscaler", "dragoman"]["spec"]["metrics"]
    assert [metric["pods"]["metric"]["name"]] == [rule["name"]["as"] for rule in rules]
    (trigger,) = built(kubectl, "overlays/keda")["ScaledObject", "dragoman"]["spec"]["triggers"]
    assert "dragoman_queue_wait_seconds" in {family.name for family in Metrics().registry.collect()}
    for query in (rules[0]["metricsQuery"], trigger["metadata"]["query"]):
        assert {"dragoman_queue_wait_seconds_sum", "dragoman_queue_wait_seconds_count"} <= words(query)


def words(text: str) -> set[str]:
    return set("".join(letter if letter.isalnum() or letter == "_" else " " for letter in text).split())


def test_envoy_finds_the_servers_and_may_call_them(kubectl: str) -> None:
    things = built(kubectl, "overlays/envoy")
    (configuration,) = (thing for (kind, _), thing in things.items() if kind == "ConfigMap")
    envoy = yaml.safe_load(configuration["data"]["envoy.yaml"])
    (endpoint,) = envoy["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = things["Service", address["address"]]
    assert address["port_value"] in {port["port"] for port in service["spec"]["ports"]}
    labels = things["Deployment", "dragoman-envoy"]["spec"]["template"]["metadata"]["labels"]
    (calls, _) = things["NetworkPolicy", "dragoman"]["spec"]["ingress"]
    assert calls["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    (container,) = things["Deployment", "dragoman-envoy"]["spec"]["template"]["spec"]["containers"]
    listening = {
        listener["address"]["socket_address"]["port_value"] for listener in envoy["static_resources"]["listeners"]
    }
    assert {port["containerPort"] for port in container["ports"]} == listening
