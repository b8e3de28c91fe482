"""The embedded default: drawn tasks, and a small base that has seen their like."""
