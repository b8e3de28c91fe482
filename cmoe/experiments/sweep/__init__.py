"""Sweeps: how much to grow for each task, searched by Ray Tune."""
