"""Tests against real servers: Llama Stack, an MCP server, a language model, all on this machine."""
