"""The server's tools: their sources, their names, and how they are run."""
