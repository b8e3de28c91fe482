"""The log of task primitives, and a model at any prefix of it."""
