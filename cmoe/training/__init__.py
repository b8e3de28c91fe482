"""The stream on a worker group: DeepSpeed's phases, the worker program, its launch on Ray Train."""
