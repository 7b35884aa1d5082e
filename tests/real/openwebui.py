"""Open WebUI, the real one, and Chromium to look at its page with.

It is installed without what it needs only for documents, speech and its larger databases, a
gigabyte of machine learning among it: such modules are imported when they are first used.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from .environments import Environment, SlimEnvironment
from .processes import UNWANTED, Process

OPEN_WEBUI = SlimEnvironment(
    "open-webui",
    ("open-webui==0.12.4",),
    left_out=(
        *("accelerate", "azure-ai-documentintelligence", "docx2txt", "einops", "faster-whisper"),
        *("googleapis-common-protos", "opencv-python-headless", "opensearch-py", "psycopg"),
        *("pyarrow", "pymysql", "pypandoc", "rapidocr-onnxruntime", "rapidocr"),
        *("sentence-transformers", "sentencepiece", "soundfile", "transformers"),
    ),
)

# The driver alone: the browser is the machine's own.
PLAYWRIGHT = Environment("playwright", ("playwright==1.65.2",))

# With these headers of the connection, the proxy knows Open WebUI, and its background tasks.
HEADERS = {
    "X-OpenWebUI-Task": "{{TASK}}",
    "X-OpenWebUI-Chat-Id": "{{CHAT_ID}}",
    "X-OpenWebUI-Message-Id": "{{MESSAGE_ID}}",
}

# A page that is slower than this is broken.
PATIENCE = 90.0


class ChromiumMissing(Exception):
    """No Chromium was found: install Debian's chromium, or name one in LLAMAPROXY_CHROMIUM."""


def find_chromium() -> str:
    named = os.environ.get("LLAMAPROXY_CHROMIUM")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome"]:
        if found := shutil.which(name):
            return found
    raise ChromiumMissing(ChromiumMissing.__doc__)


def environment(
    port: int, store: Path, base_url: str, capabilities: Mapping[str, bool], **more: str
) -> dict[str, str]:
    """Settings of an Open WebUI without a login, which knows one server and stays off the net.

    :param capabilities: of every model, as its administrators set them.
    """
    connection = {"enable": True, "headers": HEADERS}
    return {
        "DATA_DIR": str(store),
        "WEBUI_SECRET_KEY": "secret",
        "WEBUI_AUTH": "False",
        "CORS_ALLOW_ORIGIN": f"http://127.0.0.1:{port}",
        "ENABLE_PERSISTENT_CONFIG": "false",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "true",
        "OPENAI_API_BASE_URL": base_url,
        "OPENAI_API_KEY": "none",
        "OPENAI_API_CONFIGS": json.dumps({"0": connection}),
        "DEFAULT_MODEL_METADATA": json.dumps({"capabilities": capabilities}),
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
        "RAG_EMBEDDING_ENGINE": "openai",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "SCARF_NO_ANALYTICS": "true",
        "DO_NOT_TRACK": "true",
        "ANONYMIZED_TELEMETRY": "false",
        **more,
    }


def serve(port: int) -> list[str]:
    """The command that starts Open WebUI; it is installed now if need be."""
    program = OPEN_WEBUI.python().with_name("open-webui")
    return [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)]


class PageError(Exception):
    """The page did not do as it should have."""


class Page:
    """The page of one Open WebUI in a browser; its methods are those of ``Chat`` in ``page.py``."""

    def __init__(self, url: str, chromium: str, artifacts: Path) -> None:
        script = Path(__file__).with_name("page.py")
        environment = {k: v for k, v in os.environ.items() if not UNWANTED.fullmatch(k)}
        self._artifacts = artifacts
        self._popen = subprocess.Popen(
            [str(PLAYWRIGHT.python()), str(script), url, chromium],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            assert self._popen.stdin is not None and self._popen.stdout is not None
            print(json.dumps([method, *arguments]), file=self._popen.stdin, flush=True)
            reply = json.loads(self._popen.stdout.readline() or '{"error": "the driver died"}')
            if "error" in reply:
                raise PageError(reply["error"])
            return reply["ok"]

        return call
