"""The ledger: who has which version, since when, and how long it took. Receipts, propagation, instances, drift."""
