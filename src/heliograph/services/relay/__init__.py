"""Relay: copies the event table to Kafka, partition = shard, in order and without a gap."""
