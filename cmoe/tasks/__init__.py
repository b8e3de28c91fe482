"""What a task is and how it is judged."""
