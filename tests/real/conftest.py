"""Real programs for the tests of this folder. Each is started once, when a test first asks for it.

The servers need Python 3.12 (see ``environments.py``), and Open WebUI's page needs Chromium. Where
there is none, the tests are skipped and say so; in CI, they fail instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from openai import OpenAI

from . import openwebui
from .buildah import EngineMissing, check_engine
from .environments import PythonMissing, find_python
from .openwebui import ChromiumMissing, Page, find_chromium
from .processes import Command, Process, free_port
from .programs import McpServer, Proxy, ScriptedModel, Server
from .servers import (
    FURTHER,
    GENERATIONS,
    LARGER,
    MCP_SERVER,
    SMALL_MODEL,
    STATELESS_MCP_SERVER,
    Settings,
)

HERE = Path(__file__).parent

Launch = Callable[..., Process]
StartServer = Callable[..., Server]
StartProxy = Callable[..., Proxy]
StartOpenWebUI = Callable[..., Process]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, Any, Any]:
    """When a test fails, show what its programs had to say."""
    report = yield
    if report.failed:
        for process in dict.fromkeys(_programs_of(item)):
            report.sections.append((f"end of the log of {process.name}", process.tail()))
    return report


def _programs_of(item: pytest.Function) -> Iterator[Process]:
    for fixture in item.funcargs.values():
        if isinstance(fixture, Proxy | Server | ScriptedModel | McpServer | Page):
            yield fixture.process
        if isinstance(fixture, Proxy):
            yield fixture.server.process


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Start a program, and see to its end."""
    logs = tmp_path_factory.mktemp("logs")
    running: list[Process] = []

    def start(name: str, command: Command, ready: str, **options: Any) -> Process:
        process = Process(name, command, ready, logs / f"{len(running)}-{name}.log", **options)
        process.start()
        running.append(process)
        return process

    yield start
    for process in reversed(running):
        process.stop()


@pytest.fixture(scope="session")
def python312() -> str:
    """Anything made with an ``Environment`` asks for this first."""
    try:
        return find_python()
    except PythonMissing as missing:
        _do_without("REAL SERVERS ARE NOT TESTED", missing)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    try:
        return find_chromium()
    except ChromiumMissing as missing:
        _do_without("THE PAGE OF OPEN WEBUI IS NOT TESTED", missing)


@pytest.fixture(scope="session")
def engine() -> None:
    """What builds and starts an image."""
    try:
        check_engine()
    except EngineMissing as missing:
        _do_without("THE IMAGE IS NOT TESTED", missing)


def _do_without(consequence: str, missing: Exception) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(str(missing))
    pytest.skip(f"{consequence}: {missing}")


@pytest.fixture(scope="session")
def scripted_model(launch: Launch) -> ScriptedModel:
    script = str(HERE / "scripted_model.py")
    return ScriptedModel(
        launch("scripted-model", lambda port: [sys.executable, script, str(port)], "/health")
    )


def _start_mcp_server(launch: Launch, transport: str, **environment: str) -> Process:
    argv = [str(MCP_SERVER.python()), str(HERE / "mcp_tools.py"), transport]
    return launch(
        f"mcp-{transport}", lambda port: [*argv, str(port)], "/_calls", environment=environment
    )


@pytest.fixture(scope="session")
def mcp_server(launch: Launch, python312: str) -> McpServer:
    return McpServer(_start_mcp_server(launch, "streamable-http"), "/mcp")


@pytest.fixture
def restartable_mcp_server(launch: Launch, python312: str) -> McpServer:
    """One that no other test uses."""
    return McpServer(_start_mcp_server(launch, "streamable-http"), "/mcp")


@pytest.fixture(scope="session")
def stateless_mcp_server(launch: Launch, python312: str) -> Process:
    """One that knows no handshake; it offers ``add``."""
    argv = [str(STATELESS_MCP_SERVER.python()), str(HERE / "mcp_stateless.py")]
    return launch(
        "mcp-stateless", lambda port: [*argv, str(port)], "/no-such-path", ready_status=404
    )


@pytest.fixture(scope="session")
def mcp_sse_server(launch: Launch, python312: str) -> McpServer:
    return McpServer(_start_mcp_server(launch, "sse"), "/sse")


@pytest.fixture(scope="session")
def locked_mcp_server(launch: Launch, python312: str) -> McpServer:
    """One that demands ``Authorization: Bearer sesame``; its tools are named ``locked_...``."""
    environment = {"MCP_TOKEN": "sesame", "MCP_PREFIX": "locked_"}
    return McpServer(_start_mcp_server(launch, "streamable-http", **environment), "/mcp")


@pytest.fixture(scope="session")
def small_model(launch: Launch, python312: str) -> Process:
    argv = [str(SMALL_MODEL.python()), str(HERE / "small_model.py")]
    return launch("small-model", lambda port: [*argv, str(port)], "/health")


@pytest.fixture(scope="session")
def start_server(
    request: pytest.FixtureRequest,
    launch: Launch,
    python312: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> StartServer:
    """Start a server of a version in ``GENERATIONS``.

    By default it has the scripted model, and the MCP server that it can talk to as ``main``. The
    same arguments give the same server.
    """
    started: dict[Any, Server] = {}

    def start(
        version: str,
        *,
        mcp_servers: Mapping[str, str] | None = None,
        model_url: str | None = None,
        models: Sequence[str] = ("scripted-1", "embed-1"),
        port: int | None = None,
    ) -> Server:
        generation = {**GENERATIONS, **FURTHER, **LARGER}[version]
        if mcp_servers is None:
            fixture = "mcp_server" if generation.speaks_streamable_http else "mcp_sse_server"
            mcp_servers = {"main": request.getfixturevalue(fixture).url}
        if model_url is None:
            model_url = request.getfixturevalue("scripted_model").url
        key = (version, *mcp_servers.items(), model_url, *models, port)
        if key not in started:
            name = f"server-{version}"
            settings = Settings(
                port=port or free_port(),
                store=tmp_path_factory.mktemp(name),
                model_url=model_url,
                models=models,
                mcp_servers=mcp_servers,
            )
            argv = generation.argv(settings)
            process = launch(name, lambda _: argv, "/v1/health", port=settings.port)
            _make_tables(process)
            prefix = "vllm/" if generation.prefixes_models else ""
            started[key] = Server(process, version, prefix + models[0])
        return started[key]

    return start


def _make_tables(server: Process) -> None:
    """Have a server make the tables of its completions.

    From 0.6 to 0.8 that is done by the first request that needs them, and a completion that comes
    meanwhile, as the second round of a tool loop does, fails to be stored with "no such table",
    after its answer; the server then does nothing else for some seconds, for it prints that error.
    """
    with contextlib.suppress(HTTPError):  # older servers do not list completions
        urlopen(server.url + "/v1/chat/completions", timeout=30.0).close()


@pytest.fixture(scope="session")
def llama_stack(start_server: StartServer) -> Server:
    """The newest Llama Stack that runs tools itself, with the scripted model."""
    return start_server("0.6.1")


@pytest.fixture(scope="session")
def small_stack(start_server: StartServer, small_model: Process) -> Server:
    """The same, with the small model."""
    return start_server("0.6.1", model_url=small_model.url + "/v1", models=("smollm2",))


@pytest.fixture(scope="session")
def llamaproxy(launch: Launch) -> Iterator[StartProxy]:
    """Start a proxy for a server, with further options. The same arguments give the same proxy."""
    package = importlib.util.find_spec("llamaproxy")
    assert package is not None and package.origin is not None, "llamaproxy cannot be imported"
    twistd = str(Path(sysconfig.get_path("scripts"), "twistd"))
    # twistd does not look for plugins in the working directory.
    environment = {"PYTHONPATH": str(Path(package.origin).parent.parent)}
    started: dict[Any, Proxy] = {}

    def start(server: Server, *options: str) -> Proxy:
        key = (server.url, *options)
        if key not in started:

            def command(port: int) -> list[str]:
                listen = f"tcp:{port}:interface=127.0.0.1"
                return [
                    *(twistd, "-n", "--pidfile=", "llamaproxy"),
                    *(
                        "--admin",
                        "off",
                        "--listen",
                        listen,
                        "--llamastack-url",
                        server.url,
                        *options,
                    ),
                ]

            process = launch("llamaproxy", command, "/health", environment=environment)
            # It does not retry, so that a failure is seen.
            client = OpenAI(
                base_url=process.url + "/v1", api_key="none", max_retries=0, timeout=60.0
            )
            started[key] = Proxy(process, server, client)
        return started[key]

    yield start
    for proxy in started.values():
        proxy.client.close()


@pytest.fixture(scope="session")
def proxy(llamaproxy: StartProxy, llama_stack: Server) -> Proxy:
    """A proxy as anyone would run it, in front of ``llama_stack``."""
    return llamaproxy(llama_stack)


@pytest.fixture(scope="session")
def start_open_webui(
    launch: Launch, python312: str, tmp_path_factory: pytest.TempPathFactory
) -> StartOpenWebUI:
    """Start an Open WebUI on a proxy, its models having these capabilities."""

    def start(proxy: Proxy, capabilities: Mapping[str, bool], **environment: str) -> Process:
        port, store = free_port(), tmp_path_factory.mktemp("open-webui")
        settings = openwebui.settings(port, store, proxy.process.url + "/v1", capabilities)
        return launch(
            "open-webui",
            openwebui.serve,
            "/health",
            port=port,
            environment={**settings, **environment},
        )

    return start


@pytest.fixture(scope="session")
def artifacts(pytestconfig: pytest.Config) -> Path:
    """A folder for what a person may want to see afterwards; git ignores it."""
    folder = pytestconfig.rootpath / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder
