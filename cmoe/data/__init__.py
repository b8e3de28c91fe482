"""CoIN's data: its schema, its files, and the generated mini CoIN."""
