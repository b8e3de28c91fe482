"""A run as one tree of frozen dataclasses: YAML, flags, help, checks."""
