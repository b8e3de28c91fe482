"""The command line: one module for each job, and one place that starts them and tells errors."""
