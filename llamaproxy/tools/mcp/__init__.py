"""The client of MCP servers: of those that the upstream names, and of ``--mcp-server``."""
