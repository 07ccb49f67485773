"""Compare R-Drop with plain training: equal budgets, fresh test seeds, intervals."""
