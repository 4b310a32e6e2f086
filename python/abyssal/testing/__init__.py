"""Helpers for tests: inputs that hit corners, and comparisons that say what differs."""
