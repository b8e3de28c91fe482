"""Executors: what answers a prompt with a store's tasks."""
