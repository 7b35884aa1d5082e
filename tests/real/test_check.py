"""``--check`` against real servers of old and new generations."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.test_twistd import TWISTD, environment

from .conftest import StartServer
from .processes import free_port
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


def test_a_dead_group_of_a_real_server_is_said(start_server: StartServer, tmp_path: Path) -> None:
    dead = {"dead": f"http://127.0.0.1:{free_port()}/mcp"}
    status, text = checked(start_server("0.6.1", mcp_servers=dead).url, tmp_path)
    assert status == 1 and text.endswith("Something is wrong.\n")
    assert "of the group mcp::dead at http://127.0.0.1:" in text
