"""Executors: what answers a located request."""
