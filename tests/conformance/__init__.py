"""Raw-socket cases for a reverse proxy, put side by side to nginx, HAProxy and llamaproxy.

``python -m tests.conformance`` runs every case against all three and prints where they differ.
"""
