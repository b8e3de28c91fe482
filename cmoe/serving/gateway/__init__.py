"""HTTP outside: OpenAI's protocol, limits, keys, images."""
