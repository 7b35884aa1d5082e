"""MCP, spoken by ourselves: where the upstream runs no tools, or for servers named by hand."""
