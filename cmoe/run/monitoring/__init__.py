"""What a run tells machines of itself: Prometheus, collectors of logs, `cmoe status`."""
