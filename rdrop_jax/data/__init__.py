"""Datasets and host batches. Batch t is a pure function of (seed, t)."""
