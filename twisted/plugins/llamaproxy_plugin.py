"""Makes ``twistd llamaproxy`` known; nothing of llamaproxy is imported until it is asked for."""

from twisted.application.service import ServiceMaker

llamaproxy = ServiceMaker(
    "llamaproxy",
    "llamaproxy.start",
    "Gives any OpenAI client the tools of a Llama Stack server.",
    "llamaproxy",
)
