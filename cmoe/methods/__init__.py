"""What is trained for one task: the method of the project, and what it is compared with."""
