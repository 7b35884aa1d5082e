"""deploy/kubernetes/: valid by Kubernetes' own schemas, and each name leads to what it means."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from llamaproxy.admin import names
from llamaproxy.admin.endpoint import AdminApp
from tests.deploy.balancers import DEPLOY
from tests.deploy.settings import default, taken

FOLDER = DEPLOY / "kubernetes"

Json = dict[str, Any]

#: The oldest version that has all that the files use; kubernetes-validate has the newest too.
OLDEST = "1.30"

#: Not resources: kustomize's own file, and values for a Helm chart.
OTHER_FILES = {"kustomization.yaml", "prometheus-adapter.yaml"}


def load(name: str) -> list[Json]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


KUSTOMIZATION: Json = load("kustomization.yaml")[0]
RESOURCES = [
    resource
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name not in OTHER_FILES
    for resource in load(path.name)
]


def named(kind: str, name: str) -> Json:
    [resource] = [r for r in RESOURCES if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return resource


def of_kind(kind: str) -> list[Json]:
    return [resource for resource in RESOURCES if resource["kind"] == kind]


DEPLOYMENTS = of_kind("Deployment")


def labels_of(deployment: Json) -> dict[str, str]:
    labels: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return labels


def container_of(deployment: Json) -> Json:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def ports_of(deployment: Json) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(deployment)["ports"]}


def selected(labels: dict[str, str]) -> Json:
    """The one deployment whose pods *labels* select."""
    [deployment] = [each for each in DEPLOYMENTS if labels.items() <= labels_of(each).items()]
    return deployment


PROXY = named("Deployment", "llamaproxy")


def pod(deployment: Json = PROXY) -> Json:
    spec: Json = deployment["spec"]["template"]["spec"]
    return spec


def size(text: str) -> int:
    """Bytes of a quantity."""
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", text)
    assert match is not None, text
    return int(match[1]) * {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}[match[2]]


# --- schemas


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "resource", RESOURCES, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_a_resource_is_what_kubernetes_takes(resource: Json, version: str) -> None:
    """In every field: one that is not known is a mistake."""
    kubernetes_validate.validate(resource, version, strict=True)


def test_every_file_is_a_resource_of_the_kustomization() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert set(KUSTOMIZATION["resources"]) == files - OTHER_FILES
    assert KUSTOMIZATION["namespace"] == of_kind("Namespace")[0]["metadata"]["name"]


def test_kustomize_builds_it(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("KUSTOMIZE IS NOT TESTED: there is no kubectl")
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("secrets"))
    (folder / "secrets").mkdir()
    [secret] = KUSTOMIZATION["secretGenerator"]
    for name in secret["files"]:
        (folder / name).write_text("a-secret\n")
    ran = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    made: list[Json] = list(yaml.safe_load_all(ran.stdout))
    for resource in made:
        kubernetes_validate.validate(resource, OLDEST, strict=True)
    [proxy] = [
        resource
        for resource in made
        if (resource["kind"], resource["metadata"]["name"]) == ("Deployment", "llamaproxy")
    ]
    generated = {r["metadata"]["name"] for r in made if r["kind"] in ("Secret", "ConfigMap")}
    for reference in references(proxy):
        assert reference in generated, "the name with the hash is not taken everywhere"
    [image] = KUSTOMIZATION["images"]
    assert container_of(proxy)["image"] == f"{image['newName']}:{image['newTag']}"


def references(deployment: Json) -> Iterator[str]:
    """The names of the secrets and maps that its pods want."""
    container = container_of(deployment)
    for source in container.get("envFrom", ()):
        yield source["configMapRef"]["name"]
    for variable in container.get("env", ()):
        if "valueFrom" in variable:
            yield variable["valueFrom"]["secretKeyRef"]["name"]
    for volume in pod(deployment).get("volumes", ()):
        if "secret" in volume:
            yield volume["secret"]["secretName"]


# --- names


def test_secrets_and_maps_have_what_pods_want_of_them() -> None:
    [secret] = KUSTOMIZATION["secretGenerator"]
    [config] = KUSTOMIZATION["configMapGenerator"]
    assert set(references(PROXY)) == {secret["name"], config["name"]}
    keys = {Path(name).name for name in secret["files"]}
    wanted = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for variable in container_of(PROXY)["env"]
        if "valueFrom" in variable
    }
    [volume] = [each for each in pod()["volumes"] if "secret" in each]
    wanted |= {item["key"] for item in volume["secret"]["items"]}
    assert wanted == keys
    comment = (FOLDER / "kustomization.yaml").read_text().split("apiVersion")[0]
    assert all(f"> secrets/{name}" in comment for name in keys)


def test_secrets_are_neither_committed_nor_sent_to_a_build() -> None:
    ignored = {line.rstrip("/") for line in (DEPLOY.parent / ".gitignore").read_text().split()}
    assert {"deploy/.env", "deploy/kubernetes/secrets"} <= ignored
    lines = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "a build is sent nothing but what is named"
    assert [line for line in lines if line.startswith("!deploy")] == ["!deploy/image.py"]


def environment() -> dict[str, str]:
    """What a daemon finds, with a word for each secret."""
    literals = (each.split("=", 1) for each in KUSTOMIZATION["configMapGenerator"][0]["literals"])
    variables = container_of(PROXY)["env"]
    return dict(literals) | {each["name"]: each.get("value", "a-secret" * 4) for each in variables}


def test_a_daemon_takes_its_environment(tmp_path: Path) -> None:
    options = taken(environment(), tmp_path)
    ports = ports_of(PROXY)
    assert options["admin"] == f"tcp:{ports['admin']}"
    assert options["listen"] == [f"tcp:{ports['http']}"]
    [keys] = [each for each in container_of(PROXY)["volumeMounts"] if each["name"] == "keys"]
    [volume] = [each for each in pod()["volumes"] if "secret" in each]
    path = f"{keys['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert environment()["LLAMAPROXY_API_KEYS_FILE"] == path
    # Not after the Services of the namespace, one of which is called llamaproxy.
    assert pod()["enableServiceLinks"] is False


def test_volumes_are_mounted_and_what_is_mounted_is_there() -> None:
    for deployment in DEPLOYMENTS:
        mounts = {mount["name"] for mount in container_of(deployment)["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod(deployment)["volumes"]}


def test_a_service_leads_to_a_port_of_the_pods_that_it_selects() -> None:
    for service in of_kind("Service"):
        ports = ports_of(selected(service["spec"]["selector"]))
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
            assert port["targetPort"] != "admin"


def test_everything_that_selects_pods_selects_those_of_one_deployment() -> None:
    for deployment in DEPLOYMENTS:
        own = deployment["spec"]["selector"]["matchLabels"]
        assert selected(own) is deployment
        for constraint in pod(deployment).get("topologySpreadConstraints", ()):
            assert selected(constraint["labelSelector"]["matchLabels"]) is deployment
    [budget] = of_kind("PodDisruptionBudget")
    assert selected(budget["spec"]["selector"]["matchLabels"]) is PROXY
    policies = of_kind("NetworkPolicy")
    chosen = [selected(policy["spec"]["podSelector"]["matchLabels"]) for policy in policies]
    assert sorted(map(DEPLOYMENTS.index, chosen)) == list(range(len(DEPLOYMENTS)))


def test_a_network_policy_opens_the_ports_that_pods_have() -> None:
    for policy in of_kind("NetworkPolicy"):
        ports = ports_of(selected(policy["spec"]["podSelector"]["matchLabels"]))
        opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert opened == set(ports.values())
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_admin_port_is_open_to_monitoring_alone() -> None:
    policy = named("NetworkPolicy", "llamaproxy")
    admin = ports_of(PROXY)["admin"]
    [rule] = [r for r in policy["spec"]["ingress"] if admin in [p["port"] for p in r["ports"]]]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    assert [port["port"] for port in rule["ports"]] == [admin]


def test_pods_may_reach_what_their_settings_name(tmp_path: Path) -> None:
    """The server and the store, at their ports; both by rules with the labels of their names."""
    egress = named("NetworkPolicy", "llamaproxy")["spec"]["egress"]
    allowed = {
        (peer["podSelector"]["matchLabels"].get("app.kubernetes.io/name"), port["port"])
        for rule in egress
        for peer in rule["to"]
        if "podSelector" in peer
        for port in rule.get("ports", ())
    }
    for variable in ("LLAMASTACK_URL", "LLAMAPROXY_MEMORY"):
        match = re.fullmatch(r"\w+://([\w-]+):(\d+)", environment()[variable])
        assert match is not None
        assert (match[1], int(match[2])) in allowed
    store = re.fullmatch(r"redis://([\w-]+):(\d+)", environment()["LLAMAPROXY_MEMORY"])
    assert store is not None
    [port] = named("Service", store[1])["spec"]["ports"]
    assert port["port"] == int(store[2])


def test_probes_ask_for_what_the_admin_port_answers() -> None:
    routes = {rule.rule for rule in AdminApp._routes.url_map.iter_rules()}
    container = container_of(PROXY)
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[name]["httpGet"]
        assert probe["path"] in routes
        assert probe["port"] == "admin"
    # What the server does is no reason to start the proxy again.
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    annotations = PROXY["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in routes
    assert annotations["prometheus.io/port"] == str(ports_of(PROXY)["admin"])


def test_the_autoscaler_counts_what_is_measured() -> None:
    [scaler] = of_kind("HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert named(target["kind"], target["name"]) is PROXY
    assert target["apiVersion"] == PROXY["apiVersion"]
    assert "replicas" not in PROXY["spec"], "an apply would undo what the autoscaler has done"
    [metric] = [each["pods"] for each in scaler["spec"]["metrics"] if each["type"] == "Pods"]
    kinds = {series.name: series.kind for series in names.EVERY}
    assert kinds[metric["metric"]["name"]] == "gauge"
    [rule] = load("prometheus-adapter.yaml")[0]["rules"]["custom"]
    assert rule["seriesQuery"].startswith(metric["metric"]["name"] + "{")
    [budget] = of_kind("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] < scaler["spec"]["minReplicas"]


# --- amounts


def test_a_pod_is_given_the_time_that_it_needs_to_stop(tmp_path: Path) -> None:
    options = taken(environment(), tmp_path)
    sleep = container_of(PROXY)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] >= sleep + options["drain-timeout"] + 5


def test_a_pod_has_room_for_what_its_options_let_grow(tmp_path: Path) -> None:
    options = taken(environment(), tmp_path)
    [scaler] = of_kind("HorizontalPodAutoscaler")
    [streams] = [
        int(each["pods"]["target"]["averageValue"])
        for each in scaler["spec"]["metrics"]
        if each["type"] == "Pods"
    ]
    assert 2 * streams < options["max-connections"]
    process, stream = 62_000_000, 36_000  # docs/performance.md
    ordinary = process + streams * stream
    resources = container_of(PROXY)["resources"]
    assert size(resources["requests"]["memory"]) > 2 * ordinary
    grown = ordinary + options["max-chat-bodies"] + options["memory-bytes"]
    assert size(resources["limits"]["memory"]) > 1.5 * grown
    assert "cpu" not in resources["limits"]
    [uploads] = [each["emptyDir"] for each in pod()["volumes"] if each["name"] == "uploads"]
    assert size(uploads["sizeLimit"]) >= 16 * options["max-body"]
    assert options["max-chat-bodies"] == int(default("max-chat-bodies"))


def test_the_store_has_room_for_what_it_may_keep() -> None:
    container = container_of(named("Deployment", "valkey"))
    [most] = [each for each in container["args"] if each.startswith("--maxmemory ")]
    kept = int(most.removeprefix("--maxmemory ").removesuffix("mb")) * 1024 * 1024
    assert size(container["resources"]["limits"]["memory"]) > 1.2 * kept


def test_pods_are_restricted() -> None:
    """As the standard of that name wants it, which the namespace enforces, and more."""
    [namespace] = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for deployment in DEPLOYMENTS:
        spec, container = pod(deployment), container_of(deployment)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        # A number: the name of the image's user would not do to know that it is not root.
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
