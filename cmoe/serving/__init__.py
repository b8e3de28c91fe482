"""Serving a store on Ray Serve: a locator in front, executors behind, OpenAI's protocol outside."""
