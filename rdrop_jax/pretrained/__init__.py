"""Weights of other libraries, in and out: names, transposes and one merge."""
