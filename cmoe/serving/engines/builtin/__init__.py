"""The builtin executor: continuous batching on CPUs and GPUs, the same bits for every batch."""
