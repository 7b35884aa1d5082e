"""One chat completion."""
