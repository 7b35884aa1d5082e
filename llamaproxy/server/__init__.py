"""The HTTP server that clients meet: ports, connections, requests and their limits."""
