"""``--check`` against real servers of old and new generations."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.test_twistd import TWISTD, Daemon, environment

from .conftest import StartServer
from .processes import free_port
from .programs import McpServer, eventually
from .servers import GENERATIONS

pytestmark = pytest.mark.real


def checked(url: str, folder: Path, *arguments: str) -> tuple[int, str]:
    ran = subprocess.run(
        [*TWISTD, "llamaproxy", "--check", "--llamastack-url", url, *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    print(ran.stdout)
    assert ran.stderr == "" and list(folder.iterdir()) == []
    return ran.returncode, ran.stdout


@pytest.mark.parametrize("version", GENERATIONS)
def test_all_is_well_with_a_real_server(
    version: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(version)
    status, text = checked(server.url, tmp_path)
    assert (status, text.splitlines()[-1]) == (0, "All is well.")
    assert f"version {version.removeprefix('ogx-')}" in text
    assert "scripted-1" in text and "get_text" in text


@pytest.mark.parametrize("version", ["0.6.1", "ogx-1.5.0"])
def test_a_dead_group_of_a_real_server_is_said(
    version: str, start_server: StartServer, mcp_server: McpServer, tmp_path: Path
) -> None:
    servers = {"live": mcp_server.url, "dead": f"http://127.0.0.1:{free_port()}/mcp"}
    url = start_server(version, mcp_servers=servers).url
    (folder := tmp_path / "folder").mkdir()
    status, text = checked(url, folder)
    assert status == 1 and text.endswith("Something is wrong.\n")
    [line] = [line[6:] for line in text.splitlines() if line.startswith("WRONG")]
    assert "dead" in line and ": 10 tools: " in text
    admin = free_port()
    daemon = Daemon(
        tmp_path / "log", "--llamastack-url", url, "--admin", f"tcp:{admin}:interface=127.0.0.1"
    )

    def asked(path: str) -> str:
        with urlopen(f"http://127.0.0.1:{admin}{path}") as answer:
            text: str = answer.read().decode()
            return text

    def advice() -> list[str]:
        return [each["what"] for each in json.loads(asked("/status"))["advice"]]

    try:
        eventually(advice, 20)
        assert advice() == [line]
        assert "llamaproxy_tool_groups_missing 1.0" in asked("/metrics")
    finally:
        daemon.stop()
    assert "cannot be listed: " in daemon.log.read_text()
