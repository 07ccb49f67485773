"""Data code that several tasks share. Batch t is a pure function of (seed, t)."""
