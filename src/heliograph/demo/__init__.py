"""The demo: a sample namespace, eight client processes, and every receipt they send, with its milliseconds."""
