"""Compare R-Drop with plain training: equal budgets, fresh test seeds, intervals."""

from rdrop_jax.compare.program import compare, main, read_options

__all__ = ["compare", "main", "read_options"]
