"""Open WebUI, the real one, and a browser to look at its page with.

It is installed without what it needs only for documents, speech and large databases, gigabytes of
machine learning among it: such modules are imported when they are first used.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .environments import Environment, SlimEnvironment
from .processes import UNWANTED, Process

OPEN_WEBUI = SlimEnvironment(
    "open-webui",
    ("open-webui==0.12.4",),
    left_out=(
        *("accelerate", "azure-ai-documentintelligence", "docx2txt", "einops", "faster-whisper"),
        *("googleapis-common-protos", "opencv-python-headless", "opensearch-py", "psycopg"),
        *("pyarrow", "pymysql", "pypandoc", "rapidocr", "sentence-transformers", "sentencepiece"),
        *("soundfile", "transformers"),
    ),
)

# The driver alone: the browser is the machine's own.
PLAYWRIGHT = Environment("playwright", ("playwright==1.65.2",))

# What the proxy is told by the headers of Open WebUI's connection.
HEADERS = {
    "X-OpenWebUI-Task": "{{TASK}}",
    "X-OpenWebUI-Chat-Id": "{{CHAT_ID}}",
    "X-OpenWebUI-Message-Id": "{{MESSAGE_ID}}",
}


class ChromiumMissing(Exception):
    """No Chromium was found: install the package chromium, or name one in LLAMAPROXY_CHROMIUM."""


def find_chromium() -> str:
    named = os.environ.get("LLAMAPROXY_CHROMIUM")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome"]:
        if found := shutil.which(name):
            return found
    raise ChromiumMissing(ChromiumMissing.__doc__)


def serve(port: int) -> list[str]:
    """Install Open WebUI if need be, and tell how to start it."""
    program = OPEN_WEBUI.python().with_name("open-webui")
    return [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)]


def settings(
    port: int, store: Path, base_url: str, capabilities: Mapping[str, bool]
) -> dict[str, str]:
    """The environment of an Open WebUI without login, which talks to one server and no other.

    :param capabilities: of every model, as an administrator would set them.
    """
    return {
        "OPENAI_API_BASE_URL": base_url,
        "OPENAI_API_KEY": "none",
        "OPENAI_API_CONFIGS": json.dumps({"0": {"enable": True, "headers": HEADERS}}),
        "DEFAULT_MODEL_METADATA": json.dumps({"capabilities": capabilities}),
        "ENABLE_OPENAI_API": "true",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_PERSISTENT_CONFIG": "false",
        "DATA_DIR": str(store),
        "WEBUI_SECRET_KEY": "secret",
        "WEBUI_AUTH": "False",
        "CORS_ALLOW_ORIGIN": f"http://127.0.0.1:{port}",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
        "RAG_EMBEDDING_ENGINE": "openai",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "SCARF_NO_ANALYTICS": "true",
        "DO_NOT_TRACK": "true",
        "ANONYMIZED_TELEMETRY": "false",
    }


class PageError(Exception):
    """The page did not do, or show, what it should have."""


class Page:
    """The page of an Open WebUI in a browser; its methods are those of ``Chat`` in ``page.py``."""

    def __init__(self, process: Process, chromium: str) -> None:
        self.process = process
        script = str(Path(__file__).with_name("page.py"))
        self._popen = subprocess.Popen(
            [str(PLAYWRIGHT.python()), script, process.url, chromium],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if not UNWANTED.fullmatch(k)},
            start_new_session=True,  # so that the browser can be ended with it
            text=True,
        )

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*arguments: Any) -> Any:
            assert self._popen.stdin is not None and self._popen.stdout is not None
            print(json.dumps([method, *arguments]), file=self._popen.stdin, flush=True)
            reply = json.loads(self._popen.stdout.readline() or '{"error": "the browser died"}')
            if "error" in reply:
                raise PageError(f"{method}: {reply['error']}")
            return reply["ok"]

        return call

    def close(self) -> None:
        try:
            self._popen.communicate(timeout=10)  # the end of its input is the end of it
        except subprocess.TimeoutExpired:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.communicate()
