"""compose.yaml and deploy/compose.yaml: services, ports, names and variables fit each other."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_twistd import ROOT

from .balancers import DEPLOY
from .settings import VARIABLES, default, taken

Json = dict[str, Any]

PATHS = [ROOT / "compose.yaml", DEPLOY / "compose.yaml"]


def read(path: Path) -> Json:
    parsed = yaml.safe_load(path.read_text())
    assert isinstance(parsed, dict)
    return parsed


def daemons(compose: Json) -> dict[str, Json]:
    return {name: each for name, each in compose["services"].items() if "llamaproxy" in name}


def filled(text: str) -> str:
    """A value with its variables: their defaults, or a word for those that must be given."""
    return re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda m: m[2] if m[1] == "-" else "a" * 32, text)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_what_a_service_names_is_there(path: Path) -> None:
    compose = read(path)
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            healthy = how["condition"] == "service_healthy"
            assert not healthy or other.startswith("llamaproxy"), "its image has a health check"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (path.parent / source).is_file(), source
            else:
                assert source in compose["volumes"]
        for secret in service.get("secrets", ()):
            assert secret in compose["secrets"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_daemons_take_their_environment(path: Path, tmp_path: Path) -> None:
    compose = read(path)
    for daemon in daemons(compose).values():
        environment = {name: filled(value) for name, value in daemon["environment"].items()}
        options = taken(environment, tmp_path)
        host = options["llamastack-url"].host
        assert host in compose["services"] or host in daemon["extra_hosts"][0]
        grace = int(daemon["stop_grace_period"].removesuffix("s"))
        assert grace >= options["drain-timeout"] + 5


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_nothing_is_published_beyond_this_machine(path: Path) -> None:
    for service in read(path)["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_open_webui_asks_for_a_name_and_a_port_that_are_there() -> None:
    for path, front, port in ((PATHS[0], "llamaproxy", "8322"), (PATHS[1], "haproxy", "80")):
        services = read(path)["services"]
        asked = services["open-webui"]["environment"]["OPENAI_API_BASE_URL"]
        assert asked in (f"http://{front}:{port}/v1", f"http://{front}/v1")
        assert services[front]["ports"] == [f"127.0.0.1:{default('port')}:{port}"]
    configs = [
        read(path)["services"]["open-webui"]["environment"]["OPENAI_API_CONFIGS"] for path in PATHS
    ]
    assert configs[0] == configs[1]


def test_haproxy_knows_the_replicas_by_their_names() -> None:
    compose = read(DEPLOY / "compose.yaml")
    text = (DEPLOY / "haproxy.cfg").read_text()
    servers = re.findall(r"^    server \S+ (\S+):(\d+) port (\d+)$", text, re.MULTILINE)
    assert [server[0] for server in servers] == list(daemons(compose))
    assert {server[1] for server in servers} == {default("port")}
    assert set(compose["services"]["haproxy"]["depends_on"]) == set(daemons(compose))
    # In the image the admin port is where HAProxy asks.
    assert "LLAMAPROXY_ADMIN=tcp:8323" in (ROOT / "Dockerfile").read_text()
    assert {server[2] for server in servers} == {"8323"}


def test_replicas_believe_haproxy_and_have_addresses_of_their_own() -> None:
    compose = read(DEPLOY / "compose.yaml")
    network = ipaddress.ip_network(compose["networks"]["default"]["ipam"]["config"][0]["subnet"])
    addresses = {
        name: service["networks"]["default"]["ipv4_address"]
        for name, service in compose["services"].items()
        if "networks" in service
    }
    assert len(set(addresses.values())) == len(addresses) == 4
    assert all(ipaddress.ip_address(address) in network for address in addresses.values())
    for daemon in daemons(compose).values():
        assert daemon["environment"]["LLAMAPROXY_TRUSTED_PROXIES"] == addresses["haproxy"]


def test_the_keys_are_where_replicas_look_for_them() -> None:
    compose = read(DEPLOY / "compose.yaml")
    for daemon in daemons(compose).values():
        [secret] = daemon["secrets"]
        assert daemon["environment"]["LLAMAPROXY_API_KEYS_FILE"] == f"/run/secrets/{secret}"
        variable = compose["secrets"][secret]["environment"]
        key = compose["services"]["open-webui"]["environment"]["OPENAI_API_KEY"]
        assert key.startswith("${" + variable + ":?")
    # What compose itself is told is no option of llamaproxy's, or is one of that name.
    comment = (DEPLOY / "compose.yaml").read_text().split("x-llamaproxy")[0]
    told = set(re.findall(r"(LLAMAPROXY_\w+)=%s", comment))
    assert told - VARIABLES == {variable}
