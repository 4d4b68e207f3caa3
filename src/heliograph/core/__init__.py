"""The pure heart: names, digests, tries, proofs, versions, heads, deltas, frames. No I/O, no clock, no randomness."""
