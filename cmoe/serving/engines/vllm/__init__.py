"""vLLM as an executor: a store's experts inside an engine that pages, chunks and caches prompts."""
