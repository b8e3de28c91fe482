"""Methods beside CMoE: its rivals, where everyone begins, and bounds."""
