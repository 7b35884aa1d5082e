"""Our MCP client against servers that others have made: the conformance suite, and all features.

They are npm packages, installed beside the environments of the other servers; the conformance
suite wants Node 22, which npm has too. Without npm these tests are skipped, in CI they fail.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, Launch
from .environments import INSTALL_TIMEOUT, cache_directory
from .processes import free_port

pytestmark = pytest.mark.real

PACKAGES = (
    "@modelcontextprotocol/conformance",
    "@modelcontextprotocol/server-everything",
    "node@22",
)

CLIENT = [sys.executable, "-m", "tests.real.mcp_client"]


@pytest.fixture(scope="module")
def node() -> Path:
    """Where the programs of the packages are."""
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("CI"):
            pytest.fail("there is no npm")
        pytest.skip("OTHERS' MCP SERVERS ARE NOT TESTED: there is no npm")
    directory = cache_directory() / "npm"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            command = [npm, "install", "--silent", "--prefix", str(directory), *PACKAGES]
            subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT, capture_output=True)
            (directory / "complete").touch()
    return directory / "node_modules"


def environment() -> dict[str, str]:
    """The client is run from anywhere."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}


@pytest.mark.parametrize("scenario", ["initialize", "tools_call", "sse-retry"])
def test_the_conformance_suite_is_content(node: Path, scenario: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *(node / ".bin" / "node", node / ".bin" / "conformance", "client"),
            *("--command", " ".join(CLIENT), "--scenario", scenario, "--timeout", "60000"),
        ],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "OVERALL: PASSED" in ran.stdout + ran.stderr


@pytest.mark.parametrize(("transport", "path"), [("streamableHttp", "/mcp"), ("sse", "/sse")])
def test_a_server_with_every_feature(node: Path, launch: Launch, transport: str, path: str) -> None:
    script = node / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    port = free_port()
    process = launch(
        f"everything-{transport}",
        lambda _: [str(node / ".bin" / "node"), str(script), transport],
        "/no-such-path",
        ready_status=404,
        port=port,
        environment={"PORT": str(port)},
    )
    tools = ["echo", "get-sum", "get-tiny-image", "get-structured-content", "get-resource-links"]
    ran = subprocess.run(
        [*CLIENT, f"{process.url}{path}", *tools],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said: dict[str, Any] = {
        line["tool"]: line["text"] for line in map(json.loads, ran.stdout.splitlines())
    }
    assert sorted(said) == sorted(tools)
    assert said["echo"] == "Echo: x"
    assert "4" in said["get-sum"]
    assert "[image: image/png" in said["get-tiny-image"]
    assert json.loads(said["get-structured-content"])
    assert "[resource: demo://" in said["get-resource-links"]
