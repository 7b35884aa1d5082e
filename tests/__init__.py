"""Tests, arranged as the modules are."""
