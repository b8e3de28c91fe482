"""A small base with a real language model: SmolLM2-135M-Instruct behind the mini base's eyes."""
