"""What an operator sees: structured logs, metrics, health, trace context."""
