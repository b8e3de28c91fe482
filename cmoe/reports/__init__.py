"""Pages and charts, made from JSON alone."""
