"""What is trained for one task: the method of the project, and its rivals."""
