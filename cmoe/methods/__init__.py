"""What is trained for one task: the method of the project; in `baselines` what it is compared with."""
