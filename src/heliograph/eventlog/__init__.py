"""The event log as a port: ordered, durable streams by shard, on PostgreSQL or Kafka."""
