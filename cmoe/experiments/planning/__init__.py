"""What a run will need, from its configuration alone: no weights are loaded, nothing is started."""
