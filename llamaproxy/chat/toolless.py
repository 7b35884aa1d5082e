"""ToollessModels: the models that their server does not take tools for (DESIGN: L22)."""

from __future__ import annotations

import re
from collections import OrderedDict

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.errors import UpstreamRefused

_log = Logger()

#: Seconds for which a model is not offered tools again, and the most models.
_SECONDS, _MAX_MODELS = 300.0, 256

#: What servers say when a model, or the server itself as it was started, takes no tools. Seen:
#: "NAME does not support tools" (Ollama), '"auto" tool choice requires --enable-auto-tool-choice
#: and --tool-call-parser to be set' (vLLM), "tools param requires --jinja flag" (llama.cpp until
#: 2025), "tools is not supported in this model" (OpenAI), "No endpoints found that support tool
#: use" (OpenRouter), "Function calling is not enabled for this model" (Gemini, Mistral),
#: "This model doesn't support tool use" (Bedrock).
_TOOLS = re.compile(r"\btools?\b|function[ _-]call", re.IGNORECASE)
_TAKES_NONE = re.compile(
    r"(?:not|n't) (?:currently |yet |fully )*(?:support|enabled|available|allowed)"
    r"|unsupported param|no endpoints found that support"
    r"|requires --(?:jinja|enable-auto-tool-choice|tool-call-parser)",
    re.IGNORECASE,
)

#: Statuses with which they say it.
_STATUSES = (400, 404, 422, 500, 501)

#: Why the record of a chat says that no tools were offered.
REASON = "its server takes no tools for this model"


def takes_no_tools(error: UpstreamRefused) -> bool:
    """Whether *error* says that the model, or its server, takes no tools at all."""
    text = str(error)
    return (
        error.status in _STATUSES
        and _TOOLS.search(text) is not None
        and _TAKES_NONE.search(text) is not None
    )


@attrs.frozen(eq=False, repr=False)
class ToollessModels:
    """Remembers for a while which models are not to be offered tools."""

    _clock: IReactorTime
    _until: OrderedDict[str, float] = attrs.Factory(OrderedDict)

    def __contains__(self, model: str) -> bool:
        return self._until.get(model, 0.0) > self._clock.seconds()

    def add(self, model: str) -> None:
        """Remember *model*, and tell the operator."""
        self._until[model] = self._clock.seconds() + _SECONDS
        self._until.move_to_end(model)
        if len(self._until) > _MAX_MODELS:
            self._until.popitem(last=False)
        _log.warn(
            "the server takes no tools for the model {model}, which is offered none for "
            "{seconds:.0f} s",
            model=model,
            seconds=_SECONDS,
        )
