"""Tests of one chat completion."""
