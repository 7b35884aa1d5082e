"""llamaproxy: the tools of a Llama Stack server for every OpenAI client."""

__version__ = "0.2.0"
