"""Many runs: comparisons, sweeps, plans, benches."""
