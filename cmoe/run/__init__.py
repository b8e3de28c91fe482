"""A stream of tasks on Ray Train: launch, worker, stream, resume, display."""
