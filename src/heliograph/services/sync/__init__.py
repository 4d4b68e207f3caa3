"""Sync: keeps every environment's content in memory, pushes it to clients, takes their receipts. Owns nothing durable."""
