"""Helpers for tests: tiny checkpoints in the published layout."""
